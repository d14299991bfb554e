"""Environments that other packages register: which module an id needs, found by how the id begins."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass

import gymnasium as gym


@dataclass(frozen=True)
class Source:
    """Where the environments with one prefix come from.

    Args:
        module: its import registers them.
        extra: of this distribution, that installs it.
        wrapper: `module:function` that each single environment needs before any other wrapper; None: none.
    """

    module: str
    extra: str
    wrapper: str | None = None


_NETHACK_WRAPPER = "hrm_agent.wrappers.minihack:RepeatableNetHack"
SOURCES = {
    "BabyAI-": Source("minigrid", "minigrid"),
    "MiniGrid-": Source("minigrid", "minigrid"),
    "MiniHack-": Source("minihack", "minihack", _NETHACK_WRAPPER),
    "MiniHackPaper": Source("minihack", "minihack"),  # ours, played in MiniHack
    "NetHack": Source("nle", "minihack", _NETHACK_WRAPPER),
}


def find_source(env_id: str) -> Source | None:
    """The source of an id, None where the prefix says nothing. `MODULE:ID` says its module itself."""
    return next((source for prefix, source in SOURCES.items() if env_id.startswith(prefix)), None)


def import_source(env_id: str) -> None:
    """Import the package that registers `env_id`, where the id tells which.

    Raises:
        ValueError: it cannot be imported; the message names the extra that installs it.
    """
    source = find_source(env_id)
    if source is None:
        return
    try:
        with warnings.catch_warnings():
            # MiniHack 1.0 uses setuptools' pkg_resources, about which a user of ours can do nothing.
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            importlib.import_module(source.module)
    except ImportError as error:
        raise ValueError(
            f"env={env_id}: needs {source.module}, which cannot be imported ({error}); install the extra by "
            f"pip install 'hrm-agent[{source.extra}]'"
        ) from None


def wrap_by_source(env: gym.Env, env_id: str) -> gym.Env:
    """`env` in the wrapper that its source needs, or as it is."""
    source = find_source(env_id)
    if source is None or source.wrapper is None:
        return env
    module, _, function = source.wrapper.partition(":")
    return getattr(importlib.import_module(module), function)(env)
