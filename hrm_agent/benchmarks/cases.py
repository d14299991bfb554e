"""A benchmark case, its competitors, and the comparison of their outputs and times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from hrm_agent.benchmarks.paths import DOUBLE, PLAIN_BF16, NoPath
from hrm_agent.recurrence.agreement import Outputs, error_between, precision_of, tolerance
from hrm_agent.recurrence.kernel_timing import Choice

REFERENCE = {"float32": DOUBLE, "bfloat16": PLAIN_BF16}
"""The path whose distance from the plain one measures rounding in a precision."""
CHECKED_ROWS = 4
"""Rows of the batches that are compared, unless a suite says otherwise."""
EXACT = "exact/"
"""Prefix of outputs that rounding to bfloat16 changes beyond comparison: they are compared in float32 alone."""


@dataclass(frozen=True)
class Competitor:
    """One implementation of a case's work.

    Attributes:
        run: does the work once; it is timed.
        outputs: the same function on a small, fresh, valid input drawn from a seed: tensors by name, to be compared.
        threads: number of torch threads while it runs.
    """

    run: Callable[[], Any]
    outputs: Callable[[int], Outputs]
    threads: int = 1


@dataclass(frozen=True)
class Options:
    """Attributes:
    paths: that are compared; the first is the baseline of the ratios.
    cores: threads that a batch is split over.
    quick: small batches, for a glance.
    """

    paths: Sequence[str]
    cores: int
    quick: bool = False


@dataclass(frozen=True)
class Case:
    """Work that several paths are compared on.

    Attributes:
        suite, name: of the case.
        make: builds a path's competitor; also that of `double`, where `tolerance` is None.
        paths: the first is the baseline of the ratios.
        operations: of one `run`, two for a multiply-add; 0 where they are not counted.
        count, unit: how many of what one `run` processes.
        tolerance: on the error of every path; None: measured, see `rounding_tolerance`.
        cores: that a run uses, for the share of the peak.
        auto: what `kernel=auto` measured and chose, in suites that report it.
    """

    suite: str
    name: str
    make: Callable[[str], Competitor]
    paths: Sequence[str]
    operations: float
    count: int
    unit: str
    tolerance: float | None = None
    cores: int = 1
    auto: Choice | None = None


def measure(
    case: Case,
    *,
    rounds: int,
    seconds: float,
    seed: int,
    peaks: dict[str, dict[str, float]],
    now: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Check and time a case: one record for each path that supports it, the baseline's first.

    A path whose outputs differ is not timed: its times and ratios are None, `passed` is false.

    Args:
        case: see `Case`.
        rounds: number of rounds; every path has one turn in each.
        seconds: minimal duration of a turn.
        seed: of the input on which outputs are compared.
        peaks: what `hrm_agent.benchmarks.peaks.matrix_peaks` gives; empty: no shares of them.
        now: the clock, in seconds.
    """
    competitors: dict[str, Competitor] = {}
    for path in case.paths:
        with suppress(NoPath):
            competitors[path] = case.make(path)
    baseline, *others = competitors
    expected = _outputs(competitors[baseline], seed)
    checks = {path: _check(case, path, competitors[path], expected, seed) for path in others}
    # The speed of a wrong path does not matter, and an update with non-finite numbers would raise.
    right = [path for path in competitors if path not in checks or checks[path][0] <= checks[path][1]]
    repeats = {path: _repeats(competitors[path], seconds, now) for path in right}
    times: dict[str, list[float]] = {path: [] for path in competitors}
    for _ in range(rounds):
        for path in right:
            times[path].append(_timed(competitors[path], repeats[path], now))
    return [_record(case, path, times, checks.get(path), competitors[path].threads, peaks) for path in competitors]


def _check(case: Case, path: str, competitor: Competitor, expected: Outputs, seed: int) -> tuple[float, float]:
    """A path's error and its tolerance."""
    precision = precision_of(path)
    expected = _comparable(expected, precision)
    error = error_between(_comparable(_outputs(competitor, seed), precision), expected)
    if case.tolerance is not None:
        return error, case.tolerance
    return error, rounding_tolerance(case, precision, expected, seed)


def rounding_tolerance(case: Case, precision: str, expected: Outputs, seed: int) -> float:
    """The largest error of a path of a precision that rounding explains on this input.

    Recursion amplifies rounding, by how much depends on depth and weights; so it is measured on the plain path,
    computed in twice the precision (float32) or with its matrix products in bfloat16.
    """
    reference = _outputs(case.make(REFERENCE[precision]), seed)
    rounding = error_between(_comparable(reference, precision), expected)
    return tolerance(precision, rounding)


def _comparable(outputs: Outputs, precision: str) -> Outputs:
    return {n: t for n, t in outputs.items() if precision == "float32" or not n.startswith(EXACT)}


def _outputs(competitor: Competitor, seed: int) -> Outputs:
    torch.set_num_threads(competitor.threads)
    return {name: t.detach() for name, t in competitor.outputs(seed).items()}


def _timed(competitor: Competitor, repeats: int, now: Callable[[], float]) -> float:
    """Seconds of one `run`, the mean over `repeats`."""
    torch.set_num_threads(competitor.threads)
    began = now()
    for _ in range(repeats):
        competitor.run()
    return (now() - began) / repeats


def _repeats(competitor: Competitor, seconds: float, now: Callable[[], float]) -> int:
    """Number of runs that take `seconds` together; the first, which compiles and fills caches, does not count."""
    if _timed(competitor, 1, now) > seconds:
        return 1
    return max(1, round(seconds / max(_timed(competitor, 1, now), 1e-9)))


def _record(
    case: Case,
    path: str,
    times: dict[str, list[float]],
    check: tuple[float, float] | None,
    threads: int,
    peaks: dict[str, dict[str, float]],
) -> dict[str, Any]:
    baseline = case.paths[0]
    ratios = [b / t for b, t in zip(times[baseline], times[path], strict=False)]
    median = statistics.median(times[path]) if times[path] else None
    rate = case.operations / median / 1e9 if case.operations and median else None
    peak = peaks.get(precision_of(path), {}).get(str(case.cores))
    error, tolerance = check if check is not None else (None, None)
    return {
        "suite": case.suite,
        "name": case.name,
        "path": path,
        "precision": precision_of(path),
        "cores": case.cores,
        "torch_threads": threads,
        "seconds": median,
        "seconds_each_round": times[path],
        "per_second": case.count / median if median else None,
        "unit": case.unit,
        "against": baseline,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_least": min(ratios, default=None),
        "ratio_most": max(ratios, default=None),
        "auto": None if case.auto is None else case.auto.path,
        "auto_ratio": None if case.auto is None else case.auto.ratios.get(path),
        "gflops": rate,
        "share_of_peak": rate / peak if rate and peak else None,
        "error": error if error is None or math.isfinite(error) else None,  # JSON has no infinity
        "tolerance": tolerance,
        "passed": error is None or tolerance is None or error <= tolerance,
    }
