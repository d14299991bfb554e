"""Baseline: an LSTM over the flattened tokens, the usual recurrent agent (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, initial_latent
from hrm_agent.cores.flattened import FlatTokens, VectorReadout
from hrm_agent.names.values import Count


class LSTMState(NamedTuple):
    """Output and cell, each float[B, memory_size]."""

    h: Tensor
    c: Tensor


class LSTM(Core):
    """`h, c = LSTM(silu(W [x_1 ... x_L] + b), h, c)`, once per segment; every output token is `h` read by two layers.

    Args:
        hidden_size, length, grid: see `Core`; the grid is ignored, the number of tokens fixes the weights.
        memory_size: size of the memory, and of the vector that the tokens become.
        inner_size: inner channels of the output network; twice the channels where it is None.

    Raises:
        ValueError: a size below 1.
    """

    h_init: Tensor
    c_init: Tensor

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        memory_size: Count = 256,
        inner_size: Count | None = None,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        memory = check_at_least("memory_size", memory_size, 1)
        inner = check_at_least("inner_size", 2 * hidden_size if inner_size is None else inner_size, 1)
        self.flat = FlatTokens(length, hidden_size, memory)
        self.cell = nn.LSTMCell(memory, memory)
        # The forget gate starts at sigmoid(1), so that an untrained network already remembers.
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.ones_(self.cell.bias_hh[memory : 2 * memory].detach())
        self.answer = VectorReadout(memory, inner, hidden_size, length)
        # An output lies in (-1, 1), so its starting value is squashed as every later one is.
        c_init = initial_latent(memory)
        self.register_buffer("h_init", 0.5 * torch.tanh(c_init))
        self.register_buffer("c_init", c_init)

    def initial_state(self, batch_size: int) -> LSTMState:
        return LSTMState(self.h_init.repeat(batch_size, 1), self.c_init.repeat(batch_size, 1))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, LSTMState]:
        h, c = state
        h, c = self.cell(self.flat(x), (h, c))
        return self.answer(h), LSTMState(h, c)
