"""How an agent reacts to a change, from pairs of worlds that share all but that change. Numpy only.

`evaluation.counterfactual` plays them. A pair begins where a change leaves the agent with other optimal actions, none
of which was optimal before, after two decisions that were: it was following a plan, and the plan is now wrong. From
there the agent plays on twice, on the map with the change and on the map without it, each of which stays as it is.

A level has one pair or none, so a measure is a mean over levels: an agent that fails meets more changes, but counts no
more of them. Nothing is cut off by success. Agents are compared on the levels where both have a pair (`difference`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.evaluation.metrics import mean_or_none, wilson_interval

HORIZON = 10
"""Decisions after a change that are measured."""
REPLICATES = 1000
"""Resamples of the levels behind an interval."""
COMPARED = ("follow_old", "reaction", "old_action_drop", "decisions_to_replan", "extra_steps", "success")
"""Measures of `difference`."""


class Pairs(NamedTuple):
    """P pairs, at most one a level. Decision 0 is the first one after the change.

    *Old* actions are the optimal ones without the change, *new* ones those with it; no action is both.
    """

    level: NDArray[np.int64]  # [P] its number
    step: NDArray[np.int64]  # [P] of the episode, at which decision 0 is taken
    chance: NDArray[np.float64]  # [P] share of all actions that are old
    follows_old: NDArray[np.bool_]  # [P] decision 0 with the change is an old action
    follows_old_unchanged: NDArray[np.bool_]  # [P] so is decision 0 without it, where that is right
    reaction: NDArray[np.float64]  # [P] total variation between the two distributions of decision 0
    old_action_drop: NDArray[np.float64]  # [P] probability of the old actions: without the change, less with it
    replanned: NDArray[np.int64]  # [P] number of the first optimal decision with the change, -1 if there was none
    decisions: NDArray[np.int64]  # [P] taken with the change until the episode ended
    extra_steps: NDArray[np.float64]  # [P] see `summarize_pairs`; NaN with less than `HORIZON` decisions to the limit
    success: NDArray[np.bool_]  # [P] with the change, within the episode's time limit
    success_unchanged: NDArray[np.bool_]  # [P] without it
    waiting_wins: NDArray[np.bool_]  # [P] no new action begins a fastest way under the schedule as it really goes on

    @classmethod
    def join(cls, parts: list[Pairs]) -> Pairs:
        """The pairs of several batches as one, by level."""
        joined = cls(*map(np.concatenate, zip(*parts, strict=True)))
        return joined.take(np.argsort(joined.level, kind="stable"))

    def take(self, rows: NDArray) -> Pairs:
        """Some of the pairs: indices or a mask."""
        return Pairs(*(column[rows] for column in self))


def survival(
    replanned: NDArray[np.int64],
    decisions: NDArray[np.int64],
    horizon: int = HORIZON,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Share of pairs without an optimal decision after decisions 0 ... horizon, by Kaplan and Meier's estimator.

    A pair whose episode ended before an optimal decision is censored there. Beyond the last decision of any pair the
    share stays as it was.

    Args:
        replanned: `[P]`, number of the first optimal decision, -1 if there was none.
        decisions: `[P]`, decisions taken, `replanned + 1` or more.
        horizon: last decision.
        weights: `[R, P]`, how often each pair counts in each of R samples; None: once, in one sample.

    Returns:
        float64 `[horizon + 1]`, with weights `[R, horizon + 1]`.
    """
    number = np.arange(horizon + 1)
    happened = (replanned[:, None] == number).astype(np.float64)  # [P, horizon + 1]
    waiting = (replanned[:, None] < 0) | (replanned[:, None] >= number)
    at_risk = (waiting & (decisions[:, None] > number)).astype(np.float64)
    count = np.ones((1, len(replanned))) if weights is None else weights
    events, exposed = count @ happened, count @ at_risk
    share = np.divide(events, exposed, out=np.zeros_like(events), where=exposed > 0)
    curve = np.cumprod(1.0 - share, 1)
    return curve[0] if weights is None else curve


