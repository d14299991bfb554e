"""Whether the state of a supervised run's training in a checkpoint is one that a run can have saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.tensors.saved import Total, check_range, check_tensors


class LearnerMetadata(Struct):
    """The JSON part of `DeepSupervision`: steps, puzzles begun, and numpy's state of the generator."""

    steps: Total
    seen: Total
    generator: dict[str, Any]


class RunMetadata(Struct):
    """The JSON part of a run's checkpoint."""

    learner: dict[str, Any]
    best: float
    validation: dict[str, Any]
    sums: dict[str, list[float]]
    text: str = ""


def check_bits(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Check a saved state of a generator of this kind; the generator is not changed.

    Raises:
        ValueError: no such generator can be in this state.
    """
    probe = type(generator.bit_generator)(0)
    try:
        probe.state = state
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"generator: no {type(probe).__name__} can be in this state ({error!r})") from None
    if probe.state != state:
        raise ValueError(f"generator: no {type(probe).__name__} can be in this state")


def check_batch(batch: Mapping[str, Tensor], spec: TaskSpec, rows: int) -> None:
    """Check puzzles that are being worked on: ids that a model of the task has embeddings and answers for.

    Args:
        batch: `inputs`, `labels`, `puzzle_identifiers` and, where an answer is one choice, `weights`; or nothing before
            the first step.

    Raises:
        ValueError: another dtype or shape, or an id out of range.
    """
    if not batch:
        return
    tokens = torch.empty(rows, spec.sequence_length, dtype=torch.int32, device="meta")
    labels, last = tokens, spec.answer_ids - 1
    if spec.choices:
        labels = torch.empty(rows, spec.choices, dtype=torch.int32, device="meta")
        last = spec.sequence_length * spec.answer_ids - 1
    expected = {"inputs": tokens, "labels": labels, "puzzle_identifiers": tokens[:, 0]}
    if spec.choices:
        expected["weights"] = torch.empty(rows, spec.choices, device="meta")
    check_tensors("batch", batch, expected)
    check_range("batch inputs", batch["inputs"], 0, spec.input_ids - 1)
    labels = batch["labels"]
    check_range("batch labels", labels[labels != IGNORED_LABEL], 0, last)
    check_range("batch puzzle_identifiers", batch["puzzle_identifiers"], 0, spec.num_puzzles - 1)
    if spec.choices:
        check_range("batch weights", batch["weights"], 0, 1)
