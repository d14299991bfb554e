"""Settings of the configuration's group `cuda`."""

from __future__ import annotations

from dataclasses import dataclass

from hrm_agent.names.values import check_fields


@dataclass(frozen=True)
class CudaConfig:
    """Options for a CUDA device; ignored on the CPU.

    `bf16` holds in evaluations during training too; what is saved is played in float32.
    """

    graphs: bool = True  # decisions and the gradients of PPO's minibatches are captured in CUDA graphs, and replayed
    bf16: bool = True  # matrix products of the core; weights, optimizer, encoder, heads and states stay float32
    triton: bool = False  # decisions by a fused kernel, once it has been seen to agree with the core

    def __post_init__(self) -> None:
        check_fields(self, "cuda")
