"""Sudoku of a chosen difficulty, in the tokens of the published Sudoku-Extreme data."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hrm_agent.cores.base import check_at_least
from hrm_agent.names.values import CountOrNone, EpisodesOrNone
from hrm_agent.supervised.tasks.base import SPLITS, Examples, Task, TaskSpec, check_split
from hrm_agent.supervised.tasks.checks import check_flag
from hrm_agent.supervised.tasks.sudoku_rules import CELLS
from hrm_agent.supervised.tasks.sudoku_sets import Difficulty, Puzzles, PuzzleSet, cache_folder, make

VOCABULARY = 11
"""Tokens: 0 padding (does not occur), 1 blank, 2 to 10 the digits 1 to 9."""


class SudokuTask(Task):
    """Fill in a Sudoku that has one solution.

    Tokens are 1 where blank and 1 + the digit elsewhere (0 is padding, which does not occur); the label is the whole
    solution, its clues included.

    A puzzle is a random solution grid that lost clues as long as one solution was left. Its difficulty is the number
    of guesses that our solver makes (`hrm_agent.supervised.tasks.sudoku_rules`): 0 where naked and hidden singles
    suffice. Where random puzzles are too easy, clues are exchanged until they are not.

    Puzzle i of validation and of test is a function of i and of the difficulty, whatever `seed`. Which of the three
    sets a puzzle is in follows from an invariant of its solution grid under all of Sudoku's symmetries (train 6,
    validation 1, test 1 of 8), so that no set holds a puzzle of another, nor its image, nor even its solution.

    Sets that take longer than 5 s to make are kept in `~/.cache/hrm_agent` (`$XDG_CACHE_HOME`).

    Args:
        train_puzzles: puzzles in the training set, which `seed` selects; 0: fresh ones without end.
        min_guesses, max_guesses: range of the difficulty; max_guesses -1: no limit.
        min_clues: clues to leave at least; 0: puzzles are minimal, of 22 to 27 clues mostly (with a limit of guesses:
            no clue can go without exceeding it).
        augment: training puzzles are shown under a random symmetry: digits, bands, rows in bands, stacks, columns in
            stacks, and transposition.
        seed: selects the training set; plays no part where that has no end.

    Raises:
        ValueError: an option is out of range, or the generator found no puzzle of this difficulty.
    """

    spec = TaskSpec(CELLS, VOCABULARY, VOCABULARY, grid=(9, 9))

    def __init__(
        self,
        *,
        train_puzzles: EpisodesOrNone = 1000,
        min_guesses: CountOrNone = 0,
        max_guesses: Annotated[int, Meta(ge=-1, le=65_536)] = 0,
        min_clues: Annotated[int, Meta(ge=0, le=CELLS)] = 0,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        self.train_puzzles = check_at_least("train_puzzles", train_puzzles, 0)
        check_at_least("min_guesses", min_guesses, 0)
        check_at_least("max_guesses", max_guesses, -1)
        if 0 <= max_guesses < min_guesses:
            raise ValueError(
                f"max_guesses={max_guesses} is below min_guesses={min_guesses}; give a range, or max_guesses=-1"
            )
        if check_at_least("min_clues", min_clues, 0) > CELLS:
            raise ValueError(f"min_clues={min_clues} is more than the {CELLS} cells; give one of 0 to {CELLS}")
        self.difficulty = Difficulty(min_guesses, max_guesses, min_clues)
        self.augment = check_flag("augment", augment)
        check_at_least("seed", seed, 0)
        make(self.difficulty, "train", np.zeros(1, np.int64))  # a difficulty that cannot be met is refused here
        self._sets = {
            split: PuzzleSet(self.difficulty, split, seed if split == "train" else 0, cache_folder())
            for split in SPLITS
        }

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles; see `Task.draw`."""
        if self.train_puzzles:
            puzzles = self._sets["train"].first(self.train_puzzles)
            rows = generator.integers(self.train_puzzles, size=count)
            drawn = examples_from(puzzles.clues[rows], puzzles.solutions[rows])
        else:
            drawn = _tokens(make(self.difficulty, "train", generator.integers(2**62, size=count)))
        return augment_sudoku(drawn, generator) if self.augment else drawn

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` puzzles of `validation` or `test`; there is no last one."""
        check_split(split)
        return _tokens(self._sets[split].first(count))

    def guesses(self, split: str, count: int) -> NDArray[np.int64]:
        """Difficulty of the puzzles that `examples` returns: int64 `[count]`."""
        check_split(split)
        return self._sets[split].first(count).guesses

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """`exact` and `cells` of `Task.score`, and `valid` (bool `[N]`): a Sudoku that keeps the clues."""
        return {**super().score(examples, answers), "valid": valid_sudokus(examples.inputs, np.asarray(answers))}


def examples_from(clues: NDArray[np.uint8], solutions: NDArray[np.uint8]) -> Examples:
    """Tokens of puzzles and solutions uint8 `[N, 81]`, 0 where blank."""
    inputs, labels = (array.astype(np.int32) + 1 for array in (clues, solutions))
    return Examples(inputs, labels, np.zeros(len(inputs), np.int32))


def _tokens(puzzles: Puzzles) -> Examples:
    return examples_from(puzzles.clues, puzzles.solutions)


def augment_sudoku(examples: Examples, generator: np.random.Generator) -> Examples:
    """Each puzzle under a random symmetry of Sudoku, inputs and labels alike."""
    count = len(examples)
    lines = [_line_orders(generator, count) for _ in range(2)]
    rows, cols = lines[0][:, :, None], lines[1][:, None, :]
    transposed = generator.integers(2, size=(count, 1, 1)).astype(bool)
    source = np.where(transposed, 9 * cols.swapaxes(1, 2) + rows.swapaxes(1, 2), 9 * rows + cols).reshape(count, CELLS)
    # Token t becomes renamed[t]; padding and blank stay.
    renamed = np.empty((count, VOCABULARY), np.int32)
    renamed[:, :2] = 0, 1
    renamed[:, 2:] = 2 + generator.random((count, 9)).argsort(axis=1)
    puzzle = np.arange(count)[:, None]
    inputs, labels = (renamed[puzzle, tokens[puzzle, source]] for tokens in examples[:2])
    return Examples(inputs, labels, examples.puzzle_identifiers)


def _line_orders(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Random orders of nine lines in which those of a band stay together: int64 `[count, 9]`."""
    bands = generator.random((count, 3)).argsort(axis=1)
    within = generator.random((count, 3, 3)).argsort(axis=2)
    return (3 * bands[:, :, None] + within).reshape(count, 9)


def valid_sudokus(inputs: NDArray, answers: NDArray) -> NDArray[np.bool_]:
    """Whether answers are Sudokus that keep the clues.

    Args:
        inputs, answers: int `[N, 81]`, tokens.

    Returns:
        bool `[N]`.
    """
    keeps = ((inputs == answers) | (inputs == 1)).all(axis=1)
    grids = answers.reshape(-1, 9, 9)
    boxes = grids.reshape(-1, 3, 3, 3, 3).swapaxes(2, 3).reshape(-1, 9, 9)
    digits = np.arange(2, VOCABULARY)
    right = [(np.sort(units, axis=2) == digits).all(axis=(1, 2)) for units in (grids, grids.swapaxes(1, 2), boxes)]
    return keeps & right[0] & right[1] & right[2]
