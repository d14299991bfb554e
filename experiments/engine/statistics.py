"""What is said about several training seeds; intervals over seeds and levels are the package's own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import t as student

from experiments.engine.records import Record
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
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else float("nan")
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def success_interval(runs: list[Record]) -> Estimate:
    """Success of an arm: mean and interval over its seeds; over levels (Wilson's) where there is one seed only."""
    if len(runs) == 1:
        return Estimate(runs[0]["success"], *runs[0]["success_ci95"])
    return mean_interval([run["success"] for run in runs])


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def median_of(values: Iterable[float | None]) -> float:
    """Median, where None is later than any other value; `NEVER` without values."""
    times = [NEVER if value is None else value for value in values]
    return float(np.median(times)) if times else NEVER
