"""RMSNorm as the authors of HRM compute it, for every core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-5


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out: on a CPU, twice as fast as autograd's for small channels.

    The forward is the authors' arithmetic, operation for operation. Recursion amplifies a rounding error
    a thousandfold within a few segments: with `torch.rms_norm`, equally precise, results differ from theirs by 1e-3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + NORM_EPS)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # y = x s with ds/dx = -s^3 x / D, so the gradient is s (g - y mean(g y)).
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension, in float32; there is no weight."""
    normed: Tensor = _RMSNorm.apply(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    return normed.to(x.dtype)
