"""What computes a core on a GPU: matrix products in bfloat16, and one launch a segment by Triton. Experimental."""

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
"""How far the kernel may be from the float32 core, as a multiple of how far the core is that is all in bfloat16, its
latents too, as the kernel's are. For a segment of the paper's network it was 2.4 under Triton's interpreter, which cuts
numbers off where a GPU rounds them; a kernel that is wrong is some fifty times as far."""


class CUDACore(Backend):
    """A policy's segments; what comes out has the dtypes of what went in.

    Args:
        bf16: matrix products in bfloat16 (autocast: weights stay float32, so do residuals, norms and gradients).
        kernel: called where no gradient is wanted (`hrm_agent.recurrence.triton.SegmentKernel`); None: the core is.
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
        # Without the cache of cast weights, which a graph would read from memory that is gone, and which some versions
        # of torch get wrong beside `no_grad` (https://github.com/pytorch/pytorch/issues/112583).
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def weights_changed(self) -> None:
        """Copy the weights anew for the kernel: a replayed graph changes them without a trace."""
        if self.kernel is not None:
            self.kernel.invalidate()
            self.kernel.refresh()


def use_cuda(policy: Any, bf16: bool, triton: bool, say: Callable[[str], None]) -> CUDACore:
    """Have a policy's segments computed so, with the kernel where it is wanted, there, and in agreement.

    Args:
        policy: `hrm_agent.policies.policy.Policy`, on its device.
        say: is told in one line why the kernel is not used.
    """
    policy.backend = CUDACore(bf16, checked_kernel(policy.core, say) if triton else None)
    return policy.backend


def checked_kernel(core: Core, say: Callable[[str], None]) -> Any:
    """The Triton kernel of a core if it gives the core's numbers on fresh random data here; else None, and why."""
    try:
        from hrm_agent.recurrence.triton import SegmentKernel

        kernel = SegmentKernel(core)
        own, least = disagreement(core, kernel)
    except Exception as error:  # a compiler that fails on a machine of its own choosing may raise anything
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
    """The core with weights and latents in bfloat16; what comes out has the dtypes of what went in."""
    twin = copy.deepcopy(core).to(torch.bfloat16)

    def forward(x: Tensor, state: State) -> tuple[Tensor, State]:
        output, after = twin(x.bfloat16(), map_state(Tensor.bfloat16, state))
        return output.to(x.dtype), map_state(lambda new, old: new.to(old.dtype), after, state)

    return forward
