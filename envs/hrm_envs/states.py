"""Whether a saved state is one that environments can be in.

The kernels index with the numbers of a state without looking at them, so that one altered number of a checkpoint
reads or writes memory of others. ``set_state`` refuses it here instead. The checks are numpy's: they compile nothing,
and take a millisecond for a hundred environments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL, UNKNOWN, WALL
from hrm_envs.config import SPLITS, MazeConfig
from hrm_envs.levels import Geometry
from hrm_envs.rng import level_seeds
from hrm_envs.sizes import Sizes, drawn_corners, drawn_sizes

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


def check_episodes(state: Any, seeded: bool, limit: Any, split: str, autoreset: bool) -> None:
    """Check what all states have: seeds, episodes, levels, steps and ends. A state before the first reset is zeros.

    Args:
        state: a named tuple of arrays of the right shapes and dtypes.
        seeded: whether there was a reset.
        limit: steps after which an episode is truncated, one number or int64 [N].
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
    most_steps = (
        f"0 to {limit - 1}, or 1 to {limit}" if np.ndim(limit) == 0 else "fewer than the limit of its size, or it"
    )
    require(taken, "steps", state.steps, f"{most_steps} at an episode's end")


def check_frame(config: MazeConfig, sizes: Sizes, state: Any) -> None:
    """Check the sizes and places of mazes in a frame, which all other checks rest on. Before the first reset all are 0.

    Raises:
        ValueError: no environment can be in this state.
    """
    if (state.episode < 0).all():
        require(state.size == 0, "size", state.size, "0 before the first reset")
        return
    size = drawn_sizes(sizes, state.level_seed, state.episode)
    require(state.size == size, "size", state.size, "the size that its level draws", size)
    corner = drawn_corners(sizes, (config.height, config.width), state.level_seed, size)
    require(state.corner == corner, "corner", state.corner, "the place that its level draws", corner)


class _Ground(NamedTuple):
    """What the mazes of N environments have by their size and place, or all alike."""

    template: NDArray[np.uint8]  # [N, G]
    inside: NDArray[np.bool_]  # [N, G] not on or outside the border
    may_end: NDArray[np.bool_]  # [N, G] where start and goal may be
    is_edge: NDArray[np.bool_]  # [N, G]
    edges: NDArray[np.int64]  # [N] how many there are
    walls: NDArray[np.int64]  # [N] fixed ones
    cells: NDArray[np.int64]  # [N] how many there are
    limits: NDArray[np.int64]  # [N]


