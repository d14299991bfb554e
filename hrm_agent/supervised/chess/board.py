"""Chess positions and moves in the notations that people and engines use: FEN and UCI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.names.values import printable
from hrm_agent.supervised.chess.rules import (
    ANSWERS,
    CASTLING_ROOK,
    EMPTY,
    KING,
    PASSANT,
    PAWN,
    ROOK,
    THEIRS,
    TOKENS,
    could_stand,
    in_check,
    legal_moves,
    play,
    tidy,
    turned,
)

START = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
_PIECES = "PNBRQK"
_UNDER = "nbr"
_LETTERS = "..PNBRQKRpnbrqkr"
_LONGEST = 100
_SPACES = {ord(str(count)): "." * count for count in range(1, 9)}
_NONE = 255
_TOKENS = np.full(128, _NONE, np.uint8)
"""Of the letters of FEN's pieces, and of `.` for an empty square."""
_TOKENS[ord(".")] = EMPTY
for _place, _letter in enumerate(_PIECES):
    _TOKENS[ord(_letter)], _TOKENS[ord(_letter.lower())] = PAWN + _place, PAWN + THEIRS + _place
_UPSIDE_DOWN = np.arange(64) ^ 56
_SWAPPED = np.concatenate([[EMPTY, PASSANT], np.arange(PAWN + THEIRS, TOKENS), np.arange(PAWN, PAWN + THEIRS)])
"""A token as the other side sees it."""


class Position(NamedTuple):
    """A position, without its history: repetitions and the fifty-move rule are no part of it.

    Attributes:
        tokens: uint8 `[64]`, the board as the side to move sees it (`hrm_agent.supervised.chess.rules`).
        white: whether that is white.
    """

    tokens: NDArray[np.uint8]
    white: bool

    def moves(self) -> NDArray[np.int16]:
        """The legal moves, in ascending order."""
        return legal_moves(self.tokens[None])[0]

    def after(self, move: int) -> Position:
        """The position after a legal move."""
        return Position(play(self.tokens[None], np.array([move]))[0], not self.white)

    def in_check(self) -> bool:
        """Whether the side to move is in check."""
        return bool(in_check(self.tokens[None])[0])

    def letters(self) -> list[str]:
        """The board's rows as white sees them, rank 1 first, with `.` for an empty square."""
        tokens = self.tokens if self.white else turned(self.tokens[None])[0]
        return ["".join(_LETTERS[token] for token in row) for row in tokens.reshape(8, 8)]


