"""The next move of the Towers of Hanoi, from any state to any other."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hrm_agent.names.values import EpisodesOrNone
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.base import (
    SPLITS,
    Examples,
    Say,
    Solve,
    Task,
    TaskSpec,
    check_split,
    say_games,
    say_nothing,
)
from hrm_agent.supervised.tasks.hanoi_play import describe, report_games, report_states
from hrm_envs.hanoi_rules import FEW_DISKS, NO_DISK, PEGS, legal_moves, optimal_moves, split_of

MOST_DISKS = 20
"""A game of more takes a million moves."""
Disks = Annotated[int, Meta(ge=1, le=MOST_DISKS)]

INPUT_IDS = 1 + PEGS * PEGS
BLOCK = 256
"""Validation or test puzzles that one generator draws."""


class HanoiTask(Task):
    """Give an optimal next move from one state of the disks to another.

    A token is a disk, the largest first: 1 + 3 * its peg + the peg where it is to go, or 0 for padding. The answer is
    one choice, a disk and the peg it moves to. Start and goal are any two of the 3^n states of n disks, each equally
    likely, not only towers, so that there are puzzles enough, and one or two moves are optimal; the labels are these,
    with equal weights, from the exact rule of `hrm_envs.hanoi_rules`.

    No token says which disk it is, nor how many there are: where there are fewer than `disks`, they lie at a random
    place among padding on both sides.

    Which set a pair is in follows from a hash of the number of disks, start and goal that does not depend on how the
    pegs are called (train 6, validation 1, test 1 of 8), so that no set holds a pair of another, nor its image.
    Training pairs are drawn uniformly, under all six names of the pegs alike. Of 1 and 2 disks there are 6 and 72
    pairs, too few to be divided: they are in all sets.

    Puzzle i of validation and of test is a function of i and the options, whatever `seed`.

    Args:
        disks: tokens of a puzzle, the most disks that it can have.
        min_disks: the fewest disks.
        train_disks: the most disks in training; None: `disks`.
        test_disks: disks of validation and test puzzles; None: every number from `min_disks` equally often, up to
            `train_disks` in validation, so that nothing is chosen on more disks than training has, and up to `disks` in
            the test.
        solutions: games that are played to the end for every number of disks when a model is tested. A game of n disks
            takes about 2^n / 2 moves.
        seed: plays no part.

    Raises:
        ValueError: numbers of disks that are out of order.
    """

    def __init__(
        self,
        *,
        disks: Disks = 9,
        min_disks: Disks = 3,
        train_disks: Disks | None = None,
        test_disks: Disks | None = None,
        solutions: EpisodesOrNone = 50,
        seed: int = 0,
    ) -> None:
        self.disks, self.min_disks, self.solutions = disks, min_disks, solutions
        self.train_disks = disks if train_disks is None else train_disks
        self.tested = range(min_disks, disks + 1) if test_disks is None else range(test_disks, test_disks + 1)
        self.validated = range(min_disks, self.train_disks + 1) if test_disks is None else self.tested
        if min_disks > disks:
            raise ValueError(f"min_disks={min_disks} is above disks={disks}; give fewer, or more disks")
        for name, value, least in (("train_disks", train_disks, min_disks), ("test_disks", test_disks, 1)):
            if value is not None and not least <= value <= disks:
                raise ValueError(f"{name}={value}: expected a number from {least} to disks={disks}")
        self.spec = TaskSpec(disks, INPUT_IDS, PEGS, grid=(disks, 1), choices=2)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles; see `Task.draw`."""
        numbers = generator.integers(self.min_disks, self.train_disks + 1, count)
        return self._examples(generator, "train", numbers)

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` puzzles of `validation` or `test`; there is no last one."""
        check_split(split)
        whole = -(-count // BLOCK) * BLOCK  # so that the first puzzles are the same however many there are
        numbers = np.resize(self.tested if split == "test" else self.validated, whole)
        blocks = [
            self._examples(np.random.default_rng([SPLITS.index(split), at]), split, numbers[at : at + BLOCK])
            for at in range(0, count, BLOCK)
        ]
        inputs, labels, weights = (np.concatenate([block[i] for block in blocks]) for i in (0, 1, 3))
        return Examples(inputs, labels, np.zeros(whole, np.int32), weights).rows(slice(count))

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """The scores of one choice (`Task.score`), and `legal` (bool `[N]`): the most probable one is a legal move."""
        pegs, _ = read_tokens(examples.inputs)
        disk, to = np.divmod(np.asarray(answers)[:, 0].astype(np.int64), PEGS)
        return {**super().score(examples, answers), "legal": legal_moves(pegs, disk, to)}

    def evaluate(self, solve: Solve, split: str, count: int, say: Say = say_nothing) -> dict[str, Any]:
        """Scores by number of disks, of single states and of whole games (`report_states`, `report_games`)."""
        examples = self.examples(split, count)
        scores = self.score(examples, solve(examples).last)
        numbers = (examples.inputs > 0).sum(1)
        by_disks: dict[str, Any] = {}
        for number in np.unique(numbers).tolist():
            rows = numbers == number
            pegs, goals = read_tokens(examples.inputs[rows])
            report = report_states({name: values[rows] for name, values in scores.items()}, pegs, goals)
            if self.solutions:
                begun = pegs[: self.solutions], goals[: self.solutions]
                ended = say_games(say, f"playing {len(begun[0])} games of {number} disks")
                report |= report_games(partial(choose_moves, solve), *begun, 1 - report["exact"], ended)
            by_disks[str(number)] = report
        return {"by_disks": by_disks, **{f"{number} disks": describe(report) for number, report in by_disks.items()}}

    def _examples(self, generator: np.random.Generator, split: str, numbers: NDArray[np.int64]) -> Examples:
        """Puzzles of a split with given numbers of disks, int64 `[N]`, somewhere among padding."""
        pegs, goals = self._pairs(generator, split, numbers)
        behind = generator.integers(0, self.disks - numbers + 1)
        return write_examples(*(shifted(side, behind) for side in (pegs, goals)))

    def _pairs(
        self, generator: np.random.Generator, split: str, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts and goals of a split, int64 `[N, L]` with `NO_DISK` in front."""
        sides = np.full((2, len(numbers), self.disks), NO_DISK)
        missing = np.arange(len(numbers))
        while len(missing):
            drawn = generator.integers(0, PEGS, (2, len(missing), self.disks))
            drawn[:, np.arange(self.disks) < self.disks - numbers[missing, None]] = NO_DISK
            sides[:, missing] = drawn
            fits = (split_of(*drawn) == SPLITS.index(split)) | (numbers[missing] <= FEW_DISKS)
            missing = missing[~fits | (drawn[0] == drawn[1]).all(1)]
        return sides[0], sides[1]


def shifted(pegs: NDArray[np.int64], behind: NDArray[np.int64]) -> NDArray[np.int64]:
    """States `[N, L]` with the first `behind` `[N]` columns, all `NO_DISK`, moved to the end."""
    columns = (np.arange(pegs.shape[1]) + behind[:, None]) % pegs.shape[1]
    return np.take_along_axis(pegs, columns, 1)


def write_examples(pegs: NDArray[np.int64], goals: NDArray[np.int64]) -> Examples:
    """Puzzles with their labels, of starts and goals int64 `[N, L]` with `NO_DISK` in front and behind."""
    inputs = tokens(pegs, goals)
    best = optimal_moves(pegs, goals)
    labels = np.where(best.disk >= 0, best.disk * PEGS + best.to, IGNORED_LABEL).astype(np.int32)
    there = labels != IGNORED_LABEL
    weights = (there / np.maximum(there.sum(1, keepdims=True), 1)).astype(np.float32)
    return Examples(inputs, labels, np.zeros(len(inputs), np.int32), weights)


def tokens(pegs: NDArray[np.int64], goals: NDArray[np.int64]) -> NDArray[np.int32]:
    """The inputs int32 `[N, L]` of starts and goals."""
    return np.where(pegs == NO_DISK, 0, 1 + PEGS * pegs + goals).astype(np.int32)


def read_tokens(inputs: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and goals int64 `[N, L]` of tokens; `NO_DISK` where there is padding."""
    pegs, goals = np.divmod(inputs.astype(np.int64) - 1, PEGS)
    return np.where(inputs == 0, NO_DISK, pegs), np.where(inputs == 0, NO_DISK, goals)


def choose_moves(
    solve: Solve, pegs: NDArray[np.int64], goals: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The most probable move of each state, legal or not: disks (columns) and pegs, each int64 `[N]`."""
    inputs = tokens(pegs, goals)
    chosen = solve(Examples(inputs, inputs, inputs[:, 0] * 0)).last[:, 0].astype(np.int64)  # labels are not looked at
    disk, to = np.divmod(chosen, PEGS)
    return disk, to
