"""Settings of the configuration's group `cuda`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaConfig:
    """Options for a CUDA device; ignored on the CPU.

    Args:
        graphs: capture decisions and the gradients of PPO's minibatches in CUDA graphs, and replay them.
        bf16: matrix products of the core in bfloat16, in evaluations during training too; weights, optimizer, encoder,
            heads and states are float32, and saved agents run in float32.
        triton: decisions by a fused kernel (`hrm_agent.kernels.triton`), after a check that it agrees with the core.
    """

    graphs: bool = True
    bf16: bool = True
    triton: bool = False
