# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM109 - numba compiles comparisons faster than membership in tuples of different integers
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""The rules of chess on boards of tokens that are turned to the side to move.

A board is uint8 [64], square ``8 * rank + file``, seen by the side to move: its pawns go towards rank 7. Tokens:

- 0 empty; 1 empty, and a pawn may be captured there en passant;
- 2 to 7 the mover's pawn, knight, bishop, rook, queen, king; 8 its rook that may castle;
- 9 to 15 the same of the opponent.

A move is one number, ``ANSWERS * start + id``: ids 0 to 63 are the square that the piece goes to (a pawn on the last
rank becomes a queen, a king that castles goes two files), ids ``64 + 3 * piece + file step + 1`` promote to a knight,
bishop or rook (0, 1, 2), straight on (step 0) or capturing to a neighbouring file (-1, 1).
"""

import numpy as np
from numpy.typing import NDArray

from hrm_envs.endgames.geometry import build_geometry
from hrm_envs.jit import inner, kernel

TOKENS = 16
ANSWERS = 73
MOST_MOVES = 512
"""Room for a position's moves. What `checked_boards` accepts has fewer: nine queens, two rooks, bishops and knights and
a king on an empty board would have 323, and the most that is known is 218."""
EMPTY, PASSANT = 0, 1
PAWN, KNIGHT, BISHOP, ROOK, QUEEN, KING, CASTLING_ROOK = range(2, 9)
THEIRS = 7
"""Added to a token of the mover, gives the opponent's."""
_KNIGHT_STEPS = ((2, 1), (1, 2), (-1, 2), (-2, 1), (-2, -1), (-1, -2), (1, -2), (2, -1))
_UNDER = (KNIGHT, BISHOP, ROOK)


@inner
def _own(token):
    return token >= PAWN and token < PAWN + THEIRS


@inner
def _other(token):
    return token >= PAWN + THEIRS


@inner
def _is_rook(token):
    return token == ROOK or token == CASTLING_ROOK


@inner
def is_attacked(board, tokens, square):
    """Whether the opponent attacks a square of the mover."""
    rank, file = square // 8, square % 8
    if rank < 7:
        if file > 0 and tokens[square + 7] == PAWN + THEIRS:
            return True
        if file < 7 and tokens[square + 9] == PAWN + THEIRS:
            return True
    for up, right in _KNIGHT_STEPS:
        r, f = rank + up, file + right
        if r >= 0 and r < 8 and f >= 0 and f < 8 and tokens[8 * r + f] == KNIGHT + THEIRS:
            return True
    for direction in range(8):
        for step in range(7):
            at = np.int64(board.rays[square, direction, step])
            if at < 0:
                break
            if tokens[at] <= PASSANT:
                continue
            piece = np.int64(tokens[at]) - THEIRS
            slides = piece == QUEEN or (_is_rook(piece) if direction < 4 else piece == BISHOP)
            if slides or (piece == KING and step == 0):
                return True
            break
    return False


@inner
def king_square(tokens):
    """Square of the mover's king; -1 where there is none."""
    for square in range(64):
        if tokens[square] == KING:
            return square
    return -1


