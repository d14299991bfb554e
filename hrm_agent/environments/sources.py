"""Environments of other packages: which module registers an id, found by the id's prefix."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym


@dataclass(frozen=True)
class Source:
    """The source of the environments with one prefix.

    Args:
        module: its import registers them.
        extra: of this distribution, which installs it.
        wrapper: `module:function` that each single environment needs before any other wrapper; None: none.
    """

    module: str
    extra: str
    wrapper: str | None = None


_NETHACK_WRAPPER = "hrm_agent.environments.wrappers.minihack:RepeatableNetHack"
SOURCES = {
    "BabyAI-": Source("minigrid", "minigrid"),
    "MiniGrid-": Source("minigrid", "minigrid"),
    "MiniHack-": Source("minihack", "minihack", _NETHACK_WRAPPER),
    "MiniHackPaper": Source("minihack", "minihack"),  # ours, played in MiniHack
    "NetHack": Source("nle", "minihack", _NETHACK_WRAPPER),
}


def find_source(env_id: str) -> Source | None:
    """The source of an id, None for an unknown prefix. `MODULE:ID` names its module itself."""
    return next((source for prefix, source in SOURCES.items() if env_id.startswith(prefix)), None)


def import_source(env_id: str) -> None:
    """Import the package that registers `env_id`, where it is known from the id.

    Raises:
        ValueError: it cannot be imported; the message names the extra that installs it.
    """
    source = find_source(env_id)
    if source is None:
        return
    try:
        with warnings.catch_warnings():
            # MiniHack 1.0 uses setuptools' pkg_resources; users cannot avoid its warning.
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            importlib.import_module(source.module)
    except ImportError as error:
        raise ValueError(
            f"env={env_id}: needs {source.module}, which cannot be imported ({error}); install the extra by "
            f"pip install 'hrm-agent[{source.extra}]'"
        ) from None


def refuse_own_module(env_id: str, folder: Path | None) -> None:
    """Refuse a module that an agent's or a run's folder both names and contains.

    `python -m` searches the working folder first: next to a downloaded agent, `MODULE:ID` would run whatever is there.

    Args:
        env_id: from the folder's files.
        folder: the folder; None for none.

    Raises:
        ValueError: the module would come from within the folder.
    """
    module, _, _ = env_id.rpartition(":")
    if not module or folder is None or module in sys.modules:
        return
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)  # of a top-level module: nothing is run
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    for place in places:
        if place is not None and Path(place).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"env={env_id}: {folder} names the module {top} and brings it along ({place}); loading runs no code "
                f"from a folder: if you trust it, say env={env_id} yourself"
            )


def wrap_by_source(env: gym.Env, env_id: str) -> gym.Env:
    """`env` in the wrapper that its source needs, if any."""
    source = find_source(env_id)
    if source is None or source.wrapper is None:
        return env
    module, _, function = source.wrapper.partition(":")
    return getattr(importlib.import_module(module), function)(env)
