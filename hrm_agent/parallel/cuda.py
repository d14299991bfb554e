"""Switches of the configuration's group `cuda`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaConfig:
    """What is switched on where `device` is a CUDA device; ignored on the CPU.

    Args:
        graphs: decisions and the gradients of PPO's minibatches are captured in CUDA graphs, and replayed.
        bf16: matrix products of the core in bfloat16, in evaluations during training too; weights, optimizer, encoder,
            heads and states stay float32, and what is saved is played in float32.
        triton: decisions by a fused kernel (`hrm_agent.kernels.triton`), once it has been seen to agree with the core.
    """

    graphs: bool = True
    bf16: bool = True
    triton: bool = False
