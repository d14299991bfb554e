# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""A chess board's squares as tables: who reaches what, and the board's eight symmetries.

Squares are numbered ``8 * rank + file``, a1 = 0, h1 = 7, h8 = 63.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.jit import inner

QUEEN, ROOK, PAWN = range(3)
# (ranks, files) of a step: those of a rook first, then those of a bishop, each clockwise from north.
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))
ROOK_DIRECTIONS = 4
OFF = -1
TRIANGLE = (0, 1, 2, 3, 9, 10, 11, 18, 19, 27)
"""One square of each class under the board's symmetries: a1, b1, c1, d1, b2, c2, d2, c3, d3, d4."""


class Geometry(NamedTuple):
    """Tables of a board; ``OFF`` ends every list of squares."""

    steps: NDArray[np.int8]  # [64, 8] a king's step in each of DIRECTIONS, OFF beyond the board's edge
    rays: NDArray[np.int8]  # [64, 8, 8] squares in each of DIRECTIONS, the nearest first
    lines: NDArray[np.int8]  # [64, 64] 1: both on a rook's line, 2: on a bishop's, 0: on none
    between: NDArray[np.uint64]  # [64, 64] bits of the squares between two on a line
    near: NDArray[np.bool_]  # [64, 64] the same square, or one that a king's step leads to
    images: NDArray[np.int8]  # [8, 64] the board's symmetries; image 1 reflects at the diagonal a1-h8
    into: NDArray[np.int8]  # [64] a symmetry that brings a square into TRIANGLE
    place: NDArray[np.int8]  # [64] the place in TRIANGLE of the square that it is brought to
    diagonal: NDArray[np.bool_]  # [64] whether the square's class lies on a long diagonal
    triangle: NDArray[np.int8]  # [10]


@lru_cache(maxsize=1)
def build_geometry() -> Geometry:
    """The tables, computed once."""
    steps = np.full((64, 8), OFF, np.int8)
    rays = np.full((64, 8, 8), OFF, np.int8)
    lines = np.zeros((64, 64), np.int8)
    between = np.zeros((64, 64), np.uint64)
    for square in range(64):
        for direction, (up, right) in enumerate(DIRECTIONS):
            passed, rank, file = 0, square // 8 + up, square % 8 + right
            length = 0
            while 0 <= rank < 8 and 0 <= file < 8:
                target = 8 * rank + file
                rays[square, direction, length] = target
                lines[square, target] = 1 if direction < ROOK_DIRECTIONS else 2
                between[square, target] = passed
                passed |= 1 << target
                rank, file, length = rank + up, file + right, length + 1
            steps[square, direction] = rays[square, direction, 0]
    ranks, files = np.divmod(np.arange(64), 8)
    apart = np.maximum(abs(ranks[:, None] - ranks), abs(files[:, None] - files))
    flips = [(ranks, files), (ranks, 7 - files), (7 - ranks, files), (7 - ranks, 7 - files)]
    images = np.array([8 * a + b for r, f in flips for a, b in ((r, f), (f, r))], np.int8)
    triangle = np.array(TRIANGLE, np.int8)
    inside = np.isin(images, triangle)  # [8, 64]
    into = inside.argmax(0).astype(np.int8)
    brought = images[into, np.arange(64)]
    place = np.searchsorted(triangle, brought).astype(np.int8)
    diagonal = (ranks == files) | (ranks == 7 - files)
    built = Geometry(steps, rays, lines, between, apart <= 1, images, into, place, diagonal, triangle)
    for array in built:
        array.flags.writeable = False  # before any kernel sees it: for numba that is part of the type
    return built


@inner
def bit(square):
    """uint64 with the square's bit set."""
    return np.uint64(1) << np.uint64(square)


@inner
def slides(board, queen, start, end, occupied):
    """Whether a queen, or else a rook, on ``start`` attacks ``end``, with the squares ``occupied`` (uint64) between."""
    line = board.lines[start, end]
    return (line == 1 or (queen and line == 2)) and (board.between[start, end] & occupied) == 0


@inner
def strikes(start, end):
    """Whether a white pawn on ``start`` attacks ``end``."""
    step = end - start
    return (step == 7 and start % 8 > 0) or (step == 9 and start % 8 < 7)


@inner
def attacks(board, piece, start, end, occupied):
    """Whether a white piece on ``start`` attacks ``end``."""
    if piece == PAWN:
        return strikes(start, end)
    return slides(board, piece == QUEEN, start, end, occupied)