@inner
def _make(tokens, move, after):
    """Write the board after a pseudo-legal move, seen by the same side; en passant is noted behind a double step."""
    for k in range(64):
        after[k] = EMPTY if tokens[k] == PASSANT else tokens[k]
    start, answer = move // ANSWERS, move % ANSWERS
    piece = np.int64(tokens[start])
    end = answer
    if answer >= 64:
        end = start + 8 + (answer - 64) % 3 - 1
    after[start] = EMPTY
    if piece == PAWN:
        if tokens[end] == PASSANT:
            after[end - 8] = EMPTY
        if end == start + 16:
            after[start + 8] = PASSANT
        if answer >= 64:
            piece = np.int64(_UNDER[(answer - 64) // 3])
        elif end >= 56:
            piece = QUEEN
    elif piece == CASTLING_ROOK:
        piece = ROOK
    elif piece == KING:
        for k in range(8):
            if after[k] == CASTLING_ROOK:
                after[k] = ROOK
        if end == start + 2:
            after[7], after[start + 1] = EMPTY, ROOK
        elif end == start - 2:
            after[0], after[start - 1] = EMPTY, ROOK
    after[end] = piece


@inner
def _turn(tokens, turned):
    """Write a board as the other side sees it."""
    for k in range(64):
        token = tokens[k ^ 56]
        if token > PASSANT:
            token = token + THEIRS if token < PAWN + THEIRS else token - THEIRS
        turned[k] = token


@inner
def _add(board, tokens, move, scratch, moves, count):
    """Append a pseudo-legal move if it does not leave the king attacked."""
    _make(tokens, move, scratch)
    if not is_attacked(board, scratch, king_square(scratch)):
        moves[count] = move
        count += 1
    return count


@inner
def _pawn_moves(board, tokens, start, scratch, moves, count):
    for side in range(-1, 2):
        end = start + 8 + side
        if start % 8 + side < 0 or start % 8 + side > 7:
            continue
        free = tokens[end] <= PASSANT
        if side == 0 and not free:
            continue
        if side != 0 and not (_other(tokens[end]) or tokens[end] == PASSANT):
            continue
        count = _add(board, tokens, ANSWERS * start + end, scratch, moves, count)
        if end >= 56:
            for piece in range(3):
                count = _add(board, tokens, ANSWERS * start + 64 + 3 * piece + side + 1, scratch, moves, count)
        elif side == 0 and start < 16 and tokens[end + 8] <= PASSANT:
            count = _add(board, tokens, ANSWERS * start + end + 8, scratch, moves, count)
    return count


@inner
def _step_moves(board, tokens, start, knight, scratch, moves, count):
    rank, file = start // 8, start % 8
    for k in range(8):
        if knight:
            up, right = _KNIGHT_STEPS[k]
            r, f = rank + up, file + right
            end = 8 * r + f if r >= 0 and r < 8 and f >= 0 and f < 8 else -1
        else:
            end = np.int64(board.steps[start, k])
        if end >= 0 and not _own(tokens[end]):
            count = _add(board, tokens, ANSWERS * start + end, scratch, moves, count)
    return count


@inner
def _castling(board, tokens, king, scratch, moves, count):
    if king != 4 or is_attacked(board, tokens, king):
        return count
    for side in (1, -1):
        corner, beside, two = (7, 5, 6) if side == 1 else (0, 3, 2)
        free = tokens[beside] <= PASSANT and tokens[two] <= PASSANT and (side == 1 or tokens[1] <= PASSANT)
        if free and tokens[corner] == CASTLING_ROOK and not is_attacked(board, tokens, beside):
            count = _add(board, tokens, ANSWERS * king + two, scratch, moves, count)
    return count


@inner
def find_legal(board, tokens, scratch, moves):
    """Fill ``moves`` int16 [MOST_MOVES] with the legal moves; returns their number. ``scratch``: uint8 [64]."""
    count = 0
    for start in range(64):
        piece = tokens[start]
        if not _own(piece):
            continue
        if piece == PAWN:
            count = _pawn_moves(board, tokens, start, scratch, moves, count)
        elif piece == KNIGHT or piece == KING:
            count = _step_moves(board, tokens, start, piece == KNIGHT, scratch, moves, count)
            if piece == KING:
                count = _castling(board, tokens, start, scratch, moves, count)
        else:
            first = 4 if piece == BISHOP else 0
            last = 8 if piece == BISHOP or piece == QUEEN else 4
            for direction in range(first, last):
                for step in range(7):
                    end = np.int64(board.rays[start, direction, step])
                    if end < 0 or _own(tokens[end]):
                        break
                    count = _add(board, tokens, ANSWERS * start + end, scratch, moves, count)
                    if _other(tokens[end]):
                        break
    return count


@inner
def drop_idle_passant(board, tokens, scratch, moves):
    """Clear the note of en passant where no legal move uses it, so that equal positions have equal tokens."""
    for square in range(40, 48):
        if tokens[square] != PASSANT:
            continue
        count = 0
        for side in (-1, 1):
            file = square % 8 + side
            if file >= 0 and file < 8 and tokens[square - 8 + side] == PAWN:
                count = _add(board, tokens, ANSWERS * (square - 8 + side) + square, scratch, moves, count)
        if count == 0:
            tokens[square] = EMPTY


@kernel
def _legal_all(board, tokens, moves, counts):
    scratch = np.zeros(64, np.uint8)
    for i in range(len(tokens)):
        counts[i] = find_legal(board, tokens[i], scratch, moves[i])


@kernel
def _play_all(board, tokens, chosen, after):
    made, scratch, moves = np.zeros(64, np.uint8), np.zeros(64, np.uint8), np.zeros(MOST_MOVES, np.int16)
    for i in range(len(tokens)):
        _make(tokens[i], np.int64(chosen[i]), made)
        _turn(made, after[i])
        drop_idle_passant(board, after[i], scratch, moves)


@kernel
def _checks_all(board, tokens, checks):
    for i in range(len(tokens)):
        checks[i] = is_attacked(board, tokens[i], king_square(tokens[i]))


@kernel
def _tidy_all(board, tokens):
    scratch, moves = np.zeros(64, np.uint8), np.zeros(MOST_MOVES, np.int16)
    for i in range(len(tokens)):
        drop_idle_passant(board, tokens[i], scratch, moves)


def legal_moves(tokens: NDArray[np.uint8]) -> list[NDArray[np.int16]]:
    """The legal moves of each of N boards uint8 [N, 64], in ascending order.

    Raises:
        ValueError: a board without exactly one king of the mover, or a token that is none.
    """
    boards = checked_boards(tokens)
    moves, counts = np.zeros((len(boards), MOST_MOVES), np.int16), np.zeros(len(boards), np.int64)
    _legal_all(build_geometry(), boards, moves, counts)
    return [np.sort(row[:count]) for row, count in zip(moves, counts, strict=True)]


def play(tokens: NDArray[np.uint8], moves: NDArray) -> NDArray[np.uint8]:
    """The boards uint8 [N, 64] after a legal move of each, int [N], seen by the other side.

    Raises:
        ValueError: see ``legal_moves``; or a move from a square where the mover has no piece.
    """
    boards, chosen = checked_boards(tokens), np.ascontiguousarray(moves, np.int64)
    inside = (chosen >= 0) & (chosen < 64 * ANSWERS) & (chosen.shape == (len(boards),))
    starts = boards[np.arange(len(boards)), np.where(inside, chosen // ANSWERS, 0)]
    under, file = chosen % ANSWERS >= 64, chosen // ANSWERS % 8 + (chosen % ANSWERS - 64) % 3 - 1
    rising = ~under | ((starts == PAWN) & (chosen // ANSWERS // 8 == 6) & (file >= 0) & (file < 8))
    if not (inside & (starts >= PAWN) & (starts < PAWN + THEIRS) & rising & pawns_rise(starts, chosen)).all():
        raise ValueError("a move from a square without such a piece of the mover; give legal moves")
    after = np.zeros_like(boards)
    _play_all(build_geometry(), boards, chosen, after)
    return after


def pawns_rise(starts: NDArray, moves: NDArray) -> NDArray[np.bool_]:
    """Whether moves of pawns go up the board, bool [N], as capturing en passant looks one rank below."""
    return (starts != PAWN) | (moves % ANSWERS >= 64) | (moves % ANSWERS >= moves // ANSWERS + 7)


def in_check(tokens: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the mover's king is attacked, bool [N]; errors as ``legal_moves``."""
    boards = checked_boards(tokens)
    checks = np.zeros(len(boards), np.bool_)
    _checks_all(build_geometry(), boards, checks)
    return checks


def tidy(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Boards without the note of en passant where no legal move uses it; errors as ``legal_moves``."""
    boards = checked_boards(tokens).copy()
    _tidy_all(build_geometry(), boards)
    return boards


def turned(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Boards uint8 [N, 64] as the other side sees them."""
    flipped = np.asarray(tokens, np.uint8)[:, np.arange(64) ^ 56]
    swapped = np.where(flipped >= PAWN + THEIRS, flipped - np.uint8(THEIRS), flipped + np.uint8(THEIRS))
    return np.where(flipped <= PASSANT, flipped, swapped).astype(np.uint8)


def could_stand(boards: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether promotions can have given both sides their pieces, bool [N]: boards uint8 [N, 64] of tokens."""
    right = np.ones(len(boards), np.bool_)
    for side in (0, THEIRS):
        counts = [(boards == token + side).sum(1) for token in range(PAWN, CASTLING_ROOK + 1)]
        pawns, knights, bishops, rooks, queens, _, castling = counts
        pieces = ((knights, 2), (bishops, 2), (rooks + castling, 2), (queens, 1))
        right &= pawns + np.sum([np.maximum(count - first, 0) for count, first in pieces], 0) <= 8
    return right


def checked_boards(tokens: NDArray) -> NDArray[np.uint8]:
    """Boards in the form that kernels take; errors as ``legal_moves``."""
    boards = np.ascontiguousarray(tokens, np.uint8)
    if boards.ndim != 2 or boards.shape[1] != 64:
        raise ValueError(f"boards of shape {list(boards.shape)}; expected [N, 64]")
    if (boards >= TOKENS).any() or ((boards == KING).sum(1) != 1).any():
        raise ValueError("a board with a token above 15, or without exactly one king of the mover")
    if not could_stand(boards).all():
        raise ValueError("a board with more pieces than promotions can give")
    ends = np.r_[0:8, 56:64]
    if np.isin(boards[:, ends], (PASSANT, PAWN, PAWN + THEIRS)).any():
        raise ValueError("a board with a pawn on the first or the last rank")
    return boards
