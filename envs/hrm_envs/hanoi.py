"""The Towers of Hanoi between random states, whose goal may change while the disks are moved."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hrm_envs.batch import Batch, config_from
from hrm_envs.config import MAX_STEPS, SPLITS, check_choice, check_fraction, check_integer, whole
from hrm_envs.hanoi_rendering import render_hanoi
from hrm_envs.hanoi_rules import FEW_DISKS, NO_DISK, PAIRS, PEGS, legal_pairs, optimal_moves, split_of, top_disks
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD
from hrm_envs.limits import LevelEnv
from hrm_envs.rng import STREAM_GOAL_DUE, STREAM_GOAL_PICK, STREAM_LAYOUT, all_below, all_happen, draws, level_seeds
from hrm_envs.rng import mix_array as mix
from hrm_envs.states import require
from hrm_envs.vector import LevelVectorEnv

MAX_DISKS = 16
EXCESS = 4
"""The default time limit, in moves from one tower to another."""
_AT_ONCE = 256
"""Steps of a schedule that are looked at together."""
_ORIGIN, _TARGET = (np.array(side) for side in zip(*PAIRS, strict=True))
_PAIR = np.full((PEGS, PEGS), -1)
_PAIR[_ORIGIN, _TARGET] = np.arange(len(PAIRS))


@dataclass(frozen=True)
class HanoiConfig:
    """The parameters of the Towers of Hanoi.

    Attributes:
        disks: number of disks n.
        p_goal: probability, at every step, that the goal becomes another random state.
        max_episode_steps: steps after which an episode is truncated. ``None`` takes 4 * (2^n - 1), four times the
            moves between the two states that are furthest apart.
        oracle: add the oracle's values to ``info``.
        split: ``train``, ``validation``, ``development`` or ``test``. With three disks or more, start and goal of one
            are no pair of another but development, whatever the pegs are called; a goal that changes is any state.

    Raises:
        ValueError: for a value out of range.
    """

    disks: int = 4
    p_goal: float = 0.0
    max_episode_steps: int | None = None
    oracle: bool = False
    split: str = "train"

    def __post_init__(self) -> None:
        for name in ("disks", "max_episode_steps"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        check_integer("disks", self.disks, 1, MAX_DISKS, "choose another number of disks")
        check_fraction("p_goal", self.p_goal)
        limit = EXCESS * (2**self.disks - 1) if self.max_episode_steps is None else self.max_episode_steps
        object.__setattr__(self, "max_episode_steps", limit)
        check_integer("max_episode_steps", limit, 1, MAX_STEPS, "choose another time limit")
        check_choice("split", self.split, SPLITS)
        if not isinstance(self.oracle, bool):
            raise ValueError(f"oracle={self.oracle!r} is not a bool; give True or False")


class HanoiState(NamedTuple):
    """Complete state of N environments; pegs 0, 1, 2 of the disks, the largest first."""

    env_seed: NDArray[np.int64]  # [N]
    episode: NDArray[np.int64]  # [N]
    level_seed: NDArray[np.int64]  # [N]
    steps: NDArray[np.int32]  # [N]
    done: NDArray[np.uint8]  # [N]
    pegs: NDArray[np.uint8]  # [N, n]
    goals: NDArray[np.uint8]  # [N, n]


class HanoiOutcome(NamedTuple):
    """Results of a step; the next step overwrites every array. See ``hrm_envs.kernel.Outcome``."""

    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    ended: NDArray[np.bool_]  # [N]
    success: NDArray[np.bool_]  # [N]
    episode_return: NDArray[np.float64]  # [N] 0 where not ended
    episode_length: NDArray[np.int64]  # [N] 0 where not ended


class Schedule:
    """Starts and goals as functions of (level seed, step) alone.

    Args:
        disks, p_goal, split: see ``HanoiConfig``.
    """

    def __init__(self, disks: int, p_goal: float, split: str) -> None:
        self.disks, self.threshold = disks, int(p_goal * 2**53)
        self.pairs = {"train": 0, "test": 2}.get(split, 1)  # those of validation are for development too

    def starts(self, seeds: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The start and the first goal, another state, uniform among the pairs of the split: uint8 [N, n] each."""
        pegs, goals = np.zeros((2, len(seeds), self.disks), np.uint8)
        missing, attempt = np.arange(len(seeds)), 0
        while missing.size:
            drawn = [self._draw(seeds[missing], STREAM_LAYOUT, 0, 2 * attempt + side) for side in (0, 1)]
            pegs[missing], goals[missing] = drawn
            fits = np.ones(len(missing), np.bool_)
            if self.disks > FEW_DISKS:
                fits = split_of(*(side.astype(np.int64) for side in drawn)) == self.pairs
            missing, attempt = missing[~fits | (drawn[0] == drawn[1]).all(1)], attempt + 1
        return pegs, goals

    def due(self, seeds: NDArray[np.int64], steps: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the goal changes at a step, 1 or later, of arrays that broadcast."""
        return all_happen(draws(seeds, STREAM_GOAL_DUE, steps, 0), self.threshold)

    def drawn(self, seeds: NDArray[np.int64], steps: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The goal that is drawn at a step at which it changes: uint8 [N, n]."""
        return self._draw(seeds, STREAM_GOAL_PICK, steps, 0)

    def goals(self, seeds: NDArray[np.int64], steps: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The goal after the change of a step, uint8 [N, n]: the one drawn last, or else the first."""
        goals = self.starts(seeds)[1]
        last, end = np.zeros(len(seeds), np.int64), steps.astype(np.int64)
        searched = np.arange(len(seeds)) if self.threshold else np.arange(0)
        while (searched := searched[end[searched] > 0]).size:
            earlier = end[searched, None] - np.arange(_AT_ONCE)
            found = self.due(seeds[searched, None], earlier) & (earlier > 0)
            hit = found.any(1)
            last[searched[hit]] = end[searched[hit]] - found[hit].argmax(1)
            end[searched] = np.where(hit, 0, end[searched] - _AT_ONCE)
        changed = last > 0
        goals[changed] = self.drawn(seeds[changed], last[changed])
        return goals

    def _draw(self, seeds: NDArray[np.int64], stream: int, steps: Any, place: int) -> NDArray[np.uint8]:
        indices = place * self.disks + np.arange(self.disks)
        bits = draws(seeds[:, None], stream, np.asarray(steps)[..., None], indices)
        return all_below(np.broadcast_to(bits, (len(seeds), self.disks)), PEGS).astype(np.uint8)


class HanoiBatch(Batch):
    """N Towers of Hanoi with the same parameters; numpy throughout, so that nothing is compiled."""

    actions = "0 to 5 (a move from peg 0 to 1, 0 to 2, 1 to 0, 1 to 2, 2 to 0, 2 to 1)"
    state: HanoiState
    outcome: HanoiOutcome

    def __init__(self, num_envs: int, config: HanoiConfig) -> None:
        super().__init__(num_envs)
        self.config = config
        self.schedule = Schedule(config.disks, config.p_goal, config.split)
        self._rows = np.arange(num_envs)
        self.state = HanoiState(
            env_seed=np.zeros(num_envs, np.int64),
            episode=np.full(num_envs, -1, np.int64),
            level_seed=np.zeros(num_envs, np.int64),
            steps=np.zeros(num_envs, np.int32),
            done=np.zeros(num_envs, np.uint8),
            pegs=np.zeros((num_envs, config.disks), np.uint8),
            goals=np.zeros((num_envs, config.disks), np.uint8),
        )
        kinds = (np.float32, *[np.bool_] * 4, np.float64, np.int64)
        self.outcome = HanoiOutcome(*(np.zeros(num_envs, kind) for kind in kinds))
        self._changed = self._material = np.zeros(num_envs, np.bool_)
        self._stale = np.zeros((num_envs, len(PAIRS)), np.bool_)
        self._final: dict[str, Any] = {}

    @property
    def observations(self) -> dict[str, NDArray]:
        """``disks`` uint8 [N, n, 1, 2] and ``action_mask`` int8 [N, 6]; new arrays."""
        return _observe(self.state.pegs, self.state.goals)

    @property
    def final_observations(self) -> dict[str, NDArray]:
        """The last observations of the episodes that just ended, in the rows of these."""
        observed: dict[str, NDArray] = self._final["observations"]
        return observed

    def compile(self) -> None:
        """There is nothing to compile."""

    def is_compiled(self) -> bool:
        return True

    def _begin(self) -> None:
        self._begin_rows(self._rows)
        self._judge(self.state.goals)

    def _begin_rows(self, rows: NDArray[np.int64]) -> None:
        state = self.state
        state.episode[rows] += 1
        split = SPLITS.index(self.config.split)
        state.level_seed[rows] = level_seeds(state.env_seed[rows], state.episode[rows], split)
        state.pegs[rows], state.goals[rows] = self.schedule.starts(state.level_seed[rows])
        state.steps[rows] = state.done[rows] = 0

    def _advance(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        wrong = (actions < 0) | (actions >= len(PAIRS))
        if wrong.any():
            return -1 - int(wrong.argmax())
        state, outcome = self.state, self.outcome
        origin, target = _ORIGIN[actions], _TARGET[actions]
        top = top_disks(state.pegs)
        disk = top[self._rows, origin]
        legal = disk > top[self._rows, target]
        state.pegs[self._rows[legal], disk[legal]] = target[legal]
        state.steps[:] += 1
        before = state.goals.copy()
        arrived = (state.pegs == state.goals).all(1)
        if self.schedule.threshold:
            due = np.flatnonzero(~arrived & self.schedule.due(state.level_seed, state.steps))
            state.goals[due] = self.schedule.drawn(state.level_seed[due], state.steps[due])
            arrived |= (state.pegs == state.goals).all(1)
        outcome.success[:] = outcome.terminated[:] = arrived
        outcome.truncated[:] = ~arrived & (state.steps >= self.config.max_episode_steps)
        outcome.ended[:] = arrived | outcome.truncated
        outcome.reward[:] = np.where(arrived, GOAL_REWARD, STEP_REWARD)
        last = np.where(arrived, GOAL_REWARD, STEP_REWARD)
        outcome.episode_length[:] = np.where(outcome.ended, state.steps, 0)
        outcome.episode_return[:] = np.where(outcome.ended, STEP_REWARD * (state.steps - 1) + last, 0.0)
        self._judge(before)
        ended = np.flatnonzero(outcome.ended)
        if len(ended):
            self._final = {"observations": self.observations, "info": self.info()}
            if autoreset:
                self._begin_rows(ended)
                self._judge_again(ended)
            else:
                state.done[ended] = 1
        return len(ended)

    def _judge(self, before: NDArray[np.uint8]) -> None:
        """The oracle's values: what there is now, and what a change of the goal from ``before`` made of it."""
        if not self.config.oracle:
            return
        pegs, goals = self.state.pegs, self.state.goals
        self._distance, self._optimal = _solve(pegs, goals)
        earlier, self._stale = _solve(pegs, before)
        self._changed = (goals != before).any(1)
        altered = (earlier != self._distance) | (self._stale != self._optimal).any(1)
        self._material = self._changed & altered

    def _judge_again(self, rows: NDArray[np.int64]) -> None:
        """The oracle's values of episodes that begin."""
        if not self.config.oracle:
            return
        self._distance[rows], self._optimal[rows] = _solve(self.state.pegs[rows], self.state.goals[rows])
        self._stale[rows] = self._optimal[rows]
        self._changed[rows] = self._material[rows] = False

    def info(self, final: bool = False) -> dict[str, NDArray]:
        if final:
            return dict(self._final["info"])
        return {"action_mask": legal_pairs(self.state.pegs).astype(np.int8), **super().info()}

    def oracle_info(self, final: bool = False) -> dict[str, NDArray]:
        return {
            "distance": self._distance.copy(),
            "optimal_actions": self._optimal.copy(),
            "stale_optimal_actions": self._stale.copy(),
            "changed": self._changed.copy(),
            "material": self._material.copy(),
        }

    def set_state(self, state: Any, autoreset: bool = False) -> None:
        super().set_state(state, autoreset)
        self._judge(self.state.goals)

    def _check(self, state: HanoiState) -> None:
        for name, side in (("pegs", state.pegs), ("goals", state.goals)):
            require(side < PEGS, name, side, "a peg, 0, 1 or 2")
        arrived = (state.pegs == state.goals).all(1)
        require(~arrived | (state.done == 1), "pegs", state.pegs[:, 0], "another state than the goal in an episode")
        over = arrived | (state.steps >= self.config.max_episode_steps)
        require(over | (state.done == 0), "done", state.done, "0 before an episode's end")
        # An episode that ended by a move kept its goal at that step; one that ended by a change of the goal did not.
        now = self.schedule.goals(state.level_seed, state.steps)
        earlier = self.schedule.goals(state.level_seed, np.maximum(state.steps - 1, 0))
        kept = arrived & (state.goals == earlier).all(1)
        expected = np.where(kept[:, None], earlier, now)
        require(state.goals == expected, "goals", state.goals, "the goal of its level and step", expected)
        far = optimal_moves(self.schedule.starts(state.level_seed)[0], state.pegs).distance
        require(far <= state.steps, "pegs", state.pegs[:, 0], "a state within as many moves as steps were taken")

    def clairvoyant(self) -> NDArray[np.int32]:
        """Earliest possible arrival in steps from now: int32 [N], -1 where impossible in time.

        Steps can be wasted, so a state can be reached at every step from its distance on.
        """
        state, limit = self.state, self.config.max_episode_steps
        assert limit is not None
        distance = optimal_moves(state.pegs, state.goals).distance
        arrival = np.where(state.steps + distance <= limit, distance, -1)
        if not self.schedule.threshold:
            return arrival.astype(np.int32)
        arrival = np.where((state.pegs == state.goals).all(1), 0, -1)
        rows, step = np.flatnonzero(arrival < 0), 0
        while (rows := rows[state.steps[rows] + step < limit]).size:
            step += 1
            at = state.steps[rows].astype(np.int64) + step
            arrival[rows[distance[rows] <= step]] = step  # at the goal before the change of this step
            seeds = state.level_seed[rows]
            due = (arrival[rows] < 0) & self.schedule.due(seeds, at)
            goals = self.schedule.drawn(seeds[due], at[due])
            distance[rows[due]] = optimal_moves(state.pegs[rows[due]], goals).distance
            arrival[rows[(arrival[rows] < 0) & (distance[rows] <= step)]] = step
            rows = rows[arrival[rows] < 0]
        return arrival.astype(np.int32)

    def level_codes(self) -> NDArray[np.uint64]:
        """A hash of what the level of each episode that begins now holds, its schedule included: uint64 [N]."""
        state, limit = self.state, self.config.max_episode_steps
        assert limit is not None
        code = _hash(np.concatenate([state.pegs, state.goals], 1))
        for step in range(1, limit + 1) if self.schedule.threshold else ():
            due = np.flatnonzero(self.schedule.due(state.level_seed, np.full(self.num_envs, step)))
            seeds = state.level_seed[due]
            code[due] = mix(
                mix(code[due] ^ _hash(self.schedule.drawn(seeds, np.full(len(due), step)))) ^ np.uint64(step)
            )
        return code


def _observe(pegs: NDArray[np.uint8], goals: NDArray[np.uint8]) -> dict[str, NDArray]:
    return {"action_mask": legal_pairs(pegs).astype(np.int8), "disks": np.stack([pegs, goals], 2)[:, :, None]}


def _solve(pegs: NDArray[np.uint8], goals: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Distances int32 [N] and the optimal actions bool [N, 6]."""
    best = optimal_moves(pegs, goals)
    optimal = np.zeros((len(pegs), len(PAIRS)), np.bool_)
    for disk, to in zip(best.disk.T, best.to.T, strict=True):
        rows = np.flatnonzero(disk != NO_DISK)
        optimal[rows, _PAIR[pegs[rows, disk[rows]], to[rows]]] = True
    return best.distance.astype(np.int32), optimal


def shortest_actions(disks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The first optimal action of observed ``disks`` uint8 [N, n, 1, 2], for the goal as it is: int64 [N]."""
    return _solve(disks[:, :, 0, 0], disks[:, :, 0, 1])[1].argmax(1)


def _hash(pegs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Of rows [N, k]: uint64 [N]."""
    code = np.zeros(len(pegs), np.uint64)
    for peg in pegs.T.astype(np.uint64):
        code = mix(code * np.uint64(PEGS) + peg + np.uint64(1))
    return code


def _spaces(config: HanoiConfig) -> tuple[spaces.Space, spaces.Space]:
    disks = spaces.Box(0, PEGS - 1, (config.disks, 1, 2), np.uint8)
    observed = spaces.Dict({"action_mask": spaces.MultiBinary(len(PAIRS)), "disks": disks})
    return observed, spaces.Discrete(len(PAIRS))


class HanoiVectorEnv(LevelVectorEnv):
    """N Towers of Hanoi in SAME_STEP autoreset mode; see ``HanoiEnv`` for the rules.

    Environment i, seeded s, behaves exactly as a single ``HanoiEnv`` seeded s + i.

    ``infos`` holds ``action_mask`` int8 [N, 6] after every reset and step, and the oracle's values. Where an episode
    ended, ``final_obs`` (a dictionary of arrays), ``episode`` and ``final_info`` are as in ``MazeVectorEnv``.
    """

    metadata = {**LevelVectorEnv.metadata, "render_modes": ["rgb_array"]}  # noqa: RUF012

    def _build_batch(self, num_envs: int, parameters: dict[str, Any]) -> Batch:
        return HanoiBatch(num_envs, config_from(HanoiConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        return _spaces(self.config)

    def render(self) -> tuple[Any, ...] | None:
        """One frame for each environment, uint8 [h, w, 3]."""
        if self.render_mode is None:
            return None
        state = self.batch.state
        return tuple(render_hanoi(pegs, goals) for pegs, goals in zip(state.pegs, state.goals, strict=True))


class HanoiEnv(LevelEnv):
    """The Towers of Hanoi from a random state to another, which may change on the way.

    ## Description
    ``disks`` disks of different sizes lie on three pegs, on each in order of size. A move takes the uppermost disk of a
    peg to another one whose uppermost disk is larger, or which is empty. Any assignment of disks to pegs is a state, so
    there are 3^n of them, at most 2^n - 1 moves apart. The goal is another of them. With ``p_goal`` it becomes a random
    state with that probability at every step; when and which depends on the level and the step alone, not on the
    actions.

    ## Action Space
    ``Discrete(6)``: the uppermost disk from peg to peg, 0: 0 to 1, 1: 0 to 2, 2: 1 to 0, 3: 1 to 2, 4: 2 to 0,
    5: 2 to 1. An illegal move changes nothing and counts as a step.

    ## Observation Space
    ``Dict``: ``disks``, ``Box(0, 2, (n, 1, 2), uint8)``, the peg of every disk and the peg where it is to go, the
    largest disk first: a grid of one column with two channels. ``action_mask``, ``MultiBinary(6)``: 1 for legal moves,
    of which there are two or three.

    ## Starting State
    Two different states, each equally likely, of a hash of (seed, episode) within ``split``.

    ## Rewards
    +1 on reaching the goal, otherwise -0.01 per step.

    ## Episode End
    Terminated when all disks are where they are to go: first a disk moves, then the goal may change, unless it has been
    reached. Truncated after ``max_episode_steps``; ``None`` is 4 * (2^n - 1). Under ``gymnasium.make`` a limit
    given there is that of its ``TimeLimit`` wrapper, and can only be the shorter of the two.
    ``info["is_success"]`` says at every step whether the goal was reached.

    ## Arguments
    ``disks`` (4), ``p_goal`` (0), ``max_episode_steps``, ``oracle``, ``split``: see ``HanoiConfig``; ``render_mode``:
    ``rgb_array``. ``info["action_mask"]`` holds the mask too. With ``oracle=True`` it holds ``distance`` (moves to the
    goal), ``optimal_actions`` (bool [6]), ``changed`` (the goal changed at this step), ``material`` (that altered the
    distance or the optimal actions) and ``stale_optimal_actions`` (bool [6]: those for the goal before).

    ## Version History
    * v0: first version.

    ## References
    Hinz, Klavzar and Petr, The Tower of Hanoi: Myths and Maths (2018).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def _build_batch(self, parameters: dict[str, Any]) -> Batch:
        return HanoiBatch(1, config_from(HanoiConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        return _spaces(self.config)

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame uint8 [h, w, 3]; None without a ``render_mode``."""
        if self.render_mode is None:
            return None
        return render_hanoi(self.batch.state.pegs[0], self.batch.state.goals[0])
