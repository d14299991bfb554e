# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM109 - numba compiles comparisons faster than membership in tuples of different integers
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Endgame tables by retrograde analysis: KQK, KRK, KPK and KQKR, distance to mate for both sides to move.

White has the queen, rook or pawn; a position of the other colour is mirrored first. From the mates backwards, ply by
ply: a predecessor of a lost position is won, and a position all of whose moves lead to won ones is lost (Thompson,
Retrograde analysis of certain endgames, ICCA Journal 9(3), 1986). Captures and promotions lead into smaller tables,
which are complete by then. What stays undecided is a draw. The fifty-move rule and repetitions are no part of it; no
win of these tables takes fifty moves without a capture or a pawn's move.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.endgames.geometry import PAWN, QUEEN, ROOK, Geometry, attacks, bit, build_geometry, slides
from hrm_envs.jit import inner, kernel

DRAW, ILLEGAL = -1, -2
NOBODY = -1
"""Square of a piece that is not there."""
WHITE, BLACK = 0, 1
MOST_MOVES = 40
"""Room for the moves of a side with a king and one piece (35 at most; a pawn's promotions are twelve)."""
PROMOTIONS = ("", "q", "r", "b", "n")
_UNDECIDED = 127
_EMPTY = np.zeros(1, np.int8)
_EMPTY.flags.writeable = False  # as the tables that stand in its place: for numba that is part of the type
ENDINGS = {"KQK": (QUEEN, False), "KRK": (ROOK, False), "KPK": (PAWN, False), "KQKR": (QUEEN, True)}
"""Name -> white's piece, and whether black has a rook."""


class Rules(NamedTuple):
    """What the kernels know of an ending besides the board's geometry."""

    piece: int  # white's
    rook: bool  # black has one
    queen_table: NDArray[np.int8]  # of KQK, where a capture or a promotion leads there
    rook_table: NDArray[np.int8]  # of KRK
    table: NDArray[np.int8]  # of the ending itself


class Table(NamedTuple):
    """An ending and its values.

    Attributes:
        name: one of ``ENDINGS``.
        board: geometry of the board.
        rules: for the kernels; ``rules.table`` int8: plies to mate with best play, even where the side to move is
            mated (0: it is mate), odd where it mates, ``DRAW`` or ``ILLEGAL``.
    """

    name: str
    board: Geometry
    rules: Rules

    @property
    def values(self) -> NDArray[np.int8]:
        """int8, see ``rules.table``; the index of a position is that of ``place``."""
        return self.rules.table


@inner
def place(board, rook, side, wk, bk, wp, bp):
    """Index of a position; with black's rook, of its image with the white king in the board's triangle."""
    if not rook:
        return ((side * 64 + wk) * 64 + bk) * 64 + wp
    image = board.images[board.into[wk]]
    return (((side * 10 + board.place[wk]) * 64 + image[bk]) * 64 + image[wp]) * 64 + image[bp]


@inner
def unplace(board, rook, index):
    """Side to move and squares ``(side, wk, bk, wp, bp)`` of an index; ``bp`` is ``NOBODY`` without a rook."""
    if not rook:
        return index >> 18, (index >> 12) & 63, (index >> 6) & 63, index & 63, NOBODY
    king = (index >> 18) % 10
    squares = (index >> 12) & 63, (index >> 6) & 63, index & 63
    return (index >> 18) // 10, np.int64(board.triangle[king]), squares[0], squares[1], squares[2]


@inner
def in_check(board, rules, side, wk, bk, wp, bp):
    """Whether the king of a side is attacked. ``wp`` or ``bp`` may be ``NOBODY``."""
    if board.near[wk, bk]:
        return True
    if side == WHITE:
        if bp < 0:
            return False
        return slides(board, False, bp, wk, bit(bk) | (bit(wp) if wp >= 0 else np.uint64(0)))
    if wp < 0:
        return False
    return attacks(board, rules.piece, wp, bk, bit(wk) | (bit(bp) if bp >= 0 else np.uint64(0)))


@inner
def is_legal(board, rules, side, wk, bk, wp, bp):
    """Whether the pieces can stand so with that side to move: apart, a pawn not on an end rank, no king en prise."""
    if wk == bk or wk == wp or bk == wp:
        return False
    if rules.rook and (bp == wk or bp == bk or bp == wp):
        return False
    if rules.piece == PAWN and (wp < 8 or wp >= 56):
        return False
    return not in_check(board, rules, 1 - side, wk, bk, wp, bp)


