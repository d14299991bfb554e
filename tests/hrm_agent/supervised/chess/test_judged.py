"""Files of judged positions: what is read is what was written, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chess_files import heading, random_game, write_games
from hrm_agent.files.reading import CheckpointError
from hrm_agent.supervised.chess.board import Position, write_fen, write_uci
from hrm_agent.supervised.chess.judged import MATE, is_blunder, preferences, read_judged, win_probability


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    read = read_judged(write_games(tmp_path / "games.jsonl", 3))
    wanted = [entry for number in range(3) for entry in random_game(number)["positions"]]
    assert len(read.tokens) == len(wanted) == 36
    assert read.games.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    for row, entry in enumerate(wanted):
        position = Position(read.tokens[row], bool(read.white[row]))
        assert write_fen(position) == entry["fen"]
        count = len(entry["moves"])
        assert [write_uci(position, int(move)) for move in read.moves[row, :count]] == entry["moves"]
        assert read.scores[row, :count].tolist() == entry["scores"]
        assert (read.moves[row, count:] == -1).all()


def test_a_line_that_is_not_complete_is_left_out(tmp_path: Path) -> None:
    path = write_games(tmp_path / "games.jsonl", 2)
    with path.open("a") as file:
        file.write(json.dumps(random_game(2))[:-20])
    assert set(read_judged(path).games.tolist()) == {0, 1}


def altered(**changed: Any) -> dict[str, Any]:
    game = random_game(5)
    game["positions"][3] = {**game["positions"][3], **changed}
    return game


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty; expected positions"),
        (["{"], "line 1: Input data was truncated"),
        ([heading(format="another")], "not version 1 of hrm_agent chess positions"),
        ([heading(version=2)], "not version 1"),
        ([heading(moves=0)], "line 1: Expected int >= 1"),
        ([heading()], "holds no game"),
        ([heading(), random_game(0), {"game": 1}], "line 3: Object missing required field result"),
        ([heading(), altered(fen="8/8/8/8/8/8/8/8 w - - 0 1")], "illegal FEN"),
        ([heading(), altered(moves=["e2e9"], scores=[1])], "line 2: e9 is no square"),
        ([heading(), altered(moves=["a1a8"], scores=[1])], "line 2: a move that is illegal in"),
        ([heading(), altered(moves=[], scores=[])], "line 2: 0 moves with 0 scores"),
        ([heading(), altered(scores=[3])], "3 moves with 1 scores; expected 1 to 3 different moves with a score each"),
        ([heading(), altered(scores=[MATE + 1, 0, 0])], "Expected int <= 32000"),
        ([heading(moves=2), random_game(0)], "expected 1 to 2 different moves"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(lines: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(CheckpointError) as caught:
        read_judged(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_judged(tmp_path / "games.jsonl")


def test_win_probability_is_lichess_s() -> None:
    assert win_probability(np.array([0])) == 0.5
    assert win_probability(np.array([100]))[0] == pytest.approx(0.5910, abs=1e-4)
    assert win_probability(np.array([1000, 5000, MATE - 3])).tolist() == [pytest.approx(0.97545, abs=1e-5)] * 3
    assert is_blunder(np.array([0.1499, 0.15])).tolist() == [False, True]


@given(
    scores=st.lists(st.integers(-MATE, MATE), min_size=1, max_size=6),
    temperature=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_preferences_are_probabilities_in_the_order_of_the_scores(scores: list[int], temperature: float) -> None:
    row = np.array([[*sorted(scores, reverse=True), 0]], np.int16)
    moves = np.array([[*range(len(scores)), -1]], np.int16)
    weights = preferences(row, moves, temperature)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights[0, -1] == 0
    assert (np.diff(weights[0, :-1]) <= 0).all()
    if temperature == 0:
        assert ((weights[0, :-1] > 0) == (row[0, :-1] == row[0, 0])).all()
