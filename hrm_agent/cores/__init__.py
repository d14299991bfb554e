"""Recurrent reasoning cores: HRM and TRM, baselines with the same interface, and those of other packages.

Another package adds a core with `register_core("ring", Ring)`, or with an entry point in the group `hrm_agent.cores`,
which is loaded when its name is first used.

    [project.entry-points."hrm_agent.cores"]
    ring = "my_project.cores:Ring"
"""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import entry_points
from typing import Any

from hrm_agent.cores.base import Core, State, map_state
from hrm_agent.cores.convlstm import ConvLSTM, ConvLSTMState
from hrm_agent.cores.feedforward import FeedForward, FeedForwardState
from hrm_agent.cores.gru import GRUCore, GRUState
from hrm_agent.cores.hrm import HRM, HRMState
from hrm_agent.cores.trm import TRM, TRMState

CORES: dict[str, type[Core]] = {
    "hrm": HRM,
    "trm": TRM,
    "gru": GRUCore,
    "convlstm": ConvLSTM,
    "feedforward": FeedForward,
}

__all__ = [
    "CORES",
    "HRM",
    "TRM",
    "ConvLSTM",
    "ConvLSTMState",
    "Core",
    "FeedForward",
    "FeedForwardState",
    "GRUCore",
    "GRUState",
    "HRMState",
    "State",
    "TRMState",
    "build_core",
    "core_names",
    "core_options",
    "find_core",
    "map_state",
    "register_core",
]
ENTRY_POINTS = "hrm_agent.cores"


def register_core(name: str, core: type[Core]) -> None:
    """Register a core under a name, for configurations (`core=NAME`), `PolicyConfig` and saved agents.

    Args:
        name: letters, digits, `_`, `-` and `.`.
        core: its class; its options are the keyword-only arguments of its constructor, each with a default that is a
            number, a string, a bool, None or a list of these, so that configurations and saved agents can hold it.

    Raises:
        ValueError: the name is malformed or belongs to another class, or `core` is not a subclass of `Core`.
    """
    if not name or not all(c.isalnum() or c in "_-." for c in name):
        raise ValueError(f"core name {name!r}: expected letters, digits, _, - and .")
    if not (isinstance(core, type) and issubclass(core, Core)):
        raise ValueError(f"core {name}: {core!r} is no subclass of hrm_agent.cores.Core")
    without = [p.name for p in _options_of(core) if p.default is p.empty]
    if without:
        raise ValueError(f"core {name}: the options {', '.join(without)} need default values")
    for option in _options_of(core):
        if not _is_plain(option.default):
            raise ValueError(
                f"core {name}: the default of {option.name} is {option.default!r}; expected a number, a string, a "
                "bool, None or a list of these, which configurations and saved agents can hold"
            )
    if CORES.get(name, core) is not core:
        raise ValueError(f"core {name!r} is already registered as {CORES[name].__qualname__}; choose another name")
    CORES[name] = core


def core_names() -> list[str]:
    """Every name that `find_core` accepts: built-in cores, registered ones, and entry points of installed packages."""
    return [*CORES, *(e.name for e in entry_points(group=ENTRY_POINTS) if e.name not in CORES)]


def find_core(name: str) -> type[Core]:
    """The class of a core.

    Raises:
        ValueError: an unknown name (the nearest is named), or a package's core that cannot be loaded.
    """
    if name not in CORES:
        for entry in entry_points(group=ENTRY_POINTS):
            if entry.name == name:
                try:
                    loaded = entry.load()
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise ValueError(f"core={name}: its package fails to load {entry.value} ({reason})") from error
                register_core(name, loaded)
                break
        else:
            known = core_names()
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown core {name!r}; did you mean {near[0]!r}? Choose one of: {', '.join(known)}; another "
                "package's core must be installed or registered first (hrm_agent.cores.register_core)"
            )
    return CORES[name]


def core_options(name: str) -> dict[str, Any]:
    """The options of a core with their defaults.

    Raises:
        ValueError: see `find_core`.
    """
    return {p.name: p.default for p in _options_of(find_core(name))}


def _options_of(core: type[Core]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(core).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def build_core(
    name: str, *, hidden_size: int, length: int, grid: tuple[int, int] | None = None, **options: Any
) -> Core:
    """Build a core by its name.

    Args:
        name: one of `core_names()`.
        hidden_size, length, grid: see `Core`.
        options: the further keyword arguments of that core's class.

    Raises:
        ValueError: an unknown name or option (the nearest is named), or a value out of range.
    """
    make, known = find_core(name), list(core_options(name))
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? It has: {', '.join(known)}" if near else "it has none"
            raise ValueError(f"core={name} has no option {option!r}; {hint}")
    return make(hidden_size, length, grid, **options)