@inner
def value_after(board, rules, side, wk, bk, wp, bp):
    """Value of a position after a move, for ``side``, who is now to move; a captured piece is ``NOBODY``."""
    if wp < 0:  # black is left with his rook, or with nothing
        return rules.rook_table[place(board, False, 1 - side, bk, wk, bp, NOBODY)] if bp >= 0 else np.int8(DRAW)
    if rules.rook and bp < 0:
        return rules.queen_table[place(board, False, side, wk, bk, wp, NOBODY)]
    return rules.table[place(board, rules.rook, side, wk, bk, wp, bp)]


@inner
def _note(moves, values, count, start, end, promotion, value):
    moves[count, 0], moves[count, 1], moves[count, 2] = start, end, promotion
    values[count] = value
    return count + 1


@inner
def _escapes(value):
    """Whether a value is not known to be a win for the side to move."""
    return value == DRAW or value % 2 == 0


@inner
def _white_moves(board, rules, wk, bk, wp, bp, moves, values, hurry):
    count = 0
    for direction in range(8):
        to = np.int64(board.steps[wk, direction])
        if to < 0 or to == wp:
            continue
        left = NOBODY if to == bp else bp
        if not in_check(board, rules, WHITE, to, bk, wp, left):
            after = value_after(board, rules, BLACK, to, bk, wp, left)
            if hurry and _escapes(after):
                return -1
            count = _note(moves, values, count, wk, to, 0, after)
    if rules.piece == PAWN:
        return _pawn_moves(board, rules, wk, bk, wp, moves, values, count)
    for direction in range(8 if rules.piece == QUEEN else 4):
        for step in range(7):
            to = np.int64(board.rays[wp, direction, step])
            if to < 0 or to == wk or to == bk:
                break
            left = NOBODY if to == bp else bp
            if not in_check(board, rules, WHITE, wk, bk, to, left):
                after = value_after(board, rules, BLACK, wk, bk, to, left)
                if hurry and _escapes(after):
                    return -1
                count = _note(moves, values, count, wp, to, 0, after)
            if to == bp:
                break
    return count


@inner
def _pawn_moves(board, rules, wk, bk, wp, moves, values, count):
    """No capture: there is nothing but the king to take."""
    to = wp + 8
    if to == wk or to == bk:
        return count
    if to >= 56:
        at = place(board, False, BLACK, wk, bk, to, NOBODY)
        count = _note(moves, values, count, wp, to, 1, rules.queen_table[at])
        count = _note(moves, values, count, wp, to, 2, rules.rook_table[at])
        count = _note(moves, values, count, wp, to, 3, np.int8(DRAW))
        return _note(moves, values, count, wp, to, 4, np.int8(DRAW))
    count = _note(moves, values, count, wp, to, 0, value_after(board, rules, BLACK, wk, bk, to, NOBODY))
    further = to + 8
    if wp < 16 and further != wk and further != bk:
        after = value_after(board, rules, BLACK, wk, bk, further, NOBODY)
        count = _note(moves, values, count, wp, further, 0, after)
    return count


@inner
def black_moves(board, rules, wk, bk, wp, bp, moves, values, hurry):
    """``find_moves`` of black."""
    count = 0
    for direction in range(8):
        to = np.int64(board.steps[bk, direction])
        if to < 0 or to == bp:
            continue
        left = NOBODY if to == wp else wp
        if not in_check(board, rules, BLACK, wk, to, left, bp):
            after = value_after(board, rules, WHITE, wk, to, left, bp)
            if hurry and _escapes(after):
                return -1
            count = _note(moves, values, count, bk, to, 0, after)
    if not rules.rook:
        return count
    for direction in range(4):
        for step in range(7):
            to = np.int64(board.rays[bp, direction, step])
            if to < 0 or to == wk or to == bk:
                break
            left = NOBODY if to == wp else wp
            if not in_check(board, rules, BLACK, wk, bk, left, to):
                after = value_after(board, rules, WHITE, wk, bk, left, to)
                if hurry and _escapes(after):
                    return -1
                count = _note(moves, values, count, bp, to, 0, after)
            if to == wp:
                break
    return count


@inner
def find_moves(board, rules, side, wk, bk, wp, bp, moves, values, hurry):
    """All legal moves of the side to move.

    Args:
        hurry: return -1 at the first move (a pawn's excepted) that does not lead to a position won by the opponent.
        moves: int8 [MOST_MOVES, 3], filled with start, end and promotion (a place in ``PROMOTIONS``).
        values: int8 [MOST_MOVES], filled with the value of the position after each move, for the opponent.

    Returns:
        The number of moves.
    """
    if side == WHITE:
        return _white_moves(board, rules, wk, bk, wp, bp, moves, values, hurry)
    return black_moves(board, rules, wk, bk, wp, bp, moves, values, hurry)


