"""Whether a saved state is one that environments can be in.

The kernels index with the numbers of a state without looking at them, so that one altered number of a checkpoint
reads or writes memory of others. ``set_state`` refuses it here instead. The checks are numpy's: they compile nothing,
and take a millisecond for a hundred environments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL, UNKNOWN, WALL
from hrm_envs.config import SPLITS, MazeConfig
from hrm_envs.levels import Geometry
from hrm_envs.rng import level_seeds

_MOST_EPISODES = 2**62
_CUT_OFF = 2**40


def require(holds: Any, name: str, values: NDArray, expected: str, wanted: NDArray | None = None) -> None:
    """Raise a one-line ``ValueError`` for the first of ``values`` of an array of the state that does not hold.

    Args:
        holds: bool, of the shape of ``values`` or one that broadcasts to it.
        name: of the array in the state.
        expected: what holds, for the message.
        wanted: what each value should be, of the shape of ``values``, if that is known.
    """
    wrong = ~np.broadcast_to(holds, values.shape)
    if not wrong.any():
        return
    at = tuple(np.argwhere(wrong)[0].tolist())
    expected = expected if wanted is None else f"{wanted[at]}: {expected}"
    raise ValueError(
        f"state[{name!r}]{list(at)} is {values[at]}, expected {expected}; pass an unchanged result of get_state()"
    )


def check_episodes(state: Any, seeded: bool, limit: int, split: str, autoreset: bool) -> None:
    """Check what all states have: seeds, episodes, levels, steps and ends. A state before the first reset is zeros.

    Args:
        state: a named tuple of arrays of the right shapes and dtypes.
        seeded: whether there was a reset.
        limit: steps after which an episode is truncated.
        split: of the levels.
        autoreset: no environment is at an episode's end.

    Raises:
        ValueError: no environment can be in this state.
    """
    if not seeded:
        for name, array in state._asdict().items():
            value = -1 if name == "episode" else 0
            require(array == value, name, array, f"{value} before the first reset")
        return
    require(state.env_seed >= 0, "env_seed", state.env_seed, "a seed of 0 or more")
    counted = (state.episode >= 0) & (state.episode <= _MOST_EPISODES)
    require(counted, "episode", state.episode, f"0 to {_MOST_EPISODES} after a reset")
    levels = level_seeds(state.env_seed, state.episode, SPLITS.index(split))
    require(state.level_seed == levels, "level_seed", state.level_seed, "the level of its seed and episode", levels)
    most = 0 if autoreset else 1
    require(state.done <= most, "done", state.done, "0 where episodes begin at once" if autoreset else "0 or 1")
    taken = (state.steps >= state.done) & (state.steps < limit + state.done.astype(np.int64))
    require(taken, "steps", state.steps, f"0 to {limit - 1}, or 1 to {limit} at an episode's end")


def check_maze(config: MazeConfig, geometry: Geometry, state: Any) -> None:
    """Check the maps of mazes after ``check_episodes``: places, counts, doors, and the arrays that follow from them.

    Raises:
        ValueError: no environment can be in this state.
    """
    size = len(geometry.template)
    row, col = np.divmod(state.agent, config.width)
    inside = (row > 0) & (row < config.height - 1) & (col > 0) & (col < config.width - 1)
    require(inside, "agent", state.agent, "a position inside the border")
    may_end = np.zeros(size, np.bool_)
    may_end[geometry.cells] = True
    inside = (state.goal >= 0) & (state.goal < size)
    inside &= may_end[np.where(inside, state.goal, 0)]
    where = "a cell" if config.endpoints == "cells" else "a position that may be open"
    require(inside, "goal", state.goal, where)
    arrived = state.agent == state.goal
    require(~arrived | (state.done == 1), "agent", state.agent, "another position than the goal's in an episode")
    over = arrived | (state.steps >= config.max_episode_steps)
    require(over | (state.done == 0), "done", state.done, "0 before an episode's end")
    begun = (state.steps > 0) | may_end[state.agent]
    require(begun, "agent", state.agent, f"{where} at an episode's start")
    _check_passages(config, geometry, state)
    if config.endpoints == "anywhere":
        _check_endpoints(config, geometry, state)
    _check_doors(config, state, arrived)
    _check_grid(config, geometry, state, arrived)
    if config.view != "full":
        _check_shown(config, state)
    if config.oracle:
        _check_distances(config, state)


def _check_passages(config: MazeConfig, geometry: Geometry, state: Any) -> None:
    """``open_edges`` and ``open_count``."""
    edges, count = state.open_edges, state.open_count
    size = len(geometry.template)
    inside = (edges >= 0) & (edges < size)
    if config.layout == "four_rooms":
        require(count == 4, "open_count", count, "4 doorways")
        arms = _arms(config)
        inside &= arms[np.arange(4), np.where(inside, edges, 0)]
        require(inside, "open_edges", edges, "a position of the wall in each arm of the cross")
        return
    is_edge = np.zeros(size, np.bool_)
    is_edge[geometry.edges] = True
    inside &= is_edge[np.where(inside, edges, 0)]
    if config.layout in ("scatter", "sutton_rooms"):
        assert config.walls is not None
        passages = len(geometry.edges) - config.walls
        ends = 2 if config.endpoints == "anywhere" else 0  # start and goal may be two of them, which are no doors
        fits = (count >= passages - ends) & (count <= passages)
        require(fits, "open_count", count, f"{passages} edges without a wall" + f", or {ends} fewer" * (ends > 0))
        require(inside & ~_repeated(edges), "open_edges", edges, "every edge once")
        return
    fewest = config.rows * config.cols - 1
    require((count >= fewest) & (count <= config.edges), "open_count", count, f"{fewest} to {config.edges} open edges")
    used = np.arange(edges.shape[1]) < count[:, None]
    inside[:, 1:] &= ~used[:, 1:] | (edges[:, 1:] > edges[:, :-1])
    # Behind the edges of a braid are those of earlier levels.
    require(inside | ~used & (edges == 0), "open_edges", edges, "open edges in increasing order")


def _check_endpoints(config: MazeConfig, geometry: Geometry, state: Any) -> None:
    """Passages that hold start and goal: the goal's is one of them, and of the other the episode began."""
    held = _held(config, state)
    passage = geometry.is_cell[state.goal] == 0
    rows = np.arange(len(held))
    if config.goal_process == "static":
        require(~passage | held[rows, state.goal], "goal", state.goal, "a cell, or a passage that is no door")
        few = held.sum(1) <= 1 + passage
        require(few, "open_count", state.open_count, "all passages but those of start and goal")
    begins = (state.steps > 0) | (geometry.is_cell[state.agent] == 1) | held[rows, state.agent]
    require(begins, "agent", state.agent, "a cell, or a passage that is no door, at an episode's start")


