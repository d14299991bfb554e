"""Inside a policy: how its latent moves from segment to segment, and what the carried state is used for.

`latent_curves` measures convergence and divergence over segments (arXiv 2510.22832), `intervene` changes the carried
state or the environment in mid-episode. Both play greedy episodes of mazes and leave the policy unchanged. Averages
are over decisions, standard errors over episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.cores import State
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import MOVES, blocked_moves, level_batches
from hrm_agent.evaluation.metrics import action_regret, wilson_interval
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Decision, Policy
from hrm_agent.recurrence import relative_change
from hrm_envs import Cell, MazeConfig
from hrm_envs.oracle import shortest_distances

KINDS = ("first", "unchanged", "immaterial", "material")
"""What changed in the environment just before a decision; the first of an episode is a kind of its own."""

CURVES = ("relative_change", "mse_to_last", "mse_to_first", "mse_to_seed", "mse_to_previous", "regret")

INTERVENTIONS = ("swap", "reset_once", "goal_shift", "goal_shift_reset")

SHIFT_STREAM = 1
"""First word of the seeds that new goals are drawn from; the second is the level."""


class Moment(NamedTuple):
    """One environment step of the M episodes of a batch that have not ended."""

    number: int  # earlier decisions in these episodes
    episodes: NDArray[np.int64]  # [M] index among all episodes played
    obs: NDArray[np.uint8]  # [M, H, W]
    maps: NDArray[np.uint8]  # [M, H, W], the same without fog
    infos: dict[str, NDArray]  # [M, ...] the oracle's
    state: PolicyState  # M rows, before the step
    episode_start: Tensor  # bool [M]
    decision: Decision
    actions: NDArray[np.int64]  # [M]
    success: NDArray[np.bool_]  # [M] the goal was reached by this step


Intervention = Callable[[gym.vector.VectorEnv, int, NDArray[np.int64], PolicyState, Tensor], tuple[PolicyState, Tensor]]
"""`(env, number, rows, state, episode_start) -> (state, episode_start)`, called before decision `number`; `rows` int64
`[M]`, the environments in `env` whose episodes have not ended, are the rows of the state."""


def play(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int,
    seed: int = 0,
    split: str = "test",
    batch: int = 256,
    intervention: Intervention | None = None,
) -> Iterator[Moment]:
    """Greedy episodes of the levels `seed ... seed + episodes - 1`, step by step and batch by batch.

    Args:
        policy: never changed here.
        env_id, env_options: a maze; `split` and `oracle` are set here.
        episodes: 1 or more.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test`.
        batch: environments stepped together.
        intervention: called before every decision; it may change the environment and the carried state.

    Raises:
        ValueError: fewer than one episode, an environment that cannot be made or is not a maze.
    """
    _check_maze(env_id, env_options)
    options = {**env_options, "split": split, "oracle": True}
    for env, levels in level_batches(env_id, options, episodes, seed, batch):
        for moment in _play_batch(policy, env, int(levels[0]), intervention):
            yield moment._replace(episodes=moment.episodes + int(levels[0]) - seed)


def _check_maze(env_id: str, env_options: dict[str, Any]) -> None:
    probe = make_vector_env(env_id, 1, env_options)
    config = getattr(probe.unwrapped, "config", None)
    probe.close()
    if not isinstance(config, MazeConfig):
        raise ValueError(f"env={env_id}: latents are measured on mazes with an oracle; give one such as DynamicMaze-v0")


def _play_batch(
    policy: Policy, env: gym.vector.VectorEnv, seed: int, intervention: Intervention | None
) -> Iterator[Moment]:
    maze: Any = env.unwrapped
    obs, infos = env.reset(seed=seed)  # environment i takes seed + i
    rows = np.arange(env.num_envs)
    state = policy.initial_state(len(rows))
    start = torch.ones(len(rows), dtype=torch.bool, device=policy.device)
    number = 0
    while rows.size:
        if intervention is not None:
            state, start = intervention(env, number, rows, state, start)
            obs = maze.observe()
        with torch.no_grad():
            decision = policy.step(torch.as_tensor(obs[rows], device=policy.device), state, start)
        chosen = decision.logits.argmax(-1).cpu().numpy()
        maps = maze.get_state()["grid"].reshape(obs.shape)[rows]
        moment = Moment(
            number, rows, obs[rows], maps, {}, state, start, decision, chosen, np.zeros(len(rows), np.bool_)
        )
        oracle = {
            name: np.asarray(infos[name])[rows] for name in ("distance", "optimal_actions", "changed", "material")
        }
        actions = np.zeros(env.num_envs, np.int64)
        actions[rows] = chosen
        obs, _, terminated, truncated, infos = env.step(actions)
        yield moment._replace(infos=oracle, success=np.asarray(terminated)[rows])  # a maze terminates at the goal only
        going = ~np.asarray(terminated | truncated)[rows]
        index = torch.as_tensor(np.flatnonzero(going), device=policy.device)
        rows, number = rows[going], number + 1
        state = tuple(s[index] for s in decision.state)
        start = torch.zeros(len(rows), dtype=torch.bool, device=policy.device)


class Followed:
    """Tensors of the episodes of the previous moment, for those that have not ended."""

    def __init__(self) -> None:
        self._episodes = np.zeros(0, np.int64)
        self._tensors: tuple[Tensor, ...] = ()

    def take(self, episodes: NDArray[np.int64]) -> tuple[Tensor, ...]:
        index = np.searchsorted(self._episodes, episodes)
        return tuple(t[torch.as_tensor(index, device=t.device)] for t in self._tensors)

    def put(self, episodes: NDArray[np.int64], tensors: Sequence[Tensor]) -> None:
        self._episodes, self._tensors = episodes, tuple(tensors)


@torch.no_grad()
def trace_segments(
    policy: Policy, obs: Tensor, state: PolicyState, episode_start: Tensor, segments: int
) -> tuple[list[State], Tensor]:
    """Run `segments` segments on one observation, whatever the policy's own number.

    Returns:
        The core's states, before the first segment and after each (segments + 1), and the logits `[segments, B, A]`
        after each segment.
    """
    states, logits = [first_state(policy, obs, state, episode_start)], []
    for segment in policy.segment_by_segment(obs, state, episode_start, segments):
        states.append(segment.state)
        logits.append(segment.decision.logits)
    return states, torch.stack(logits)


def first_state(policy: Policy, obs: Observation, state: PolicyState, episode_start: Tensor) -> State:
    """The core's state before the first segment of an environment step."""
    seen, carried, _ = policy.stacked(obs, state, episode_start)
    core_state: State = policy.carry.to_core_state(carried, episode_start, policy.encoder(seen))
    return core_state


def flat_latent(state: State) -> Tensor:
    """All of a core's state as one vector a row: float `[B, F]`. Raises: ValueError for a core without state."""
    if not len(state):
        raise ValueError("the core has no latent, so there is nothing to measure; use a recurrent core")
    return torch.cat([field.flatten(1) for field in state], 1)


def latent_curves(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int,
    segments: int = 8,
    seed: int = 0,
    split: str = "test",
    batch: int = 256,
) -> list[dict[str, Any]]:
    """How the latent moves over more segments than the policy uses, by what changed in the environment just before.

    The policy acts after its own number of segments and carries its own state; the further segments on each
    observation are only measured. Column i of each curve is segment i; segment 0 is the state before the first.

    Args:
        policy, env_id, env_options, episodes, seed, split, batch: see `play`.
        segments: that are measured, at least the policy's own number.

    Returns:
        One JSON-able record for each of `KINDS`: `kind`, `decisions`, `episodes` with such a decision, and for each
        of `CURVES` a list of segments + 1 means over decisions, with standard errors over episodes under
        `<curve>_se`; None where undefined. `relative_change` is `||z_i - z_(i-1)|| / ||z_i||`, `mse_to_last` the
        convergence and `mse_to_first` the divergence of arXiv 2510.22832, `mse_to_seed` the same to segment 0,
        `mse_to_previous` to the last latent of the previous decision (which `carry=full` carries), `regret`
        the steps lost by acting after this segment.

    Raises:
        ValueError: too few segments, a core without state, or see `play`.
    """
    if segments < policy.segments:
        raise ValueError(f"segments={segments}: expected at least the policy's own {policy.segments}")
    tally = _Tally(episodes, segments)
    followed = Followed()
    for moment in play(policy, env_id, env_options, episodes, seed, split, batch):
        obs = torch.as_tensor(moment.obs, device=policy.device)
        states, logits = trace_segments(policy, obs, moment.state, moment.episode_start, segments)
        latents = torch.stack([flat_latent(state) for state in states])  # [segments + 1, M, F]
        previous = None if moment.number == 0 else followed.take(moment.episodes)[0]
        curves = {**_distances_moved(latents, previous), "regret": _regret_by_segment(moment, logits)}
        tally.add(moment.episodes, kinds_of(moment), np.stack([curves[name] for name in CURVES]))
        ends = latents[moment.decision.segments.to(latents.device), torch.arange(latents.shape[1])]
        followed.put(moment.episodes, (ends,))
    return tally.records()


def kinds_of(moment: Moment) -> NDArray[np.int64]:
    """The kind of each decision of a moment, an index into `KINDS`: int64 `[M]`."""
    if moment.number == 0:
        return np.zeros(len(moment.episodes), np.int64)
    material = moment.infos["material"]
    return np.where(material, 3, np.where(moment.infos["changed"], 2, 1))


def _distances_moved(latents: Tensor, previous: Tensor | None) -> dict[str, NDArray[np.float64]]:
    """The curves of latents float `[S+1, M, F]`, each `[S+1, M]`; `previous` `[M, F]` or None."""
    undefined = torch.full(latents.shape[:2], torch.nan)

    def mse(target: Tensor) -> Tensor:
        return (latents - target).square().mean(-1)

    change = undefined.clone()
    for i in range(1, len(latents)):
        change[i] = relative_change((latents[i - 1],), (latents[i],))
    curves = {
        "relative_change": change,
        "mse_to_last": mse(latents[-1]),
        "mse_to_first": mse(latents[1]),
        "mse_to_seed": mse(latents[0]),
        "mse_to_previous": undefined if previous is None else mse(previous),
    }
    return {name: curve.cpu().double().numpy() for name, curve in curves.items()}


def _regret_by_segment(moment: Moment, logits: Tensor) -> NDArray[np.float64]:
    """Regret of the greedy action after each segment, `[S+1, M]`; NaN at segment 0 and where cut off."""
    actions = logits.argmax(-1).cpu().numpy()  # [S, M]
    optimal, blocked = moment.infos["optimal_actions"], blocked_moves(moment.obs)
    regret = [action_regret(moment.infos["distance"], optimal, chosen, blocked) for chosen in actions]
    return np.stack([np.full(len(moment.actions), np.nan), *regret])


class _Tally:
    """Sums per episode and kind, from which means over decisions and errors over episodes follow."""

    def __init__(self, episodes: int, segments: int) -> None:
        shape = (episodes, len(KINDS), len(CURVES), segments + 1)
        self.sums, self.counts = np.zeros(shape), np.zeros(shape, np.int32)
        self.decisions = np.zeros((episodes, len(KINDS)), np.int64)

    def add(self, episodes: NDArray[np.int64], kinds: NDArray[np.int64], curves: NDArray[np.float64]) -> None:
        """Add one decision of each episode: curves `[C, S+1, M]`; NaN is not counted."""
        values = np.moveaxis(curves, -1, 0)
        self.sums[episodes, kinds] += np.nan_to_num(values, nan=0.0)
        self.counts[episodes, kinds] += ~np.isnan(values)
        self.decisions[episodes, kinds] += 1

    def records(self) -> list[dict[str, Any]]:
        found = []
        for k, kind in enumerate(KINDS):
            record: dict[str, Any] = {"kind": kind, "decisions": int(self.decisions[:, k].sum())}
            record["episodes"] = int((self.decisions[:, k] > 0).sum())
            for c, name in enumerate(CURVES):
                mean, error = mean_and_error(self.sums[:, k, c], self.counts[:, k, c])
                record[name], record[f"{name}_se"] = as_list(mean), as_list(error)
            found.append(record)
        return found


def mean_and_error(sums: NDArray, counts: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over decisions, and its standard error with whole episodes as the sampling unit.

    The decisions of an episode are correlated, so the error is that of a ratio of two sums over episodes (Cochran 1977,
    Sampling Techniques, equation 6.13). NaN where there is no decision, and for the error of a single episode.

    Args:
        sums, counts: `[E, ...]`, of the values of each episode.
    """
    total = counts.sum(0)
    present = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / total
        residual = np.square(sums - counts * np.nan_to_num(mean)).sum(0)
        error = np.where(present > 1, np.sqrt(residual * present / (present - 1)) / total, np.nan)
    return mean, error


def as_list(values: NDArray) -> list[float | None]:
    """Six digits; None in place of NaN, which JSON does not have."""
    return [None if np.isnan(v) else float(f"{v:.6g}") for v in np.asarray(values, np.float64)]


def distances_from(maps: NDArray[np.uint8], cell: int) -> NDArray[np.int32]:
    """Shortest distances in steps to the position that shows `cell`, with walls and closed doors as they are.

    Args:
        maps: `[N, H, W]` of `Cell` ids without fog, walled in.
        cell: `Cell.GOAL` or `Cell.AGENT`.

    Returns:
        int32 `[N, H, W]`, -1 where cut off, and everywhere where `cell` is not shown.
    """
    width = maps.shape[2]
    offsets = np.array([down * width + right for down, right in MOVES], np.int32)
    flat = np.ascontiguousarray(maps).reshape(len(maps), -1)
    distances = np.full(flat.shape, -1, np.int32)
    queue = np.empty(flat.shape[1], np.int32)
    shown = flat == cell
    for row in np.flatnonzero(shown.any(1)):
        shortest_distances(flat[row], offsets, int(shown[row].argmax()), distances[row], queue)
    return distances.reshape(maps.shape)


def map_regret(maps: NDArray[np.uint8], actions: NDArray[np.int64]) -> NDArray[np.float64]:
    """`metrics.action_regret` of actions `[N]` on maps `[N, H, W]`, without the oracle."""
    to_goal = distances_from(maps, Cell.GOAL)
    rows = np.arange(len(maps))
    at, col = np.divmod((maps == Cell.AGENT).reshape(len(maps), -1).argmax(1), maps.shape[2])
    here = to_goal[rows, at, col]
    beside = np.stack([to_goal[rows, at + down, col + right] for down, right in MOVES], 1)
    return action_regret(here, (here[:, None] > 0) & (beside == here[:, None] - 1), actions, blocked_moves(maps))


def shift_goals(env: gym.vector.VectorEnv, rows: NDArray[np.int64], levels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Move the goals of some environments to other cells that the agent can reach with the doors as they are.

    Where there is no such cell the goal stays. The oracle's values in `infos` are outdated until the next step.

    Args:
        env: mazes.
        rows, levels: which of them, and the numbers of their levels, which seed the choice of cells.

    Returns:
        bool `[M]`: whether the goal moved.
    """
    maze: Any = env.unwrapped
    saved = maze.get_state()
    shape = maze.observe().shape
    maps = saved["grid"].reshape(shape)
    reach = distances_from(maps[rows], Cell.AGENT).reshape(len(rows), -1)
    row_of, col_of = np.divmod(np.arange(reach.shape[1]), shape[2])
    is_cell = (row_of % 2 == 1) & (col_of % 2 == 1)
    moved = np.zeros(len(rows), np.bool_)
    queue, offsets = np.empty(reach.shape[1], np.int32), np.array([d * shape[2] + r for d, r in MOVES], np.int32)
    for i, (row, level) in enumerate(zip(rows.tolist(), levels.tolist(), strict=True)):
        grid, old = saved["grid"][row], int(saved["goal"][row])
        choices = np.flatnonzero(is_cell & (reach[i] > 0) & (np.arange(reach.shape[1]) != old))
        if not choices.size:
            continue
        new = int(np.random.default_rng([SHIFT_STREAM, level]).choice(choices))
        grid[old], grid[new], saved["goal"][row], moved[i] = Cell.EMPTY, Cell.GOAL, new, True
        seen = saved["shown"][row] != Cell.UNKNOWN  # without fog nothing is kept there
        saved["shown"][row][seen] = grid[: seen.size][seen]
        shortest_distances(grid, offsets, new, saved["distances"][row], queue)  # the oracle's own copy
    maze.set_state(saved)
    return moved


def intervene(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int,
    at: int = 4,
    lags: int = 9,
    seed: int = 0,
    split: str = "test",
    batch: int = 256,
    interventions: Sequence[str] = INTERVENTIONS,
) -> list[dict[str, Any]]:
    """The cost of one intervention in mid-episode, against a control without it on the same levels.

    `swap`: every episode gets the carried state of the next one in the batch; `reset_once`: the state is replaced by
    the initial one; `goal_shift`: the goal moves to another cell; `goal_shift_reset`: both, as a control for
    `goal_shift`. Only episodes that reach decision `at` are counted, the same ones for every intervention.

    Args:
        policy, env_id, env_options, episodes, seed, split, batch: see `play`.
        at: the decision, counted from 0, before which it happens.
        lags: decisions from `at` on whose regret is reported.
        interventions: which.

    Returns:
        JSON-able records, `control` first: `intervention`, `at`, `episodes`, `success`, `success_ci95`, `regret` by lag
        (steps lost on the current map, means over the episodes that have not ended and can reach the goal, with
        `regret_se` and `regret_decisions`), and `other_action`: share of episodes whose action at `at` is not the
        control's.

    Raises:
        ValueError: an unknown intervention, `at` or `lags` out of range, no episode that lasts, or see `play`.
    """
    unknown = [name for name in interventions if name not in INTERVENTIONS]
    if unknown:
        raise ValueError(f"intervention {unknown[0]!r}: expected one of {', '.join(INTERVENTIONS)}")
    if at < 1 or lags < 1:
        raise ValueError(f"at={at}, lags={lags}: expected 1 or more; nothing is carried into decision 0")
    runs = {}
    for name in ("control", *interventions):
        intervention = _intervention(name, at)
        runs[name] = _Watched(episodes, lags)
        for moment in play(policy, env_id, env_options, episodes, seed, split, batch, intervention):
            runs[name].see(moment, at)
    control = runs["control"]
    if not control.reached.any():
        raise ValueError(f"at={at}: no episode lasts so long; choose an earlier decision")
    return [{"intervention": name, "at": at, **run.record(control)} for name, run in runs.items()]


def _intervention(name: str, at: int) -> Intervention:
    """The intervention of that name."""

    def intervention(
        env: gym.vector.VectorEnv, number: int, rows: NDArray[np.int64], state: PolicyState, start: Tensor
    ) -> tuple[PolicyState, Tensor]:
        if number != at:
            return state, start
        if name == "swap":
            state = tuple(s.roll(-1, 0) for s in state)
        if name.startswith("goal_shift"):
            shift_goals(env, rows, env.unwrapped.batch.state.env_seed[rows])  # type: ignore[attr-defined]
        if name in ("reset_once", "goal_shift_reset"):
            start = torch.ones_like(start)
        return state, start

    return intervention


class _Watched:
    """Success of every episode and regret of its decisions from decision `at` on."""

    def __init__(self, episodes: int, lags: int) -> None:
        self.success, self.reached = np.zeros((2, episodes), np.bool_)
        self.regret = np.full((episodes, lags), np.nan)
        self.action = np.full(episodes, -1)

    def see(self, moment: Moment, at: int) -> None:
        rows, lag = moment.episodes, moment.number - at
        self.success[rows] |= moment.success
        if lag == 0:
            self.reached[rows] = True
            self.action[rows] = moment.actions
        if 0 <= lag < self.regret.shape[1]:
            self.regret[rows, lag] = map_regret(moment.maps, moment.actions)

    def record(self, control: _Watched) -> dict[str, Any]:
        known = control.reached
        count, successes = int(known.sum()), int(self.success[known].sum())
        scored = ~np.isnan(self.regret[known])
        mean, error = mean_and_error(np.nan_to_num(self.regret[known]), scored.astype(np.int64))
        return {
            "episodes": count,
            "success": successes / count,
            "success_ci95": list(wilson_interval(successes, count)),
            "regret": as_list(mean),
            "regret_se": as_list(error),
            "regret_decisions": scored.sum(0).tolist(),
            "other_action": float((self.action[known] != control.action[known]).mean()),
        }
