"""Random numbers of levels, for the actions that are drawn in their episodes."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

DRAWN_AT_ONCE = 64


class LevelRNG:
    """Uniform numbers that depend on the level and on how many were drawn for it, never on the batch."""

    def __init__(self, seeds: NDArray[np.int64], stream: int = 0) -> None:
        self._generators = [np.random.default_rng([stream, int(seed)]) for seed in seeds]
        self._drawn = np.empty((0, len(seeds)))
        self._next = 0

    def draw(self) -> NDArray[np.float64]:
        """float64 `[N]` in [0, 1)."""
        if self._next == len(self._drawn):
            self._drawn = np.stack([g.random(DRAWN_AT_ONCE) for g in self._generators], 1)
            self._next = 0
        self._next += 1
        return self._drawn[self._next - 1]

    def keep(self, rows: NDArray[np.int64]) -> None:
        first = np.unique(rows, return_index=True)[1]
        again = np.ones(len(rows), bool)
        again[first] = False
        chosen = [self._generators[row] for row in rows]
        self._generators = [deepcopy(g) if twice else g for g, twice in zip(chosen, again, strict=True)]
        self._drawn = self._drawn[:, rows]
