"""Timing by turns: whatever else the machine does then slows everything that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Turn(NamedTuple):
    """Calls that were made, and the seconds that they took by the clock and of processor time."""

    calls: int
    wall: float
    cpu: float


def turn(function: Callable[[], Any], seconds: float, clock: str = "wall") -> Turn:
    """Call a function, once at least, until the seconds are over by the `clock`, wall or cpu."""
    began, worked, calls = time.perf_counter(), time.process_time(), 0
    while True:
        function()
        calls += 1
        spent = Turn(calls, time.perf_counter() - began, time.process_time() - worked)
        if getattr(spent, clock) >= seconds:
            return spent


def by_turns(measured: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure A B C ... A B C ...: the results of each, a round at a time."""
    found: dict[str, list[T]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            found[name].append(measure())
    return found


def ratios(some: list[float], others: list[float], digits: int = 2) -> list[float]:
    """Of the two in the same round."""
    return [round(a / b, digits) for a, b in zip(some, others, strict=True)]


def median_seconds(function: Callable[[], object], times: int = 30) -> float:
    """Median seconds of one call by the clock, after one that does not count."""
    function()
    return statistics.median(turn(function, 0.0).wall for _ in range(times))
