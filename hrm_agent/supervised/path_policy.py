"""A model of paths (`tasks.maze_views`) as an agent that solves its view anew at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent import __version__
from hrm_agent.cores import State, map_state, name_of
from hrm_agent.cores.base import check_at_least, check_choice
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.cost import count_macs, decision_cost
from hrm_agent.evaluation.episodes import MOVES
from hrm_agent.evaluation.report import BATCH, REFERENCES, Levels, compare
from hrm_agent.parallel.threads import Threads
from hrm_agent.recurrence import path_of
from hrm_agent.supervised.halting import HALTINGS
from hrm_agent.supervised.model import PuzzleModel
from hrm_envs import Cell, MazeVectorEnv

ON_PATH = 1
"""The answer id of cells on the path; 0 elsewhere."""


class PathActor:
    """Follows the path that the model predicts; an actor for `hrm_agent.evaluation.episodes.run_episodes`.

    Of the agent's four neighbours that are no wall it takes the one with the largest logit of being on the path
    (answer 1 against answer 0), the first of N, E, S, W among equals. A closed door is not excluded: a path
    through it means waiting in front of it, as the re-planner does that the model learns from.

    Args:
        model: of `maze_views`, for grids of this size; never changed here.
        segments: K, segments of every step; at most, with `halting`.
        carry: start from the latent of the previous environment step, which saw another view, rather than from the
            initial one; episodes start from the initial one either way.
        halting: when a view's segments end, each independently. None: after K. `halt_only`: also when `q_halt` is
            above 0; `q_learning`: when it is above `q_continue` (`hrm_agent.supervised.evaluation.Solver`). A model
            trained with halting has seldom run more segments than it asks for, and may lose a right answer there.

    Attributes:
        segments: int64 `[N]`, segments of the last decision.

    Raises:
        ValueError: fewer than one segment, or an unknown rule for halting.
    """

    def __init__(self, model: PuzzleModel, segments: int, carry: bool = False, halting: str | None = None) -> None:
        if halting is not None:
            check_choice("halting", halting, HALTINGS)
        self.model, self.carry, self.halting = model, carry, halting
        self._at_most = check_at_least("segments", segments, 1)
        self.segments = np.zeros(0, np.int64)
        self.state: State = ()

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.state = self.model.initial_state(len(seeds))

    @torch.no_grad()
    def act(self, obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        if not self.carry:
            self.state = self.model.initial_state(len(obs))
        self.state, margin, self.segments = run_segments(self.model, self.state, obs, self._at_most, self.halting)
        return step_along(obs, margin.cpu().numpy())

    def keep(self, rows: NDArray[np.int64]) -> None:
        index = torch.as_tensor(rows)
        self.state = map_state(lambda s: s[index.to(s.device)], self.state)


def run_segments(
    model: PuzzleModel, state: State, obs: NDArray[np.uint8], segments: int, halting: str | None = None
) -> tuple[State, Tensor, NDArray[np.int64]]:
    """Run a model on observations uint8 `[N, H, W]`.

    Returns:
        The state and the logit of being on the path against not being on it, float `[N, H, W]`, after the last segment
        of each; and the segments used by each, int64 `[N]`: `segments`, or fewer with `halting` (see `PathActor`).
    """
    device = model.lm_head.weight.device
    inputs = torch.as_tensor(np.ascontiguousarray(obs), device=device).int().flatten(1)
    batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(len(obs), dtype=torch.int32, device=device)}
    margin, used = torch.zeros(inputs.shape, device=device), np.zeros(len(obs), np.int64)
    kept, rows = map_state(Tensor.clone, state), torch.arange(len(obs), device=device)  # rows not halted
    for _ in range(segments):
        state, logits, q_halt, q_continue = model(state, batch)
        margin[rows] = (logits[..., ON_PATH] - logits[..., 1 - ON_PATH]).float()
        used[rows.cpu().numpy()] += 1
        if halting is None:
            continue
        map_state(lambda all_, some, at=rows: all_.index_copy_(0, at, some.to(all_.dtype)), kept, state)
        on = q_halt <= (q_continue if halting == "q_learning" else 0)
        rows = rows[on]
        if not len(rows):
            break
        state, batch = map_state(lambda s, on=on: s[on], state), {name: value[on] for name, value in batch.items()}
    return state if halting is None else kept, margin.view(obs.shape), used


def step_along(grids: NDArray[np.uint8], margin: NDArray[np.float32]) -> NDArray[np.int64]:
    """Moves int64 `[N]` to the agent's neighbour with the largest margin `[N, H, W]` among those that are not walls."""
    rows = np.arange(len(grids))
    row, col = np.divmod((grids == Cell.AGENT).reshape(len(grids), -1).argmax(1), grids.shape[2])
    beside = [(rows, row + down, col + right) for down, right in MOVES]
    worth = np.stack([np.where(grids[at] == Cell.WALL, -np.inf, margin[at]) for at in beside], 1)
    return worth.argmax(1)


