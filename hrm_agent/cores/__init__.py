"""Recurrent reasoning cores: HRM and TRM, and baselines with the same interface."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from hrm_agent.cores.base import Core, State, check_choice, map_state
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
    "map_state",
]


def build_core(
    name: str, *, hidden_size: int, length: int, grid: tuple[int, int] | None = None, **options: Any
) -> Core:
    """Build a core by its name.

    Args:
        name: one of `CORES`.
        hidden_size, length, grid: see `Core`.
        options: the further keyword arguments of that core's class.

    Raises:
        ValueError: an unknown name or option (the nearest is named), or a value out of range.
    """
    make = CORES[check_choice("core", name, list(CORES))]
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            raise ValueError(
                f"core={name} has no option {option!r}; did you mean {near[0]!r}? It has: {', '.join(known)}"
            )
    return make(hidden_size, length, grid, **options)