@inner
def best_value(values, count, check):
    """A position's value from those after its moves: the nearest win, else a draw, else the furthest loss."""
    won, lost, drawn = _UNDECIDED, -1, False
    for k in range(count):
        if values[k] == DRAW:
            drawn = True
        elif values[k] % 2 == 0:
            won = min(won, np.int64(values[k]) + 1)
        else:
            lost = max(lost, np.int64(values[k]) + 1)
    if won < _UNDECIDED:
        return won
    if count == 0:
        return 0 if check else DRAW
    return DRAW if drawn else lost


@inner
def _mark(board, rules, depth, side, wk, bk, wp, bp, due, touched):
    """Note that a position has a move to one that was decided at ``depth``."""
    table = rules.table
    at = place(board, rules.rook, side, wk, bk, wp, bp)
    # A king on a long diagonal is brought to one square in two ways, and both images have an entry.
    mirrored = at
    if rules.rook and board.diagonal[wk]:
        image = board.images[board.into[wk]]
        flip = board.images[1]
        king, others = board.triangle[board.place[wk]], (flip[image[bk]], flip[image[wp]], flip[image[bp]])
        mirrored = place(board, True, side, king, others[0], others[1], others[2])
    for k in range(2):
        index = at if k == 0 else mirrored
        if table[index] != DRAW:
            continue
        if depth % 2 == 0:
            due[index] = min(due[index], depth + 1)
        else:
            touched[index] = 1


@inner
def _mark_sliding(board, rules, depth, side, wk, bk, wp, bp, due, touched):
    """``_mark`` for every square that white's piece, or black's rook, may have come from."""
    start = wp if side == WHITE else bp
    for direction in range(8 if side == WHITE and rules.piece == QUEEN else 4):
        for step in range(7):
            to = np.int64(board.rays[start, direction, step])
            if to < 0 or to == wk or to == bk or to == (bp if side == WHITE else wp):
                break
            if side == WHITE:
                _mark(board, rules, depth, side, wk, bk, to, bp, due, touched)
            else:
                _mark(board, rules, depth, side, wk, bk, wp, to, due, touched)


@inner
def _mark_predecessors(board, rules, depth, index, due, touched):
    """``_mark`` for every position with a move to this one that is no capture and no promotion."""
    side, wk, bk, wp, bp = unplace(board, rules.rook, index)
    before = 1 - side
    for direction in range(8):
        to = np.int64(board.steps[wk if before == WHITE else bk, direction])
        if to < 0 or to == wp or to == bp:
            continue
        if before == WHITE and to != bk:
            _mark(board, rules, depth, before, to, bk, wp, bp, due, touched)
        elif before == BLACK and to != wk:
            _mark(board, rules, depth, before, wk, to, wp, bp, due, touched)
    if before == BLACK and not rules.rook:
        return
    if before == BLACK or rules.piece != PAWN:
        _mark_sliding(board, rules, depth, before, wk, bk, wp, bp, due, touched)
        return
    back = wp - 8
    if back >= 8 and back != wk and back != bk:
        _mark(board, rules, depth, before, wk, bk, back, bp, due, touched)
        further = back - 8
        if wp // 8 == 3 and further != wk and further != bk:
            _mark(board, rules, depth, before, wk, bk, further, bp, due, touched)


@inner
def _decide(board, rules, index, moves, values, hurry):
    """The value of a position from what is known of those after its moves; ``hurry``: it cannot be a win."""
    side, wk, bk, wp, bp = unplace(board, rules.rook, index)
    count = find_moves(board, rules, side, wk, bk, wp, bp, moves, values, hurry)
    if count < 0:
        return DRAW
    return best_value(values, count, in_check(board, rules, side, wk, bk, wp, bp))


@kernel
def _generate(board, rules, due, touched):
    """Fill ``rules.table``; returns the greatest distance to mate in plies. ``due``, ``touched``: of its length."""
    table = rules.table
    moves, values = np.zeros((MOST_MOVES, 3), np.int8), np.zeros(MOST_MOVES, np.int8)
    for index in range(len(table)):
        side, wk, bk, wp, bp = unplace(board, rules.rook, index)
        table[index] = DRAW if is_legal(board, rules, side, wk, bk, wp, bp) else ILLEGAL
    for index in range(len(table)):
        due[index] = _UNDECIDED
        if table[index] == DRAW:
            value = _decide(board, rules, index, moves, values, False)
            if value != DRAW:
                due[index] = value
    depth, most, waiting = 0, 0, True
    while waiting:
        waiting = False
        for index in range(len(table)):
            if table[index] != DRAW:
                continue
            if touched[index]:
                touched[index] = 0
                # A move to a lost position would have been noted in ``due``: what is left is to lose.
                if due[index] == _UNDECIDED:
                    value = _decide(board, rules, index, moves, values, True)
                    if value != DRAW:
                        due[index] = value
            if due[index] == depth:
                table[index], most, waiting = depth, depth, True
            elif due[index] != _UNDECIDED:
                waiting = True
        if waiting:
            for index in range(len(table)):
                if table[index] == depth:
                    _mark_predecessors(board, rules, depth, index, due, touched)
        depth += 1
    return most


