"""Coloured grids of ARC-AGI: as tokens, under symmetries and changes of colour, and read back from an answer.

The format is the one that HRM (arXiv 2506.21734) and TRM (arXiv 2510.04871) train on: a square canvas in row-major
order, id 0 where there is nothing, 1 along the grid's right and lower edge, 2 to 11 for the ten colours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAD, EOS, FIRST_COLOUR, COLOURS = 0, 1, 2, 10
TOKEN_IDS = FIRST_COLOUR + COLOURS
SYMMETRIES = 8
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)

Grid = NDArray[np.uint8]
"""Colours 0 to 9, `[rows, cols]`."""

Pair = tuple[Grid, Grid]
"""Input and output of one example."""


def turn(grid: Grid, symmetry: int) -> Grid:
    """The grid under one of the 8 symmetries of the square, numbered as in the published data sets.

    0 to 3: quarter turns to the left; 4: columns reversed; 5: rows reversed; 6: transposed; 7: transposed along the
    other diagonal.
    """
    if symmetry < 4:
        return np.rot90(grid, symmetry)
    if symmetry == 4:
        return grid[:, ::-1]
    if symmetry == 5:
        return grid[::-1]
    return grid.T if symmetry == 6 else grid[::-1, ::-1].T


class Augmentation(NamedTuple):
    """A change of colours, then a symmetry; `symmetry` 0 to 7 (`turn`), `colours` uint8 `[10]`, new colour of each."""

    symmetry: int
    colours: NDArray[np.uint8]

    def apply(self, grid: Grid) -> Grid:
        """The image of a grid."""
        return turn(self.colours[grid], self.symmetry)

    def invert(self, grid: Grid) -> Grid:
        """The grid whose image this is."""
        back = np.empty_like(self.colours)
        back[self.colours] = np.arange(COLOURS, dtype=np.uint8)
        return turn(back[grid], _INVERSE[self.symmetry])


IDENTITY = Augmentation(0, np.arange(COLOURS, dtype=np.uint8))


class Augmentations(NamedTuple):
    """The K images of one task: `identifiers` int32 `[K]`, `symmetries` uint8 `[K]`, `colours` uint8 `[K, 10]`.

    Number 0 is the task as it is.
    """

    identifiers: NDArray[np.int32]
    symmetries: NDArray[np.uint8]
    colours: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.identifiers)

    def __call__(self, k: int) -> Augmentation:
        """The k-th of them."""
        return Augmentation(int(self.symmetries[k]), self.colours[k])


def draw_augmentations(
    random: np.random.Generator, count: int, used: NDArray[np.bool_], first_identifier: int
) -> Augmentations:
    """The task itself and up to `count` different random images of it, numbered from `first_identifier`.

    Black (0) stays black: it is the background. Two augmentations that differ only in colours that the task does not
    have are one, so a task of few colours may have fewer than `count`; its other identifiers stay unused.

    Args:
        used: bool `[10]`, the colours that occur in the task.
    """
    trials = 5 * count  # as many as the published data sets take before they settle for fewer
    symmetries = np.concatenate([[0], random.integers(SYMMETRIES, size=trials)]).astype(np.uint8)
    colours = np.tile(np.arange(COLOURS, dtype=np.uint8), (trials + 1, 1))
    colours[1:, 1:] = random.permuted(colours[1:, 1:], axis=1)
    digits = np.column_stack([symmetries, colours[:, used]]).astype(np.int64)
    _, first = np.unique(digits @ 10 ** np.arange(digits.shape[1]), return_index=True)
    kept = np.sort(first)[: count + 1]
    identifiers = first_identifier + np.arange(len(kept), dtype=np.int32)
    return Augmentations(identifiers, symmetries[kept], colours[kept])


def to_tokens(grid: Grid, side: int, offset: tuple[int, int] = (0, 0)) -> NDArray[np.int32]:
    """Ids int32 `[side * side]` of a canvas with the grid at `offset` (row, column).

    The marks of its end stand in the row below and the column to the right of it, where the canvas has them.
    """
    (top, left), (rows, cols) = offset, grid.shape
    bottom, right = top + rows, left + cols
    canvas = np.full((side, side), PAD, np.int32)
    canvas[top:bottom, left:right] = grid
    canvas[top:bottom, left:right] += FIRST_COLOUR
    if bottom < side:
        canvas[bottom, left:right] = EOS
    if right < side:
        canvas[top:bottom, right] = EOS
    return canvas.reshape(-1)


def read_grid(tokens: NDArray, side: int) -> Grid:
    """The grid that an answer shows: the largest rectangle of colours whose corner is the canvas's top left.

    Of rectangles of the same area the lowest in height. There may be none: then the grid is 0 x 0.
    """
    canvas = tokens.reshape(side, side)
    coloured = (canvas >= FIRST_COLOUR) & (canvas < TOKEN_IDS)
    # Colours at the start of each row, then the fewest of any row so far: the width of a rectangle this high.
    widths = np.minimum.accumulate(np.logical_and.accumulate(coloured, axis=1).sum(1))
    areas = widths * np.arange(1, side + 1)
    rows = int(areas.argmax()) + 1
    cols = int(widths[rows - 1])
    return (canvas[: rows if cols else 0, :cols] - FIRST_COLOUR).astype(np.uint8)


class Images:
    """Pairs, and whether another pair is one of them up to a symmetry and a change of colours other than black."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._images: dict[tuple, set[tuple]] = defaultdict(set)
        for pair in pairs:
            self._images[_invariants(pair)].add(_in_order_of_colour(pair))

    def __contains__(self, pair: Pair) -> bool:
        images = self._images.get(_invariants(pair), set())
        turned = ((turn(pair[0], symmetry), turn(pair[1], symmetry)) for symmetry in range(SYMMETRIES if images else 0))
        return any(_in_order_of_colour(each) in images for each in turned)


def _invariants(pair: Pair) -> tuple:
    """What no augmentation changes: a cheap first look."""
    shapes = tuple(tuple(sorted(grid.shape)) for grid in pair)
    black, *others = zip(*(np.bincount(grid.reshape(-1), minlength=COLOURS).tolist() for grid in pair), strict=True)
    return shapes, black, tuple(sorted(others))


def _in_order_of_colour(pair: Pair) -> tuple:
    """Shapes, and cells with the colours numbered as they occur first, black apart."""
    cells = np.concatenate([grid.reshape(-1) for grid in pair])
    colours, first = np.unique(cells, return_index=True)
    number = np.zeros(COLOURS, np.uint8)
    ordered = colours[np.argsort(first)]
    ordered = ordered[ordered != 0]
    number[ordered] = np.arange(1, len(ordered) + 1)
    return tuple(grid.shape for grid in pair), number[cells].tobytes()
