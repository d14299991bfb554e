"""Observations of a maze environment, labelled with the re-planner's path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.environments.make import make_vector_env
from hrm_agent.names.values import Episodes, Share
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.base import Examples, Task, TaskSpec, check_split, exact_and_cells
from hrm_envs import Cell, MazeConfig, ReplanPolicy
from hrm_envs.cells import MOVES
from hrm_envs.planners import Plans, replan

NUM_ENVS = 256
SPACING = 4
"""Steps between two collected views of an environment: neighbouring ones are nearly the same."""
TRIES = 20
"""Limit of generated validation or test views per requested one, as some are also in the training pool."""
STREAM = 5
"""First word of the seeds of pools."""


class MazeViewsTask(Task):
    """Observations of a maze environment and, of each cell, whether it is on the path to take.

    Inputs are the ids of an observation (`hrm_envs.Cell`). The answer is 1 on the path that `hrm_envs.ReplanPolicy`
    plans, agent and goal included, else 0; the outer ring, always wall or unknown, has no labels.
    The path is the shortest one with closed doors as walls and the unknown as free, ties going to the first of N, E,
    S, W at every step; where doors cut the agent off it leads through them, and where the goal is out of sight it
    leads to the nearest unknown cell. So the label is a function of the view alone.

    Views come from episodes of the re-planner with some random actions, on levels of their split. Those of
    validation and test levels that are also in the training pool are left out: with fog, small mazes have few views.

    Args:
        env: id of a maze.
        env_options: keyword arguments of it; `split` and `oracle` are set here.
        pool: training views, all made at the start; so many labelled examples exist.
        random_actions: share of actions that are random, so that views off the shortest paths are met too.
        seed: of the training pool.

    Raises:
        ValueError: an environment that cannot be made or is not a maze, or a number out of range.
    """

    def __init__(
        self,
        env: str = "DynamicMaze-v0",
        env_options: dict[str, Any] | None = None,
        pool: Episodes = 50_000,
        random_actions: Share = 0.2,
        seed: int = 0,
    ) -> None:
        if type(pool) is not int or pool < 1:
            raise ValueError(f"pool={pool!r}: expected the number of training views, 1 or more")
        if not 0 <= random_actions <= 1:
            raise ValueError(f"random_actions={random_actions}: expected a share from 0 to 1")
        self.env, self.env_options, self.random_actions = env, dict(env_options or {}), random_actions
        probe = make_vector_env(env, 1, self.env_options)
        config, space = getattr(probe.unwrapped, "config", None), probe.single_observation_space
        probe.close()
        if not isinstance(config, MazeConfig) or space.shape is None or len(space.shape) != 2:
            raise ValueError(
                f"env={env}: expected a maze of hrm_envs such as DynamicMaze-v0, whose paths can be planned"
            )
        height, width = space.shape
        self.spec = TaskSpec(height * width, input_ids=len(Cell), answer_ids=2, grid=(height, width))
        self._asked = np.zeros((height, width), np.bool_)
        self._asked[1:-1, 1:-1] = True
        views = self._views("train", np.random.default_rng([STREAM, seed]))
        # One byte a cell: a pool of a million views still fits into memory.
        self._pool = _gather(views, pool)
        self._pool_labels = self._labels(self._pool)
        self._in_pool: set[bytes] | None = None

    @property
    def pool(self) -> int:
        """Number of labelled examples that there are for training."""
        return len(self._pool)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        rows = generator.integers(len(self._pool), size=count)
        return self._examples(self._pool[rows], self._pool_labels[rows])

    def examples(self, split: str, count: int) -> Examples:
        check_split(split)
        if self._in_pool is None:
            self._in_pool = {view.tobytes() for view in self._pool}
        found: list[NDArray[np.uint8]] = []
        # Always of the same environments, so that a smaller set is the beginning of a larger one.
        views = self._views(split, np.random.default_rng([STREAM]), first_seed=0)
        for looked_at, view in enumerate(views):
            if len(found) == count or looked_at >= TRIES * max(count, NUM_ENVS):
                break
            if view.tobytes() not in self._in_pool:
                found.append(view)
        if len(found) < count:
            raise ValueError(
                f"{split}: {count} views asked for, but of {looked_at:,} only {len(found)} are not in the training "
                f"pool too; ask for fewer, or make the pool={self.pool} smaller or the mazes larger"
            )
        chosen = np.array(found, np.uint8).reshape(count, *self._asked.shape)
        return self._examples(chosen, self._labels(chosen))

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """Beside `exact` and `cells`, all under the rules that the labels follow (each bool `[N]`):

        `valid`: the cells marked are a shortest path, whichever. `action`: the first of N, E, S, W whose cell is
        marked and no wall is the first step of a shortest path.
        """
        grids = np.ascontiguousarray(examples.inputs.reshape(-1, *self._asked.shape).astype(np.uint8))
        marked = (answers.reshape(grids.shape) == 1) & self._asked
        plans = replan(grids)
        return {
            **exact_and_cells(examples.labels, answers),
            "valid": is_shortest_path(grids, marked, plans),
            "action": begins_well(grids, marked, plans),
        }

    def _views(
        self, split: str, generator: np.random.Generator, first_seed: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Endless views uint8 `[H, W]` of the levels of a split: random levels unless a first seed is given."""
        env = make_vector_env(self.env, NUM_ENVS, {**self.env_options, "split": split, "oracle": False})
        planner = ReplanPolicy()
        obs, _ = env.reset(seed=int(generator.integers(2**31)) if first_seed is None else first_seed)
        try:
            while True:
                yield from obs
                for _ in range(SPACING):
                    actions, at_random = planner.act(obs), generator.random(NUM_ENVS) < self.random_actions
                    actions = np.where(at_random, generator.integers(4, size=NUM_ENVS), actions)
                    obs, *_ = env.step(actions)
        finally:
            env.close()

    def _labels(self, grids: NDArray[np.uint8]) -> NDArray[np.int8]:
        """int8 `[N, H, W]`."""
        return np.where(self._asked, replan(grids).path, IGNORED_LABEL).astype(np.int8)

    def _examples(self, grids: NDArray[np.uint8], labels: NDArray[np.int8]) -> Examples:
        flat = (len(grids), self.spec.sequence_length)
        return Examples(
            grids.reshape(flat).astype(np.int32), labels.reshape(flat).astype(np.int32), np.zeros(len(grids), np.int32)
        )