def restricted_mean(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean decisions before the first optimal one, counted up to the horizon, `[..., horizon + 1]` -> `[...]`."""
    return curve[..., :-1].sum(-1)


def summarize_pairs(pairs: Pairs, played: int) -> dict[str, Any]:
    """The measures of an agent, with 95% intervals over levels; None where no pair defines one.

    Pairs in which waiting wins are counted, then left out: where a door is about to open again, an agent that waits or
    goes to and fro before it does what is best in the world as it is. In the paired worlds, which stay as they are, no
    waiting can win, so that *optimal* is what the map with the change says.

    Intervals of shares are Wilson's (of a mean of numbers from 0 to 1, which vary less than a share, it is a little too
    wide); others are percentiles of resampled levels.

    Args:
        pairs: of one agent.
        played: levels it played.

    Returns:
        `levels_played`; `pairs` that are measured; `waiting_wins`, share of all pairs that are not;
        `follow_old`, share of decisions 0 that are old actions; `follow_old_unchanged`, the same in the world without
        the change, where they are right; `follow_old_chance`, the same of uniformly random actions;
        `reaction`, mean total variation between the distributions of decision 0 in the two worlds, 0 where the change
        is ignored;
        `old_action_drop`, how much less probable old actions are with the change than without it;
        `not_replanned`, `survival` for decisions 0 ... `HORIZON`, and `decisions_to_replan`, its restricted mean;
        `extra_steps`, steps lost in the first `HORIZON` decisions against the shortest path after the change, 0 for
        those after arrival; `extra_steps_pairs`, pairs with that many decisions before the time limit, whatever the
        agent did with them; `success` and `success_unchanged` of the two worlds;
        and `..._ci95`.
    """
    kept = pairs.take(~pairs.waiting_wins)
    n = len(kept.level)
    measured: dict[str, Any] = {
        "levels_played": played,
        "pairs": n,
        "waiting_wins": float(pairs.waiting_wins.mean()) if len(pairs.level) else None,
        "follow_old": mean_or_none(kept.follows_old),
        "follow_old_ci95": _share_interval(kept.follows_old),
        "follow_old_unchanged": mean_or_none(kept.follows_old_unchanged),
        "follow_old_unchanged_ci95": _share_interval(kept.follows_old_unchanged),
        "follow_old_chance": mean_or_none(kept.chance),
        "reaction": mean_or_none(kept.reaction),
        "reaction_ci95": _share_interval(kept.reaction),
        "old_action_drop": mean_or_none(kept.old_action_drop),
        "old_action_drop_ci95": _mean_interval(kept.old_action_drop),
        "not_replanned": None,
        "decisions_to_replan": None,
        "decisions_to_replan_ci95": None,
        "extra_steps": mean_or_none(kept.extra_steps),
        "extra_steps_ci95": _mean_interval(kept.extra_steps),
        "extra_steps_pairs": int((~np.isnan(kept.extra_steps)).sum()),
        "success": mean_or_none(kept.success),
        "success_ci95": _share_interval(kept.success),
        "success_unchanged": mean_or_none(kept.success_unchanged),
        "success_unchanged_ci95": _share_interval(kept.success_unchanged),
    }
    if n:
        curve = survival(kept.replanned, kept.decisions)
        drawn = restricted_mean(survival(kept.replanned, kept.decisions, weights=_resampled(n)))
        measured["not_replanned"] = curve.tolist()
        measured["decisions_to_replan"] = float(restricted_mean(curve))
        measured["decisions_to_replan_ci95"] = _percentiles(drawn)
    return measured


def list_pairs(pairs: Pairs) -> dict[str, list[Any]]:
    """The columns of `Pairs` as lists of numbers, to four digits; None for NaN and 0 or 1 for a bool."""
    columns = {}
    for name, column in pairs._asdict().items():
        values = column.astype(np.int64) if column.dtype == np.bool_ else column
        columns[name] = [None if value != value else round(value, 4) for value in values.tolist()]
    return columns


def read_pairs(columns: dict[str, list[Any]]) -> Pairs:
    """The pairs that `list_pairs` wrote, as far as its digits go."""
    integers = {"level", "step", "replanned", "decisions"}
    real = {"chance", "reaction", "old_action_drop", "extra_steps"}

    def kind(name: str) -> type:
        return np.int64 if name in integers else np.float64 if name in real else np.bool_

    given = {name: [np.nan if value is None else value for value in columns[name]] for name in Pairs._fields}
    return Pairs(**{name: np.array(values, kind(name)) for name, values in given.items()})


def difference(one: Pairs, other: Pairs) -> dict[str, Any]:
    """One agent minus another on the levels where both have a pair in which waiting does not win.

    Returns:
        `pairs`, how many there are, and for each of `COMPARED` the difference and `..._ci95`, percentiles of resampled
        levels; None where no pair defines it.
    """
    kept = [pairs.take(~pairs.waiting_wins) for pairs in (one, other)]
    _, *rows = np.intersect1d(kept[0].level, kept[1].level, assume_unique=True, return_indices=True)
    one, other = (pairs.take(row) for pairs, row in zip(kept, rows, strict=True))
    n = len(one.level)
    found: dict[str, Any] = {"pairs": n}
    for name in COMPARED:
        if name == "decisions_to_replan":
            continue
        column = "follows_old" if name == "follow_old" else name
        mine, theirs = (np.asarray(getattr(pairs, column), np.float64) for pairs in (one, other))
        found[name], found[f"{name}_ci95"] = mean_or_none(mine - theirs), _mean_interval(mine - theirs)
    name = "decisions_to_replan"
    found[name], found[f"{name}_ci95"] = None, None
    if n:
        value, drawn = (
            np.subtract(*(restricted_mean(survival(p.replanned, p.decisions, weights=w)) for p in (one, other)))
            for w in (None, _resampled(n))
        )
        found[name], found[f"{name}_ci95"] = float(value), _percentiles(drawn)
    return found


def _share_interval(values: NDArray) -> list[float] | None:
    """Wilson's, of the mean of numbers from 0 to 1."""
    return list(wilson_interval(float(np.sum(values)), len(values))) if len(values) else None


def _mean_interval(values: NDArray[np.float64]) -> list[float] | None:
    """Percentiles of the mean over resampled levels, those without a number left out."""
    values = values[~np.isnan(values)]
    return _percentiles(_resampled(len(values)) @ values / len(values)) if len(values) else None


def _resampled(n: int) -> NDArray[np.float64]:
    """How often each of n levels is drawn in each replicate: `[REPLICATES, n]`, rows summing to n; always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), REPLICATES).astype(np.float64)


def _percentiles(drawn: NDArray[np.float64]) -> list[float]:
    return [float(end) for end in np.quantile(drawn, [0.025, 0.975])]
