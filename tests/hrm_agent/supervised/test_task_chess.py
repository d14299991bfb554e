"""The chess task: labels are the best moves by another judgement, splits share nothing, scores mean what they say."""

from pathlib import Path

import numpy as np
import pytest

from chess_files import write_games
from hrm_agent.supervised.chess import endgames
from hrm_agent.supervised.chess.board import Position, read_fen, read_uci
from hrm_agent.supervised.chess.mating import play_out
from hrm_agent.supervised.chess.rules import legal_moves, turned
from hrm_agent.supervised.evaluation import evaluate_model, format_report
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.base import Answers, Examples
from hrm_agent.supervised.tasks.chess import ChessTask
from hrm_envs.endgames.tables import DRAW, endgame_table, value_of

SMALL = "KQK+KRK+KPK"


@pytest.fixture(scope="module")
def task() -> ChessTask:
    return ChessTask(endings=SMALL, mates=12)


def test_puzzles_have_the_shape_that_models_expect(task: ChessTask) -> None:
    drawn = task.draw(np.random.default_rng(0), 64)
    assert drawn.inputs.shape == (64, 64)
    assert drawn.labels.shape == drawn.weights.shape == (64, task.spec.choices)
    assert drawn.inputs.max() < task.spec.input_ids
    assert ((drawn.labels >= 0) == (drawn.weights > 0)).all()
    assert (drawn.labels[drawn.labels != IGNORED_LABEL] < 64 * task.spec.answer_ids).all()
    np.testing.assert_allclose(drawn.weights.sum(1), 1, atol=1e-6)


def test_labels_are_the_moves_after_which_the_game_is_best(task: ChessTask) -> None:
    """By playing every legal move with the rules of whole boards, and looking up what comes of it."""
    drawn = task.draw(np.random.default_rng(1), 60)
    for board, labels in zip(drawn.inputs, drawn.labels, strict=True):
        position = Position(board.astype(np.uint8), True)
        worth = {int(move): value_of_board(position.after(int(move)).tokens) for move in position.moves()}
        # For the mover: the nearest win, then a draw, then the furthest loss.
        rank = {move: 1000 - value if value >= 0 and value % 2 == 0 else (0 if value == DRAW else value - 1000)
                for move, value in worth.items()}  # fmt: skip
        best = {move for move, value in rank.items() if value == max(rank.values())}
        assert set(labels[labels != IGNORED_LABEL].tolist()) == best


def value_of_board(tokens: np.ndarray) -> int:
    if (tokens > 0).sum() == 2 or not any(np.isin(tokens, (2, 5, 6, 9, 12, 13))):
        return DRAW
    ((table, _, sides, squares),) = endgames.recognise(tokens[None].astype(np.int32))
    return value_of(table, int(sides[0]), *squares[0].tolist())


def test_no_position_nor_an_image_of_one_is_in_two_splits(task: ChessTask) -> None:
    images = endgame_table("KQK").board.images
    held_out = {board.tobytes() for split in ("validation", "test") for board in task.examples(split, 1500).inputs}
    assert len(held_out) == 3000
    drawn = task.draw(np.random.default_rng(2), 3000).inputs
    pawns = np.isin(drawn, (2, 9)).any(1)
    for number, image in enumerate(images):
        rows = drawn if number in (0, 2) else drawn[~pawns]
        moved = np.zeros_like(rows)
        moved[:, image] = rows
        assert not held_out & {board.tobytes() for board in moved}


def test_sets_begin_the_same_however_many_are_asked_for() -> None:
    few, many = ChessTask(endings="KRK"), ChessTask(endings="KRK")
    whole = many.examples("validation", 2000)
    assert (few.examples("validation", 10).inputs == whole.inputs[:10]).all()
    assert (few.examples("validation", 2000).inputs == whole.inputs).all()


def answered(choices: list[list[int]]) -> Answers:
    tokens = np.array([choices], np.int16)
    return Answers(tokens, np.zeros((1, len(choices)), np.float32), np.ones(len(choices), np.int64))


def best_player(examples: Examples) -> Answers:
    judged = endgames.judge_boards(examples.inputs)
    return answered(
        [[0, *moves[optimal].tolist()[:1]] for moves, optimal in zip(judged.moves, judged.optimal, strict=True)]
    )


def test_scores_of_the_best_and_of_other_moves(task: ChessTask) -> None:
    boards = np.stack([read_fen("8/8/8/8/8/2K5/7Q/k7 w - - 0 1").tokens] * 4).astype(np.int32)
    position = Position(boards[0].astype(np.uint8), True)
    mate, stalemate, slow, wrong = (read_uci(position, text) for text in ("h2b2", "h2c2", "c3c4", "a1a8"))
    examples = task._label(boards)
    assert examples.labels[0][examples.labels[0] >= 0].tolist() == [mate]
    rows = [[mate, wrong, wrong], [wrong, wrong, mate], [slow, wrong, wrong], [stalemate, wrong, wrong]]
    scores = task.score(examples, np.array(rows, np.int16))
    assert scores["exact"].tolist() == [True, False, False, False]
    assert scores["top_3"].tolist() == [True, True, False, False]
    assert scores["legal"].tolist() == [True, False, True, True]
    assert scores["keeps"].tolist() == [True, False, True, False]
    assert scores["best_legal"].tolist() == [True, True, False, False]


def test_the_best_moves_mate_and_what_is_illegal_is_passed_over(task: ChessTask) -> None:
    report = task.evaluate(best_player, "test", 10)
    assert report is not None
    for name in ("KRK", "KQK"):
        assert (report[f"{name}_mated"], report[f"{name}_excess_moves"], report[f"{name}_no_legal_answer"]) == (1, 0, 0)
    stuck = play_out(lambda examples: answered([[0, 1]] * len(examples)), "rook", "test", 3)
    assert stuck.stuck.all()
    assert not stuck.mated.any()


class BestPlayer:
    segments = 1

    def __call__(self, examples: Examples) -> Answers:
        return best_player(examples)


def test_what_is_printed_are_words(task: ChessTask) -> None:
    report = evaluate_model(BestPlayer(), task, "test", 10)
    lines = format_report(report).splitlines()
    assert not [line for line in lines if "_" in line]
    assert any(line.startswith("  best legal 1.000 [") for line in lines)
    mates = "mated in 1.000 of 12 games, within 50 moves, 0.0 more than the fewest on average"
    ends = [f"  king and {piece}: {mates}; 0.000 ended without a legal answer" for piece in ("rook", "queen")]
    assert lines[-2:] == ends
    columns = {line.index("halting by itself") for line in lines if "   halting by itself" in line}
    assert len(columns) == 1


def test_games_are_announced_before_they_are_played(task: ChessTask) -> None:
    said: list[str] = []

    def solve(examples: Examples) -> Answers:
        said.append("asked")
        return best_player(examples)

    task.evaluate(solve, "test", 10, lambda what, progress="": said.append(f"{what}: {progress}" if progress else what))
    rook, queen = (f"playing 12 games with king and {piece} against the longest defence" for piece in ("rook", "queen"))
    assert said[:3] == [rook, "asked", f"{rook}: 0 ended"]
    assert said[said.index(queen) - 1] == f"{rook}: 12 ended"
    assert said[-1] == f"{queen}: 12 ended"


def test_a_player_of_random_moves_does_not_mate(task: ChessTask) -> None:
    rng = np.random.default_rng(0)

    def at_random(examples: Examples) -> Answers:
        return answered([[int(rng.choice(moves))] for moves in legal_moves(examples.inputs.astype(np.uint8))])

    games = play_out(at_random, "rook", "test", 10)
    assert games.mated.mean() < 0.2
    assert games.moves.max() <= 50


def test_positions_of_a_file(tmp_path: Path) -> None:
    path = write_games(tmp_path / "games.jsonl", 60)
    task = ChessTask(source=str(path), temperature=0.05)
    assert task.spec.choices == 3
    drawn = task.draw(np.random.default_rng(0), 50)
    np.testing.assert_allclose(drawn.weights.sum(1), 1, atol=1e-6)
    legal = legal_moves(drawn.inputs.astype(np.uint8))
    for labels, moves in zip(drawn.labels, legal, strict=True):
        assert set(labels[labels >= 0].tolist()) <= set(moves.tolist())
    sets = {split: {b.tobytes() for b in task._file.tokens[rows]} for split, rows in task._rows.items()}
    assert not sets["train"] & sets["validation"]
    assert not (sets["train"] | sets["validation"]) & sets["test"]
    assert min(len(rows) for rows in task._rows.values()) > 5
    games = {split: set(task._file.games[rows].tolist()) for split, rows in task._rows.items()}
    assert not games["train"] & (games["validation"] | games["test"])
    examples = task.examples("validation", 5)
    scores = task.score(examples, examples.labels.astype(np.int16))
    assert scores["exact"].all()
    assert scores["legal"].all()
    assert task.evaluate(best_player, "test", 3) is None
    with pytest.raises(ValueError, match=r"validation: 10000 positions asked for, .* has \d+; ask for fewer"):
        task.examples("validation", 10_000)


def test_a_position_of_black_is_the_same_puzzle_as_its_mirror_image() -> None:
    white = read_fen("8/8/8/4k3/8/8/4K3/R7 w - - 0 1")
    black = read_fen("r7/4k3/8/8/4K3/8/8/8 b - - 0 1")
    assert (white.tokens == black.tokens).all()
    judged = endgames.judge_boards(np.stack([white.tokens, turned(white.tokens[None])[0]]).astype(np.int32))
    assert judged.optimal.any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endings": "KQK+KBK"}, "endings=KQK+KBK: expected some of KQK+KRK+KPK+KQKR, each once"),
        ({"endings": "KQK+KQK"}, "each once"),
        ({"temperature": -1.0}, "temperature"),
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"mates": -1}, "mates"),
    ],
)
def test_bad_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build_task("chess", options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_board_that_is_no_endgame_is_refused() -> None:
    with pytest.raises(ValueError, match="no endgame of KQK, KRK, KPK, KQKR"):
        endgames.judge_boards(read_fen("8/8/8/4k3/8/8/4K3/1B6 w - - 0 1").tokens[None].astype(np.int32))
