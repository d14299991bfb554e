"""Metrics of episodes. Numpy only: no environment and no network.

*Decision* t of an episode is the action chosen at observation t; it is judged on the *map* of that moment (doors as
they are, not as they will be). What an agent does after a change is measured in pairs of worlds (`evaluation.change`);
the means here are over the decisions right after a kind of step, of which an agent that fails makes more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHANGE_KINDS = ("unchanged", "immaterial", "material")
"""What changed in the step before a decision: nothing; something that alters neither the optimal actions nor the
distance at the agent; or something that does."""


class Decisions(NamedTuple):
    """A record of every decision: T decisions of E episodes; those after an episode's end are ignored."""

    regret: NDArray[np.float64]  # [T, E] `action_regret`; NaN without a score
    changed: NDArray[np.bool_]  # [T, E] whether anything changed between decisions t - 1 and t
    material: NDArray[np.bool_]  # [T, E] whether that change was material
    replaced: NDArray[np.bool_]  # [T, E] whether that change left other optimal actions, none of them optimal before
    segments: NDArray[np.int64] | None  # [T, E] segments used; None: the actor counts none


class Totals(NamedTuple):
    """Sums over the decisions of each episode; E rows. The columns of `[E, 3]` are `CHANGE_KINDS`.

    An episode's first decision follows no step, so it has no kind.
    """

    regret: NDArray[np.float64]  # [E] over the scored decisions
    scored: NDArray[np.int64]  # [E]
    regret_by_change: NDArray[np.float64]  # [E, 3]
    scored_by_change: NDArray[np.int64]  # [E, 3]
    decisions_by_change: NDArray[np.int64]  # [E, 3] scored or not
    segments_by_change: NDArray[np.int64] | None  # [E, 3] over all decisions of the kind


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        successes: 0 to n; of outcomes between 0 and 1, their sum (the interval is too wide then).
        n: trials, 1 or more.
        z: quantile of the normal distribution; 1.96 gives 95%.

    Returns:
        Lower and upper end, within [0, 1].

    Raises:
        ValueError: no trials, or a number of successes that they cannot have.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: expected 0 <= successes <= trials, and a trial")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact interval touches 0 or 1; floating point would miss it by an ulp.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return low, high


def spl(success: NDArray[np.bool_], steps: NDArray[np.int64], shortest: NDArray[np.int64]) -> NDArray[np.float64]:
    """Success weighted by path length, per episode (Anderson et al. 2018, arXiv 1807.06757).

    Args:
        success: `[E]`.
        steps: `[E]` environment steps taken.
        shortest: `[E]` the clairvoyant arrival in steps; -1 where no agent could arrive in time.

    Returns:
        float64 `[E]` in [0, 1]: `shortest / max(steps, shortest)` where successful, else 0.

    Raises:
        ValueError: an episode that succeeded although `shortest` says that none can.
    """
    success = np.asarray(success, bool)
    steps, shortest = np.asarray(steps, np.float64), np.asarray(shortest, np.float64)
    if (success & (shortest < 0)).any():
        raise ValueError("an episode succeeded that the clairvoyant bound calls impossible; check the bound")
    longest = np.maximum(np.maximum(steps, shortest), 1.0)
    return np.where(success, np.maximum(shortest, 0.0) / longest, 0.0)