def square_name(square: int) -> str:
    """`a1` for 0, `h8` for 63."""
    return "abcdefgh"[square % 8] + str(square // 8 + 1)


def read_square(name: str) -> int:
    """The number of a square. Raises: ValueError."""
    if len(name) != 2 or name[0] not in "abcdefgh" or name[1] not in "12345678":
        raise ValueError(f"{printable(name)[:20]} is no square")
    return 8 * (int(name[1]) - 1) + "abcdefgh".index(name[0])


def start_and_end(move: int) -> tuple[int, int]:
    """The squares of a move, as the side to move sees the board."""
    start, answer = divmod(int(move), ANSWERS)
    return start, answer if answer < 64 else start + 8 + (answer - 64) % 3 - 1


def write_uci(position: Position, move: int) -> str:
    """A legal move as engines write it: `e2e4`, `e7e8n`, `e1g1` for castling."""
    start, end = start_and_end(move)
    promotion, answer = "", int(move) % ANSWERS
    if answer >= 64:
        promotion = _UNDER[(answer - 64) // 3]
    elif end >= 56 and position.tokens[start] == PAWN:
        promotion = "q"
    flip = 0 if position.white else 56
    return square_name(start ^ flip) + square_name(end ^ flip) + promotion


def read_uci(position: Position, text: str) -> int:
    """The number of a move in an engine's notation.

    Raises:
        ValueError: it is no move. Whether it is legal is not checked.
    """
    if len(text) not in (4, 5):
        raise ValueError(f"{printable(text)[:20]} is no move; expected one such as e2e4 or e7e8q")
    flip = 0 if position.white else 56
    start, end = read_square(text[:2]) ^ flip, read_square(text[2:4]) ^ flip
    promotion = text[4:]
    if promotion in ("", "q"):
        return ANSWERS * start + end
    step = end % 8 - start % 8
    if promotion not in _UNDER or start // 8 != 6 or end // 8 != 7 or abs(step) > 1:
        raise ValueError(f"{printable(text)[:20]} is no move; expected one such as e2e4 or e7e8q")
    return ANSWERS * start + 64 + 3 * _UNDER.index(promotion) + step + 1


def read_fen(text: str) -> Position:
    """A position in Forsyth-Edwards notation; its counters of moves may be left out.

    Raises:
        ValueError: it is no FEN, or no legal position of chess; one line.
    """
    tokens, white = read_fens([text])
    return Position(tokens[0], bool(white[0]))


def read_fens(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The tokens uint8 `[N, 64]` of many positions, and whether white is to move, bool `[N]`.

    Raises:
        ValueError: see `read_fen`; the message names the first that is illegal.
    """
    tokens, white = np.zeros((len(texts), 64), np.uint8), np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        try:
            white[row] = _read_fen(text, tokens[row])
        except ValueError as error:
            raise illegal(text, str(error)) from None
    if not len(texts):
        return tokens, white
    material = could_stand(tokens)
    if not material.all():
        raise illegal(texts[int(material.argmin())], "more pieces than promotions can give")
    tokens = tidy(tokens)
    open_kings = in_check(turned(tokens))
    if open_kings.any():
        raise illegal(texts[int(open_kings.argmax())], "the side to move could take the king")
    return tokens, white


def illegal(text: str, why: str) -> ValueError:
    """The error of a FEN; one line."""
    return ValueError(f"illegal FEN {printable(text)[:_LONGEST]!r}: {why}")


def _read_fen(text: str, tokens: NDArray[np.uint8]) -> bool:
    """Write the board as the side to move sees it; returns whether that is white. Attacks are not looked at."""
    fields = text.split()
    if len(fields) not in (4, 6):
        raise ValueError("expected pieces, side to move, castling, en passant, and perhaps two counters")
    if not all(field.isdecimal() and len(field) <= 5 for field in fields[4:]):
        raise ValueError(f"counters {' '.join(fields[4:])}: expected whole numbers")
    if fields[1] not in ("w", "b"):
        raise ValueError(f"side to move {fields[1]}: expected w or b")
    white = fields[1] == "w"
    board = _read_pieces(fields[0])
    _read_castling(board, fields[2])
    tokens[:] = board if white else _SWAPPED[board[_UPSIDE_DOWN]]
    if fields[3] != "-":
        _read_passant(tokens, read_square(fields[3]) ^ (0 if white else 56))
    return white


def _read_pieces(field: str) -> NDArray[np.uint8]:
    """The board as white sees it, uint8 `[64]`."""
    rows = field.translate(_SPACES).split("/")
    for row, written in zip(rows, field.split("/"), strict=True):
        if len(row) != 8:
            raise ValueError(f"rank {written[:20]} has {len(row)} squares: expected 8")
    if len(rows) != 8:
        raise ValueError(f"{len(rows)} ranks: expected 8")
    letters = "".join(reversed(rows))
    if not letters.isascii():
        raise ValueError("a letter that is no piece")
    board = _TOKENS[np.frombuffer(letters.encode(), np.uint8)]
    if (board == _NONE).any():
        raise ValueError(f"{letters[int((board == _NONE).argmax())]!r} is no piece")
    for king, whose in (("K", "white"), ("k", "black")):
        if letters.count(king) != 1:
            raise ValueError(f"{letters.count(king)} kings of {whose}: expected one")
    if any(letter in "Pp" for letter in letters[:8] + letters[56:]):
        raise ValueError("a pawn on the first or the last rank")
    return board


def _read_castling(tokens: NDArray[np.uint8], field: str) -> None:
    """Mark the rooks that may castle, on the board as white sees it."""
    if field == "-":
        return
    if not field or len(set(field)) != len(field) or not set(field) <= set("KQkq"):
        raise ValueError(f"castling {printable(field)[:20]}: expected - or some of KQkq")
    for letter in field:
        base, colour = (0, 0) if letter.isupper() else (56, THEIRS)
        rook = base + (7 if letter.upper() == "K" else 0)
        if tokens[rook] != ROOK + colour or tokens[base + 4] != KING + colour:
            raise ValueError(f"castling {letter}: king and rook are not at home")
        tokens[rook] = CASTLING_ROOK + colour


def _read_passant(tokens: NDArray[np.uint8], square: int) -> None:
    """Note where a pawn may be captured en passant, on the board as the side to move sees it."""
    free = square // 8 == 5 and tokens[square] == EMPTY and tokens[square + 8] == EMPTY
    if not free or tokens[square - 8] != PAWN + THEIRS:
        raise ValueError("en passant: no pawn has just passed that square")
    tokens[square] = PASSANT


def write_fen(position: Position) -> str:
    """A position in Forsyth-Edwards notation, with the counters of a first move."""
    tokens = position.tokens if position.white else turned(position.tokens[None])[0]
    rows = []
    for row in position.letters()[::-1]:
        for length in range(8, 0, -1):
            row = row.replace("." * length, str(length))
        rows.append(row)
    homes = zip("KQkq", (7, 0, 63, 56), strict=True)
    castling = "".join(
        letter for letter, at in homes if tokens[at] == CASTLING_ROOK + (0 if letter.isupper() else THEIRS)
    )
    passed = np.flatnonzero(tokens == PASSANT)
    passant = square_name(int(passed[0])) if len(passed) else "-"
    return f"{'/'.join(rows)} {'w' if position.white else 'b'} {castling or '-'} {passant} 0 1"
