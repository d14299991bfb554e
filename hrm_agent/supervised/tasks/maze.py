"""Shortest paths through mazes of `hrm_envs`, in the tokens of the published Maze-Hard data."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hrm_agent.cores.base import check_at_least
from hrm_agent.names.values import CountOrNone, EpisodesOrNone, Share
from hrm_agent.supervised.tasks.base import SPLITS, Examples, Task, TaskSpec, check_split
from hrm_agent.supervised.tasks.checks import check_flag
from hrm_agent.supervised.tasks.maze_rules import (
    NOT_UNIQUE,
    SHORT,
    VOCABULARY,
    build_family,
    dihedral_indices,
    draw_mazes,
    hide_border,
    valid_paths,
)
from hrm_envs.config import MAX_SIDE, MazeConfig

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]

TRIES = 20_000
"""Levels drawn for one puzzle before its settings are refused."""
_SEEDS = 2**62


class MazeTask(Task):
    """Mark a shortest path from the start to the goal of a maze.

    A maze of `rows x cols` cells is a grid of `(2 * rows + 1) x (2 * cols + 1)` tokens: 0 padding (does not occur),
    1 wall `#`, 2 free, 3 start `S`, 4 goal `G`, 5 path `o`. The label is the maze with the positions of a shortest
    path between start and goal as 5; among several, the level's seed picks one, each equally likely.

    Puzzle i of validation and of test is a function of i and of the options that shape mazes, whatever `seed`. Which
    of the three sets a maze may be in follows from a hash that all its dihedral images share (train 6, validation 1,
    test 1 of 8), so that no set holds a maze of another, nor its image, however many are drawn.

    Args:
        rows, cols: cells of a maze.
        layout: `braid`, `scatter` or `four_rooms`, see `hrm_envs.MazeConfig`.
        loops: fraction of a braid maze's dead ends that are opened; 0 leaves one path between any two positions.
        walls: of a scatter maze; None: 5 of every 24 edges.
        min_path: moves of the shortest path at least; levels with a shorter one are drawn again.
        unique: only mazes with exactly one shortest path.
        train_puzzles: mazes in the training set, which `seed` selects; 0: fresh ones without end.
        augment: training puzzles are shown as one of their 8 dihedral images (4 where `rows != cols`).
        label_border: labels on the outer ring, as published. A model with `crop=1` cannot answer there and needs false.
        seed: selects the training set; plays no part where that has no end.

    Raises:
        ValueError: an option is out of range, or 20,000 levels in a row did not meet `min_path` and `unique`.
    """

    def __init__(
        self,
        *,
        rows: Side = 9,
        cols: Side = 9,
        layout: str = "braid",
        loops: Share = 0.0,
        walls: CountOrNone | None = None,
        min_path: CountOrNone = 0,
        unique: bool = False,
        train_puzzles: EpisodesOrNone = 0,
        augment: bool = True,
        label_border: bool = True,
        seed: int = 0,
    ) -> None:
        self.config = MazeConfig(rows=rows, cols=cols, layout=layout, loops=loops, walls=walls, doors=0)
        self.min_path = check_at_least("min_path", min_path, 0)
        self.unique = check_flag("unique", unique)
        self.train_puzzles = check_at_least("train_puzzles", train_puzzles, 0)
        self.augment = check_flag("augment", augment)
        self.label_border = check_flag("label_border", label_border)
        self.seed = check_at_least("seed", seed, 0)
        height, width = self.config.height, self.config.width
        self.spec = TaskSpec(height * width, VOCABULARY, VOCABULARY, grid=(height, width))
        self._family = build_family(self.config)
        self._images = dihedral_indices(height, width)
        self._sets: dict[str, Examples] = {}
        for split in SPLITS:
            self._mazes(split, np.zeros(1, np.int64))  # a setting that cannot be met is refused here

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training puzzles; see `Task.draw`."""
        if self.train_puzzles:
            drawn = self._fixed("train", self.train_puzzles).rows(generator.integers(self.train_puzzles, size=count))
        else:
            drawn = self._mazes("train", generator.integers(_SEEDS, size=count))
        return augment_grids(drawn, self._images, generator) if self.augment else drawn

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` puzzles of `validation` or `test`; there is no last one."""
        check_split(split)
        return self._fixed(split, count).rows(slice(count))

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """`exact` and `cells` of `Task.score`, and `valid` (bool `[N]`).

        Valid: the positions answered as path are, with start and goal, exactly those of some shortest path.
        """
        valid = valid_paths(examples.inputs, np.asarray(answers), self.config.width)
        return {**super().score(examples, answers), "valid": valid}

    def _fixed(self, split: str, count: int) -> Examples:
        """At least the first `count` puzzles of a fixed set, drawn once."""
        if len(self._sets.get(split, ())) < count:
            if split == "train":
                seeds = np.random.default_rng([self.seed]).integers(_SEEDS, size=count)
            else:
                seeds = np.arange(count)
            self._sets[split] = self._mazes(split, seeds)
        return self._sets[split]

    def _mazes(self, split: str, seeds: NDArray[np.int64]) -> Examples:
        """One maze of the split for each of int64 `[N]` seeds."""
        inputs = np.empty((len(seeds), self.spec.sequence_length), np.int32)
        labels = np.empty_like(inputs)
        rejected = np.zeros(3, np.int64)
        options = (SPLITS.index(split), self.min_path, self.unique, TRIES)
        if draw_mazes(self._family, seeds, *options, inputs, labels, rejected) < len(seeds):
            raise ValueError(self._why_none(int(np.flatnonzero(rejected)[-1])))
        if not self.label_border:
            hide_border(labels, self.config.height, self.config.width)
        return Examples(inputs, labels, np.zeros(len(seeds), np.int32))

    def _why_none(self, reason: int) -> str:
        """The message; `reason` is the last of the checks, in their order, that any level came to."""
        mazes = f"{TRIES} {self.config.layout} mazes of {self.config.rows}x{self.config.cols} cells"
        if reason == SHORT:
            return f"min_path={self.min_path} was not met by any of {mazes}; give a smaller one, or larger mazes"
        if reason == NOT_UNIQUE:
            return f"unique=True was not met by any of {mazes}; use fewer loops, more walls, or unique=false"
        return f"{mazes} held too few different ones to keep training, validation and test apart; give larger mazes"


def augment_grids(examples: Examples, images: NDArray[np.int32], generator: np.random.Generator) -> Examples:
    """Each puzzle as a random one of its images int32 `[I, L]` (`dihedral_indices`), inputs and labels alike."""
    index = images[generator.integers(len(images), size=len(examples))]
    rows = np.arange(len(examples))[:, None]
    return Examples(examples.inputs[rows, index], examples.labels[rows, index], examples.puzzle_identifiers)
