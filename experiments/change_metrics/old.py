"""The measures that `evaluate` reported until December 2026: averages over material changes, kept for comparison.

A change is material if it alters the optimal actions or the distance at the agent. It is followed until the next one,
the end of the episode, or ten decisions, whichever is first; decisions on maps that cut the goal off do not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import Actor, blocked_moves
from hrm_agent.evaluation.metrics import Decisions, action_regret, mean_or_none, met_replaced_plan, replaces_all

HORIZON = 10


def play(
    actor: Actor, env_id: str, env_options: dict[str, Any], levels: NDArray[np.int64], split: str
) -> dict[str, NDArray]:
    """Play one batch of levels.

    Returns:
        `success` and `replaced`, bool `[N]` (`Episodes.replaced`), and a number for each material change, float `[C]`:
        `regret`, the steps lost after it, `replan`, the decisions before the first optimal one, and `stale`, 1 where
        the first decision is optimal on the map before it alone, else 0.
    """
    env: Any = make_vector_env(env_id, len(levels), {**env_options, "split": split, "oracle": True})
    obs, infos = env.reset(seed=levels.tolist())
    actor.reset(levels)
    n = len(levels)
    rows, given, lengths, success = np.arange(n), np.arange(n), np.zeros(n, np.int64), np.zeros(n, bool)
    played: list[Decisions] = []
    stale: list[NDArray[np.bool_]] = []
    while rows.size:
        if rows.size <= 0.75 * given.size:
            actor.keep(np.searchsorted(given, rows))
            given = rows
        actions = np.zeros(n, np.int64)
        actions[given] = actor.act(obs[given])
        optimal, before = infos["optimal_actions"], infos["stale_optimal_actions"]
        regret = action_regret(infos["distance"], optimal, actions, blocked_moves(obs))
        stale.append((before & ~optimal)[np.arange(n), actions])
        played.append(Decisions(regret, infos["changed"], infos["material"], replaces_all(before, optimal), None))
        obs, _, terminated, truncated, infos = env.step(actions)
        lengths[rows] += 1
        success[rows] = terminated[rows]
        rows = rows[~(terminated | truncated)[rows]]
    regret, changed, material, replaced = (np.stack(column) for column in list(zip(*played, strict=True))[:4])
    whole = Decisions(regret, changed, material, replaced, None)
    found = {"success": success, "replaced": met_replaced_plan(whole, lengths)}
    return found | follow(whole.regret, whole.material, np.stack(stale), lengths)


def follow(
    regret: NDArray[np.float64], material: NDArray[np.bool_], stale: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The three measures of each material change, from decisions `[T, E]`; NaN where no decision counts."""
    found: dict[str, list[float]] = {"regret": [], "replan": [], "stale": []}
    for episode, length in enumerate(lengths.tolist()):
        starts = np.flatnonzero(material[:length, episode]).tolist()
        for start, following in zip(starts, [*starts, length][1:], strict=True):
            window = regret[start : min(following, start + HORIZON), episode]
            window = window[~np.isnan(window)]
            optimal = np.flatnonzero(window == 0)
            found["regret"].append(window.sum() if window.size else np.nan)
            found["replan"].append((optimal[0] if optimal.size else window.size) if window.size else np.nan)
            found["stale"].append(np.nan if np.isnan(regret[start, episode]) else float(stale[start, episode]))
    return {name: np.array(values, np.float64) for name, values in found.items()}


def summarize(found: dict[str, NDArray]) -> dict[str, float | None]:
    """Under their former names in records."""
    names = {"regret_after_material_change": "regret", "steps_to_replan": "replan", "stale_plan_rate": "stale"}
    return {name: mean_or_none(found[column]) for name, column in names.items()}
