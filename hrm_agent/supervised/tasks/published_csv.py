"""Sudokus and mazes from CSV files in the format of Sudoku-Extreme and Maze-Hard (HRM, arXiv 2506.21734)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.cores.base import check_at_least, check_choice
from hrm_agent.names.values import EpisodesOrNone
from hrm_agent.supervised.tasks.base import Examples, Task, TaskSpec, check_split
from hrm_agent.supervised.tasks.checks import check_flag
from hrm_agent.supervised.tasks.maze import augment_grids
from hrm_agent.supervised.tasks.maze_rules import CHARACTERS, FREE, GOAL, PATH, START, dihedral_indices, valid_paths
from hrm_agent.supervised.tasks.maze_rules import VOCABULARY as MAZE_VOCABULARY
from hrm_agent.supervised.tasks.sudoku import VOCABULARY as SUDOKU_VOCABULARY
from hrm_agent.supervised.tasks.sudoku import augment_sudoku, valid_sudokus
from hrm_agent.supervised.tasks.sudoku_rules import CELLS

KINDS = ("sudoku", "maze")
SUDOKU_CHARACTERS = ".123456789"
COLUMNS = ("question", "answer", "rating")
VALIDATION_PUZZLES = 1000
"""Taken from the end of the training file, or a tenth of it where that is less."""
_CHUNK = 20_000
Line = tuple[int, str, str]


class Rows(NamedTuple):
    """Lines of a file: `questions` and `answers` uint8 `[N, L]` tokens, `lines` int64 `[N]` in the file, from 1."""

    questions: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    lines: NDArray[np.int64]

    def some(self, index: NDArray | slice) -> Rows:
        """The same of some of them."""
        return Rows(self.questions[index], self.answers[index], self.lines[index])


class CsvTask(Task):
    """Puzzles from the user's files; nothing is downloaded.

    Both files have a header with the columns `question`, `answer` and `rating` (others, such as `source`, are
    ignored), and one puzzle per line. Sudokus are 81 digits, `.` or `0` where blank. Mazes are squares of any size,
    row by row: `#` wall, blank free, `S` start, `G` goal, and in answers `o` for the path. Tokens and scores are those
    of `SudokuTask` and of `MazeTask`.

    The last 1,000 puzzles of the training file, or a tenth of them where that is less, are validation puzzles, before
    anything is drawn or augmented. Puzzles of the training file that are in the test file too are left out of both
    training and validation.

    Args:
        train: path of the training file.
        test: path of the test file.
        kind: `sudoku` or `maze`.
        train_puzzles: size of the training set, which `seed` draws from the file; 0: the whole file.
        min_rating: puzzles with a lower rating are left out, of both files.
        augment: training puzzles under a random symmetry: all of Sudoku's, or the 8 dihedral images of a maze.
        seed: draws the training set.

    Raises:
        ValueError: an option is out of range, or a line of a file is not such a puzzle; the message names the line.
    """

    def __init__(
        self,
        *,
        train: str,
        test: str,
        kind: str = "sudoku",
        train_puzzles: EpisodesOrNone = 0,
        min_rating: float = 0,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        self.kind = check_choice("kind", kind, KINDS)
        check_at_least("train_puzzles", train_puzzles, 0)
        if isinstance(min_rating, bool) or not isinstance(min_rating, int | float):
            raise ValueError(f"min_rating={min_rating!r} is not a number; give the least rating to keep, 0 for all")
        self.augment = check_flag("augment", augment)
        check_at_least("seed", seed, 0)
        tests = read_puzzles("test", test, kind, min_rating)
        rows = read_puzzles("train", train, kind, min_rating)
        if tests.questions.shape[1] != rows.questions.shape[1]:
            raise ValueError(
                f"train={train} has puzzles of {rows.questions.shape[1]} cells but test={test} of "
                f"{tests.questions.shape[1]}; give files of one data set"
            )
        known = {bytes(question) for question in tests.questions}
        keep = np.array([bytes(question) not in known for question in rows.questions])
        rows = rows.some(keep)
        held_out = min(VALIDATION_PUZZLES, len(rows.lines) // 10)
        training = np.arange(len(rows.lines) - held_out)
        if len(training) < max(train_puzzles, 1):
            raise ValueError(
                f"train={train} leaves {len(training)} puzzles for training, {train_puzzles or 1} are asked for; give "
                "a smaller train_puzzles, a lower min_rating or another file"
            )
        if train_puzzles:
            training = np.sort(np.random.default_rng([seed]).choice(training, train_puzzles, replace=False))
        self._sets = {
            "train": rows.some(training),
            "validation": rows.some(slice(len(rows.lines) - held_out, None)),
            "test": tests,
        }
        length = tests.questions.shape[1]
        side = isqrt(length)
        ids = SUDOKU_VOCABULARY if kind == "sudoku" else MAZE_VOCABULARY
        self.spec = TaskSpec(length, ids, ids, grid=(side, side))
        self._images = dihedral_indices(side, side)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles; see `Task.draw`."""
        rows = self._sets["train"]
        drawn = _examples(rows, generator.integers(len(rows.lines), size=count))
        if not self.augment:
            return drawn
        if self.kind == "sudoku":
            return augment_sudoku(drawn, generator)
        return augment_grids(drawn, self._images, generator)

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` puzzles of `validation` or `test`; see `Task.examples`."""
        check_split(split)
        rows = self._sets[split]
        if count > len(rows.lines):
            raise ValueError(f"{count} {split} puzzles are asked for but there are {len(rows.lines)}; ask for fewer")
        return _examples(rows, slice(count))

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """`exact` and `cells` of `Task.score`, and `valid` as of `SudokuTask` or of `MazeTask`."""
        answers = np.asarray(answers)
        if self.kind == "sudoku":
            valid = valid_sudokus(examples.inputs, answers)
        else:
            valid = valid_paths(examples.inputs, answers, isqrt(self.spec.sequence_length))
        return {**super().score(examples, answers), "valid": valid}


def read_puzzles(name: str, path: str, kind: str, min_rating: float = 0) -> Rows:
    """Read a file of puzzles, and check every one of them.

    Args:
        name: of the option that gave the path, for messages.
        kind: `sudoku` or `maze`.
        min_rating: puzzles with a lower rating are left out; 0: ratings are not read.

    Raises:
        ValueError: the file cannot be read, lacks a column, or a line is not such a puzzle.
    """
    parts: list[Rows] = []
    lines = _lines(name, path, min_rating)
    while chunk := list(islice(lines, _CHUNK)):
        length = parts[0].questions.shape[1] if parts else len(chunk[0][1])
        try:
            parts.append(_read(kind, chunk, length))
        except ValueError:
            # The same checks line by line find which one fails.
            for entry in chunk:
                try:
                    _read(kind, [entry], length)
                except ValueError as error:
                    raise ValueError(f"{name}={path}, line {entry[0]}: {error}") from None
            raise
    if not parts:
        raise ValueError(f"{name}={path} holds no {kind} with a rating of {min_rating:g} or more; give another file")
    return Rows(
        np.concatenate([part.questions for part in parts]),
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.lines for part in parts]),
    )


def _lines(name: str, path: str, min_rating: float) -> Iterator[Line]:
    """Line number (from 1), question and answer of every line after the first that is rated high enough."""
    if not Path(path).is_file():
        raise ValueError(f"{name}={path}: no such file; give the path of a CSV file in the published format")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            missing = [column for column in COLUMNS if column not in head]
            if missing:
                raise ValueError(f"{name}={path}, line 1: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
            places = [head.index(column) for column in COLUMNS]
            for row in reader:
                if len(row) != len(head):
                    raise ValueError(
                        f"{name}={path}, line {reader.line_num}: {len(row)} columns, but the head line has {len(head)}"
                    )
                question, answer, rating = (row[place] for place in places)
                if min_rating > 0 and _rating(f"{name}={path}, line {reader.line_num}", rating) < min_rating:
                    continue
                yield reader.line_num, question, answer
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name}={path}: not a readable CSV file ({error})") from None


def _rating(where: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: its rating is not a number") from None


def _read(kind: str, chunk: list[Line], length: int) -> Rows:
    """Tokens of some lines, each of which must hold a puzzle of `length` cells; the error does not say which fails."""
    lines, questions, answers = zip(*chunk, strict=True)
    if kind == "sudoku":
        questions = tuple(question.replace("0", ".") for question in questions)
        inputs = _to_tokens("question", questions, SUDOKU_CHARACTERS, SUDOKU_CHARACTERS, CELLS)
        labels = _to_tokens("answer", answers, SUDOKU_CHARACTERS[1:], SUDOKU_CHARACTERS, CELLS)
        _check_sudokus(inputs, labels)
    else:
        inputs = _to_tokens("question", questions, CHARACTERS.replace("o", ""), CHARACTERS, length)
        labels = _to_tokens("answer", answers, CHARACTERS, CHARACTERS, length)
        _check_mazes(inputs, labels)
    return Rows(inputs, labels, np.array(lines))


def _to_tokens(what: str, texts: Sequence[str], allowed: str, characters: str, length: int) -> NDArray[np.uint8]:
    """1 + the place in `characters` of each character, uint8 `[N, length]`; only `allowed` ones may occur."""
    for text in texts:
        if len(text) != length:
            raise ValueError(f"its {what} has {len(text)} characters, {length} are expected")
    # Four bytes a character, whatever it is.
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).reshape(len(texts), length)
    table = np.zeros(256, np.uint8)
    for character in allowed:
        table[ord(character)] = 1 + characters.index(character)
    tokens = table[np.minimum(codes, 255)]
    if not tokens.all():
        wrong = chr(int(codes[tokens == 0][0]))
        raise ValueError(f"its {what} has the character {wrong!r}, expected are {' '.join(map(repr, allowed))}")
    return tokens


def _check_sudokus(inputs: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    if not valid_sudokus(inputs, labels).all():
        raise ValueError("its answer is no Sudoku that keeps the clues of its question")


def _check_mazes(inputs: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Check a maze and its path; the path need not be a shortest one."""
    length = inputs.shape[1]
    if isqrt(length) ** 2 != length or length == 0:
        raise ValueError(f"its question has {length} characters, which make no square")
    if ((inputs == START).sum(1) != 1).any() or ((inputs == GOAL).sum(1) != 1).any():
        raise ValueError("its question has not exactly one S and one G")
    changed = inputs != labels
    if (inputs[changed] != FREE).any() or (labels[changed] != PATH).any():
        raise ValueError("its answer is not its question with some free positions as o")


def _examples(rows: Rows, index: NDArray[np.int64] | slice) -> Examples:
    inputs, labels = rows.questions[index].astype(np.int32), rows.answers[index].astype(np.int32)
    return Examples(inputs, labels, np.zeros(len(inputs), np.int32))