def check_fits(model: PuzzleModel, env_id: str, env_options: dict[str, Any]) -> None:
    """Raises: ValueError unless the environment is a maze of the size that the model was trained on."""
    env = make_vector_env(env_id, 1, env_options)
    is_maze, space = isinstance(env.unwrapped, MazeVectorEnv), env.single_observation_space
    env.close()
    if not is_maze or space.shape is None:
        raise ValueError(f"env={env_id}: expected a maze such as DynamicMaze-v0; a path policy needs the agent's cell")
    shape = space.shape
    if model.patches is None:
        sized, answers = model.core.length - model.prefix == np.prod(shape), model.lm_head.out_features
    else:
        sized = model.patches.cells == shape
        answers = model.lm_head.out_features // model.patches.encoder.patch_size**2
    if not sized or answers != 2:
        raise ValueError(
            f"env={env_id}: its views have {shape[0]} x {shape[1]} cells, each on a path or not, but the model is for "
            f"{'such' if sized else 'other'} puzzles with {answers} answer ids; give a model of task=maze_views that "
            "was trained on mazes of this size"
        )


def evaluate_path_policy(
    model: PuzzleModel,
    env: str,
    env_options: dict[str, Any] | None = None,
    episodes: int = 1000,
    segments: int = 8,
    carry: bool = False,
    halting: str | None = None,
    seed: int = 0,
    split: str = "test",
    baselines: bool = True,
    threads: Threads | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Greedy episodes of a path policy, with the same report as `hrm_agent.evaluate.evaluate`.

    Args:
        model: see `PathActor`.
        env, env_options: a maze of the size that the model was trained on.
        episodes: levels `seed ... seed + episodes - 1`, the first episode of each.
        segments, carry, halting: see `PathActor`.
        seed: number of the first level.
        split: `train`, `validation`, `development` or `test`.
        baselines: play the random policy and the re-planner too; without, they are None.
        threads: threads to divide the levels over.
        about: how the model was trained, for the report: `run`, `frames` (for a supervised model, labelled
            examples seen), `seconds`, `training_seed`.

    Returns:
        The same entries, with `carry` `full` or `reset` and `stop` `fixed` or the rule for halting.

    Raises:
        ValueError: a model that does not fit the environment, or a setting out of range.
    """
    options = dict(env_options or {})
    check_fits(model, env, options)
    mazes = make_vector_env(env, BATCH, options)
    views, _ = mazes.reset(seed=0)
    mazes.close()
    played = compare(
        lambda: PathActor(model, segments, carry, halting),
        Levels(env, options, episodes, seed, split),
        lambda used: measure_path_cost(model, views, segments, halting, used),
        {"sampled": None},  # answers are no distribution to draw from
        REFERENCES if baselines else (),
        threads,
    )
    about = about or {}
    return {**played, "level_set": None, **describe(model, segments, carry, halting, about), "kernel": path_of(model)}


def describe(
    model: PuzzleModel, segments: int, carry: bool, halting: str | None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries of `hrm_agent.evaluation.report.describe_agent`."""
    return {
        "run": about.get("run"),
        "agent": None,
        "core": name_of(model.core),
        "carry": "full" if carry else "reset",
        "segments": segments,
        "first_segments": None,
        "stop": halting or "fixed",
        "stop_threshold": 0.0,
        "time_gradient": "detached",  # deep supervision cuts it after every segment
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: about.get(name) for name in ("frames", "seconds", "training_seed")},
        "hrm_agent_version": __version__,
    }


def measure_path_cost(
    model: PuzzleModel,
    views: NDArray[np.uint8],
    segments: int,
    halting: str | None = None,
    segments_used: float | None = None,
) -> dict[str, Any]:
    """The cost of one decision, with the entries and units of `hrm_agent.evaluation.cost.decision_cost`.

    Args:
        model, segments, halting: see `PathActor`.
        views: uint8 `[N, H, W]`; decisions of a batch are on all of them.
        segments_used: mean segments of a decision, which `macs_per_decision` is for; None: all.
    """

    def decide(rows: int, actor: PathActor) -> Callable[[], object]:
        return lambda: actor.act(views[:rows])

    macs = count_macs(model, decide(1, PathActor(model, 1)))
    used = segments if segments_used is None else segments_used
    actor = PathActor(model, segments, halting=halting)
    return decision_cost(lambda rows: decide(rows, actor), round(macs * used), len(views))
