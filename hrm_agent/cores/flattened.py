"""For cores with one memory vector: an observation as a vector that knows its positions, and the way back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import linear
from hrm_agent.cores.norm import rms_norm


class FlatTokens(nn.Module):
    """`silu(W [x_1 ... x_L] + b)`: every token has weights of its own, so the vector knows what stands where.

    Args:
        length, hidden_size: tokens L and their channels D.
        size: of the vector.
    """

    def __init__(self, length: int, hidden_size: int, size: int) -> None:
        super().__init__()
        self.linear = linear(length * hidden_size, size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, L, D] -> float[B, size]."""
        return F.silu(self.linear(x.flatten(1)))


class VectorReadout(nn.Module):
    """`norm(W_out silu(W h + b))` of a vector, the same for every token: whichever is read, it is the vector's.

    Args:
        size: of the vector.
        inner_size: inner channels.
        hidden_size, length: channels D and number L of the output tokens.
    """

    def __init__(self, size: int, inner_size: int, hidden_size: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.inner = linear(size, inner_size, bias=True)
        self.out = linear(inner_size, hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        """float[B, size] -> float[B, L, D]."""
        return rms_norm(self.out(F.silu(self.inner(h))))[:, None].expand(-1, self.length, -1)