def _build(name: str, queen_table: NDArray[np.int8], rook_table: NDArray[np.int8]) -> Table:
    piece, rook = ENDINGS[name]
    size = 2 * 10 * 64**3 if rook else 2 * 64**3
    board = build_geometry()
    rules = Rules(piece, rook, queen_table, rook_table, np.zeros(size, np.int8))
    _generate(board, rules, np.zeros(size, np.int8), np.zeros(size, np.uint8))
    rules.table.flags.writeable = False
    return Table(name, board, rules)


@lru_cache(maxsize=len(ENDINGS))
def endgame_table(name: str) -> Table:
    """The table of an ending, generated in the process's first call; its arrays are read-only.

    Raises:
        ValueError: no such ending.
    """
    if name not in ENDINGS:
        raise ValueError(f"ending={name!r} is not one of {', '.join(ENDINGS)}; give one of these")
    if name in ("KQK", "KRK"):
        return _build(name, _EMPTY, _EMPTY)
    return _build(name, endgame_table("KQK").values, endgame_table("KRK").values)


@kernel
def _count_disagreements(board, rules):
    moves, values = np.zeros((MOST_MOVES, 3), np.int8), np.zeros(MOST_MOVES, np.int8)
    count = 0
    for index in range(len(rules.table)):
        if rules.table[index] != ILLEGAL:
            count += _decide(board, rules, index, moves, values, False) != rules.table[index]
    return count


def disagreements(table: Table) -> int:
    """Positions whose value is not the best of those after their moves; 0 for a complete table."""
    return int(_count_disagreements(table.board, table.rules))


@kernel
def _moves_of(board, rules, side, wk, bk, wp, bp, moves, values):
    return find_moves(board, rules, side, wk, bk, wp, bp, moves, values, False)


def moves_of(table: Table, side: int, *squares: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The legal moves of a position and what they lead to.

    Args:
        table: of the ending.
        side: ``WHITE`` or ``BLACK``, to move.
        squares: of the white king, the black king, white's piece and, where there is one, black's rook.

    Returns:
        int8 [M, 3]: start, end, promotion (a place in ``PROMOTIONS``); int8 [M]: the value after each move, for the
        opponent.

    Raises:
        ValueError: the position is not legal.
    """
    value_of(table, side, *squares)
    moves, values = np.zeros((MOST_MOVES, 3), np.int8), np.zeros(MOST_MOVES, np.int8)
    count = _moves_of(table.board, table.rules, side, *_four(squares), moves, values)
    return moves[:count], values[:count]


def value_of(table: Table, side: int, *squares: int) -> int:
    """The value of a position, see ``Rules.table``; arguments and errors as for ``moves_of``."""
    count = 4 if table.rules.rook else 3
    if len(squares) != count or side not in (WHITE, BLACK) or not all(0 <= square < 64 for square in squares):
        raise ValueError(f"side={side}, squares={squares}: expected 0 or 1, and {count} squares from 0 to 63")
    value = int(values_at(table, np.array([side]), np.array([squares]))[0])
    if value == ILLEGAL:
        raise ValueError(f"side={side}, squares={squares}: no legal position of {table.name}")
    return value


def values_at(table: Table, sides: NDArray[Any], squares: NDArray[Any]) -> NDArray[np.int8]:
    """The values of N positions, int8 [N]: sides [N], squares [N, 3 or 4] from 0 to 63 in the order of ``moves_of``."""
    side, square, board = np.asarray(sides, np.int64), np.asarray(squares, np.int64), table.board
    if table.rules.rook:
        image = board.images[board.into[square[:, 0]]].astype(np.int64)
        rows = np.arange(len(square))
        king = side * 10 + board.place[square[:, 0]]
        others = (image[rows, square[:, k]] for k in (1, 2, 3))
    else:
        king, others = side * 64 + square[:, 0], (square[:, k] for k in (1, 2))
    index = king
    for other in others:
        index = index * 64 + other
    return table.values[index]


def positions_at(table: Table, indices: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sides to move int64 [N] and squares int64 [N, 3 or 4] of indices of a table; with a rook, of one image each."""
    index = np.asarray(indices, np.int64)
    squares = [(index >> shift) & 63 for shift in ((12, 6, 0) if table.rules.rook else (6, 0))]
    if table.rules.rook:
        return (index >> 18) // 10, np.stack([table.board.triangle[(index >> 18) % 10].astype(np.int64), *squares], 1)
    return index >> 18, np.stack([(index >> 12) & 63, *squares], 1)


def _four(squares: tuple[int, ...]) -> tuple[int, ...]:
    return (*squares, NOBODY)[:4]
