"""Training seeds and levels -> a number with an interval, and two arms compared on the same levels.

Another training run would give another agent, and other levels could have been held out: both belong into an interval.
`crossed_interval` and `crossed_difference` estimate the variance of each from the table of outcomes, seeds by levels,
and cover as they say from three seeds on (`experiments/interval_coverage`); `holm` corrects for several comparisons.
The interquartile mean and its bootstrap follow Agarwal et al. 2021 (Deep reinforcement learning at the edge of the
statistical precipice, arXiv 2108.13264); with three seeds that interval covers as little as 0.73.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hrm_agent.evaluation.metrics import wilson_interval

TRIMMED = 0.25
COUNTS_AT_ONCE = 2_000_000  # resampled level counts held in memory together: 16 MB


class Estimate(NamedTuple):
    """A statistic and the ends of its interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Arm a minus arm b, the ends of the interval, and the share of replicates in which a is above b.

    `probability` counts ties half. It is a degree of confidence in `a > b` for the statistic compared, not the
    chance that one run of a beats one run of b.
    """

    value: float
    low: float
    high: float
    probability: float


class Comparison(NamedTuple):
    """Arm a minus arm b, the ends of the interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p_value: float


class _Table(NamedTuple):
    """Mean squares of a table `[S, E]` without repetition: of its rows, its columns, and what neither explains."""

    mean: float
    seeds: float
    levels: float
    rest: float

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> _Table:
        s, e = scores.shape
        mean, rows, columns = scores.mean(), scores.mean(1), scores.mean(0)
        rest = ((scores - rows[:, None] - columns + mean) ** 2).sum() / ((s - 1) * (e - 1))
        return cls(float(mean), float(e * rows.var(ddof=1)), float(s * columns.var(ddof=1)), float(rest))


