"""What is said about several training seeds; intervals over seeds and levels are the package's own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import t as student

from experiments.engine.records import Record
from hrm_agent.evaluation import statistics
from hrm_agent.evaluation.statistics import (
    Estimate,
    bootstrap_difference,
    bootstrap_interval,
    crossed_difference,
    crossed_interval,
    holm,
)

__all__ = ["NEVER", "Estimate", "bootstrap_difference", "bootstrap_interval", "crossed_difference", "crossed_interval"]
__all__ += ["holm", "mean_interval", "mean_of", "median_of", "success_interval"]

NEVER = float("inf")
"""Time of a run that did not get there."""


def mean_interval(values: list[float]) -> Estimate:
    """Mean over seeds with Student's 95% interval, cut to [0, 1]; all of [0, 1] for one seed."""
    return statistics.mean_interval(values, (0.0, 1.0))


def success_interval(runs: list[Record]) -> Estimate:
    """Success of an arm, with a 95% interval over seeds and levels from the records alone; for one seed over levels.

    Student's interval over seeds and Wilson's over the levels, which all seeds share, are added in quadrature. Part of
    the noise of levels is counted twice, so it is too wide rather than too narrow, and never of no width. Where a study
    keeps the outcome on every level, `crossed_interval` is sharper.
    """
    levels = [(run["success"] - run["success_ci95"][0], run["success_ci95"][1] - run["success"]) for run in runs]
    below, above = (float(np.mean(side)) for side in zip(*levels, strict=True))
    mean = float(np.mean([run["success"] for run in runs]))
    half = 0.0
    if len(runs) > 1:
        half = float(
            student.ppf(0.975, len(runs) - 1) * np.std([r["success"] for r in runs], ddof=1) / len(runs) ** 0.5
        )
    return Estimate(mean, max(0.0, mean - float(np.hypot(half, below))), min(1.0, mean + float(np.hypot(half, above))))


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def median_of(values: Iterable[float | None]) -> float:
    """Median, where None is later than any other value; `NEVER` without values."""
    times = [NEVER if value is None else value for value in values]
    return float(np.median(times)) if times else NEVER
