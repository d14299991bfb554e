"""Runs by group, and what is said of the training seeds in one: a mean with an interval, for tables and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.evaluation.statistics import Estimate, crossed_interval, mean_interval
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.python import CHOSEN_BY
from hrm_agent.launch.run_records import Evaluated, Played, RunRecord, differing
from hrm_agent.names.nearest import did_you_mean

ALL = "all runs"
SUCCESS = (0.0, 1.0)
"""Bounds of success."""

Points = Sequence[tuple[float, float]]
"""Frames and values."""


class RunGroup(NamedTuple):
    """Runs that differ in nothing that counts but the seed."""

    label: str
    runs: list[RunRecord]

    @property
    def seeds(self) -> str:
        """`0 1 2`, or how many there are."""
        seeds = sorted(str(run.settings.get("seed")) for run in self.runs)
        return " ".join(seeds) if len(seeds) <= 10 else f"{len(seeds)} seeds"


def group_runs(runs: Sequence[RunRecord], by: Sequence[str] | None) -> list[RunGroup]:
    """Runs by the values of some settings, in the order in which they are given.

    Args:
        by: dotted names, or groups of settings (`carry`); None: all in which the runs differ, but the seed.

    Raises:
        UsageError: no run has such a setting.
    """
    settings = [run.settings for run in runs]
    known = list(dict.fromkeys(name for values in settings for name in values))
    names = [name for name in differing(settings) if name != "seed"] if by is None else [_find(n, known) for n in by]
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        shown = (f"{_short(name)}={run.settings.get(name, 'null')}" for name in names)
        found.setdefault(", ".join(shown) or ALL, []).append(run)
    return [RunGroup(label, members) for label, members in found.items()]


def _find(name: str, known: list[str]) -> str:
    """The setting that is meant; of a group its choice."""
    full = f"{name}.{CHOSEN_BY[name]}" if name in CHOSEN_BY else name
    if full not in known:
        raise UsageError(f"group={name}: no run has such a setting{did_you_mean(name, [*CHOSEN_BY, *known], shown=0)}")
    return full


def _short(name: str) -> str:
    """`carry.rule` as it is typed, `carry`."""
    return next((group for group, choice in CHOSEN_BY.items() if name == f"{group}.{choice}"), name)


def outcomes_of(played: Sequence[Played]) -> np.ndarray | None:
    """Success `[S, E]` of seeds on levels; None where the outcomes on each level are not known for all of them."""
    rows = [each.levels.success for each in played if each.levels is not None]
    if len(rows) < len(played) or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return None
    return np.array([[outcome == "1" for outcome in row] for row in rows], float)


def success_of(played: Sequence[Played], same_levels: bool) -> Estimate:
    """Success of some training seeds, with a 95% interval over seeds and levels; for one seed over levels alone.

    Args:
        same_levels: whether all of them were measured on the same levels; otherwise the interval is over seeds alone.
    """
    outcomes = outcomes_of(played) if same_levels else None
    if outcomes is not None:
        return crossed_interval(outcomes)
    successes = [each.success for each in played]
    if len(played) == 1 and played[0].episodes:
        n = played[0].episodes
        return Estimate(successes[0], *wilson_interval(round(successes[0] * n), n))
    return mean_interval(successes, SUCCESS)


def on_same_levels(evaluated: Sequence[Evaluated]) -> bool:
    return len({each.played_on for each in evaluated}) == 1


def show(estimate: Estimate | None) -> str | None:
    """`0.931 [0.904, 0.951]`; without an interval where there is none."""
    if estimate is None:
        return None
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else f"{value:.3f}"


def mean_curve(curves: Sequence[Points], bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several curves and its 95% interval over them, between the frames that all of them have.

    Returns:
        Frames `[N]`; mean, low and high `[N, 3]`, the last two NaN for one curve.
    """
    arrays = [np.asarray(curve, float) for curve in curves]
    first, last = max(a[0, 0] for a in arrays), min(a[-1, 0] for a in arrays)
    frames = np.unique(np.concatenate([a[:, 0] for a in arrays]))
    frames = frames[(frames >= first) & (frames <= last)]
    values = np.stack([np.interp(frames, a[:, 0], a[:, 1]) for a in arrays], 1)
    if len(arrays) == 1:
        return frames, np.column_stack([values[:, 0], np.full((len(frames), 2), np.nan)])
    return frames, np.array([mean_interval(row, bounds) for row in values.tolist()]).reshape(-1, 3)
