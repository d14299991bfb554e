"""Episodes on numbered levels, under any actor, and what is recorded of them.

Episode i is the first episode of environment seed `seed + i`, whatever the batch size, so every actor plays the same
levels. An actor's random numbers depend on the level's number too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Any, NamedTuple, Protocol, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from hrm_agent.environments.action_masks import MASK, has_mask, idle_actions
from hrm_agent.environments.checked import closing, episode_limit
from hrm_agent.environments.make import episode_success, make_vector_env
from hrm_agent.evaluation import metrics
from hrm_agent.evaluation.draws import LevelRNG
from hrm_agent.evaluation.metrics import Decisions, Totals
from hrm_agent.names.values import printable
from hrm_agent.parallel.stopping import CheckStop, Stopped, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.distributions import Categorical, build_distribution
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.trees import to_tensors
from hrm_envs import Cell, MazeVectorEnv, ReplanPolicy

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # N, E, S, W, as (row, column)
Part = TypeVar("Part")
SPLIT_OFFSETS = {"validation": 2**28, "development": 2**29, "test": 2**29 + 2**27}
_log = logging.getLogger(__name__)


class Actor(Protocol):
    """Chooses actions for a batch of episodes, all begun together; holds whatever state it needs.

    An actor that thinks in segments has an attribute `segments`, int64 `[N]`: those of its last decisions.
    """

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """New episodes of the levels with these numbers, int64 `[N]`."""

    def act(self, obs: Any) -> NDArray:
        """Actions `[N, ...]` for observations `[N, ...]`, as the environment takes them."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Continue with these rows alone, in this order; a row given twice goes on as two, apart from each other."""


class Step(NamedTuple):
    """One environment step of the M unfinished episodes, passed to `on_step`."""

    number: int
    seeds: NDArray[np.int64]  # [M]
    obs: Any  # [M, ...]
    actions: NDArray  # [M, ...]
    rewards: NDArray[np.float64]  # [M]
    ended: NDArray[np.bool_]  # [M]


@dataclass(frozen=True)
class Episodes:
    """E episodes.

    Attributes:
        seeds: int64 `[E]`, the levels' numbers.
        success: bool `[E]`, see `environments.episode_success`.
        steps: int64 `[E]`, environment steps taken.
        returns: float64 `[E]`, undiscounted.
        clairvoyant: int64 `[E]`, earliest possible arrival in steps, -1 where impossible; None: not known.
        segments: int64 `[E]`, segments used in the whole episode; None: the actor does not count them.
        replaced: bool `[E]`, levels with a change for a pair of worlds (`metrics.met_replaced_plan`); None without an
            oracle.
        totals: regret and segments by what had just changed; None without an oracle.
        split: the split their levels come from; None where the environment has none.
        sides: int64 `[E]`, side of each level's grid, where mazes have several (`sizes`); else None.
    """

    seeds: NDArray[np.int64]
    success: NDArray[np.bool_]
    steps: NDArray[np.int64]
    returns: NDArray[np.float64]
    clairvoyant: NDArray[np.int64] | None
    segments: NDArray[np.int64] | None
    replaced: NDArray[np.bool_] | None
    totals: Totals | None
    split: str | None
    sides: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def join(cls, parts: Sequence[Episodes]) -> Episodes:
        """Episodes of several batches as one."""
        totals = [part.totals for part in parts if part.totals is not None]
        return cls(
            seeds=np.concatenate([part.seeds for part in parts]),
            success=np.concatenate([part.success for part in parts]),
            steps=np.concatenate([part.steps for part in parts]),
            returns=np.concatenate([part.returns for part in parts]),
            clairvoyant=_concatenate([part.clairvoyant for part in parts]),
            segments=_concatenate([part.segments for part in parts]),
            replaced=_concatenate([part.replaced for part in parts]),
            totals=Totals._make(map(_concatenate, zip(*totals, strict=True))) if totals else None,
            split=parts[0].split,
            sides=_concatenate([part.sides for part in parts]),
        )


def _concatenate(columns: Sequence[NDArray | None]) -> NDArray | None:
    """None where a part has no such column: either all have it or none."""
    return None if columns[0] is None else np.concatenate([c for c in columns if c is not None])


def known_options(env_id: str, env_options: dict[str, Any]) -> set[str]:
    """Which of `split` and `oracle` this environment has; the oracle is that of mazes, and other packages have neither.

    Raises:
        ValueError: the environment cannot be made with `env_options`.
    """
    env = make_vector_env(env_id, 1, env_options)
    singly = getattr(env, "envs", None)  # stepped one by one, they have no common arrays for an oracle to fill
    own = (env if singly is None else singly[0]).unwrapped
    names = ("split", "oracle") if isinstance(own, MazeVectorEnv) else ("split",)
    env.close()
    return {name for name in names if hasattr(getattr(own, "config", None), name)}


