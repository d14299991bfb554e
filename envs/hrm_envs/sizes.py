# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Mazes in a frame: which size a level has, where in the observed square it lies, and its geometry there.

Size and place are functions of the level's seed, by random numbers of their own: the maze inside is the one that the
same seed gives alone, moved. Places are an even number of positions apart, so that cells stay at odd positions.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import EMPTY, WALL
from hrm_envs.config import MazeConfig
from hrm_envs.jit import inner
from hrm_envs.levels import build_geometry
from hrm_envs.rng import STREAM_SIZE, all_below, below, draw, draws

_UNIT = 2.0**-53
_S11 = np.uint64(11)


class Sizes(NamedTuple):
    """The S sizes of a configuration, for the kernel, on a frame of G positions.

    Attributes:
        height, width: int32 [S], of the grid of each size.
        cells, edges: int32 [S, C], [S, E], those of ``Geometry`` with the maze in the frame's first corner.
        cell_counts, edge_counts: int32 [S], how many entries of a row are valid.
        walls, limits: int32 [S], fixed walls and time limit.
        begins: int64 [R], episodes begun before, from which a row of the schedule holds.
        weights: float64 [R, S], of the sizes there.
        template, own_cells, own_edges: uint8 [G], int32 [C], int32 [E], scratch: those of the level being drawn.
    """

    height: NDArray[np.int32]
    width: NDArray[np.int32]
    cells: NDArray[np.int32]
    edges: NDArray[np.int32]
    cell_counts: NDArray[np.int32]
    edge_counts: NDArray[np.int32]
    walls: NDArray[np.int32]
    limits: NDArray[np.int32]
    begins: NDArray[np.int64]
    weights: NDArray[np.float64]
    template: NDArray[np.uint8]
    own_cells: NDArray[np.int32]
    own_edges: NDArray[np.int32]


def build_sizes(config: MazeConfig) -> Sizes | None:
    """The sizes of a configuration; None where the maze is the whole observation."""
    if not config.is_framed:
        return None
    each = config.each_size()
    grounds = [build_geometry(one) for one in each]
    schedule = config.size_schedule if config.split == "train" else None
    rows = np.array(schedule or ((0.0, *[1.0] * len(each)),), np.float64)
    cells = _in_frame(config, each, [ground.cells for ground in grounds])
    edges = _in_frame(config, each, [ground.edges for ground in grounds])
    return Sizes(
        height=np.array([one.height for one in each], np.int32),
        width=np.array([one.width for one in each], np.int32),
        cells=cells,
        edges=edges,
        cell_counts=np.array([len(ground.cells) for ground in grounds], np.int32),
        edge_counts=np.array([len(ground.edges) for ground in grounds], np.int32),
        walls=np.array([one.walls for one in each], np.int32),
        limits=np.array([one.max_episode_steps for one in each], np.int32),
        begins=rows[:, 0].astype(np.int64),
        weights=np.ascontiguousarray(rows[:, 1:]),
        template=np.zeros(config.height * config.width, np.uint8),
        own_cells=np.zeros(cells.shape[1], np.int32),
        own_edges=np.zeros(edges.shape[1], np.int32),
    )


def _in_frame(config: MazeConfig, each: tuple[MazeConfig, ...], lists: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Positions on grids of several widths, as positions in the first corner of the frame: int32 [S, longest]."""
    table = np.zeros((len(lists), max(map(len, lists))), np.int32)
    for row, one, positions in zip(table, each, lists, strict=True):
        down, across = np.divmod(positions, one.width)
        row[: len(positions)] = down * config.width + across
    return table


@inner
def draw_size(seed, episode, begins, weights):
    """The size of a level, which its environment has begun ``episode`` episodes before: an index."""
    row, along = 0, 0.0
    while row + 1 < len(begins) and begins[row + 1] <= episode:
        row += 1
    later = min(row + 1, len(begins) - 1)
    if later > row:
        along = (episode - begins[row]) / (begins[later] - begins[row])
    total = 0.0
    for k in range(weights.shape[1]):
        total += weights[row, k] + along * (weights[later, k] - weights[row, k])
    left = np.int64(draw(seed, STREAM_SIZE, 0, 0) >> _S11) * _UNIT * total
    chosen = 0
    for k in range(weights.shape[1]):
        weight = weights[row, k] + along * (weights[later, k] - weights[row, k])
        if weight > 0.0:
            chosen = k
            left -= weight
            if left < 0.0:
                break
    return chosen


@inner
def draw_corner(seed, rows, cols, width):
    """The position of a maze's first corner, with ``rows`` and ``cols`` of the frame (``width`` wide) left free."""
    top = 2 * below(draw(seed, STREAM_SIZE, 0, 1), rows // 2 + 1)
    left = 2 * below(draw(seed, STREAM_SIZE, 0, 2), cols // 2 + 1)
    return top * width + left


@inner
def lay_out(sizes, size, corner):
    """Write the geometry of a size at a corner into ``template``, ``own_cells`` and ``own_edges``."""
    template = sizes.template
    for position in range(len(template)):
        template[position] = WALL
    for k in range(sizes.cell_counts[size]):
        position = sizes.cells[size, k] + corner
        sizes.own_cells[k] = position
        template[position] = EMPTY
    for k in range(sizes.edge_counts[size]):
        position = sizes.edges[size, k] + corner
        sizes.own_edges[k] = position
        template[position] = EMPTY


def drawn_sizes(sizes: Sizes, level_seeds: NDArray[np.int64], episodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """``draw_size`` for int64 arrays [N], without compiled code: int64 [N]."""
    row = np.searchsorted(sizes.begins, episodes, "right") - 1
    later = np.minimum(row + 1, len(sizes.begins) - 1)
    span = np.maximum(sizes.begins[later] - sizes.begins[row], 1)
    along = np.where(later > row, (episodes - sizes.begins[row]) / span, 0.0)
    weights = sizes.weights[row] + along[:, None] * (sizes.weights[later] - sizes.weights[row])
    total = np.zeros(len(row))
    for k in range(weights.shape[1]):  # in the kernel's order: sums of floats depend on it
        total += weights[:, k]
    bits = draws(level_seeds, STREAM_SIZE, np.int64(0), np.int64(0))
    left = (bits >> _S11).astype(np.int64) * _UNIT * total
    chosen, going = np.zeros(len(row), np.int64), np.ones(len(row), np.bool_)
    for k in range(weights.shape[1]):
        here = going & (weights[:, k] > 0.0)
        chosen[here] = k
        left = np.where(here, left - weights[:, k], left)
        going &= ~here | (left >= 0.0)
    return chosen


def drawn_corners(
    sizes: Sizes, frame: tuple[int, int], level_seeds: NDArray[np.int64], chosen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``draw_corner`` for the chosen sizes int64 [N] in a frame (rows, columns), without compiled code: int64 [N]."""
    corner = np.zeros(len(chosen), np.int64)
    for index, (side, own) in enumerate(zip(frame, (sizes.height, sizes.width), strict=True)):
        places = (side - own[chosen]) // 2 + 1
        first = 2 * all_below(draws(level_seeds, STREAM_SIZE, np.int64(0), np.int64(1 + index)), places)
        corner += first * (frame[1] if index == 0 else 1)
    return corner
