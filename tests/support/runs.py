"""Comparison of two runs, bit for bit."""

from __future__ import annotations

import json

import torch

from hrm_agent.tensors.files import load_tensors
from hrm_agent.training.trainer import Trainer


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds: weights, optimizer, environment, observation, carry and random streams."""
    tensors, metadata = load_tensors(trainer.save_checkpoint())
    metadata.pop("seconds")
    tensors["metadata"] = torch.tensor(list(json.dumps(metadata, sort_keys=True).encode()), dtype=torch.uint8)
    return tensors


def assert_equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []
