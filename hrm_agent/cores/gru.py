"""Baseline: a GRU over the pooled tokens, with one memory vector for the whole observation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, initial_latent, linear
from hrm_agent.cores.norm import rms_norm
from hrm_agent.names.values import Count


class GRUState(NamedTuple):
    """One vector float[B, memory_size]."""

    h: Tensor


class GRUCore(Core):
    """A GRU cell reads the mean and the maximum of the tokens; its memory is added to every token.

    One update per segment, then `y = norm(x + W_out silu(W_x x + W_h h))`.

    Args:
        hidden_size, length, grid: see `Core`; length and grid are ignored.
        memory_size: size of the memory vector; the channels where it is None.
        inner_size: inner channels of the output network; twice the channels where it is None.

    Raises:
        ValueError: a size below 1.
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
    ) -> None:
        super().__init__(hidden_size, length, grid)
        memory = check_at_least("memory_size", hidden_size if memory_size is None else memory_size, 1)
        inner = check_at_least("inner_size", 2 * hidden_size if inner_size is None else inner_size, 1)
        self.cell = nn.GRUCell(2 * hidden_size, memory)
        self.from_token = linear(hidden_size, inner)
        self.from_memory = linear(memory, inner, bias=True)
        self.out = linear(inner, hidden_size)
        self.register_buffer("h_init", initial_latent(memory))

    def initial_state(self, batch_size: int) -> GRUState:
        return GRUState(self.h_init.repeat(batch_size, 1))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, GRUState]:
        (h,) = state
        h = self.cell(torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1), h)
        return self.answer(x, h[:, None]), GRUState(h)

    def answer(self, x: Tensor, h: Tensor) -> Tensor:
        """Output tokens float[..., D] from the tokens and the memory float[..., M]."""
        hidden = F.silu(self.from_token(x) + self.from_memory(h))
        return rms_norm(x + self.out(hidden))
