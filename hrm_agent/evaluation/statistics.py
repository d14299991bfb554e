"""Training seeds and levels -> a number with an interval, and two arms compared on the same levels. Numpy only.

The interquartile mean over training seeds, and the bootstrap as its interval, follow Agarwal et al. 2021 (Deep
reinforcement learning at the edge of the statistical precipice, arXiv 2108.13264). Here one score (success or
regret on one level) says little, so a seed is first averaged over its levels, and both are resampled: seeds, because
another training run would give another agent, and levels, because other levels could have been held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

TRIMMED = 0.25
COUNTS_AT_ONCE = 2_000_000  # resampled level counts held in memory together: 16 MB


class Estimate(NamedTuple):
    """A statistic and the ends of its bootstrap interval."""

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
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1, such as 0.95")
    return STATISTICS[statistic]
