# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Layouts: the geometry that all levels of a configuration share, and the generation of one level.

A level is written into rows of the state: ``grid[G]`` (walls and open positions only) and
``open_edges[E]``, whose first ``count`` entries are the positions where a door may be.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import EMPTY, WALL
from hrm_envs.config import LAYOUTS, MazeConfig
from hrm_envs.jit import assign, inner
from hrm_envs.rng import STREAM_LAYOUT, below, draw

SCATTER, BRAID, FOUR_ROOMS, SUTTON_ROOMS = range(len(LAYOUTS))
SCATTER_ANYWHERE = len(LAYOUTS)  # ``scatter`` with ``endpoints="anywhere"``
SUTTON_WALLS = ((slice(1, 12), 6), (6, slice(1, 7)), (7, slice(6, 12)))
SUTTON_DOORWAYS = ((3, 6), (6, 2), (7, 9), (10, 6))
# Random wall sets tried before a path is fixed first. On the default maze 1 in 8 sets cuts off the goal.
_TRIES = 64


class Geometry(NamedTuple):
    """What all levels of a configuration share. Positions are flat grid indices.

    Attributes:
        template: uint8 [G], the grid without a level's own walls: WALL or EMPTY.
        cells: int32 [C], positions where an agent may start and a goal may be drawn.
        is_cell: uint8 [G], 1 at cells, not at passages.
        edges: int32 [E], positions between neighbouring cells; the doorways of ``sutton_rooms``; none in
            ``four_rooms``.
        offsets: int32 [4], what each action adds to a position.
    """

    template: NDArray[np.uint8]
    cells: NDArray[np.int32]
    is_cell: NDArray[np.uint8]
    edges: NDArray[np.int32]
    offsets: NDArray[np.int32]


