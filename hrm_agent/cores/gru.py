"""Baseline: a GRU over the pooled or flattened tokens, with one memory vector for the whole observation."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, check_choice, initial_latent, linear
from hrm_agent.cores.flattened import FlatTokens
from hrm_agent.cores.norm import rms_norm
from hrm_agent.names.values import Count, one_of

POOLINGS = ("mean_max", "flatten")


class GRUState(NamedTuple):
    """One vector float[B, memory_size]."""

    h: Tensor


class GRUCore(Core):
    """A GRU cell reads the tokens as one vector; one update per segment.

    With `pooling=mean_max` that vector is their mean and maximum, which does not know positions, and the memory is
    added to every token: `y = norm(x + W_out silu(W_x x + W_h h))`. With `flatten` it is `silu(W [x_1 ... x_L] + b)`,
    which knows them, and the memory alone is read: `y = norm(W_out silu(W_h h))`, the same for every token.

    Args:
        hidden_size, length, grid: see `Core`; the grid is ignored, and with `mean_max` the length.
        memory_size: size of the memory vector; the channels where it is None.
        inner_size: inner channels of the output network; twice the channels where it is None.
        pooling: `mean_max` or `flatten`, see above.

    Raises:
        ValueError: a size below 1, or an unknown choice.
    """

    h_init: Tensor

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        memory_size: Count | None = None,
        inner_size: Count | None = None,
        pooling: Annotated[str, one_of(POOLINGS)] = "mean_max",
    ) -> None:
        super().__init__(hidden_size, length, grid)
        memory = check_at_least("memory_size", hidden_size if memory_size is None else memory_size, 1)
        inner = check_at_least("inner_size", 2 * hidden_size if inner_size is None else inner_size, 1)
        is_flat = check_choice("pooling", pooling, POOLINGS) == "flatten"
        self.flat = FlatTokens(length, hidden_size, memory) if is_flat else None
        self.cell = nn.GRUCell(memory if is_flat else 2 * hidden_size, memory)
        self.from_token = None if is_flat else linear(hidden_size, inner)
        self.from_memory = linear(memory, inner, bias=True)
        self.out = linear(inner, hidden_size)
        self.register_buffer("h_init", initial_latent(memory))

    def initial_state(self, batch_size: int) -> GRUState:
        return GRUState(self.h_init.repeat(batch_size, 1))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, GRUState]:
        (h,) = state
        read = torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1) if self.flat is None else self.flat(x)
        h = self.cell(read, h)
        return self.answer(x, h[:, None]), GRUState(h)

    def answer(self, x: Tensor, h: Tensor) -> Tensor:
        """Output tokens float[..., D] from the tokens and the memory float[..., M]."""
        if self.from_token is None:
            return rms_norm(self.out(F.silu(self.from_memory(h)))).expand_as(x)
        hidden = F.silu(self.from_token(x) + self.from_memory(h))
        return rms_norm(x + self.out(hidden))
