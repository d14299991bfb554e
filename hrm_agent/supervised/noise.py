"""Gaussian noise on the latents of a puzzle model, by seed, puzzle and run alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.cores import State
from hrm_agent.tensors import trees


class Noise:
    """Noise for B rows, each a run of a puzzle.

    A row has a generator of its own, so its noise does not depend on the rows beside it, on how many segments those
    run, or on threads.

    Args:
        scale: standard deviation. Latents leave a segment with unit variance, so 1 is as much noise as signal.
        seed: of all noise.
        puzzles, runs: what each row is; both of length B.
    """

    def __init__(self, scale: float, seed: int, puzzles: Sequence[int], runs: Sequence[int]) -> None:
        self.scale = scale
        pairs = zip(puzzles, runs, strict=True)
        self.generators = [np.random.default_rng([seed, int(puzzle), int(run)]) for puzzle, run in pairs]

    def rows(self, index: slice) -> Noise:
        """The noise of some rows; they share their generators with this one."""
        some = Noise(self.scale, 0, (), ())
        some.generators = self.generators[index]
        return some

    def added_to(self, state: State, rows: NDArray[np.int64]) -> State:
        """A state with the next noise of some rows, `[len(rows), ...]`; integers and masks are left as they are."""

        def add(latent: Tensor) -> Tensor:
            if not latent.is_floating_point():
                return latent
            noise = np.empty((len(latent), latent[:1].numel()), np.float32)
            for place, row in zip(noise, rows, strict=True):
                self.generators[row].standard_normal(out=place, dtype=np.float32)
            return latent + self.scale * torch.from_numpy(noise).view(latent.shape).to(latent)

        noisy: Any = trees.map_tensors(add, state)
        return noisy
