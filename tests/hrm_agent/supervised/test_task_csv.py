"""Puzzles read from files in the published formats; the files are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hrm_agent.supervised.tasks import build_task, published_csv
from hrm_agent.supervised.tasks.maze import MazeTask
from hrm_agent.supervised.tasks.maze_rules import CHARACTERS
from hrm_agent.supervised.tasks.published_csv import CsvTask, read_puzzles
from hrm_agent.supervised.tasks.sudoku_sets import Difficulty, make

HEAD = "source,question,answer,rating"


def sudoku_lines(split: str, count: int) -> list[str]:
    made = make(Difficulty(0, -1, 0), split, np.arange(count))
    puzzles = ["".join(".123456789"[d] for d in clues) for clues in made.clues]
    solutions = ["".join(str(d) for d in solution) for solution in made.solutions]
    return [f"puzzles0_kaggle,{p},{s},{g}" for p, s, g in zip(puzzles, solutions, made.guesses, strict=True)]


def maze_lines(split: str, count: int) -> list[str]:
    task = MazeTask(rows=3, cols=3, loops=0.5, augment=False)
    examples = task.draw(np.random.default_rng(0), count) if split == "train" else task.examples(split, count)
    texts = [["".join(CHARACTERS[t - 1] for t in row) for row in array] for array in examples[:2]]
    return [f"ours,{question},{answer},{answer.count('o')}" for question, answer in zip(*texts, strict=True)]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, str]]:
    return {
        kind: {
            "kind": kind,
            "train": write(tmp_path / f"{kind}_train.csv", lines("train", 40)),
            "test": write(tmp_path / f"{kind}_test.csv", lines("test", 6)),
        }
        for kind, lines in (("sudoku", sudoku_lines), ("maze", maze_lines))
    }


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_puzzles_are_those_of_the_files(files: dict, kind: str) -> None:
    task = CsvTask(**files[kind], augment=False)
    characters = ".123456789" if kind == "sudoku" else CHARACTERS
    tests = task.examples("test", 6)
    lines = Path(files[kind]["test"]).read_text().splitlines()[1:]
    for line, inputs, labels in zip(lines, tests.inputs, tests.labels, strict=True):
        _, question, answer, _ = line.split(",")
        assert "".join(characters[t - 1] for t in inputs) == question
        assert "".join(characters[t - 1] for t in labels) == answer
    assert tests.inputs.shape[1] == task.spec.sequence_length == np.prod(task.spec.grid or ())
    scores = task.score(tests, tests.labels.astype(np.int16))
    assert all(values.all() for values in scores.values())
    assert set(scores) == {"exact", "cells", "valid"}
    assert not task.score(tests, tests.inputs)["valid"].any()


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_validation_is_the_end_of_the_training_file(files: dict, kind: str) -> None:
    task = CsvTask(**files[kind], augment=False)
    rows = read_puzzles("train", files[kind]["train"], kind)
    tests = read_puzzles("test", files[kind]["test"], kind)
    shared = {bytes(q) for q in tests.questions}
    kept = [q for q in rows.questions if bytes(q) not in shared]
    held_out = len(kept) // 10
    validation = task.examples("validation", held_out).inputs
    assert np.array_equal(validation, np.array(kept[-held_out:]))
    drawn = {bytes(row) for row in task.draw(np.random.default_rng(0), 2000).inputs.astype(np.uint8)}
    assert drawn == {bytes(q) for q in kept[:-held_out]}
    with pytest.raises(ValueError, match=f"there are {held_out};"):
        task.examples("validation", held_out + 1)


def test_puzzles_of_the_test_file_are_not_trained_on(tmp_path: Path) -> None:
    lines = sudoku_lines("train", 30)
    task = CsvTask(
        train=write(tmp_path / "train.csv", lines), test=write(tmp_path / "test.csv", lines[:10]), kind="sudoku",
        augment=False,
    )  # fmt: skip
    held = {bytes(row) for row in task.examples("test", 10).inputs}
    drawn = {bytes(row) for row in task.draw(np.random.default_rng(0), 1000).inputs}
    assert len(drawn) == 18
    assert not drawn & held
    assert not {bytes(row) for row in task.examples("validation", 2).inputs} & (held | drawn)


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_augmented_answers_are_right(files: dict, kind: str) -> None:
    task = CsvTask(**files[kind])
    one, two = (task.draw(np.random.default_rng(3), 50) for _ in range(2))
    assert task.score(one, one.labels)["valid"].all()
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    known = {bytes(row) for row in CsvTask(**files[kind], augment=False).draw(np.random.default_rng(0), 500).inputs}
    assert not {bytes(row) for row in one.inputs} <= known


def test_train_puzzles_and_min_rating(files: dict) -> None:
    def drawn(**options: object) -> set[bytes]:
        task = CsvTask(**files["sudoku"], augment=False, **options)
        return {bytes(row) for row in task.draw(np.random.default_rng(0), 1000).inputs}

    assert len(drawn(train_puzzles=7)) == 7
    assert drawn(train_puzzles=7) == drawn(train_puzzles=7)
    assert drawn(train_puzzles=7) != drawn(train_puzzles=7, seed=1)
    lines = Path(files["sudoku"]["train"]).read_text().splitlines()[1:]
    hard = [line for line in lines if int(line.split(",")[3]) >= 1]
    assert 0 < len(hard) < 40
    assert len(drawn(min_rating=1)) == len(hard) - len(hard) // 10


MAZE = "#####" + "#S G#" + "#####" * 3
SOLVED = "#####" + "#SoG#" + "#####" * 3
PUZZLE = "4.....8.5.3..........7......2.....6.....8.4......1.......6.3.7.5..2.....1.4......"
ANSWER = "417369825632158947958724316825437169791586432346912758289643571573291684164875293"


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        ("sudoku", f"x,{PUZZLE[1:]},{ANSWER},1", "question has 80 characters"),
        ("sudoku", f"x,{PUZZLE},{ANSWER}1,1", "answer has 82 characters"),
        ("sudoku", f"x,{PUZZLE[:-1]}x,{ANSWER},1", "question has the character 'x'"),
        ("sudoku", f"x,{PUZZLE[:-1]}\N{GREEK SMALL LETTER PI},{ANSWER},1", "character 'π'"),
        ("sudoku", f"x,{PUZZLE},{ANSWER[:-1]}.,1", "answer has the character '.'"),
        ("sudoku", f"x,{PUZZLE},{ANSWER[1]}{ANSWER[0]}{ANSWER[2:]},1", "no Sudoku that keeps the clues"),
        ("sudoku", f"x,{PUZZLE},{ANSWER}", "3 columns, but the head line has 4"),
        ("maze", f"x,{MAZE[1:]},{SOLVED},1", "24 characters"),
        ("maze", f"x,{MAZE},{SOLVED[1:]},1", "answer has 24 characters"),
        ("maze", f"x,{SOLVED},{SOLVED},1", "question has the character 'o'"),
        ("maze", f"x,{MAZE.replace('G', 'S')},{SOLVED},1", "not exactly one S and one G"),
        ("maze", f"x,{MAZE},{SOLVED.replace('#####', 'o####', 1)},1", "not its question"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_line_that_is_no_puzzle_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: str, words: str, chunk: int
) -> None:
    monkeypatch.setattr(published_csv, "_CHUNK", chunk)
    right = {"sudoku": f"x,{PUZZLE},{ANSWER},1", "maze": f"x,{MAZE},{SOLVED},1"}[kind]
    good, bad = write(tmp_path / "good.csv", [right] * 20), write(tmp_path / "bad.csv", [right, right, line, right])
    with pytest.raises(ValueError, match=words) as caught:
        build_task("csv", {"train": bad, "test": good, "kind": kind})
    assert str(caught.value).startswith(f"train={bad}, line 4: ")
    assert "\n" not in str(caught.value)


def test_files_and_options_that_cannot_be_used_are_one_line(tmp_path: Path, files: dict) -> None:
    def refused(**options: object) -> str:
        with pytest.raises(ValueError) as caught:
            build_task("csv", {**files["sudoku"], **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = str(tmp_path / "none.csv")
    assert refused(test=missing).startswith(f"test={missing}: no such file")
    (tmp_path / "head.csv").write_text("question,answer\n")
    assert "line 1: no column 'rating'" in refused(train=str(tmp_path / "head.csv"))
    (tmp_path / "empty.csv").write_text("")
    assert "no column 'question'" in refused(train=str(tmp_path / "empty.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00" * 10)
    assert "not a readable CSV file" in refused(train=str(tmp_path / "bytes.csv"))
    assert "rating of 10000 or more" in refused(min_rating=10_000)
    words = write(tmp_path / "words.csv", [f"x,{PUZZLE},{ANSWER},hard"] * 20)
    assert "line 2: its rating is not a number" in refused(train=words, min_rating=1)
    assert "leaves 36 puzzles" in refused(train_puzzles=100)
    assert "did you mean maze" in refused(kind="mazes")
    assert "min_rating='9'" in refused(min_rating="9")
    small = write(tmp_path / "small.csv", [f"x,{MAZE},{SOLVED},1"] * 20)
    assert "of one data set" in refused(kind="maze", train=small, test=files["maze"]["test"])
