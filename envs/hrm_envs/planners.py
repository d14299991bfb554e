# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Baselines without learning: uniformly random actions, and breadth-first re-planning at every step."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import AGENT, DOOR, GOAL, MOVES, UNKNOWN, WALL
from hrm_envs.jit import inner, kernel

_MOVES = np.array(MOVES, np.int64)


@inner
def _search(grid, through_doors, distances, queue):
    """Steps to the target from every position into ``distances`` int32 [H, W], -1 where cut off.

    The target is the goal or, if it is not visible, every unknown position. Unknown positions count as free
    except on the grid's border.
    """
    height, width = grid.shape
    distances[:] = -1
    target = UNKNOWN
    for position in range(height * width):
        if grid[position // width, position % width] == GOAL:
            target = GOAL
    tail = 0
    for row in range(1, height - 1):
        for col in range(1, width - 1):
            if grid[row, col] == target:
                distances[row, col] = 0
                queue[tail] = row * width + col
                tail += 1
    head = 0
    while head < tail:
        row, col = queue[head] // width, queue[head] % width
        head += 1
        for k in range(4):
            r, c = row + _MOVES[k, 0], col + _MOVES[k, 1]
            if r < 1 or r > height - 2 or c < 1 or c > width - 2 or distances[r, c] >= 0:
                continue
            if grid[r, c] != WALL and (through_doors or grid[r, c] != DOOR):
                distances[r, c] = distances[row, col] + 1
                queue[tail] = r * width + c
                tail += 1


@inner
def _first_step(grid, distances):
    """The first action in the order N, E, S, W that reduces the distance to the target; -1 if there is none."""
    height, width = grid.shape
    for row in range(1, height - 1):
        for col in range(1, width - 1):
            if grid[row, col] == AGENT:
                for k in range(4):
                    r, c = row + _MOVES[k, 0], col + _MOVES[k, 1]
                    if 0 <= distances[r, c] < distances[row, col]:
                        return k
    return -1


@kernel
def _replan(observations, actions):
    distances = np.empty(observations.shape[1:], np.int32)
    queue = np.empty(distances.size, np.int64)
    for i in range(len(observations)):
        _search(observations[i], False, distances, queue)
        action = _first_step(observations[i], distances)
        if action < 0:
            _search(observations[i], True, distances, queue)
            action = max(_first_step(observations[i], distances), 0)
        actions[i] = action


@inner
def _follow(grid, distances, path):
    """Mark the path from the agent to the target; ties go to the first of N, E, S, W."""
    height, width = grid.shape
    path[:] = 0
    for row in range(1, height - 1):
        for col in range(1, width - 1):
            if grid[row, col] == AGENT:
                r, c, going = row, col, True
                path[r, c] = 1
                while going:
                    going = False
                    for k in range(4):
                        next_row, next_col = r + _MOVES[k, 0], c + _MOVES[k, 1]
                        if 0 <= distances[next_row, next_col] < distances[r, c]:
                            r, c, going = next_row, next_col, True
                            path[r, c] = 1
                            break


@kernel
def _plan(observations, path, distances):
    queue = np.empty(observations[0].size, np.int64)
    for i in range(len(observations)):
        _search(observations[i], False, distances[i], queue)
        if _first_step(observations[i], distances[i]) < 0:
            _search(observations[i], True, distances[i], queue)
        _follow(observations[i], distances[i], path[i])


def _check(observations: NDArray, num_envs: int | None) -> NDArray[np.uint8]:
    array = np.ascontiguousarray(observations)
    if array.ndim != 3 or array.dtype != np.uint8 or (num_envs is not None and len(array) != num_envs):
        expected = "N" if num_envs is None else num_envs
        raise ValueError(
            f"observations are {array.dtype}{list(array.shape)}, expected uint8[{expected}, H, W]; "
            "give a batch of grids as a maze environment returns them"
        )
    return array


class RandomPolicy:
    """Uniformly random actions.

    Args:
        num_envs: number of environments.
        seed: of its own random generator.
    """

    def __init__(self, num_envs: int, seed: int = 0) -> None:
        self.num_envs = num_envs
        self._generator = np.random.default_rng(seed)

    def act(self, observations: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Actions int64 [N] for observations uint8 [N, H, W]."""
        _check(observations, self.num_envs)
        return self._generator.integers(0, 4, self.num_envs)


class ReplanPolicy:
    """Follow a shortest path on the observed map, re-planned at every step.

    Closed doors count as walls and unknown positions as free. If doors block every path, it follows the shortest
    path that ignores doors and waits in front of the closed one. If the goal is not visible, it goes to the
    nearest unknown position. Ties go to the first of N, E, S, W. It has no memory.
    """

    def act(self, observations: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Actions int64 [N] for observations uint8 [N, H, W]; ``ValueError`` for anything else."""
        array = _check(observations, None)
        actions = np.empty(len(array), np.int64)
        _replan(array, actions)
        return actions


class Plans(NamedTuple):
    """The plans of `ReplanPolicy` for N observations.

    Attributes:
        path: bool [N, H, W], the planned path from the agent to the target, both included; only the agent's
            position if there is none.
        distances: int32 [N, H, W], steps to the nearest target under the same rules, -1 where cut off; through
            closed doors if there is no other path.
    """

    path: NDArray[np.bool_]
    distances: NDArray[np.int32]


def replan(observations: NDArray[np.uint8]) -> Plans:
    """The whole paths whose first steps `ReplanPolicy` takes.

    Args:
        observations: uint8 [N, H, W] of Cell ids.

    Raises:
        ValueError: another dtype or shape.
    """
    array = _check(observations, None)
    path, distances = np.empty(array.shape, np.bool_), np.empty(array.shape, np.int32)
    if len(array):
        _plan(array, path, distances)
    return Plans(path, distances)
