"""The GPU backend: matrix products in bfloat16, and one Triton launch per segment. Experimental."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hrm_agent.cores import Core, State, map_state
from hrm_agent.recurrence.backends import Backend

AGREEMENT = 4.0
"""Tolerance of the kernel's error against the float32 core, as a multiple of the error of the core with everything in
bfloat16, latents included, as in the kernel. For a segment of the paper's network the ratio was 2.4 under Triton's
interpreter, which truncates where a GPU rounds; for a wrong kernel it is some fifty."""


class CUDACore(Backend):
    """Computes a policy's segments; outputs have the dtypes of the inputs.

    Args:
        bf16: matrix products in bfloat16 (autocast: weights stay float32, so do residuals, norms and gradients).
        kernel: used where no gradient is needed (`hrm_agent.recurrence.triton.SegmentKernel`); None: the core is used.
    """

    outer = True

    def __init__(self, bf16: bool, kernel: Any = None) -> None:
        super().__init__("plain")
        self.bf16, self.kernel = bf16, kernel

    def run_segments(self, core: Core, tokens: Tensor, latent: State, segments: int) -> tuple[Tensor, State]:
        if self.kernel is not None and not torch.is_grad_enabled():
            fast: tuple[Tensor, State] = self.kernel(tokens, latent, segments)
            return fast
        output = tokens
        for _ in range(segments):
            with self._precision(tokens.device):
                output, after = core(tokens, latent)
            output = output.to(tokens.dtype)
            latent = map_state(lambda new, old: new.to(old.dtype), after, latent)
        return output, latent

    def _precision(self, device: torch.device) -> AbstractContextManager:
        if not self.bf16:
            return nullcontext()
        # Without the cache of cast weights, whose memory may be freed before a graph reads it, and which some versions
        # of torch get wrong with `no_grad` (https://github.com/pytorch/pytorch/issues/112583).
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def weights_changed(self) -> None:
        """Copy the weights to the kernel again: a replayed graph changes them without raising their version."""
        if self.kernel is not None:
            self.kernel.invalidate()
            self.kernel.refresh()


def use_cuda(policy: Any, bf16: bool, triton: bool, say: Callable[[str], None]) -> CUDACore:
    """Set this backend, with the kernel if it is requested, available and agrees with the core.

    Args:
        policy: `hrm_agent.policies.policy.Policy`, on its device.
        say: called with one line where the kernel is not used, which says why.
    """
    if triton and not bf16:
        say("cuda.triton: not used (its products are in bfloat16, which cuda.bf16=false excludes)")
    policy.backend = CUDACore(bf16, checked_kernel(policy.core, say) if triton and bf16 else None)
    return policy.backend


def checked_kernel(core: Core, say: Callable[[str], None]) -> Any:
    """The Triton kernel of a core if it agrees with the core on random data here; else None, after saying why."""
    try:
        from hrm_agent.recurrence.triton import SegmentKernel

        kernel = SegmentKernel(core)
        own, least = disagreement(core, kernel)
    except Exception as error:  # a compiler may raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(f"cuda.triton: not used ({lines[0][:160]})")
        return None
    if not own <= AGREEMENT * least:
        say(f"cuda.triton: not used (its error is {own:.2g}, where bfloat16 costs {least:.2g})")
        return None
    return kernel


@torch.no_grad()
def disagreement(core: Core, kernel: Callable[[Tensor, State], tuple[Tensor, State]]) -> tuple[float, float]:
    """Relative errors of one segment of a kernel and of the core all in bfloat16, against the core in float32."""
    device = next(core.parameters()).device
    x = torch.randn(4, core.length, core.hidden_size, device=device)
    state = map_state(lambda z: z + torch.randn(z.shape, device=device), core.initial_state(4))
    exact, _ = core(x, state)
    plain, _ = all_in_bf16(core)(x, state)
    fused, _ = kernel(x, state)
    fused_error, plain_error = (float((y - exact).norm() / exact.norm()) for y in (fused, plain))
    return fused_error, plain_error


def all_in_bf16(core: Core) -> Callable[[Tensor, State], tuple[Tensor, State]]:
    """The core with weights and latents in bfloat16; outputs have the dtypes of the inputs."""
    twin = copy.deepcopy(core).to(torch.bfloat16)

    def forward(x: Tensor, state: State) -> tuple[Tensor, State]:
        output, after = twin(x.bfloat16(), map_state(Tensor.bfloat16, state))
        return output.to(x.dtype), map_state(lambda new, old: new.to(old.dtype), after, state)

    return forward
