# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Mazes with their shortest paths, drawn many at once, and answers checked against the rules of mazes.

Tokens are those of the published Maze-Hard data (HRM, arXiv 2506.21734): 0 is padding, then the characters of
`CHARACTERS` in order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_envs.cells import EMPTY
from hrm_envs.config import MazeConfig
from hrm_envs.jit import inner, kernel
from hrm_envs.kernel import build_rules
from hrm_envs.levels import build_geometry, draw_level
from hrm_envs.rng import below, draw, level_seed, mix

CHARACTERS = "# SGo"
WALL, FREE, START, GOAL, PATH = range(1, len(CHARACTERS) + 1)
VOCABULARY = 1 + len(CHARACTERS)

# Of the hashes of mazes, one in so many is kept for each of validation and test.
_SHARES = 8
# Beside the streams of hrm_envs.rng: which of several shortest paths is the label, and keys of hashes.
_STREAM_PATH, _STREAM_KEY = 64, 65
# Why a level was not taken.
SHORT, NOT_UNIQUE, OTHER_SPLIT, TAKEN = range(4)


class Family(NamedTuple):
    """Mazes to draw; `build_family` makes it.

    Attributes:
        template, cells, edges, offsets: of `hrm_envs.levels.Geometry`.
        layout, walls, loops: of `hrm_envs.kernel.Rules`.
        keys: uint64 [I, G, 3], random bits that hash an open position, a start and a goal at each place of each of
            the I dihedral images.
    """

    template: NDArray[np.uint8]
    cells: NDArray[np.int32]
    edges: NDArray[np.int32]
    offsets: NDArray[np.int32]
    layout: int
    walls: int
    loops: float
    keys: NDArray[np.uint64]


def dihedral_indices(rows: int, cols: int) -> NDArray[np.int32]:
    """Images of a grid as gathers: `flat[indices[k]]` is image k of the row-major grid.

    Returns:
        int32 `[8, rows * cols]` of a square, `[4, rows * cols]` of another grid, whose transposes have another shape.
        The first image is the grid itself.
    """
    grid = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    images = [grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1]]
    if rows == cols:
        images += [image.T for image in images]
    return np.stack([image.ravel() for image in images])


def build_family(config: MazeConfig) -> Family:
    """Translate a configuration for the kernel; its doors, goal process and view play no part."""
    geometry, rules = build_geometry(config), build_rules(config)
    images = dihedral_indices(config.height, config.width)
    keys = np.empty((*images.shape, 3), np.uint64)
    _fill_keys(images, keys)
    return Family(
        geometry.template,
        geometry.cells,
        geometry.edges,
        geometry.offsets,
        rules.layout,
        rules.walls,
        rules.loops,
        keys,
    )


@kernel
def _fill_keys(images, keys):
    for k in range(images.shape[0]):
        for place in range(images.shape[1]):
            for kind in range(3):
                keys[k, images[k, place], kind] = draw(0, _STREAM_KEY, kind, place)


@inner
def _distances(walkable, width, source, distances, queue):
    """Steps to `source` from everywhere, int32 [G], -1 where cut off; `queue` int32 [G]. Returns how many it reaches.

    Positions are row-major in rows of `width`; a grid need not have a border of walls.
    """
    size = len(walkable)
    distances[:] = -1
    distances[source] = 0
    queue[0] = source
    head, tail = 0, 1
    while head < tail:
        position = queue[head]
        head += 1
        for k in range(4):
            neighbour = _neighbour(position, k, width, size)
            if neighbour >= 0 and walkable[neighbour] and distances[neighbour] < 0:
                distances[neighbour] = distances[position] + 1
                queue[tail] = neighbour
                tail += 1
    return tail


@inner
def _neighbour(position, k, width, size):
    """The position north, east, south or west (`k`) of one, -1 off the grid."""
    if k == 0:
        return position - width if position >= width else -1
    if k == 1:
        return position + 1 if (position + 1) % width != 0 else -1
    if k == 2:
        return position + width if position + width < size else -1
    return position - 1 if position % width != 0 else -1


@inner
def _count_paths(walkable, width, distances, queue, reached, counts):
    """Shortest paths to the source from everywhere that was reached: float64 [G], exact below 2**53."""
    counts[queue[0]] = 1.0
    for n in range(1, reached):
        position = queue[n]
        total = 0.0
        for k in range(4):
            neighbour = _neighbour(position, k, width, len(walkable))
            if neighbour >= 0 and walkable[neighbour] and distances[neighbour] == distances[position] - 1:
                total += counts[neighbour]
        counts[position] = total


@inner
def _draw_path(seed, walkable, width, distances, counts, start, label):
    """Mark one of the shortest paths, each equally likely, between the start and where distances are 0."""
    position = start
    while distances[position] > 1:
        bits = draw(seed, _STREAM_PATH, distances[position], 0)
        rest = counts[position] * (below(bits, 2**30) / 2**30)
        chosen = -1
        for k in range(4):
            neighbour = _neighbour(position, k, width, len(walkable))
            if neighbour >= 0 and walkable[neighbour] and distances[neighbour] == distances[position] - 1 and rest >= 0:
                chosen = neighbour
                rest -= counts[neighbour]
        position = chosen
        label[position] = PATH


