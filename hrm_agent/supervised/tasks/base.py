"""The interface of puzzle tasks: examples, answers and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hrm_agent.supervised.losses import IGNORED_LABEL, SAME_WEIGHT

SPLITS = ("train", "validation", "test")
"""Of puzzles; the place of each is its code in the seeds they are drawn from."""
MOST_CHOICES = 2**15
"""Tokens times ids of a puzzle whose answer is one choice: the numbers that int16 holds."""


class Examples(NamedTuple):
    """N puzzles of L tokens.

    Attributes:
        inputs: int32 `[N, L]`, ids below `TaskSpec.input_ids`; of a grid in row-major order.
        labels: int32 `[N, L]`, ids below `TaskSpec.answer_ids`, or -100 where there is no label. Where an answer is
            one choice: int32 `[N, M]`, choices (see `TaskSpec.choices`), each once in a row; -100 fills a row up.
        puzzle_identifiers: int32 `[N]`, below `TaskSpec.num_puzzles`; 0 is "no puzzle in particular".
        weights: float32 `[N, M]`, the target probabilities of `labels` where an answer is one choice: rows sum to 1,
            0 beside -100; else None.
    """

    inputs: NDArray[np.int32]
    labels: NDArray[np.int32]
    puzzle_identifiers: NDArray[np.int32]
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: Any) -> Examples:
        """Some of the N puzzles (`len` counts puzzles, so tuple indexing would surprise)."""
        weights = None if self.weights is None else self.weights[index]
        return Examples(self.inputs[index], self.labels[index], self.puzzle_identifiers[index], weights)


class Answers(NamedTuple):
    """A model's answers to N puzzles after each of S segments.

    Attributes:
        tokens: int16 `[S, N, L]`, the most probable answer ids. Where an answer is one choice: int16 `[S, N, T]`, the
            T = min(10, L * answer ids) most probable choices, the most probable first.
        q_halt: float32 `[S, N]`, logit of "this answer is right".
        segments: int64 `[N]`, segments used: S, or fewer where the model halted; later rows of `tokens` repeat the
            answer at which it halted.
        q_continue: float32 `[S, N]`, HRM's logit of "continue"; None where the answers are not from a model.
        nats: float32 `[S, N, L]`, minus the logarithm of the label's probability; None where it was not asked for.
    """

    tokens: NDArray[np.int16]
    q_halt: NDArray[np.float32]
    segments: NDArray[np.int64]
    q_continue: NDArray[np.float32] | None = None
    nats: NDArray[np.float32] | None = None

    @property
    def last(self) -> NDArray[np.int16]:
        """int16 `[N, L]` or `[N, T]`, the final answers."""
        return self.tokens[-1]


@dataclass(frozen=True)
class TaskSpec:
    """Shape of a task's puzzles.

    Attributes:
        sequence_length: tokens L of a puzzle.
        input_ids, answer_ids: number of ids of inputs and of answers (equal in the published tasks).
        num_puzzles: number of puzzle identifiers, 0 included; 1: the task does not tell puzzles apart.
        grid: rows and columns, where the tokens are a grid.
        alphabet: of a text, its characters by id, or empty where ids are bytes; None: the tokens are no text.
        choices: 0: an answer is one id for every token. M > 0: an answer is one choice, a token and an id for it,
            under one distribution over all of them; the choice of id a for token i is the number
            `i * answer_ids + a`. M is the most choices of a puzzle that have a target probability.

    Raises:
        ValueError: choices that int16 cannot number, or more of them with a probability than there are.
    """

    sequence_length: int
    input_ids: int
    answer_ids: int
    num_puzzles: int = 1
    grid: tuple[int, int] | None = None
    choices: int = 0
    alphabet: str | None = None

    def __post_init__(self) -> None:
        count = self.sequence_length * self.answer_ids
        if self.choices and not 1 <= self.choices <= count <= MOST_CHOICES:
            raise ValueError(
                f"choices={self.choices} of {self.sequence_length} tokens x {self.answer_ids} answer ids: expected at "
                f"most {MOST_CHOICES:,} of these, and from 0 to all of them as choices; change the task's options"
            )

    @property
    def unit(self) -> str:
        """What a token is: `character` or `byte` of a text, else `token`."""
        return "token" if self.alphabet is None else "character" if self.alphabet else "byte"


Solve = Callable[[Examples], Answers]
"""Runs the model that is evaluated on any number of puzzles."""


class Say(Protocol):
    """Prints what an evaluation does, where that takes long."""

    def __call__(self, what: str, progress: str = "") -> None:
        """`what` is done from now on, or still, and is so far."""


def say_nothing(what: str, progress: str = "") -> None:
    """A `Say`."""


def say_games(say: Say, playing: str) -> Callable[[int], None]:
    """Say that games are played; what is returned says, after a move, how many of them have ended."""
    say(playing)
    return lambda ended: say(playing, f"{ended} ended")


class Task(ABC):
    """A source of labelled puzzles, and the scores of answers.

    Everything is a function of the arguments: a task holds data, but no position in them, so that a run resumes
    exactly from the state of its generator. Validation and test puzzles are never among those for training, nor are
    their images under the task's augmentations.
    """

    spec: TaskSpec
    by_probability: ClassVar[bool] = False
    """Whether models are scored by the probability of the labels: `nats`, `bits` (per character, say), `perplexity`."""
    things: ClassVar[str] = "puzzles"
    """What examples are called in messages."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles, augmented as the task's settings say."""

    @abstractmethod
    def examples(self, split: str, count: int) -> Examples:
        """The first `count` puzzles of a fixed set (`validation` or `test`), unaugmented.

        Raises:
            ValueError: there are fewer; the message says how many.
        """

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """Numbers per puzzle, each `[N]`; answers int `[N, L]`, or `[N, T]` where an answer is one choice.

        `exact` (bool): every labelled cell is right. `cells` (float): fraction of labelled cells that are right. A
        task may add its own, such as `valid`: right although another right answer is the label.

        Of one choice, all bool: `exact`: the most probable choice is among the best labels; `top_3`, `top_5`: one of
        the three or five most probable is.
        """
        if examples.weights is not None:
            return choice_scores(examples.labels, examples.weights, answers)
        return exact_and_cells(examples.labels, answers)

    def evaluate(self, solve: Solve, split: str, count: int, say: Say = say_nothing) -> dict[str, Any] | None:
        """The task's own evaluation (ARC's voting), JSON-able; None: `score` is enough. It says what takes long."""
        return None


