"""Runs compared bit for bit, and the place of a process among others."""

from __future__ import annotations

import json

import torch

from hrm_agent.parallel.processes import Processes
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


class Part(Processes):
    """One of several processes, as far as the division of work goes."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
