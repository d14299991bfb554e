"""Pairs of worlds that share all up to a change, and differ in that change alone. `evaluation.change` measures them.

The schedule of doors and goal is a function of the level and the step, whatever the agent does, so that a change can
be left out: the same step is taken once with the schedule and once without it. From there both maps stay as they are.
Later changes would hide the reaction to this one, or undo it. Without them the shortest path on the map is what is best
to do, since no door opens again that an agent could wait for, and the world without the change goes on as if nothing
more had been scheduled. The agent continues in both with the same state and the same random numbers.

In fog a change counts where the agent sees a difference at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.change import HORIZON, Pairs
from hrm_agent.evaluation.episodes import Actor, PolicyActor, blocked_moves, in_threads
from hrm_agent.evaluation.metrics import action_regret, replaces_all
from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.parallel.threads import Threads
from hrm_envs import MazeConfig, MazeVectorEnv
from hrm_envs.batch import Batch, MazeBatch

ACTIONS = 4


def has_pairs(env_id: str, env_options: dict[str, Any]) -> bool:
    """Whether this environment is a maze of `hrm_envs`, whose schedule can be left out.

    Raises:
        ValueError: the environment cannot be made.
    """
    env = make_vector_env(env_id, 1, env_options)
    env.close()
    return isinstance(getattr(env.unwrapped, "batch", None), MazeBatch)


def play_pairs(
    make_actor: Callable[[], Actor],
    env_id: str,
    env_options: dict[str, Any],
    levels: NDArray[np.int64],
    split: str = "test",
    batch: int = 256,
    threads: Threads | None = None,
    check_stop: CheckStop = never,
) -> Pairs:
    """Play levels to their first change that begins a pair, and then the pair.

    Args:
        make_actor: makes the actor; one for each thread.
        env_id, env_options: a maze (`has_pairs`).
        levels: numbers of the levels, int64 `[E]`, each once; `Episodes.replaced` tells which can have a pair.
        split: of the levels.
        batch: levels played together.
        threads: threads to divide the levels over.
        check_stop: called before every step.

    Returns:
        The pairs by level: those of the levels that have one.
    """

    options = {**env_options, "split": split, "oracle": True}

    def part(own: slice, check: CheckStop) -> Pairs:
        chunks = np.split(levels[own], range(batch, own.stop - own.start, batch))
        return Pairs.join([_play(make_actor(), env_id, options, chunk, check) for chunk in chunks])

    return Pairs.join(in_threads(part, len(levels), threads, check_stop))


def _play(
    actor: Actor, env_id: str, options: dict[str, Any], levels: NDArray[np.int64], check_stop: CheckStop
) -> Pairs:
    if not len(levels):
        return _Worlds.no_pairs()
    env = make_vector_env(env_id, len(levels), options).unwrapped
    assert isinstance(env, MazeVectorEnv)
    return _Worlds(env, levels).play(actor, check_stop)


class _Worlds:
    """Three worlds of each of N levels: the level as it is, its map with the change, and its map without it.

    World `i` is level i as it is, `N + i` the one with the change, `2 N + i` the one without. The actor plays the first
    until the pair begins, then the two others.
    """

    def __init__(self, env: MazeVectorEnv, levels: NDArray[np.int64]) -> None:
        n = len(levels)
        self.levels, self.n, self.rows = levels, n, np.arange(n)
        self.env, self.still = env, MazeVectorEnv(2 * n, **asdict(without_schedule(env.config)))
        self.begins = np.full(n, -1)  # step of decision 0
        self.old, self.new = np.zeros((n, ACTIONS), bool), np.zeros((n, ACTIONS), bool)
        self.first = np.zeros((2, n), np.int64)  # decision 0 in the two worlds, and its probabilities
        self.probabilities = np.zeros((2, n, ACTIONS))
        self.replanned, self.decisions = np.full(n, -1), np.zeros(n, np.int64)
        self.regret = np.zeros(n)
        self.success = np.zeros((2, n), bool)
        self.moments: list[tuple[NDArray, dict[str, NDArray]]] = []  # levels, and their states after the change

    def play(self, actor: Actor, check_stop: CheckStop) -> Pairs:
        n, rows = self.n, self.rows
        obs, infos = self.env.reset(seed=self.levels.tolist())
        self.limits = self.env.limits
        seen = np.concatenate([obs, self.still.reset(seed=0)[0]])
        optimal, distance = np.zeros((2 * n, ACTIONS), bool), np.zeros(2 * n, np.int32)  # in the worlds that stay
        actor.reset(self.levels)
        given, over = rows, np.arange(3 * n) >= n  # the worlds of the actor's rows; what is not played (any more)
        actions, followed = np.zeros(3 * n, np.int64), np.zeros((2, n), bool)  # whether the last two were optimal
        for number in itertools.count(1):
            check_stop()
            actions[given] = actor.act(seen[given])
            self._judge(actor, given, over, actions, seen, optimal, distance, number - 1)
            walking = rows[~over[:n]]
            followed = np.stack([followed[1], infos["optimal_actions"][rows, actions[:n]]])
            # Without the change: the same step from the same state, but the schedule stands still.
            copy_rows(self.env.batch, walking, self.still.batch, n + walking)
            actions[2 * n + walking] = actions[walking]
            obs, _, terminated, truncated, infos = self.env.step(actions[:n])
            still_obs, _, arrived, out_of_time, still_infos = self.still.step(actions[n:])
            self.success |= (arrived & ~over[n:]).reshape(2, n)
            over |= np.concatenate([terminated | truncated, arrived | out_of_time])
            optimal, distance = still_infos["optimal_actions"], still_infos["distance"]
            seen = np.concatenate([obs, still_obs])
            begun = ~over[:n] & followed.all(0) & replaces_all(optimal[n:], infos["optimal_actions"])
            begun &= (obs != still_obs[n:]).any((1, 2))
            pairs = rows[begun]
            if pairs.size:
                copy_rows(self.env.batch, pairs, self.still.batch, pairs)
                seen[n + pairs], optimal[pairs] = obs[pairs], infos["optimal_actions"][pairs]
                distance[pairs] = infos["distance"][pairs]
                self._begin(pairs, number, optimal)
                over[pairs], over[n + pairs], over[2 * n + pairs] = True, False, False
            if over.all():
                return self._sum_up()
            going = np.flatnonzero(~over[given])
            if pairs.size or going.size <= 0.75 * given.size:
                branching = np.flatnonzero(np.isin(given, pairs))
                actor.keep(np.concatenate([going, branching, branching]))
                given = np.concatenate([given[going], n + given[branching], 2 * n + given[branching]])
        raise AssertionError

    def _begin(self, pairs: NDArray[np.int64], number: int, optimal: NDArray[np.bool_]) -> None:
        self.begins[pairs] = number
        self.new[pairs], self.old[pairs] = optimal[pairs], optimal[self.n + pairs]
        state = self.env.batch.state._asdict()
        self.moments.append((pairs, {name: array[pairs].copy() for name, array in state.items()}))

    def _judge(
        self,
        actor: Actor,
        given: NDArray[np.int64],
        over: NDArray[np.bool_],
        actions: NDArray[np.int64],
        seen: NDArray[np.uint8],
        optimal: NDArray[np.bool_],
        distance: NDArray[np.int32],
        step: int,
    ) -> None:
        """Record the decisions in the worlds with and without the change, those of this step of the episodes."""
        n = self.n
        played = np.flatnonzero(~over[given] & (given >= n))
        if not played.size:
            return
        unchanged, level = np.divmod(given[played] - n, n)
        first = self.begins[level] == step
        at = unchanged[first], level[first]
        self.first[at] = actions[given[played]][first]
        self.probabilities[at] = action_probabilities(actor, actions[given])[played][first]
        row = level[unchanged == 0]  # the rest is of the world with the change
        if not row.size:
            return
        chosen, number = actions[n + row], step - self.begins[row]
        is_optimal = optimal[row, chosen]
        self.replanned[row] = np.where(is_optimal & (self.replanned[row] < 0), number, self.replanned[row])
        lost = action_regret(distance[row], optimal[row], chosen, blocked_moves(seen[n + row]))
        # A door that was to close once the agent has left it may cut the goal off; then any decision loses its step.
        self.regret[row] += np.where(number < HORIZON, np.nan_to_num(lost, nan=1.0), 0.0)
        self.decisions[row] += 1

    def _sum_up(self) -> Pairs:
        found = self.rows[self.begins >= 0]
        if not found.size:
            return self.no_pairs()
        old, first, p = self.old[found], self.first[:, found], self.probabilities[:, found]
        of_old = (p * old).sum(-1)
        follows = np.stack([old[np.arange(len(found)), actions] for actions in first])
        waiting = np.zeros(self.n, bool)
        for rows, state in self.moments:
            waiting[rows] = waiting_wins(self.env.config, state, self.new[rows])
        has_time = self.limits[found] - self.begins[found] >= HORIZON
        return Pairs(
            level=self.levels[found],
            step=self.begins[found],
            chance=old.mean(-1),
            follows_old=follows[0],
            follows_old_unchanged=follows[1],
            reaction=np.abs(p[0] - p[1]).sum(-1) / 2,
            old_action_drop=of_old[1] - of_old[0],
            replanned=self.replanned[found],
            decisions=self.decisions[found],
            extra_steps=np.where(has_time, self.regret[found], np.nan),
            success=self.success[0, found],
            success_unchanged=self.success[1, found],
            waiting_wins=waiting[found],
        )

    @staticmethod
    def no_pairs() -> Pairs:
        whole, real, yes = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool)
        return Pairs(whole, whole, real, yes, yes, real, real, whole, whole, real, yes, yes, yes)


def without_schedule(config: MazeConfig) -> MazeConfig:
    """The same maze, in which nothing changes any more.

    Periodic doors become independent ones, which need no spans of time to stay as they are.
    """
    process = "independent" if config.door_process == "periodic" else config.door_process
    return replace(config, p_change=0.0, p_goal=0.0, door_process=process)


def copy_rows(source: Batch, rows: NDArray[np.int64], target: Batch, to: NDArray[np.int64]) -> None:
    """Copy the complete state of some mazes to rows of a batch that has it or, of its own, no spans of time."""
    for name, array in source.state._asdict().items():
        own = getattr(target.state, name)
        if own.shape[1:] == array.shape[1:]:
            own[to] = array[rows]


def waiting_wins(config: MazeConfig, state: dict[str, NDArray], optimal: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where every way that arrives as early as the schedule allows begins with an action that the map calls worse.

    Args:
        config: of the mazes.
        state: arrays `[P, ...]` of their states, as in `MazeBatch.state`.
        optimal: `[P, 4]`, optimal actions on the map as it is.

    Returns:
        bool `[P]`; False where nothing arrives in time.
    """
    count = len(optimal)
    batch = MazeBatch(count * ACTIONS, config)
    for name, array in state.items():
        getattr(batch.state, name)[:] = np.repeat(array, ACTIONS, 0)
    batch.step(np.tile(np.arange(ACTIONS), count), False)
    later = batch.clairvoyant().reshape(count, ACTIONS).astype(np.float64)
    later[later < 0] = np.inf
    earliest = later.min(1, keepdims=True)
    return np.isfinite(earliest[:, 0]) & ~((later == earliest) & optimal).any(1)


def action_probabilities(actor: Actor, actions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distributions of an actor's last decisions, `[N, 4]`; all on the action where it has none, as with Q-values."""
    given = None
    if isinstance(actor, PolicyActor) and actor.policy.config.heads != "q":
        given = actor.probabilities
    return np.eye(ACTIONS)[actions] if given is None else given.astype(np.float64)
