"""Switches of the configuration's group `cuda`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaConfig:
    """What is switched on where `device` is a CUDA device; the CPU looks at none of it.

    Args:
        graphs: decisions and PPO's minibatch steps are captured in CUDA graphs, and replayed.
        bf16: matrix products of the core in bfloat16, in evaluations during training too; weights, optimizer, encoder,
            heads and states stay float32, and what is saved is played in float32.
        halves: the environments are stepped in two halves, one while the GPU thinks about the other (PPO).
        triton: decisions by `hrm_agent.kernels.triton.segment`, once it has been seen to agree with the core.
    """

    graphs: bool = True
    bf16: bool = True
    halves: bool = True
    triton: bool = False