def build_geometry(config: MazeConfig) -> Geometry:
    """The geometry that every level of ``config`` shares."""
    height, width = config.height, config.width
    grid = np.full((height, width), WALL, np.uint8)
    row, col = np.indices((height, width))
    inside = (row > 0) & (row < height - 1) & (col > 0) & (col < width - 1)
    if config.layout == "four_rooms":
        crossing = (row == 2 * (config.rows // 2)) | (col == 2 * (config.cols // 2))
        is_cell = inside & ~crossing
        is_edge = np.zeros_like(inside)
    elif config.layout == "sutton_rooms":
        is_cell, is_edge = inside.copy(), np.zeros_like(inside)
        for wall in SUTTON_WALLS:
            is_cell[wall] = False
        is_edge[tuple(zip(*SUTTON_DOORWAYS, strict=True))] = True
    else:
        is_cell = inside & (row % 2 == 1) & (col % 2 == 1)
        is_edge = inside & (row % 2 != col % 2)
    grid[is_cell | is_edge] = EMPTY
    return Geometry(
        template=grid.ravel(),
        cells=np.flatnonzero(is_cell | is_edge if config.endpoints == "anywhere" else is_cell).astype(np.int32),
        is_cell=is_cell.ravel().astype(np.uint8),
        edges=np.flatnonzero(is_edge).astype(np.int32),
        offsets=np.array([-width, 1, width, -1], np.int32),
    )


def layout_index(config: MazeConfig) -> int:
    """The layout as the kernel knows it."""
    anywhere = config.layout == "scatter" and config.endpoints == "anywhere"
    return SCATTER_ANYWHERE if anywhere else LAYOUTS.index(config.layout)


@inner
def flood(grid, offsets, source, target, queue, seen):
    """Visit every position that walls do not separate from ``source``; stop at ``target`` (-1: visit all).

    ``queue`` int32 [G] receives the visited positions in order; ``seen`` uint8 [G] is scratch. Returns their
    number, or -1 when ``target`` was reached.
    """
    seen[:] = 0
    queue[0] = source
    seen[source] = 1
    head, tail = 0, 1
    while head < tail:
        position = queue[head]
        head += 1
        for k in range(4):
            neighbour = position + offsets[k]
            if grid[neighbour] != WALL and not seen[neighbour]:
                if neighbour == target:
                    return -1
                seen[neighbour] = 1
                queue[tail] = neighbour
                tail += 1
    return tail


@inner
def _draw_pair(seed, counter, cells):
    """Two distinct cells, uniformly."""
    first = below(draw(seed, STREAM_LAYOUT, counter, 0), len(cells))
    second = below(draw(seed, STREAM_LAYOUT, counter, 1), len(cells) - 1)
    if second >= first:
        second += 1
    return cells[first], cells[second]


@inner
def _keep_open(open_edges, start, goal):
    """Move start and goal behind the edges that may be walls or doors; returns how many these are."""
    available = len(open_edges)
    for end in (start, goal):
        for k in range(available):
            if open_edges[k] == end:
                available -= 1
                open_edges[k] = open_edges[available]
                open_edges[available] = end
                break
    return available


@inner
def _scatter_anywhere(seed, template, cells, edges, offsets, walls, grid, open_edges, queue, seen):
    """As ``_scatter`` with start and goal in passages too, which stay open; rejected levels draw both anew."""
    for attempt in range(1, 10**9):
        start, goal = _draw_pair(seed, 2**21 + attempt, cells)
        assign(grid, template)
        assign(open_edges, edges)
        available = _keep_open(open_edges, start, goal)
        _choose_walls(seed, 2**22 + attempt, grid, open_edges, available, walls)
        if flood(grid, offsets, start, goal, queue, seen) < 0:
            break
    return start, goal, available - walls


@inner
def _choose_walls(seed, counter, grid, open_edges, available, walls):
    """Partial Fisher-Yates: walls on ``walls`` of the first ``available`` edges, moved to their end."""
    for k in range(walls):
        last = available - 1 - k
        pick = below(draw(seed, STREAM_LAYOUT, counter, 2 + k), last + 1)
        edge = open_edges[pick]
        open_edges[pick] = open_edges[last]
        open_edges[last] = edge
        grid[edge] = WALL


@inner
def _protect_path(seed, open_edges, start, goal, width):
    """Move the edges of a random shortest path to the end of ``open_edges``; returns how many they are."""
    total = len(open_edges)
    position, length = start, 0
    while position != goal:
        down = goal // width - position // width
        right = goal % width - position % width
        vertical = right == 0 or (down != 0 and below(draw(seed, STREAM_LAYOUT, 2**20 + length, 0), 2) == 0)
        if vertical:
            step = width if down > 0 else -width
        else:
            step = 1 if right > 0 else -1
        for k in range(total - length):
            if open_edges[k] == position + step:
                open_edges[k] = open_edges[total - 1 - length]
                open_edges[total - 1 - length] = position + step
                break
        position += 2 * step
        length += 1
    return length


@inner
def _scatter(seed, template, cells, edges, offsets, walls, grid, open_edges, queue, seen):
    """Random walls that leave start and goal connected: rejection sampling, then walls around a fixed path."""
    total = len(edges)
    start, goal = _draw_pair(seed, 0, cells)
    for attempt in range(_TRIES):
        if attempt > 0:
            assign(grid, template)
        assign(open_edges, edges)
        _choose_walls(seed, attempt, grid, open_edges, total, walls)
        if flood(grid, offsets, start, goal, queue, seen) < 0:
            return start, goal, total - walls
    width = offsets[2]
    for attempt in range(1, 10**9):
        distance = abs(start // width - goal // width) // 2 + abs(start % width - goal % width) // 2
        if distance <= total - walls:
            break
        # With so many walls only closer pairs can be connected; neighbours always can (walls < edges).
        start, goal = _draw_pair(seed, 2**21 + attempt, cells)
    assign(grid, template)
    assign(open_edges, edges)
    length = _protect_path(seed, open_edges, start, goal, width)
    _choose_walls(seed, 2**22, grid, open_edges, total - length, walls)
    # The walls are stored just before the path: swap them to the end.
    for k in range(min(length, walls)):
        path_at, wall_at = total - 1 - k, total - length - walls + k
        open_edges[path_at], open_edges[wall_at] = open_edges[wall_at], open_edges[path_at]
    return start, goal, total - walls


@inner
def _carve_tree(seed, template, cells, offsets, grid, stack, seen):
    """A spanning tree by random depth-first search from a random cell: long corridors, one path each."""
    seen[:] = 0
    stack[0] = cells[below(draw(seed, STREAM_LAYOUT, 1, 0), len(cells))]
    seen[stack[0]] = 1
    depth, counter = 1, 2
    while depth > 0:
        position = stack[depth - 1]
        choices, chosen = 0, 0
        for k in range(4):
            # Reservoir sampling over the unvisited neighbours; a missing neighbour is behind the border.
            if template[position + offsets[k]] != WALL and not seen[position + 2 * offsets[k]]:
                choices += 1
                if below(draw(seed, STREAM_LAYOUT, counter, k), choices) == 0:
                    chosen = k
        counter += 1
        if choices == 0:
            depth -= 1
            continue
        grid[position + offsets[chosen]] = EMPTY
        position += 2 * offsets[chosen]
        seen[position] = 1
        stack[depth] = position
        depth += 1
    return counter


@inner
def _open_dead_ends(seed, template, cells, offsets, grid, loops, queue, counter):
    """Open one more edge at a fraction ``loops`` of the dead ends (fewer if opening one opens another)."""
    total = 0
    for cell in cells:
        exits = 0
        for k in range(4):
            exits += grid[cell + offsets[k]] != WALL
        if exits == 1:
            queue[total] = cell
            total += 1
    for n in range(int(loops * total + 0.5)):
        pick = n + below(draw(seed, STREAM_LAYOUT, counter + n, 5), total - n)
        cell = queue[pick]
        queue[pick] = queue[n]
        queue[n] = cell
        exits, choices, chosen = 0, 0, -1
        for k in range(4):
            if grid[cell + offsets[k]] != WALL:
                exits += 1
            elif template[cell + offsets[k]] != WALL:
                choices += 1
                if below(draw(seed, STREAM_LAYOUT, counter + n, k), choices) == 0:
                    chosen = k
        if exits == 1 and chosen >= 0:
            grid[cell + offsets[chosen]] = EMPTY


@inner
def _braid(seed, template, cells, edges, offsets, loops, grid, open_edges, queue, seen):
    for edge in edges:
        grid[edge] = WALL
    counter = _carve_tree(seed, template, cells, offsets, grid, queue, seen)
    if loops > 0:
        _open_dead_ends(seed, template, cells, offsets, grid, loops, queue, counter)
    count = 0
    for edge in edges:
        if grid[edge] != WALL:
            open_edges[count] = edge
            count += 1
    start, goal = _draw_pair(seed, 0, cells)
    return start, goal, count


@inner
def _four_rooms(seed, cells, grid, open_edges, height, width):
    """One doorway in each arm of the cross, anywhere along it."""
    middle_row, middle_col = 2 * (height // 4), 2 * (width // 4)
    north = 1 + below(draw(seed, STREAM_LAYOUT, 1, 0), middle_row - 1)
    south = middle_row + 1 + below(draw(seed, STREAM_LAYOUT, 1, 1), height - 2 - middle_row)
    west = 1 + below(draw(seed, STREAM_LAYOUT, 1, 2), middle_col - 1)
    east = middle_col + 1 + below(draw(seed, STREAM_LAYOUT, 1, 3), width - 2 - middle_col)
    open_edges[0] = north * width + middle_col
    open_edges[1] = middle_row * width + east
    open_edges[2] = south * width + middle_col
    open_edges[3] = middle_row * width + west
    for k in range(4):
        grid[open_edges[k]] = EMPTY
    start, goal = _draw_pair(seed, 0, cells)
    return start, goal, 4


@inner
def draw_level(seed, template, cells, edges, offsets, layout, walls, loops, grid, open_edges, queue, seen, rare):
    """Write the level of ``seed`` into ``grid`` and ``open_edges``.

    Args:
        seed: int64, the level seed.
        template, cells, edges, offsets: of ``Geometry``.
        layout: ``layout_index`` of the configuration. ``walls``: int. ``loops``: float.
        grid: uint8 [G], overwritten. ``open_edges``: int32 [E], overwritten.
        queue, seen: scratch, int32 [G] and uint8 [G].
        rare: None if the layout is SCATTER (``hrm_envs.kernel.Parts``).

    Returns:
        (start, goal, count): two positions, and the number of valid entries of ``open_edges``.
    """
    assign(grid, template)
    if rare is not None:
        if layout == BRAID:
            return _braid(seed, template, cells, edges, offsets, loops, grid, open_edges, queue, seen)
        if layout == FOUR_ROOMS:
            return _four_rooms(seed, cells, grid, open_edges, len(grid) // offsets[2], offsets[2])
        if layout == SUTTON_ROOMS:
            start, goal = _draw_pair(seed, 0, cells)
            assign(open_edges, edges)
            return start, goal, _keep_open(open_edges, start, goal)
        if layout == SCATTER_ANYWHERE:
            return _scatter_anywhere(seed, template, cells, edges, offsets, walls, grid, open_edges, queue, seen)
    return _scatter(seed, template, cells, edges, offsets, walls, grid, open_edges, queue, seen)