def first_seed(known: set[str], split: str, seed: int) -> int:
    """The environment seed of level `seed`, for an environment that knows these options (`known_options`).

    Where an environment has no splits, distant ranges of seeds keep training, selection and reported levels apart.
    """
    return seed if "split" in known else SPLIT_OFFSETS.get(split, 0) + seed


def level_batches(
    env_id: str, env_options: dict[str, Any], episodes: int, seed: int, batch: int, workers: int = 0
) -> Iterator[tuple[gym.vector.VectorEnv, NDArray[np.int64]]]:
    """Environments for the levels `seed ... seed + episodes - 1`, at most `batch` at a time, each closed after use.

    Yields:
        A vector environment, not yet reset, and the numbers of its levels, int64 `[N]`: to be reset with the first.

    Raises:
        ValueError: fewer than one episode, or an environment that cannot be made.
    """
    if episodes < 1 or batch < 1:
        raise ValueError(f"episodes={episodes}, batch={batch}: expected 1 or more of each")
    for levels in np.split(np.arange(seed, seed + episodes), range(batch, episodes, batch)):
        env = make_vector_env(env_id, len(levels), env_options, workers)
        with closing(env):
            yield env, levels


def run_episodes(
    actor: Actor,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int,
    seed: int = 0,
    split: str = "test",
    batch: int = 256,
    oracle: bool = True,
    on_step: Callable[[Step], None] | None = None,
    check_stop: CheckStop = never,
    workers: int = 0,
) -> Episodes:
    """Play the first episode of each of the levels `seed ... seed + episodes - 1`.

    Episodes of an environment without a time limit of its own end after `environments.checked.EPISODE_LIMIT` steps,
    which is said once.

    Args:
        actor: chooses the actions.
        env_id, env_options: the environment; its `split` and `oracle` are set here, where it knows them.
        episodes: E, 1 or more.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test`.
        batch: environments stepped together.
        oracle: judge every decision (slower).
        on_step: called after every step with the unfinished episodes.
        check_stop: called before every step.
        workers: see `make_vector_env`.

    Raises:
        ValueError: fewer than one episode, or an environment that cannot be made.
        EnvironmentFailed: see `environments.checked`.
        Stopped: by `check_stop`.
    """
    known = known_options(env_id, env_options)
    wanted = {"split": split, "oracle": oracle}
    options = {**env_options, **{name: value for name, value in wanted.items() if name in known}}
    judged = oracle and "oracle" in known
    batches = level_batches(env_id, options, episodes, first_seed(known, split, seed), batch, workers)
    joined = Episodes.join([_Batch(env, levels, judged).play(actor, on_step, check_stop) for env, levels in batches])
    return Episodes(**{**joined.__dict__, "split": split if "split" in known else None})