def crossed_interval(outcomes: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean success of an arm, with an interval over training seeds and levels.

    The variance of the mean is that of seeds, plus that of levels, plus what neither explains, estimated by the mean
    squares of the table; the interval is Student's with Satterthwaite's degrees of freedom, on the scale of log odds,
    so that it stays inside (0, 1). With one seed it is Wilson's over levels, and says nothing about other training
    runs. Where the outcomes do not vary, the variance is that of one failure among all of them.

    Args:
        outcomes: `[S, E]`, success 0 to 1 of S training seeds on the same E levels.
        level: of the interval, above 0 and below 1.

    Raises:
        ValueError: outcomes of another shape or out of [0, 1], fewer than two levels, or a level out of range.
    """
    checked = _check_outcomes("outcomes", outcomes)
    _check_level(level)
    s, e = checked.shape
    if s == 1:
        return Estimate(float(checked.mean()), *wilson_interval(round(checked.sum()), e, _student(level, math.inf)))
    table = _Table.of(checked)
    within = max(table.seeds, table.rest) / (s * e)
    between = max(table.levels - table.rest, 0.0) / (s * e)
    shrunk, slope = _shrunk(table.mean, e), _slope(table.mean, e)
    variance = max(within + between, slope / (s * e))
    freedom = (within + between) ** 2 / max(within**2 / (s - 1) + between**2 / (e - 1), 1e-300)
    half = _student(level, max(freedom, s - 1)) * math.sqrt(variance) / slope
    middle = math.log(shrunk / (1 - shrunk))
    return Estimate(table.mean, *(1 / (1 + math.exp(-(middle + end))) for end in (-half, half)))


def crossed_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Comparison:
    """Arm a minus arm b on the same levels, with Student's interval and p-value over training seeds and levels.

    What makes a level hard for both arms cancels; the seeds of the arms are no pairs. Where nothing varies, the
    variance is that of one failure among all outcomes of each arm, as in `crossed_interval`.

    Args:
        a, b: `[Sa, E]` and `[Sb, E]`, success 0 to 1, columns being the same levels; two or more seeds each.
        level: of the interval.

    Raises:
        ValueError: see `crossed_interval`; one seed only, or numbers of levels that differ.
    """
    arms = _check_outcomes("a", a), _check_outcomes("b", b)
    _check_level(level)
    levels = arms[0].shape[1]
    if levels != arms[1].shape[1]:
        raise ValueError(
            f"a has {levels} levels and b has {arms[1].shape[1]}: expected the same levels; evaluate both arms on them"
        )
    if min(map(len, arms)) < 2:
        raise ValueError("expected two or more training seeds in each arm; one says nothing about another")
    tables = [_Table.of(arm) for arm in arms]
    seeds = [max(t.seeds, t.rest) / arm.size for t, arm in zip(tables, arms, strict=True)]
    noise = sum(t.rest / len(arm) for t, arm in zip(tables, arms, strict=True))
    of_levels = max(float((arms[0].mean(0) - arms[1].mean(0)).var(ddof=1)) - noise, 0.0) / levels
    variance = sum(seeds) + of_levels
    value = tables[0].mean - tables[1].mean
    if variance == 0:  # no seed differs from another, nor what the levels add
        seeds = [_slope(t.mean, levels) / arm.size for t, arm in zip(tables, arms, strict=True)]
        variance = sum(seeds)
    parts = [part**2 / (len(arm) - 1) for part, arm in zip(seeds, arms, strict=True)]
    freedom = max(variance**2 / max(sum(parts) + of_levels**2 / (levels - 1), 1e-300), 1.0)
    error = math.sqrt(variance)
    half = _student(level, freedom) * error
    from scipy.stats import t as student  # which takes a tenth of a second to import

    return Comparison(value, value - half, value + half, float(2 * student.sf(abs(value) / error, freedom)))


def _shrunk(mean: float, levels: int) -> float:
    """A mean that is not at an end, so that log odds exist where all succeed."""
    return (mean * levels + 0.5) / (levels + 1)


def _slope(mean: float, levels: int) -> float:
    return _shrunk(mean, levels) * (1 - _shrunk(mean, levels))


def mean_interval(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean over training seeds with Student's 95% interval, cut to `bounds`, which it spans where there is one seed."""
    mean, n = float(np.mean(values)), len(values)
    half = _student(0.95, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted by Holm's method, in the same order.

    Rejecting those below 0.05 keeps the chance of any false rejection below 0.05.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def iqm(per_seed: ArrayLike) -> NDArray[np.float64]:
    """The interquartile mean over the last axis, `[..., S]` -> `[...]`.

    As in Agarwal et al. 2021, `int(S / 4)` values are left out at either end: of 5 seeds the best and the worst; of
    3 or fewer none. NaN where a value is NaN.

    Raises:
        ValueError: no seed.
    """
    values = np.asarray(per_seed, np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"per_seed has shape {values.shape}: expected one or more seeds in the last dimension")
    cut = int(TRIMMED * values.shape[-1])
    inside = np.sort(values, -1)[..., cut : values.shape[-1] - cut]
    # NaN sorts to the end, where it could be left out with the best.
    return np.asarray(np.where(np.isnan(values).any(-1), np.nan, inside.mean(-1)))


STATISTICS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "iqm": iqm,
    "mean": lambda per_seed: per_seed.mean(-1),
    "median": lambda per_seed: np.median(per_seed, -1),
}
"""A statistic over the seeds of an arm: `[..., S]` -> `[...]`."""


def bootstrap_interval(
    scores: ArrayLike,
    statistic: str = "iqm",
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A statistic of an arm with its percentile bootstrap interval over seeds and levels.

    A replicate draws S seeds and E levels with replacement; the levels are the same for all seeds. With one seed
    the interval says nothing about other training runs, and with fewer than about five it is too narrow.

    Args:
        scores: `[S, E]`, the same E levels for all S training seeds; NaN where a level has no score.
        statistic: of the seeds' means: `iqm`, `mean` or `median`.
        replicates: 1 or more.
        seed: of the resampling.
        level: of the interval, above 0 and below 1.

    Raises:
        ValueError: scores of another shape or without a number for some seed, or a setting out of range.
    """
    checked = _check_scores("scores", scores)
    compute = _check_settings(statistic, replicates, level)
    random = np.random.default_rng(seed)
    (drawn,) = _replicate((checked,), compute, replicates, random)
    low, high = _percentiles(drawn, level)
    return Estimate(float(compute(np.nanmean(checked, 1))), low, high)


def bootstrap_difference(
    a: ArrayLike,
    b: ArrayLike,
    statistic: str = "iqm",
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Arm a minus arm b on the same levels, with its percentile bootstrap interval.

    A replicate draws the levels once for both arms, so what makes a level hard for both cancels. The seeds are
    drawn for each arm by itself: equal numbers do not make two training runs a pair.

    Args:
        a, b: `[Sa, E]` and `[Sb, E]`, columns being the same levels; NaN where a level has no score.
        statistic, replicates, seed, level: see `bootstrap_interval`.

    Raises:
        ValueError: see `bootstrap_interval`; or numbers of levels that differ.
    """
    arms = _check_scores("a", a), _check_scores("b", b)
    if arms[0].shape[1] != arms[1].shape[1]:
        raise ValueError(
            f"a has {arms[0].shape[1]} levels and b has {arms[1].shape[1]}: expected the same levels; "
            "evaluate both arms on them"
        )
    compute = _check_settings(statistic, replicates, level)
    drawn_a, drawn_b = _replicate(arms, compute, replicates, np.random.default_rng(seed))
    difference = drawn_a - drawn_b
    low, high = _percentiles(difference, level)
    real = difference[~np.isnan(difference)]
    value_a, value_b = (float(compute(np.nanmean(arm, 1))) for arm in arms)
    probability = float(((real > 0) + 0.5 * (real == 0)).mean()) if real.size else float("nan")
    return Difference(value_a - value_b, low, high, probability)


def _replicate(
    arms: tuple[NDArray[np.float64], ...],
    compute: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    replicates: int,
    random: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """The statistic of every arm in every replicate, float64 `[R]` each."""
    levels = arms[0].shape[1]
    at_once = max(1, COUNTS_AT_ONCE // levels)
    parts: list[list[NDArray[np.float64]]] = [[] for _ in arms]
    for first in range(0, replicates, at_once):
        counts = _draw_counts(min(at_once, replicates - first), levels, random)
        for arm, part in zip(arms, parts, strict=True):
            means = _weighted_means(arm, counts)
            chosen = random.integers(len(arm), size=means.shape)
            part.append(compute(np.take_along_axis(means, chosen, 1)))
    return [np.concatenate(part) for part in parts]


def _draw_counts(replicates: int, levels: int, random: np.random.Generator) -> NDArray[np.float64]:
    """How often each level is drawn: `[R, E]`, rows summing to E."""
    drawn = random.integers(levels, size=(replicates, levels))
    rows = np.arange(replicates)[:, None] * levels
    return np.bincount((drawn + rows).ravel(), minlength=replicates * levels).reshape(replicates, levels).astype(float)


def _weighted_means(scores: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over levels, drawn as often as `counts` `[R, E]` says: `[S, E]` -> `[R, S]`; NaN where none has a score."""
    missing = np.isnan(scores)
    total = counts @ np.where(missing, 0.0, scores).T
    scored = counts @ (~missing).astype(np.float64).T
    return np.divide(total, scored, out=np.full_like(total, np.nan), where=scored > 0)


def _percentiles(drawn: NDArray[np.float64], level: float) -> tuple[float, float]:
    real = drawn[~np.isnan(drawn)]
    if not real.size:
        return float("nan"), float("nan")
    low, high = np.quantile(real, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _student(level: float, freedom: float) -> float:
    """Student's t that a share `level` of draws does not exceed in size."""
    from scipy.stats import t as student

    return float(student.ppf((1 + level) / 2, freedom))


def _check_outcomes(name: str, outcomes: ArrayLike) -> NDArray[np.float64]:
    checked = np.asarray(outcomes, np.float64)
    if checked.ndim != 2 or len(checked) < 1 or checked.shape[1] < 2:
        raise ValueError(f"{name} has shape {checked.shape}: expected [seeds, levels], two levels or more")
    if not ((checked >= 0) & (checked <= 1)).all():
        raise ValueError(f"{name}: expected success of every seed on every level, 0 to 1")
    return checked


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1, such as 0.95")


def _check_scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    checked = np.asarray(scores, np.float64)
    if checked.ndim != 2 or 0 in checked.shape:
        raise ValueError(f"{name} has shape {checked.shape}: expected [seeds, levels], one or more of each")
    if np.isinf(checked).any():
        raise ValueError(f"{name} has infinite entries: expected numbers, or NaN where a level has no score")
    empty = np.flatnonzero(np.isnan(checked).all(1))
    if empty.size:
        raise ValueError(f"{name}[{empty[0]}] has no score on any level: leave this seed out")
    return checked


def _check_settings(
    statistic: str, replicates: int, level: float
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    if statistic not in STATISTICS:
        raise ValueError(f"statistic={statistic!r}: expected one of {', '.join(STATISTICS)}")
    if replicates < 1:
        raise ValueError(f"replicates={replicates}: expected 1 or more; 2000 give an interval to two digits")
    _check_level(level)
    return STATISTICS[statistic]