def excess_steps(
    success: NDArray[np.bool_], steps: NDArray[np.int64], shortest: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Steps beyond the clairvoyant arrival, for the successful episodes only: int64 `[successes]`."""
    return np.asarray(steps, np.int64)[success] - np.asarray(shortest, np.int64)[success]


def action_regret(
    distance: NDArray, optimal: NDArray[np.bool_], actions: NDArray, blocked: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The cost of an action on the current map: `1 + d(after the move) - d(before)`, in steps.

    On a grid every move changes the shortest distance to the goal by exactly one (its positions are coloured
    like a chessboard), so the regret is 0 for an optimal action, 1 for a blocked one, which leaves the agent
    where it is, and 2 for a move away from the goal. No distance after the move is needed.

    Args:
        distance: int `[...]` shortest distance before the move, -1 where the goal cannot be reached.
        optimal: `[..., A]` the optimal actions.
        actions: int `[...]` the actions chosen.
        blocked: `[..., A]` actions that would leave the agent where it is.

    Returns:
        float64 `[...]`; NaN where the goal cannot be reached.
    """
    chosen = np.asarray(actions, np.int64)[..., None]
    is_optimal = np.take_along_axis(optimal, chosen, -1)[..., 0]
    is_blocked = np.take_along_axis(blocked, chosen, -1)[..., 0]
    regret = np.where(is_optimal, 0.0, np.where(is_blocked, 1.0, 2.0))
    return np.where(np.asarray(distance) < 0, np.nan, regret)


def total_decisions(decisions: Decisions, lengths: NDArray[np.int64]) -> Totals:
    """Sum up the decisions of each episode, by what changed in the step before each.

    Args:
        decisions: of E episodes.
        lengths: int `[E]` decisions of each episode.
    """
    number = np.arange(len(decisions.regret))[:, None]
    happened = number < np.asarray(lengths)
    scored = happened & ~np.isnan(decisions.regret)
    regret = np.where(scored, decisions.regret, 0.0)
    unchanged, immaterial = ~decisions.changed & ~decisions.material, decisions.changed & ~decisions.material
    follows = happened & (number > 0)
    kinds = np.stack([follows & kind for kind in (unchanged, immaterial, decisions.material)], -1)  # [T, E, 3]

    def by_change(values: NDArray) -> NDArray:
        return (values[..., None] * kinds).sum(0)

    return Totals(
        regret=regret.sum(0),
        scored=scored.sum(0),
        regret_by_change=by_change(regret),
        scored_by_change=by_change(scored),
        decisions_by_change=kinds.sum(0),
        segments_by_change=None if decisions.segments is None else by_change(decisions.segments),
    )


def replaces_all(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether there are optimal actions `[..., A]` before and after a change, and none is both: bool `[...]`."""
    return np.asarray(before.any(-1) & after.any(-1) & ~(before & after).any(-1))


def met_replaced_plan(decisions: Decisions, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Episodes with a change for a pair of worlds (`evaluation.change`), bool `[E]`.

    That is a change that replaces all optimal actions right after two optimal decisions, each on the map of its moment.
    One alone would be half of every to and fro.

    Args:
        decisions: of E episodes.
        lengths: int `[E]` decisions of each episode.
    """
    number = np.arange(len(decisions.regret))[2:, None]
    followed = (decisions.regret[1:-1] == 0) & (decisions.regret[:-2] == 0)
    return (followed & decisions.replaced[2:] & (number < np.asarray(lengths))).any(0)


def regret_per_decision(totals: Totals) -> NDArray[np.float64]:
    """Each episode's mean regret over its scored decisions, float64 `[E]`; NaN where it has none."""
    return _ratio(totals.regret, totals.scored)


def regret_by_change(totals: Totals) -> dict[str, float | None]:
    """Mean regret of the decisions right after each kind of step, in environment steps; None without a scored one."""
    return _by_kind(_ratio(totals.regret_by_change.sum(0), totals.scored_by_change.sum(0)))


def decisions_by_change(totals: Totals) -> dict[str, int]:
    """Number of scored decisions in each mean of `regret_by_change`."""
    return dict(zip(CHANGE_KINDS, totals.scored_by_change.sum(0).tolist(), strict=True))


def segments_by_change(totals: Totals) -> dict[str, float | None] | None:
    """Mean segments of the decisions right after each kind of step, scored or not; None if they were not counted."""
    if totals.segments_by_change is None:
        return None
    return _by_kind(_ratio(totals.segments_by_change.sum(0), totals.decisions_by_change.sum(0)))


def _ratio(sums: NDArray, counts: NDArray) -> NDArray[np.float64]:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=np.asarray(counts) > 0)


def _by_kind(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {kind: mean_or_none(value) for kind, value in zip(CHANGE_KINDS, values, strict=True)}


def mean_or_none(values: NDArray) -> float | None:
    """The mean of the values that are not NaN; None if there are none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None
