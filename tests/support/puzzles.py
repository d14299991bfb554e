"""A tiny supervised task and models for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hrm_agent.supervised import ModelConfig, PuzzleModel
from hrm_agent.supervised.files import build_model
from hrm_agent.supervised.tasks.base import Examples, Task, TaskSpec

SPEC = TaskSpec(sequence_length=6, input_ids=5, answer_ids=5, num_puzzles=4, grid=(2, 3))
TRM = {"layers": 1, "H_cycles": 1, "L_cycles": 1, "mixing": "conv", "inner_size": 8, "cycle_gradient": "all"}
HRM = {"H_layers": 1, "L_layers": 1, "H_cycles": 1, "L_cycles": 1, "mixing": "conv", "inner_size": 8}


class Copying(Task):
    """The answer is the input, but for token 0, which is not asked for."""

    spec = SPEC

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        inputs = generator.integers(0, 5, (count, 6), dtype=np.int32)
        labels = inputs.copy()
        labels[:, 0] = -100
        return Examples(inputs, labels, generator.integers(0, 4, count, dtype=np.int32))

    def examples(self, split: str, count: int) -> Examples:
        return self.draw(np.random.default_rng(len(split)), count)


def make_model(core: str = "trm", puzzles: int = 8, seed: int = 0, size: int = 8, **options: Any) -> PuzzleModel:
    torch.manual_seed(seed)
    own = {**(HRM if core == "hrm" else TRM), **options}
    model = build_model(ModelConfig(core, own, size, puzzles, slots=1 if puzzles else None), SPEC)
    with torch.no_grad():  # both are zero at first, and then nothing depends on them
        model.halting_head.weight.normal_()
        model.halting_head.bias.zero_()
        if model.puzzles is not None:
            model.puzzles.weight.normal_()
    return model