def _ground(config: MazeConfig, geometry: Geometry, sizes: Sizes | None, state: Any) -> _Ground:
    count, size = state.grid.shape
    row, col = np.divmod(np.arange(size), config.width)
    may_end, is_edge = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    may_end[geometry.cells], is_edge[geometry.edges] = True, True
    if sizes is None:
        inside = (row > 0) & (row < config.height - 1) & (col > 0) & (col < config.width - 1)
        same = (geometry.template, inside, may_end, is_edge)
        maps = [np.broadcast_to(mask, (count, size)) for mask in same]
        alike = (len(geometry.edges), config.walls, config.rows * config.cols, config.max_episode_steps)
        return _Ground(*maps, *(np.full(count, number, np.int64) for number in alike))
    height, width = sizes.height[state.size][:, None], sizes.width[state.size][:, None]
    top, left = (value[:, None] for value in np.divmod(state.corner, config.width))
    inside = (row > top) & (row < top + height - 1) & (col > left) & (col < left + width - 1)
    template = np.where(inside, geometry.template, np.uint8(WALL))
    by_size = (sizes.edge_counts, sizes.walls, (sizes.height // 2) * (sizes.width // 2), sizes.limits)
    numbers = (table[state.size].astype(np.int64) for table in by_size)
    return _Ground(template, inside, may_end & inside, is_edge & inside, *numbers)


def check_maze(config: MazeConfig, geometry: Geometry, sizes: Sizes | None, state: Any) -> None:
    """Check the maps of mazes after ``check_episodes``: places, counts, doors, and the arrays that follow from them.

    Args:
        geometry: of the whole observation.
        sizes: of mazes in a frame; ``check_frame`` has passed.

    Raises:
        ValueError: no environment can be in this state.
    """
    count, size = state.grid.shape
    ground, rows = _ground(config, geometry, sizes, state), np.arange(count)
    inside = (state.agent >= 0) & (state.agent < size)
    inside &= ground.inside[rows, np.where(inside, state.agent, 0)]
    require(inside, "agent", state.agent, "a position inside the border")
    inside = (state.goal >= 0) & (state.goal < size)
    inside &= ground.may_end[rows, np.where(inside, state.goal, 0)]
    where = "a cell" if config.endpoints == "cells" else "a position that may be open"
    require(inside, "goal", state.goal, where)
    arrived = state.agent == state.goal
    require(~arrived | (state.done == 1), "agent", state.agent, "another position than the goal's in an episode")
    over = arrived | (state.steps >= ground.limits)
    require(over | (state.done == 0), "done", state.done, "0 before an episode's end")
    begun = (state.steps > 0) | ground.may_end[rows, state.agent]
    require(begun, "agent", state.agent, f"{where} at an episode's start")
    _check_passages(config, ground, state)
    held = _held(config, ground, state)
    if config.endpoints == "anywhere":
        _check_endpoints(config, geometry, held, state)
    _check_doors(config, state, arrived)
    _check_grid(config, geometry, ground, held, state, arrived)
    if config.view != "full":
        _check_shown(config, state)
    if config.oracle:
        _check_distances(config, state)


def _check_passages(config: MazeConfig, ground: _Ground, state: Any) -> None:
    """``open_edges`` and ``open_count``."""
    edges, count = state.open_edges, state.open_count
    size = state.grid.shape[1]
    inside = (edges >= 0) & (edges < size)
    if config.layout == "four_rooms":
        require(count == 4, "open_count", count, "4 doorways")
        arms = _arms(config)
        inside &= arms[np.arange(4), np.where(inside, edges, 0)]
        require(inside, "open_edges", edges, "a position of the wall in each arm of the cross")
        return
    inside &= np.take_along_axis(ground.is_edge, np.where(inside, edges, 0), 1)
    # A smaller size has fewer edges than there are places for; the rest is 0.
    rest = (np.arange(edges.shape[1]) >= ground.edges[:, None]) & (edges == 0)
    if config.layout in ("scatter", "sutton_rooms"):
        passages = ground.edges - ground.walls
        ends = 2 if config.endpoints == "anywhere" else 0  # start and goal may be two of them, which are no doors
        fits = (count >= passages - ends) & (count <= passages)
        expected = f"{passages[fits.argmin()]} edges without a wall" + f", or {ends} fewer" * (ends > 0)
        require(fits, "open_count", count, expected)
        require(rest | inside & ~_repeated(edges), "open_edges", edges, "every edge once")
        return
    fewest = ground.cells - 1
    fits = (count >= fewest) & (count <= ground.edges)
    at = fits.argmin()
    require(fits, "open_count", count, f"{fewest[at]} to {ground.edges[at]} open edges")
    used = np.arange(edges.shape[1]) < count[:, None]
    inside[:, 1:] &= ~used[:, 1:] | (edges[:, 1:] > edges[:, :-1])
    # Behind the edges of a braid are those of earlier levels.
    require(inside | ~used & (edges == 0), "open_edges", edges, "open edges in increasing order")


def _check_endpoints(config: MazeConfig, geometry: Geometry, held: NDArray[np.bool_], state: Any) -> None:
    """Passages that hold start and goal: the goal's is one of them, and of the other the episode began."""
    passage = geometry.is_cell[state.goal] == 0
    rows = np.arange(len(held))
    if config.goal_process == "static":
        require(~passage | held[rows, state.goal], "goal", state.goal, "a cell, or a passage that is no door")
        few = held.sum(1) <= 1 + passage
        require(few, "open_count", state.open_count, "all passages but those of start and goal")
    begins = (state.steps > 0) | (geometry.is_cell[state.agent] == 1) | held[rows, state.agent]
    require(begins, "agent", state.agent, "a cell, or a passage that is no door, at an episode's start")


def _held(config: MazeConfig, ground: _Ground, state: Any) -> NDArray[np.bool_]:
    """Bool [N, G]: the passages of start and goal, the last of ``open_edges``."""
    at = np.arange(state.open_edges.shape[1])
    last = (at >= (state.open_count + ground.walls)[:, None]) & (at < ground.edges[:, None])
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


def _check_grid(
    config: MazeConfig,
    geometry: Geometry,
    ground: _Ground,
    held: NDArray[np.bool_],
    state: Any,
    arrived: NDArray[np.bool_],
) -> None:
    """``grid``: walls, passages, closed doors, the goal, the agent."""
    count, size = state.grid.shape
    rows = np.arange(count)
    grid = ground.template.copy()
    grid[ground.is_edge] = WALL
    grid[_passages(state) | held] = EMPTY
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