def _held(config: MazeConfig, state: Any) -> NDArray[np.bool_]:
    """Bool [N, G]: the passages of start and goal, the last of ``open_edges``."""
    assert config.walls is not None
    last = np.arange(state.open_edges.shape[1]) >= state.open_count[:, None] + config.walls
    return _mark(state.grid.shape[1], state.open_edges, last & (config.endpoints == "anywhere"))


def _arms(config: MazeConfig) -> NDArray[np.bool_]:
    """Where the doorway may be in the north, east, south and west arm of the cross: bool [4, G]."""
    row, col = np.indices((config.height, config.width))
    middle_row, middle_col = 2 * (config.rows // 2), 2 * (config.cols // 2)
    inside = (row > 0) & (row < config.height - 1) & (col > 0) & (col < config.width - 1)
    down, across = inside & (col == middle_col), inside & (row == middle_row)
    arms = (
        down & (row < middle_row),
        across & (col > middle_col),
        down & (row > middle_row),
        across & (col < middle_col),
    )
    return np.stack(arms).reshape(4, -1)


def _repeated(values: NDArray) -> NDArray[np.bool_]:
    """Which values [N, K] stand further left in their row too."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    again = np.zeros(values.shape, np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    found = np.empty_like(again)
    np.put_along_axis(found, order, again, 1)
    return found


def _mark(size: int, positions: NDArray, chosen: Any) -> NDArray[np.bool_]:
    """Bool [N, G]: the chosen ones of positions [N, K]."""
    marked = np.zeros((len(positions), size), np.bool_)
    chosen = np.broadcast_to(chosen, positions.shape)
    marked[np.nonzero(chosen)[0], positions[chosen]] = True
    return marked


def _passages(state: Any) -> NDArray[np.bool_]:
    """Bool [N, G]: the positions where a door may be."""
    used = np.arange(state.open_edges.shape[1]) < state.open_count[:, None]
    return _mark(state.grid.shape[1], state.open_edges, used)


def _check_doors(config: MazeConfig, state: Any, arrived: NDArray[np.bool_]) -> None:
    """``doors``, ``closed`` and ``spans``."""
    doors, closed, spans = state.doors, state.closed, state.spans.astype(np.int64)
    inside = (doors >= 0) & (doors < state.grid.shape[1])
    inside &= np.take_along_axis(_passages(state), np.where(inside, doors, 0), 1)
    require(inside & ~_repeated(doors), "doors", doors, "another open edge for each door")
    if config.door_process == "reroll":
        require(closed == 1, "closed", closed, "1 with door_process='reroll'")
    require(closed <= 1, "closed", closed, "0 or 1")
    if config.door_process != "periodic":
        return
    if config.p_change == 0:
        require(spans == 0, "spans", spans, "0 for doors that never change")
        return
    low, high = (max(1, int(min(factor / config.p_change + 0.5, 2**30))) for factor in (0.5, 1.5))
    lengths = spans[..., :2]
    require((lengths >= low) & (lengths <= high), "spans", lengths, f"a span of {low} to {high} steps")
    period, phase = lengths.sum(-1), spans[..., 2]
    require((phase >= 0) & (phase < period), "spans", phase, "a phase within the period")
    # An agent that arrives ends the episode before the doors of that step change.
    now, before = ((steps[:, None] + phase) % period < lengths[..., 0] for steps in (state.steps, state.steps - 1))
    require((closed == now) | arrived[:, None] & (closed == before), "closed", closed, "what its span says", now)


def _check_grid(config: MazeConfig, geometry: Geometry, state: Any, arrived: NDArray[np.bool_]) -> None:
    """``grid``: walls, passages, closed doors, the goal, the agent."""
    count, size = state.grid.shape
    rows = np.arange(count)
    grid = np.repeat(geometry.template[None], count, 0)
    grid[:, geometry.edges] = WALL
    grid[_passages(state) | _held(config, state)] = EMPTY
    require(grid[rows, state.agent] != WALL, "agent", state.agent, "a position that is no wall")
    shut = _mark(size, state.doors, state.closed == 1)
    grid[shut] = DOOR
    # The door that the agent left for the goal is open still: the episode is over.
    left = np.abs(np.arange(size) - state.agent[:, None])
    pending = arrived[:, None] & shut & ((left == 1) | (left == geometry.offsets[2])) & (state.grid == EMPTY)
    pending &= pending.sum(1, keepdims=True) == 1
    grid[pending] = EMPTY
    grid[rows, state.goal] = GOAL
    grid[rows, state.agent] = AGENT
    require(state.grid == grid, "grid", state.grid, "its walls, doors, goal and agent", grid)


def _check_shown(config: MazeConfig, state: Any) -> None:
    """``shown``: the part of the grid around the agent."""
    row, col = np.divmod(np.arange(state.grid.shape[1]), config.width)
    at, across = np.divmod(state.agent[:, None], config.width)
    radius = min(int(config.view), 2**16)
    near = (np.abs(row - at) <= radius) & (np.abs(col - across) <= radius)
    shown = np.where(near, state.grid, UNKNOWN).astype(np.uint8)
    require(state.shown == shown, "shown", state.shown, "the grid around the agent, unknown elsewhere", shown)


def _check_distances(config: MazeConfig, state: Any) -> None:
    """``distances``: at every position one more than the least of its neighbours, which only shortest paths satisfy."""
    shape = (len(state.grid), config.height, config.width)
    known = state.distances.astype(np.int64).reshape(shape)
    steps = np.where(known < 0, _CUT_OFF, known)
    inner = steps[:, 1:-1, 1:-1]
    around = (steps[:, :-2, 1:-1], steps[:, 2:, 1:-1], steps[:, 1:-1, :-2], steps[:, 1:-1, 2:])
    least = np.minimum.reduce(around) + 1
    assert least.shape == inner.shape
    expected = np.full(shape, -1, np.int64)
    expected[:, 1:-1, 1:-1] = np.where(least > _CUT_OFF, -1, least)
    expected = expected.reshape(state.distances.shape)
    expected[(state.grid == WALL) | (state.grid == DOOR)] = -1
    expected[np.arange(len(expected)), state.goal] = 0
    require(state.distances == expected, "distances", state.distances, "steps to the goal", expected)