def exact_and_cells(labels: NDArray, answers: NDArray) -> dict[str, NDArray]:
    """`exact` bool `[N]` and `cells` float64 `[N]` of labels and answers int `[N, L]`; see `Task.score`."""
    labelled = labels != IGNORED_LABEL
    right = (labels == answers) & labelled
    counts = labelled.sum(-1)
    return {"exact": right.sum(-1) == counts, "cells": right.sum(-1) / np.maximum(counts, 1)}


def choice_scores(labels: NDArray, weights: NDArray, answers: NDArray) -> dict[str, NDArray]:
    """`exact`, `top_3` and `top_5`, bool `[N]`, of labels, weights `[N, M]` and answers `[N, T]`; see `Task.score`."""
    best = (labels != IGNORED_LABEL) & (weights >= weights.max(-1, keepdims=True) - SAME_WEIGHT)
    right = ((answers[:, :, None] == labels[:, None]) & best[:, None]).any(-1)
    return {"exact": right[:, 0], "top_3": right[:, :3].any(-1), "top_5": right[:, :5].any(-1)}


def check_split(split: str) -> None:
    """Raises: ValueError unless `split` is one that is evaluated on."""
    if split not in SPLITS[1:]:
        raise ValueError(f"split={split!r}: expected validation or test")
