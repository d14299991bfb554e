"""Sets of Sudoku puzzles, made in order and cached on disk where that took long."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.files.writing import write_atomically
from hrm_agent.supervised.tasks.base import SPLITS
from hrm_agent.supervised.tasks.sudoku_rules import CELLS, GENERATOR, grid_splits, make_puzzles, solve_many

KEEP_FROM_SECONDS = 5.0
"""Seconds; a set that took longer to make is cached on disk."""
_CHUNK = 64
# Of a damaged archive numpy and zipfile raise all of these; MemoryError where its header asks for too large an array.
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_log = logging.getLogger(__name__)


class Puzzles(NamedTuple):
    """N puzzles: `clues` (0 where blank) and `solutions` uint8 `[N, 81]`, `guesses` int64 `[N]`."""

    clues: NDArray[np.uint8]
    solutions: NDArray[np.uint8]
    guesses: NDArray[np.int64]


@dataclass(frozen=True)
class Difficulty:
    """What puzzles to make: see `make_puzzles`; max_guesses -1 is no limit."""

    min_guesses: int
    max_guesses: int
    min_clues: int


def make(difficulty: Difficulty, split: str, seeds: NDArray[np.int64]) -> Puzzles:
    """A puzzle for each of int64 `[N]` seeds.

    Raises:
        ValueError: the generator found none so hard.
    """
    puzzles = _empty(len(seeds))
    made = make_puzzles(seeds, SPLITS.index(split), *asdict(difficulty).values(), *puzzles)
    if made < len(seeds):
        raise ValueError(
            f"min_guesses={difficulty.min_guesses}, max_guesses={difficulty.max_guesses}, "
            f"min_clues={difficulty.min_clues}: the generator found no such puzzle on 100 grids; give fewer guesses, a "
            "wider range, or fewer clues"
        )
    return puzzles


class PuzzleSet:
    """The puzzles of a stream of seeds; the first N are the same however many follow.

    Args:
        difficulty: of the puzzles.
        split: `train`, `validation` or `test`.
        seed: selects the stream.
        folder: of the cache; None: no cache.
    """

    def __init__(self, difficulty: Difficulty, split: str, seed: int, folder: Path | None) -> None:
        self.difficulty, self.split, self.seed, self.folder = difficulty, split, seed, folder
        self._made = _empty(0)

    def first(self, count: int) -> Puzzles:
        """The first `count` puzzles."""
        if len(self._made.clues) < count:
            self._made = self._read()
        if len(self._made.clues) < count:
            self._make(count)
        return Puzzles(self._made.clues[:count], self._made.solutions[:count], self._made.guesses[:count])

    @property
    def path(self) -> Path | None:
        """The file of this set."""
        if self.folder is None:
            return None
        key = json.dumps([GENERATOR, asdict(self.difficulty), self.split, self.seed], sort_keys=True)
        return self.folder / f"sudoku-{self.split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def _make(self, count: int) -> None:
        seeds = np.random.default_rng([self.seed, SPLITS.index(self.split)]).integers(2**62, size=count)
        parts, have = [self._made], len(self._made.clues)
        begun = time.monotonic()
        while have < count:
            parts.append(make(self.difficulty, self.split, seeds[have : min(have + _CHUNK, count)]))
            have += len(parts[-1].clues)
            if len(parts) == 2 and (expected := (time.monotonic() - begun) / _CHUNK * (count - have)) > 10:
                _log.warning("making %d Sudoku puzzles for %s takes about %.0f s", count, self.split, expected)
        self._made = Puzzles(
            np.concatenate([part.clues for part in parts]),
            np.concatenate([part.solutions for part in parts]),
            np.concatenate([part.guesses for part in parts]),
        )
        if time.monotonic() - begun > KEEP_FROM_SECONDS:
            self._keep()

    def _keep(self) -> None:
        """Write to the cache; if that fails, the set is made again the next time."""
        if self.path is None:
            return
        file = io.BytesIO()
        np.savez_compressed(file, **self._made._asdict())
        try:
            write_atomically(self.path, file.getvalue())
        except OSError as error:
            _log.warning("the Sudoku puzzles are not kept: %s", error)

    def _read(self) -> Puzzles:
        """The puzzles that an earlier process cached, if they are valid; else none."""
        if self.path is None or not self.path.is_file():
            return _empty(0)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                kept = Puzzles(file["clues"], file["solutions"], file["guesses"])
            if not self._holds_puzzles(kept):
                raise ValueError("it holds other puzzles")
        except _UNREADABLE as error:
            _log.warning("%s is passed over: %s", self.path, error)
            return _empty(0)
        return kept

    def _holds_puzzles(self, kept: Puzzles) -> bool:
        """Whether cached puzzles are those of this set, judged by their solutions."""
        count = len(kept.clues)
        expected = [((count, CELLS), np.uint8), ((count, CELLS), np.uint8), ((count,), np.int64)]
        if [(array.shape, array.dtype) for array in (kept.clues, kept.solutions, kept.guesses)] != expected:
            return False
        solutions, found, guesses = solve_many(kept.clues)
        most = self.difficulty.max_guesses
        return bool(
            (found == 1).all()
            and np.array_equal(solutions, kept.solutions)
            and np.array_equal(guesses, kept.guesses)
            and (guesses >= self.difficulty.min_guesses).all()
            and (most < 0 or (guesses <= most).all())
            and (grid_splits(solutions) == SPLITS.index(self.split)).all()
        )


def cache_folder() -> Path:
    """The cache folder: `hrm_agent` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrm_agent"


def _empty(count: int) -> Puzzles:
    clues = np.zeros((count, CELLS), np.uint8)
    return Puzzles(clues, clues.copy(), np.zeros(count, np.int64))
