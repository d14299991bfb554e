"""Boards and moves as tokens: the rules are those of python-chess, and nothing is lost on the way."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_agent.supervised.chess.board import START, Position, read_fen, read_fens, read_uci, write_fen, write_uci
from hrm_agent.supervised.chess.rules import ANSWERS, TOKENS, legal_moves, play

MIDDLE = "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1"
ENDGAME = "8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1"
PROMOTIONS = "r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1"


# Published counts of the games of a few moves (chessprogramming.org/Perft_Results).
@pytest.mark.parametrize(
    ("fen", "counts"),
    [
        (START, [20, 400, 8902]),
        (MIDDLE, [48, 2039, 97862]),
        (ENDGAME, [14, 191, 2812, 43238]),
        (PROMOTIONS, [6, 264, 9467]),
    ],
)
def test_the_number_of_games_is_the_published_one(fen: str, counts: list[int]) -> None:
    boards, found = read_fen(fen).tokens[None], []
    for _ in counts:
        moves = legal_moves(boards)
        found.append(sum(map(len, moves)))
        boards = play(np.repeat(boards, [len(m) for m in moves], 0), np.concatenate(moves))
    assert found == counts


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), start=st.sampled_from([START, MIDDLE, ENDGAME, PROMOTIONS]))
def test_random_games_are_those_of_python_chess(seed: int, start: str) -> None:
    """Every legal move has one number and comes back from it; positions, checks and castling rights agree."""
    chess = pytest.importorskip("chess")
    rng, board = random.Random(seed), chess.Board(start)
    position = read_fen(start)
    while not board.is_game_over() and len(board.move_stack) < 120:
        assert_same(position, board)
        move = rng.choice(list(board.legal_moves))
        position = position.after(read_uci(position, move.uci()))
        board.push(move)
    assert_same(position, board)


def assert_same(position: Position, board) -> None:  # type: ignore[no-untyped-def]
    assert write_fen(position).split()[:4] == board.fen().split()[:4]
    again = read_fen(board.fen())
    assert again.white == position.white
    assert (again.tokens == position.tokens).all()
    assert position.in_check() == board.is_check()
    moves = position.moves()
    texts = [write_uci(position, int(move)) for move in moves]
    assert sorted(texts) == sorted(move.uci() for move in board.legal_moves)
    assert [read_uci(position, text) for text in texts] == moves.tolist()
    assert ((moves >= 0) & (moves < 64 * ANSWERS)).all()
    assert position.tokens.max() < TOKENS


def test_black_sees_the_board_as_white_does() -> None:
    white = read_fen("4k3/8/8/8/8/8/4P3/R3K3 w Q - 0 1")
    black = read_fen("r3k3/4p3/8/8/8/8/8/4K3 b q - 0 1")
    assert (white.tokens == black.tokens).all()
    assert (white.moves() == black.moves()).all()
    assert {write_uci(black, int(move)) for move in black.moves()} >= {"e8c8", "e7e5", "a8a1"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("r3k2r/8/8/8/8/8/8/R3K2R w KQkq - 0 1", "r3k2r/8/8/8/8/8/8/R3K2R w KQk - 0 1"),
        ("4k3/8/8/3pP3/8/8/8/4K3 w - d6 0 1", "4k3/8/8/3pP3/8/8/8/4K3 w - - 0 1"),
    ],
)
def test_what_moves_depend_on_is_in_the_tokens(one: str, other: str) -> None:
    assert (read_fen(one).tokens != read_fen(other).tokens).any()


def test_en_passant_that_nobody_can_use_is_not_noted() -> None:
    idle = read_fen("rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq e3 0 1")
    assert (idle.tokens == read_fen("rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq - 0 1").tokens).all()
    pinned = read_fen("8/8/8/K2pP2r/8/8/8/4k3 w - d6 0 1")  # both pawns would leave the rank
    assert "e5d6" not in {write_uci(pinned, int(move)) for move in pinned.moves()}
    assert (pinned.tokens == read_fen("8/8/8/K2pP2r/8/8/8/4k3 w - - 0 1").tokens).all()


@pytest.mark.parametrize(
    ("fen", "message"),
    [
        ("", "expected pieces, side to move"),
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN w KQkq - 0 1", "rank RNBQKBN has 7 squares: expected 8"),
        ("rnbqkbnr/pppppppp/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", "7 ranks: expected 8"),
        ("8/8/8/8/8/8/8/K6x w - - 0 1", "'x' is no piece"),
        ("8/8/8/8/8/8/8/K6é w - - 0 1", "a letter that is no piece"),
        ("8/8/8/8/8/8/8/K7 w - - 0 1", "0 kings of black: expected one"),
        ("8/8/8/8/8/8/8/KK5k w - - 0 1", "2 kings of white: expected one"),
        ("P7/8/8/8/8/8/8/K6k w - - 0 1", "a pawn on the first or the last rank"),
        ("8/8/8/8/8/8/8/K6k x - - 0 1", "side to move x: expected w or b"),
        ("8/8/8/8/8/8/8/K6k w K - 0 1", "castling K: king and rook are not at home"),
        ("8/8/8/8/8/8/8/K6k w KK - 0 1", "castling KK: expected - or some of KQkq"),
        ("8/8/8/8/8/8/8/K6k w - e6 0 1", "no pawn has just passed that square"),
        ("8/8/8/8/8/8/8/K6k w - i9 0 1", "i9 is no square"),
        ("8/8/8/8/8/8/8/KR5k w - - 0 1", "the side to move could take the king"),
        ("8/8/8/8/8/8/8/K6k w - - zero 1", "counters zero 1: expected whole numbers"),
        ("7k/8/QQQQQQQQ/8/QQ6/8/8/K7 b - - 0 1", "more pieces than promotions can give"),
        ("7k/8/rrr5/8/8/pppppppp/8/K7 b - - 0 1", "more pieces than promotions can give"),
    ],
)
def test_an_illegal_fen_is_one_line(fen: str, message: str) -> None:
    with pytest.raises(ValueError, match="illegal FEN") as caught:
        read_fen(fen)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="illegal FEN"):
        read_fens([START, fen])


@pytest.mark.parametrize("text", ["", "e2", "e2e9", "z2e4", "e2e4k", "e7e8b0", "e2e4n"])
def test_what_is_no_move_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (move|square)"):
        read_uci(read_fen(START), text)


@pytest.mark.parametrize("move", [-1, 64 * ANSWERS, 30 * ANSWERS + 31, 8 * ANSWERS + 64, 8 * ANSWERS + 2])
def test_a_move_that_kernels_cannot_make_is_refused(move: int) -> None:
    with pytest.raises(ValueError, match="legal moves"):
        play(read_fen(START).tokens[None], np.array([move]))


@pytest.mark.parametrize("move", [48 * ANSWERS + 64, 55 * ANSWERS + 66])
def test_a_promotion_beyond_the_edge_is_refused(move: int) -> None:
    board = read_fen("7k/P6P/8/8/8/8/8/K7 w - - 0 1").tokens[None]
    with pytest.raises(ValueError, match="legal moves"):
        play(board, np.array([move]))


def test_the_position_with_the_most_moves_has_room() -> None:
    most = read_fen("R6R/3Q4/1Q4Q1/4Q3/2Q4Q/Q4Q2/pp1Q4/kBNN1KB1 w - - 0 1")  # Petrovic 1964
    assert len(most.moves()) == 218
