"""Recurrent reasoning cores: HRM and TRM, baselines with the same interface, and those of other packages.

Another package adds a core with `register_core("ring", Ring)`, or with an entry point in the group `hrm_agent.cores`,
which is loaded when its name is first used.

    [project.entry-points."hrm_agent.cores"]
    ring = "my_project.cores:Ring"

Without either, `core=MODULE:CLASS`, where a user types it, imports the module (`import_core`). A file, of an agent or a
run, imports nothing.
"""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import EntryPoint
from typing import Any

from hrm_agent.cores.base import Core, State, map_state
from hrm_agent.cores.convlstm import ConvLSTM, ConvLSTMState
from hrm_agent.cores.drc import DRC
from hrm_agent.cores.feedforward import FeedForward, FeedForwardState
from hrm_agent.cores.gru import GRUCore, GRUState
from hrm_agent.cores.gtrxl import GTrXL, GTrXLState
from hrm_agent.cores.hrm import HRM, HRMState
from hrm_agent.cores.lstm import LSTM, LSTMState
from hrm_agent.cores.trm import TRM, TRMState
from hrm_agent.cores.vin import VIN, VINState
from hrm_agent.names.installed import import_typed
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.registry import Registry, UnknownName
from hrm_agent.names.values import checked, printable, types_of


class CoreRegistry(Registry[type[Core]]):
    """Names -> classes of cores; those of other packages are imported when they are asked for."""

    own = " One of your own: hrm_agent.cores.register_core(NAME, CLASS) before, or core=MODULE:CLASS."

    def add(self, name: str, value: type[Core]) -> None:
        """Raises: ValueError, see `register_core`."""
        if not name or not all(c.isalnum() or c in "_-." for c in name):
            raise ValueError(f"core name {name!r}: expected letters, digits, _, - and .")
        check_core(name, value)
        super().add(name, value)

    def __getitem__(self, name: str) -> type[Core]:
        """Raises: UnknownName; also for `MODULE:CLASS` of a module that is not imported, since files name cores."""
        module, colon, kind = name.partition(":")
        if colon and name not in self.registered:
            if module not in sys.modules:
                raise UnknownName(
                    f"core={printable(name)}: a file names the module {printable(module)}, and files import none; if "
                    f"you trust it, import it before, or give core={printable(name)}"
                )
            self.add_class(name, vars(sys.modules[module]).get(kind))
        return super().__getitem__(name)

    def add_class(self, name: str, value: Any) -> None:
        """A class under the name `MODULE:CLASS`. Raises: ValueError where it is no core; see `register_core`."""
        if value is None:
            raise ValueError(f"core={printable(name)}: the module has no class of that name")
        check_core(name, value)
        self.registered[name] = value

    def load(self, point: EntryPoint) -> None:
        """Raises: ValueError for a package that cannot be imported."""
        try:
            loaded = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"core={point.name}: its package fails to load {point.value} ({reason})") from error
        self.add(point.name, loaded)


def check_core(name: str, value: Any) -> None:
    """Raises: ValueError unless it is the class of a core, whose options configurations can hold."""
    if not (isinstance(value, type) and issubclass(value, Core)):
        raise ValueError(f"core {name}: {value!r} is no subclass of hrm_agent.cores.Core")
    without = [p.name for p in _options_of(value) if p.default is p.empty]
    if without:
        raise ValueError(f"core {name}: the options {', '.join(without)} need default values")
    for option in _options_of(value):
        if not _is_plain(option.default):
            raise ValueError(
                f"core {name}: the default of {option.name} is {option.default!r}; expected a number, a text, a "
                "bool, None or a list of these, which configurations and saved agents can hold"
            )


CORES = CoreRegistry(
    "core",
    "hrm_agent.cores",
    {
        "hrm": HRM,
        "trm": TRM,
        "gru": GRUCore,
        "lstm": LSTM,
        "convlstm": ConvLSTM,
        "drc": DRC,
        "gtrxl": GTrXL,
        "vin": VIN,
        "feedforward": FeedForward,
    },
)

__all__ = [
    "CORES",
    "DRC",
    "HRM",
    "LSTM",
    "TRM",
    "VIN",
    "ConvLSTM",
    "ConvLSTMState",
    "Core",
    "FeedForward",
    "FeedForwardState",
    "GRUCore",
    "GRUState",
    "GTrXL",
    "GTrXLState",
    "HRMState",
    "LSTMState",
    "State",
    "TRMState",
    "VINState",
    "build_core",
    "core_names",
    "core_options",
    "find_core",
    "import_core",
    "map_state",
    "name_of",
    "register_core",
]


def register_core(name: str, core: type[Core]) -> None:
    """Make a core known by a name, for configurations (`core=NAME`), `PolicyConfig` and saved agents.

    Args:
        name: letters, digits, `_`, `-` and `.`.
        core: its class; options are the keyword-only arguments of its constructor, each with a default that is a
            number, a text, a bool, None or a list of these. A file of settings, and a saved agent, hold them.

    Raises:
        ValueError: a name that is taken by another class or is none, or a class that is no core.
    """
    CORES.add(name, core)


def import_core(name: str) -> None:
    """Import the module of `MODULE:CLASS` where a user typed that; other names are left for `find_core`.

    Raises:
        ValueError: the module cannot be imported, or has no such core.
    """
    module, colon, _ = name.partition(":")
    if colon:
        import_typed(module, f"core={name}")
        find_core(name)


def core_names() -> list[str]:
    """Every name that `find_core` knows: ours, registered ones, and entry points of installed packages."""
    return list(CORES)


def find_core(name: str) -> type[Core]:
    """The class of a core.

    Raises:
        ValueError: an unknown name (the nearest is named), or a package's core that cannot be loaded.
    """
    return CORES[name]


def name_of(core: Core) -> str:
    """The name of a core's class; that of the class itself where it has none."""
    return next((name for name, kind in CORES.registered.items() if type(core) is kind), type(core).__name__)


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
    kinds = types_of(make)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"core={name} has no option {option!r}{did_you_mean(option, known) or '; it has none'}")
        options[option] = checked(f"core.{option}", value, kinds[option])
    return make(hidden_size, length, grid, **options)
