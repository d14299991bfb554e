"""Endgame tables: mates and lengths that are known, moves as python-chess has them, values that follow from moves."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_envs.endgames.tables import (
    BLACK,
    DRAW,
    ILLEGAL,
    PROMOTIONS,
    WHITE,
    Table,
    disagreements,
    endgame_table,
    moves_of,
    positions_at,
    value_of,
    values_at,
)

SMALL = ("KQK", "KRK", "KPK")
LARGE = pytest.param("KQKR", marks=pytest.mark.thorough)  # takes some seconds to make
PIECES = {"KQK": "KkQ", "KRK": "KkR", "KPK": "KkP", "KQKR": "KkQr"}
SYZYGY = os.environ.get("HRM_AGENT_SYZYGY", "")


def squares(*names: str) -> list[int]:
    return [8 * (int(name[1]) - 1) + "abcdefgh".index(name[0]) for name in names]


@pytest.mark.parametrize("name", [*SMALL, LARGE])
def test_every_value_is_the_best_of_those_after_its_moves(name: str) -> None:
    assert disagreements(endgame_table(name)) == 0


def test_one_altered_value_is_found() -> None:
    table = endgame_table("KRK")
    altered = table.values.copy()
    at = int(np.flatnonzero(altered == 7)[0])
    altered[at] = 9
    altered.flags.writeable = False
    assert disagreements(table._replace(rules=table.rules._replace(table=altered))) > 0


# Moves to mate at most: KQK 10, KRK 16, KPK 28, KQKR 35 (31 until the rook is taken).
@pytest.mark.parametrize(
    ("name", "moves"), [("KQK", 10), ("KRK", 16), ("KPK", 28), pytest.param("KQKR", 35, marks=pytest.mark.thorough)]
)
def test_the_longest_mates_are_those_known(name: str, moves: int) -> None:
    values = endgame_table(name).values
    assert values[values % 2 == 1].max() == 2 * moves - 1
    assert values.max() == 2 * moves  # the other side to move


@pytest.mark.parametrize(
    ("name", "side", "names", "value"),
    [
        ("KQK", BLACK, ["b6", "a8", "b7"], 0),  # mate
        ("KQK", BLACK, ["c6", "a8", "b6"], DRAW),  # stalemate
        ("KQK", WHITE, ["c6", "a8", "b3"], 1),  # b3-b7, or a check on the file
        ("KQK", BLACK, ["h1", "a8", "b8"], DRAW),  # the queen is lost
        ("KRK", BLACK, ["e6", "e8", "a8"], 0),
        ("KRK", WHITE, ["e6", "e8", "a1"], 1),
        ("KRK", BLACK, ["h8", "a1", "b2"], DRAW),
        ("KPK", WHITE, ["e6", "e8", "e5"], "won"),  # the king on the sixth rank before its pawn,
        ("KPK", BLACK, ["e6", "e8", "e5"], "lost"),  # whoever moves
        ("KPK", BLACK, ["e5", "e7", "e4"], "lost"),  # lower down the opposition decides
        ("KPK", WHITE, ["e5", "e7", "e4"], DRAW),
        ("KPK", WHITE, ["a6", "a8", "a5"], DRAW),  # a rook's pawn
    ],
)
def test_known_positions(name: str, side: int, names: list[str], value: int | str) -> None:
    found = value_of(endgame_table(name), side, *squares(*names))
    if isinstance(value, str):
        assert (found > 0, found % 2) == (True, value == "won")
    else:
        assert found == value


def test_a_rook_is_promoted_to_where_a_queen_stalemates() -> None:
    table = endgame_table("KPK")
    king, enemy, pawn = squares("c6", "a7", "c7")
    moves, values = moves_of(table, WHITE, king, enemy, pawn)
    after = {PROMOTIONS[move[2]]: int(value) for move, value in zip(moves, values, strict=True) if move[0] == pawn}
    assert after["q"] == DRAW
    assert after["r"] > 0
    assert after["b"] == after["n"] == DRAW
    assert value_of(table, WHITE, king, enemy, pawn) == after["r"] + 1


@pytest.mark.parametrize("name", [*SMALL, LARGE])
def test_values_do_not_change_under_the_boards_symmetries(name: str) -> None:
    table, rng = endgame_table(name), np.random.default_rng(0)
    index = rng.choice(np.flatnonzero(table.values != ILLEGAL), 2000)
    sides, where = positions_at(table, index)
    assert (values_at(table, sides, where) == table.values[index]).all()
    for image in table.board.images[[2]] if name == "KPK" else table.board.images:
        assert (values_at(table, sides, image[where]) == table.values[index]).all()


def legal_position(table: Table, number: int) -> tuple[int, list[int]]:
    index = np.flatnonzero(table.values != ILLEGAL)
    sides, where = positions_at(table, index[[number % len(index)]])
    return int(sides[0]), where[0].tolist()


@settings(max_examples=150)
@given(name=st.sampled_from(SMALL), number=st.integers(0, 2**40))
def test_moves_are_those_of_python_chess(name: str, number: int) -> None:
    check_moves(name, number)


@pytest.mark.thorough
@settings(max_examples=500)
@given(number=st.integers(0, 2**40))
def test_moves_with_four_pieces_are_those_of_python_chess(number: int) -> None:
    check_moves("KQKR", number)


def check_moves(name: str, number: int) -> None:
    chess = pytest.importorskip("chess")
    table = endgame_table(name)
    side, where = legal_position(table, number)
    board = chess.Board(None)
    for square, letter in zip(where, PIECES[name], strict=True):
        board.set_piece_at(square, chess.Piece.from_symbol(letter))
    board.turn = side == WHITE
    assert board.is_valid()
    moves, values = moves_of(table, side, *where)
    found = {
        chess.Move(int(a), int(b), [None, 5, 4, 3, 2][p]): int(v) for (a, b, p), v in zip(moves, values, strict=True)
    }
    assert set(found) == set(board.legal_moves)
    assert len(found) == len(moves)
    for move, value in found.items():
        board.push(move)
        if board.is_checkmate():
            assert value == 0
        elif board.is_stalemate() or board.is_insufficient_material():
            assert value == DRAW
        else:
            assert value != ILLEGAL
        board.pop()


@pytest.mark.parametrize("name", SMALL)
def test_a_position_is_legal_exactly_if_python_chess_says_so(name: str) -> None:
    chess = pytest.importorskip("chess")
    table, rng = endgame_table(name), np.random.default_rng(1)
    for index in rng.integers(len(table.values), size=400):
        sides, where = positions_at(table, np.array([index]))
        board = chess.Board(None)
        for square, letter in zip(where[0].tolist(), PIECES[name], strict=True):
            board.set_piece_at(square, chess.Piece.from_symbol(letter))
        board.turn = bool(sides[0] == WHITE)
        alone = len(set(where[0].tolist())) == len(where[0])
        assert (table.values[index] != ILLEGAL) == (alone and board.is_valid())


def test_bad_positions_are_refused() -> None:
    table = endgame_table("KRK")
    with pytest.raises(ValueError, match="no legal position of KRK"):
        value_of(table, WHITE, 0, 1, 30)
    with pytest.raises(ValueError, match="3 squares from 0 to 63"):
        moves_of(table, WHITE, 0, 64, 30)
    with pytest.raises(ValueError, match=r"KBK.*KQK, KRK, KPK, KQKR"):
        endgame_table("KBK")


@pytest.mark.skipif(not SYZYGY, reason="HRM_AGENT_SYZYGY names no folder of Syzygy tables (of three and four pieces)")
@pytest.mark.parametrize("name", [*SMALL, LARGE])
def test_values_are_those_of_syzygy(name: str) -> None:
    """A part of the positions; `python -m experiments.chess.tables` compares all."""
    from experiments.chess.tables import agrees, compare

    record = compare(name, str(Path(SYZYGY)), every=500)
    assert record["positions"] > 50
    assert agrees(record), record