class _Batch:
    """One batch of unfinished episodes; `rows` are their indices in the batch."""

    def __init__(self, env: gym.vector.VectorEnv, seeds: NDArray[np.int64], oracle: bool) -> None:
        self.env, self.seeds, self.oracle = env, seeds, oracle
        count = len(seeds)
        self.rows = np.arange(count)
        self.success = np.zeros(count, bool)
        self.steps = np.zeros(count, np.int64)
        self.returns = np.zeros(count)
        self.segments: NDArray[np.int64] | None = None
        self.decisions: list[Decisions] = []  # [N] each

    def play(self, actor: Actor, on_step: Callable[[Step], None] | None, check_stop: CheckStop) -> Episodes:
        obs, infos = self.env.reset(seed=int(self.seeds[0]))  # environment i takes seed + i
        clairvoyant = getattr(self.env.unwrapped, "clairvoyant", None)
        arrival = None if clairvoyant is None else np.asarray(clairvoyant(), np.int64)
        sides = getattr(self.env.unwrapped, "sides", None)  # of a maze
        actor.reset(self.seeds)
        limit = episode_limit(self.env)
        number, given = 0, self.rows  # `given`: the rows that the actor still plays
        while self.rows.size:
            check_stop()
            if self.rows.size <= 0.75 * given.size:  # do not compute decisions for ended episodes
                actor.keep(np.searchsorted(given, self.rows))
                given = self.rows
            actions = idle_actions(self.env, obs)
            actions[given] = actor.act(_take(obs, given))
            segments = self._count_segments(actor, given)
            if self.oracle:
                self._judge(obs, actions, infos, segments)
            rows = self.rows
            seen = None if on_step is None else _take(obs, rows)
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
            ended = np.asarray(terminated | truncated)
            self._count(rewards, ended, infos)
            if on_step is not None:
                on_step(Step(number, self.seeds[rows], seen, actions[rows], rewards[rows], ended[rows]))
            number += 1
            if number == limit:
                self._cut_off(limit)
        replaced, totals = self._sum_up()
        found = (self.seeds, self.success, self.steps, self.returns, arrival, self.segments, replaced, totals)
        return Episodes(*found, None, sides)

    def _count_segments(self, actor: Actor, given: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Segments of this decision, int64 `[N]`, 0 where the episode has ended; None: the actor counts none."""
        thought = getattr(actor, "segments", None)
        if thought is None:
            return None
        segments = np.zeros(len(self.seeds), np.int64)
        segments[given] = thought
        segments[np.setdiff1d(given, self.rows, assume_unique=True)] = 0
        self.segments = segments if self.segments is None else self.segments + segments
        return segments

    def _sum_up(self) -> tuple[NDArray[np.bool_] | None, Totals | None]:
        if not self.oracle:
            return None, None
        columns = zip(*self.decisions, strict=True)
        decisions = Decisions._make(None if column[0] is None else np.stack(column) for column in columns)
        return metrics.met_replaced_plan(decisions, self.steps), metrics.total_decisions(decisions, self.steps)

    def _judge(
        self, obs: Any, actions: NDArray[np.int64], infos: dict[str, Any], segments: NDArray[np.int64] | None
    ) -> None:
        """Record how good the decisions are on the map they are taken on."""
        distance, optimal = infos["distance"], infos["optimal_actions"]
        regret = metrics.action_regret(distance, optimal, actions, blocked_moves(obs))
        changed, material = (np.asarray(infos[name]).copy() for name in ("changed", "material"))
        replaced = metrics.replaces_all(infos["stale_optimal_actions"], optimal)
        self.decisions.append(Decisions(regret, changed, material, replaced, segments))

    def _count(self, rewards: NDArray, ended: NDArray[np.bool_], infos: dict[str, Any]) -> None:
        self.steps[self.rows] += 1
        self.returns[self.rows] += rewards[self.rows]
        over = self.rows[ended[self.rows]]
        if over.size:
            self.success[over] = episode_success(self.env, infos, self.returns)[over]
            self.rows = self.rows[~ended[self.rows]]

    def _cut_off(self, limit: int) -> None:
        """End the episodes that are left. What they reached is judged by their returns alone: no info says it."""
        if self.rows.size:
            say_cut_off(getattr(self.env, "env_id", type(self.env.unwrapped).__name__), limit)
            self.success[self.rows] = episode_success(self.env, {}, self.returns)[self.rows]
            self.rows = self.rows[:0]


@cache
def say_cut_off(env_id: str, limit: int, what: str = "an evaluation") -> None:
    """Warn, once in a process, that an environment without a time limit was stopped."""
    _log.warning(
        "env=%s has no time limit: episodes of %s are cut off after %s steps; set a limit by "
        "env.options.max_episode_steps=N in training, env_options.max_episode_steps=N elsewhere",
        printable(env_id),
        what,
        f"{limit:,}",
    )


def _take(obs: Any, rows: NDArray[np.int64]) -> Any:
    """Those rows of a batch of observations, copied: environments may reuse their buffers."""
    return {key: value[rows] for key, value in obs.items()} if isinstance(obs, dict) else obs[rows]


def blocked_moves(grids: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Moves N, E, S, W that a wall or a closed door blocks: bool `[B, 4]`.

    Args:
        grids: `[B, H, W]` of `Cell` ids. The agent always sees its four neighbours, so fog hides nothing
            that matters here.
    """
    batch = np.arange(len(grids))
    at = (grids == Cell.AGENT).reshape(len(grids), -1).argmax(1)
    row, col = np.divmod(at, grids.shape[2])
    beside = np.stack([grids[batch, row + down, col + right] for down, right in MOVES], 1)
    return (beside == Cell.WALL) | (beside == Cell.DOOR)


class PolicyActor:
    """A policy with its state, greedy or drawing from its distribution.

    Args:
        policy: never changed here.
        deterministic: the most probable action, or one drawn.
        seed: of the draws.

    Attributes:
        probabilities: float32 `[N, A]` of the last decision; None where actions are not one of a finite number.
        segments: int64 `[N]`, segments of the last decision.
    """

    def __init__(self, policy: Policy, deterministic: bool = True, seed: int = 0) -> None:
        self.policy, self.seed = policy, seed
        self.deterministic = deterministic or policy.config.heads == "q"  # Q-values are no distribution
        self.state: PolicyState = ()
        self.probabilities: NDArray[np.float32] | None = None

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.state = self.policy.initial_state(len(seeds))
        self.episode_start = torch.ones(len(seeds), dtype=torch.bool)
        self.rng = None if self.deterministic else LevelRNG(seeds, self.seed)

    @torch.no_grad()
    def act(self, obs: Any) -> NDArray:
        policy = self.policy
        decision = policy.step(to_tensors(obs, policy.device), self.state, self.episode_start.to(policy.device))
        self.state = decision.state
        self.episode_start = torch.zeros_like(self.episode_start)
        self.segments = decision.segments.cpu().numpy()
        distribution = policy.distribution
        if isinstance(distribution, Categorical):
            self.probabilities = decision.logits.float().softmax(-1).cpu().numpy()
        if self.rng is None:
            return distribution.to_env(distribution.best(decision.logits))
        uniforms = torch.from_numpy(np.stack([self.rng.draw() for _ in range(distribution.uniforms)], -1))
        return distribution.to_env(distribution.icdf(decision.logits.cpu(), uniforms))

    def keep(self, rows: NDArray[np.int64]) -> None:
        index = torch.as_tensor(rows)
        self.state = tuple(s[index.to(s.device)] for s in self.state)
        self.episode_start = self.episode_start[index]
        if self.rng is not None:
            self.rng.keep(rows)


class RandomActor:
    """Uniform over an action space; over what is unbounded, a standard normal.

    Args:
        space: of one action; the four moves of a maze where it is None.
        seed: of the draws.
        observation_space: of one observation; where it holds a mask of legal actions, one of these is drawn.
    """

    def __init__(
        self, space: gym.Space | None = None, seed: int = 0, observation_space: gym.Space | None = None
    ) -> None:
        self.distribution = build_distribution(gym.spaces.Discrete(4) if space is None else space)
        self.seed = seed
        self.masked = observation_space is not None and has_mask(observation_space)

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.rng = LevelRNG(seeds, self.seed)

    def act(self, obs: Any) -> NDArray:
        uniforms = torch.from_numpy(np.stack([self.rng.draw() for _ in range(self.distribution.uniforms)], -1))
        legal = torch.from_numpy(np.asarray(obs[MASK]) != 0) if self.masked else None
        return self.distribution.to_env(self.distribution.uniform(uniforms, legal))

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.rng.keep(rows)


class ReplanActor:
    """A shortest path on what it sees, re-planned at every step.

    Args:
        remembers: plan on all that was seen in the episode, each position as it was seen last.
    """

    def __init__(self, remembers: bool = False) -> None:
        self.planner, self.remembers = ReplanPolicy(), remembers
        self.seen: NDArray[np.uint8] | None = None  # [N, H, W]

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.seen = None

    def act(self, obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Actions int64 `[N]` for observations uint8 `[N, H, W]`."""
        return self.planner.act(self.known(obs))

    def known(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What it plans on: the observations, with what it remembers in place of what it does not see."""
        if not self.remembers:
            return obs
        if self.seen is None:
            self.seen = np.full_like(obs, Cell.UNKNOWN)
        goal_in_sight = (obs == Cell.GOAL).any((1, 2))
        self.seen[(self.seen == Cell.GOAL) & goal_in_sight[:, None, None]] = Cell.EMPTY
        self.seen = np.where(obs == Cell.UNKNOWN, self.seen, obs)
        return self.seen

    def keep(self, rows: NDArray[np.int64]) -> None:
        if self.seen is not None:
            self.seen = self.seen[rows]


def run_in_threads(
    make_actor: Callable[[], Actor],
    env_id: str,
    env_options: dict[str, Any],
    episodes: int,
    seed: int = 0,
    split: str = "test",
    batch: int = 256,
    oracle: bool = True,
    threads: Threads | None = None,
    check_stop: CheckStop = never,
    workers: int = 0,
) -> Episodes:
    """`run_episodes` with the levels divided over threads, each with its own actor and environments.

    With `workers` (see `make_vector_env`) there is one thread: it only waits for the processes.
    """

    def part(levels: slice, check: CheckStop) -> Episodes:
        played = levels.stop - levels.start, seed + levels.start, split, batch, oracle
        return run_episodes(make_actor(), env_id, env_options, *played, check_stop=check, workers=workers)

    return Episodes.join(in_threads(part, episodes, None if workers else threads, check_stop))


def in_threads(
    part: Callable[[slice, CheckStop], Part], count: int, threads: Threads | None, check_stop: CheckStop = never
) -> list[Part]:
    """The results of slices of `range(count)`, each computed in its own thread.

    An exception in this thread, such as Ctrl-C, ends the others at their next step.

    Args:
        part: computes a slice, and calls the function it is given before every step.
        count: 0 or more.
        threads: None: all in this thread.
        check_stop: called before every step.
    """
    over = Event()

    def check() -> None:
        if over.is_set():
            raise Stopped
        check_stop()

    if threads is None or count < 2:
        return [part(slice(0, count), check)]
    try:
        return threads.map(lambda own: part(own, check), threads.slices(count))
    except BaseException:
        over.set()
        raise