@inner
def _canonical_hash(grid, start, goal, keys):
    """The smallest hash of a maze's dihedral images, so that all of them have the same: uint64."""
    smallest = ~np.uint64(0)
    for k in range(keys.shape[0]):
        total = keys[k, start, 1] + keys[k, goal, 2]
        for position in range(len(grid)):
            if grid[position] == EMPTY:
                total += keys[k, position, 0]
        total = mix(total)
        smallest = min(smallest, total)
    return smallest


@inner
def _split_of(hash_):
    """Split that a maze belongs to, with all its images: 0 train, 1 validation, 2 test."""
    share = hash_ % np.uint64(_SHARES)
    if share == 0:
        return 2
    return 1 if share == 1 else 0


@kernel
def draw_mazes(family, seeds, split, min_path, unique, tries, inputs, labels, rejected):
    """Mazes of a split, each a function of its seed.

    Args:
        family: `Family`.
        seeds: int64 [N].
        split: 0 train, 1 validation, 2 test.
        min_path: steps of the shortest path at least. `unique`: it must be the only one.
        tries: levels drawn for one maze before it is given up.
        inputs, labels: int32 [N, G], overwritten: the maze, and the maze with one of its shortest paths.
        rejected: int64 [3], to which the levels not taken are added, by reason.

    Returns:
        Mazes made: N, or fewer where `tries` levels did not do.
    """
    template, cells, edges, offsets, layout, walls, loops, keys = family
    size, width = len(template), offsets[2]
    grid, seen = np.empty(size, np.uint8), np.empty(size, np.uint8)
    open_edges, queue = np.empty(max(len(edges), 4), np.int32), np.empty(size, np.int32)
    distances, counts = np.empty(size, np.int32), np.empty(size, np.float64)
    for n in range(len(seeds)):
        verdict = SHORT
        for attempt in range(tries):
            seed = level_seed(seeds[n], attempt, split)
            start, goal, _ = draw_level(
                seed, template, cells, edges, offsets, layout, walls, loops, grid, open_edges, queue, seen, True
            )
            for position in range(size):
                seen[position] = grid[position] == EMPTY
            reached = _distances(seen, width, goal, distances, queue)
            if distances[start] < min_path:
                verdict = SHORT
            else:
                _count_paths(seen, width, distances, queue, reached, counts)
                if unique and counts[start] != 1:
                    verdict = NOT_UNIQUE
                elif _split_of(_canonical_hash(grid, start, goal, keys)) != split:
                    verdict = OTHER_SPLIT
                else:
                    verdict = TAKEN
                    break
            rejected[verdict] += 1
        if verdict != TAKEN:
            return n
        for position in range(size):
            inputs[n, position] = FREE if seen[position] else WALL
        inputs[n, start] = START
        inputs[n, goal] = GOAL
        labels[n] = inputs[n]
        _draw_path(seed, seen, width, distances, counts, start, labels[n])
    return len(seeds)


def valid_paths(inputs: NDArray, answers: NDArray, width: int) -> NDArray[np.bool_]:
    """Whether what answers mark is, with start and goal, exactly the positions of a shortest path.

    Args:
        inputs: int [N, G], mazes with one start and one goal each, row-major in rows of `width`.
        answers: int [N, G]; only where they say `PATH` matters, and not at start and goal.

    Returns:
        bool [N]; False where no path exists.
    """
    # One type each, or every further one would be compiled for.
    return _valid_paths(np.ascontiguousarray(inputs, np.int32), np.ascontiguousarray(answers, np.int32), width)


@kernel
def _valid_paths(inputs, answers, width):
    size = inputs.shape[1]
    walkable, distances = np.empty(size, np.bool_), np.empty(size, np.int32)
    queue, valid = np.empty(size, np.int32), np.zeros(len(inputs), np.bool_)
    for n in range(len(inputs)):
        start, goal, marked = -1, -1, 0
        for position in range(size):
            token = inputs[n, position]
            walkable[position] = token != 0 and token != WALL
            if token == START:
                start = position
            elif token == GOAL:
                goal = position
            elif answers[n, position] == PATH:
                marked += 1
        if start < 0 or goal < 0:
            continue
        _distances(walkable, width, goal, distances, queue)
        # One position at each distance: a walk that goes down through marked ones has then seen them all.
        if distances[start] < 1 or marked != distances[start] - 1:
            continue
        position = start
        while distances[position] > 1:
            following = -1
            for k in range(4):
                neighbour = _neighbour(position, k, width, size)
                if neighbour >= 0 and answers[n, neighbour] == PATH and distances[neighbour] == distances[position] - 1:
                    following = neighbour
            if following < 0:
                break
            position = following
        valid[n] = distances[position] == 1
    return valid


def hide_border(labels: NDArray, rows: int, cols: int) -> None:
    """Remove the labels from the outer ring of grids int32 `[N, rows * cols]`, in place."""
    grids = labels.reshape(-1, rows, cols)
    grids[:, [0, -1]] = IGNORED_LABEL
    grids[:, :, [0, -1]] = IGNORED_LABEL
