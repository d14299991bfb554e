# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Positions of exact endgames as puzzles, drawn from the tables of `hrm_envs.endgames`, with their best moves."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.supervised.chess.rules import ANSWERS, KING, PAWN, QUEEN, ROOK, THEIRS
from hrm_envs.endgames import geometry
from hrm_envs.endgames.shares import splits_of
from hrm_envs.endgames.tables import (
    BLACK,
    DRAW,
    ENDINGS,
    ILLEGAL,
    MOST_MOVES,
    NOBODY,
    Table,
    endgame_table,
    find_moves,
    positions_at,
    values_at,
)
from hrm_envs.jit import kernel

SPLIT_CODES = {"train": 0, "validation": 1, "test": 3}
"""The splits of `hrm_envs.config.SPLITS` that puzzles are drawn from."""
_TOKENS = {geometry.QUEEN: QUEEN, geometry.ROOK: ROOK, geometry.PAWN: PAWN}
_UNDER = (0, 0, 2, 1, 0)
"""Of a table's promotion (none, queen, rook, bishop, knight) the place among under-promotions."""


class Judged(NamedTuple):
    """The legal moves of N positions, and what they are worth.

    Attributes:
        moves: int16 `[N, M]`, numbers of moves (`hrm_agent.supervised.chess.rules`), -1 behind the last.
        optimal: bool `[N, M]`: they win soonest, keep a draw, or lose latest.
        keeps: bool `[N, M]`: they keep a win won, or a draw drawn; all moves of a lost position.
    """

    moves: NDArray[np.int16]
    optimal: NDArray[np.bool_]
    keeps: NDArray[np.bool_]


@kernel
def _fill_moves(board, rules, sides, squares, under, flats, values):
    """Fill int16 [N, MOST_MOVES] and int8 [N, MOST_MOVES] with moves and the values after them."""
    moves = np.zeros((MOST_MOVES, 3), np.int8)
    for i in range(len(sides)):
        bp = squares[i, 3] if squares.shape[1] == 4 else NOBODY
        where = (squares[i, 0], squares[i, 1], squares[i, 2])
        count = find_moves(board, rules, sides[i], where[0], where[1], where[2], bp, moves, values[i], False)
        flip = 56 if sides[i] == BLACK else 0
        for k in range(count):
            start, end = np.int64(moves[k, 0]) ^ flip, np.int64(moves[k, 1]) ^ flip
            answer = end if moves[k, 2] <= 1 else 65 + 3 * under[moves[k, 2]]
            flats[i, k] = ANSWERS * start + answer


def judge(table: Table, sides: NDArray[np.int64], squares: NDArray[np.int64]) -> Judged:
    """The moves of N legal positions: sides to move `[N]`, squares `[N, 3 or 4]` as `hrm_envs.endgames` has them."""
    flats = np.full((len(sides), MOST_MOVES), -1, np.int16)
    after = np.zeros((len(sides), MOST_MOVES), np.int8)
    _fill_moves(table.board, table.rules, sides, squares, np.array(_UNDER), flats, after)
    values = values_at(table, sides, squares).astype(np.int64)[:, None]
    there = flats >= 0
    # A position won or lost in v plies is followed by one lost or won in v - 1; a draw by a draw.
    optimal = there & np.where(values == DRAW, after == DRAW, after == values - 1)
    won = (values > 0) & (values % 2 == 1)
    keeps = there & np.where(won, (after >= 0) & (after % 2 == 0), (values != DRAW) | (after == DRAW))
    return Judged(flats, optimal, keeps)


def tokens_of(table: Table, sides: NDArray[np.int64], squares: NDArray[np.int64]) -> NDArray[np.int32]:
    """Boards int32 `[N, 64]` as the side to move sees them."""
    boards = np.zeros((len(sides), 64), np.int32)
    rows, black = np.arange(len(sides)), sides == BLACK
    pieces = [KING, KING + THEIRS, _TOKENS[table.rules.piece], ROOK + THEIRS]
    for column in range(squares.shape[1]):
        token = pieces[column]
        turned = token - THEIRS if token >= PAWN + THEIRS else token + THEIRS
        boards[rows, squares[:, column] ^ np.where(black, 56, 0)] = np.where(black, turned, token)
    return boards


def draw(names: list[str], split: str, generator: np.random.Generator, count: int) -> NDArray[np.int32]:
    """Boards int32 `[count, 64]`: an ending at random, then a position of it in which there is a move.

    A position is one of all squares, with either side to move, each as likely; pawnless ones in any of eight images.
    """
    boards = np.zeros((count, 64), np.int32)
    chosen = generator.integers(len(names), size=count)
    for number, name in enumerate(names):
        table, known = endgame_table(name), candidates(name, split)
        rows = np.flatnonzero(chosen == number)
        while len(rows):
            sides, squares = positions_at(table, known[generator.integers(len(known), size=len(rows))])
            if table.rules.rook:  # the table has one image of each, the others every one
                images = table.board.images[generator.integers(8, size=len(rows))].astype(np.int64)
                squares = np.take_along_axis(images, squares, 1)
            moves = judge(table, sides, squares).moves
            live = moves[:, 0] >= 0
            boards[rows[live]] = tokens_of(table, sides[live], squares[live])
            rows = rows[~live]
    return boards


@cache
def candidates(name: str, split: str) -> NDArray[np.int32]:
    """Indices in an ending's table of a split's positions that are legal and no mate."""
    values = endgame_table(name).values
    found = (values != ILLEGAL) & (values != 0) & (splits_of(name) == SPLIT_CODES[split])
    return np.flatnonzero(found).astype(np.int32)


def recognise(boards: NDArray[np.int32]) -> list[tuple[Table, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """The endings among boards int `[N, 64]`: for each that occurs its table, the rows, sides to move and squares.

    Raises:
        ValueError: a board that is of none of `ENDINGS`.
    """
    found, known = [], np.zeros(len(boards), bool)
    for name, (piece, rook) in ENDINGS.items():
        strong = [KING, KING + THEIRS, _TOKENS[piece], *([ROOK + THEIRS] if rook else [])]
        weak = [token - THEIRS if token >= PAWN + THEIRS else token + THEIRS for token in strong]
        for side, pieces in enumerate((strong, weak)):
            where = boards[:, None] == np.array(pieces)[:, None]  # [N, pieces, 64]
            alike = (where.sum(2) == 1).all(1) & ((boards > 0).sum(1) == len(pieces))
            rows = np.flatnonzero(alike)
            if len(rows):
                squares = where[rows].argmax(2) ^ (56 if side == BLACK else 0)
                found.append((endgame_table(name), rows, np.full(len(rows), side), squares))
            known |= alike
    if not known.all():
        raise ValueError(f"a board that is no endgame of {', '.join(ENDINGS)}")
    return found


def judge_boards(boards: NDArray[np.int32]) -> Judged:
    """`judge` of boards int `[N, 64]` as the side to move sees them; errors as `recognise`."""
    count = len(boards)
    all_ = Judged(
        np.full((count, MOST_MOVES), -1, np.int16),
        np.zeros((count, MOST_MOVES), bool),
        np.zeros((count, MOST_MOVES), bool),
    )
    for table, rows, sides, squares in recognise(boards):
        for whole, part in zip(all_, judge(table, sides, squares), strict=True):
            whole[rows] = part
    return all_
