"""Baseline: a gated transformer over the last steps, GTrXL (Parisotto et al. 2019, arXiv 1910.06764)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, linear, truncated_normal_
from hrm_agent.cores.flattened import FlatTokens, VectorReadout
from hrm_agent.names.values import Count, Depth, Width

OPEN = 2.0
"""Initial bias b_g of the gates: a layer starts close to the identity (section 3.2 of the paper)."""


class GTrXLState(NamedTuple):
    """What the last M steps left, the newest last.

    Attributes:
        memory: float[B, layers, M, 2 * width], keys and values of every layer.
        seen: float[B, M], 1 where there is such a step in this episode, else 0.
    """

    memory: Tensor
    seen: Tensor


class Gate(nn.Module):
    """The paper's GRU gate in place of a residual connection: from the stream `x` and a layer's output `y`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.from_y = linear(width, 3 * width)
        self.from_x = linear(width, 2 * width, bias=True)
        self.from_reset = linear(width, width)
        with torch.no_grad():
            self.from_x.bias[width:] = -OPEN

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        reset_y, update_y, new_y = self.from_y(y).chunk(3, dim=-1)
        reset_x, update_x = self.from_x(x).chunk(2, dim=-1)
        new = torch.tanh(new_y + self.from_reset(torch.sigmoid(reset_y + reset_x) * x))
        return torch.lerp(x, new, torch.sigmoid(update_y + update_x))


class GatedLayer(nn.Module):
    """Attention of the newest step to itself and the remembered ones, then two layers on it; both gated.

    Normalisation comes first and outputs pass a ReLU before the gate, as published. Positions are relative: every age
    has a learned vector of each head that is added to the keys.
    """

    def __init__(self, width: int, heads: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.ages = nn.Parameter(truncated_normal_(torch.empty(heads, memory + 1, width // heads), 0.1))
        self.inner, self.outer = linear(width, 2 * width, bias=True), linear(2 * width, width, bias=True)
        self.after_attention, self.after_inner = Gate(width), Gate(width)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """`x` float[B, width], `memory` float[B, M, 2 * width], `seen` bool[B, M] -> `x` again, and what to remember
        of this step, float[B, 2 * width]."""
        query, own = self.qkv(self.before_attention(x)).split([x.shape[1], 2 * x.shape[1]], dim=-1)
        query = query.unflatten(1, (self.heads, 1, -1)) * (x.shape[1] // self.heads) ** -0.5
        keys, values = memory.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, M, size] each
        key, value = own.unflatten(1, (2, self.heads, 1, -1)).unbind(1)
        past = (query @ keys.transpose(2, 3)).masked_fill(~seen[:, None, None], -torch.inf)
        scores = torch.cat([past, query @ key.transpose(2, 3)], dim=-1) + query @ self.ages.transpose(1, 2)
        old, new = scores.softmax(-1).split([memory.shape[1], 1], dim=-1)
        attended = (old @ values + new * value).flatten(1)
        x = self.after_attention(x, F.relu(self.out(attended)))
        return self.after_inner(x, F.relu(self.outer(F.relu(self.inner(self.before_inner(x)))))), own


class GTrXL(Core):
    """Reads `silu(W [x_1 ... x_L] + b)` of this step and of the last `memory_steps` through gated layers.

    A step's keys and values are kept as they were computed, so a decision costs one step however long the memory. In
    training the gradient reaches them within a window, as it does in the paper's segments. A segment is a step of the
    memory: leave `segments` at 1. Every output token is the last layer's vector, read by two layers.

    Args:
        hidden_size, length, grid: see `Core`; the grid is ignored, the number of tokens fixes the weights.
        width: channels of the layers.
        layers: their number.
        num_heads: heads of attention.
        memory_steps: M, steps remembered.
        inner_size: inner channels of the output network; twice the channels where it is None.

    Raises:
        ValueError: a count below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        width: Width = 128,
        layers: Depth = 2,
        num_heads: Depth = 4,
        memory_steps: Count = 32,
        inner_size: Count | None = None,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        heads, steps = check_at_least("num_heads", num_heads, 1), check_at_least("memory_steps", memory_steps, 1)
        if check_at_least("width", width, 1) % heads:
            raise ValueError(f"width={width} does not divide into num_heads={heads}; make it a multiple")
        inner = check_at_least("inner_size", 2 * hidden_size if inner_size is None else inner_size, 1)
        self.width, self.steps = width, steps
        self.flat = FlatTokens(length, hidden_size, width)
        count = check_at_least("layers", layers, 1)
        self.layers = nn.ModuleList(GatedLayer(width, heads, steps) for _ in range(count))
        self.answer = VectorReadout(width, inner, hidden_size, length)

    def initial_state(self, batch_size: int) -> GTrXLState:
        """Nothing is remembered, so nothing of the memory's values is read: zeros."""
        zeros = self.flat.linear.weight.detach().new_zeros
        return GTrXLState(
            zeros(batch_size, len(self.layers), self.steps, 2 * self.width), zeros(batch_size, self.steps)
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, GTrXLState]:
        memory, seen = state
        h, kept = self.flat(x), []
        for layer, past in zip(self.layers, memory.unbind(1), strict=True):
            h, own = layer(h, past, seen > 0)
            kept.append(own)
        memory = torch.cat([memory[:, :, 1:], torch.stack(kept, dim=1)[:, :, None]], dim=2)
        return self.answer(h), GTrXLState(memory, F.pad(seen[:, 1:], (0, 1), value=1.0))
