"""Environments of other packages: which module registers an id, found by the id's prefix."""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import gymnasium as gym

from hrm_agent.names.installed import without_working_folder
from hrm_agent.names.values import printable


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


class StoredId(str):
    """An environment's id that was read from a file (`agent.json`, a run's `config.yaml`, a level set).

    It imports nothing that the file chooses: neither a `MODULE:` nor anything from the working folder. Only what
    `hrm_envs`, Gymnasium and the packages of `SOURCES` register, as they are installed, or what the program has
    imported or registered before, can be made from it. A plain `str` is an id that a user typed or a program passed.
    """


KNOWN_MODULES = {"hrm_envs", "gymnasium", *(source.module for source in SOURCES.values())}


def check_stored(env_id: str, how: str = "give env=") -> StoredId:
    """An id from a file, checked; nothing is imported.

    Args:
        how: in messages, what precedes the id where a user types it.

    Raises:
        ValueError: it names a module that is neither known nor imported already.
    """
    module = foreign_module(env_id)
    if module and module not in sys.modules:
        shown = printable(env_id)
        raise ValueError(
            f"env={shown}: a file names the module {printable(module)}, and files import none; if you trust it, "
            f"{how}{shown}"
        )
    return StoredId(env_id)


def foreign_module(env_id: str) -> str:
    """The module that `MODULE:ID` names; empty for none, or for one of the known packages."""
    module, _, _ = env_id.rpartition(":")
    return "" if module in KNOWN_MODULES else module


def confirm_stored(env_id: str, typed: str | None, key: str = "env") -> None:
    """Check the environment of a run that is resumed against the one that was typed with `resume=`.

    Args:
        env_id: from the run's folder.
        typed: the value of `KEY=ID`; None: not given.
        key: of the setting, for messages.

    Raises:
        ValueError: the two differ, or `env_id` names a module and is not typed.
    """
    if typed is None:
        check_stored(env_id, f"resume with {key}=")
    elif typed != env_id:
        raise ValueError(
            f"{key}={printable(typed)}: the run is one of {key}={printable(env_id)}; the environment cannot change in "
            "a run that is resumed"
        )


def search_for(env_id: str) -> AbstractContextManager[None]:
    """Where Python searches modules while an environment is made: for a stored id, not in the working folder."""
    return without_working_folder() if isinstance(env_id, StoredId) else nullcontext()


def wrap_by_source(env: gym.Env, env_id: str) -> gym.Env:
    """`env` in the wrapper that its source needs, if any."""
    source = find_source(env_id)
    if source is None or source.wrapper is None:
        return env
    module, _, function = source.wrapper.partition(":")
    return getattr(importlib.import_module(module), function)(env)