def _gather(views: Iterator[NDArray[np.uint8]], count: int) -> NDArray[np.uint8]:
    """The first `count` views, uint8 `[count, H, W]`."""
    first = next(views)
    gathered = np.empty((count, *first.shape), np.uint8)
    gathered[0] = first
    for row in range(1, count):
        gathered[row] = next(views)
    return gathered


def _beside(values: NDArray, outside: Any) -> NDArray:
    """Of every cell of `[N, H, W]`, the values to its N, E, S and W: `[4, N, H, W]`."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    _, height, width = values.shape
    return np.stack([padded[:, 1 + d : 1 + d + height, 1 + r : 1 + r + width] for d, r in MOVES])


def is_shortest_path(grids: NDArray[np.uint8], marked: NDArray[np.bool_], plans: Plans) -> NDArray[np.bool_]:
    """Whether the marked cells are a shortest path from the agent to a target, agent and target included: bool `[N]`.

    Where there is no path at all, the agent alone is right.

    Args:
        grids: uint8 `[N, H, W]` of Cell ids.
        marked: bool `[N, H, W]`.
        plans: `hrm_envs.planners.replan(grids)`.
    """
    distances, agent = plans.distances, grids == Cell.AGENT
    steps = np.where(agent, distances, -1).max((1, 2))
    nearer = (_beside(marked, False) & (_beside(distances, -1) == distances - 1) & (distances > 0)).any(0)
    # From the agent every marked cell leads to one that is a step nearer; and there are no others.
    connected = (~marked | nearer | (distances == 0) | (agent & (distances < 0))).all((1, 2))
    complete = marked.sum((1, 2)) == np.maximum(steps, 0) + 1
    return complete & connected & (marked & agent).any((1, 2))


def on_any_path(grids: NDArray[np.uint8], plans: Plans) -> NDArray[np.bool_]:
    """Cells on some shortest path from the agent to a target, both ends included: bool `[N, H, W]`.

    Where there is no path at all, the agent alone. Arguments as in `is_shortest_path`.
    """
    reached = grids == Cell.AGENT
    while True:
        from_there = (_beside(reached, False) & (_beside(plans.distances, -1) == plans.distances + 1)).any(0)
        further = reached | (from_there & (plans.distances >= 0))
        if (further == reached).all():
            return reached
        reached = further


def begins_well(grids: NDArray[np.uint8], marked: NDArray[np.bool_], plans: Plans) -> NDArray[np.bool_]:
    """Whether the first of N, E, S, W beside the agent that is marked and no wall is nearer to the target: bool `[N]`.

    Where there is no path at all, to mark none of them is right. Arguments as in `is_shortest_path`.
    """
    rows = np.arange(len(grids))
    flat = (grids == Cell.AGENT).reshape(len(grids), -1).argmax(1)
    open_and_marked, nearer = (
        values.reshape(4, len(grids), -1)[:, rows, flat]
        for values in (
            _beside(marked & (grids != Cell.WALL), False),
            (_beside(plans.distances, -1) == plans.distances - 1) & (plans.distances > 0),
        )
    )
    some = open_and_marked.any(0)
    lost = plans.distances.reshape(len(grids), -1)[rows, flat] < 0
    return np.where(some, nearer[open_and_marked.argmax(0), rows], lost)
