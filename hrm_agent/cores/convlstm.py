"""Baseline: deep repeated ConvLSTM, DRC (Guez et al. 2019, arXiv 1901.03559)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, initial_latent, linear, truncated_normal_
from hrm_agent.cores.norm import rms_norm
from hrm_agent.names.values import Depth


class ConvLSTMState(NamedTuple):
    """Output and cell of every layer, each float[B, layers, rows, cols, D] (channels last)."""

    h: Tensor
    c: Tensor


class ConvLSTMLayer(nn.Module):
    """One layer's gates, from the observation, the layer below and its own last output.

    Pool-and-inject brings the maximum and the mean of its last output over the grid to every cell.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.recurrent = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1, bias=False)
        self.pooled = linear(2 * channels, 4 * channels)
        truncated_normal_(self.recurrent.weight, gates_fan_in(channels) ** -0.5)

    def forward(self, observed: Tensor, below: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """All images are float[B, C, rows, cols], `observed` with four times the channels."""
        pooled = self.pooled(torch.cat([h.amax(dim=(2, 3)), h.mean(dim=(2, 3))], dim=-1))
        gates = observed + self.recurrent(torch.cat([below, h], dim=1)) + pooled[:, :, None, None]
        forget, enter, leave, candidate = gates.chunk(4, dim=1)
        # The forget gate starts at sigmoid(1), so that an untrained network already remembers.
        c = torch.sigmoid(forget + 1.0) * c + torch.sigmoid(enter) * torch.tanh(candidate)
        return torch.sigmoid(leave) * torch.tanh(c), c


def observer(channels: int) -> nn.Conv2d:
    """The observation's part of a layer's gates; one more channel holds the boundary plane."""
    conv = nn.Conv2d(channels + 1, 4 * channels, 3, padding=1)
    truncated_normal_(conv.weight, gates_fan_in(channels) ** -0.5)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def gates_fan_in(channels: int) -> int:
    """Inputs of one gate: 3x3 cells of the observation, its boundary plane, the layer below and itself."""
    return 9 * (3 * channels + 1)


class ConvLSTM(Core):
    """Stacked ConvLSTM layers that tick several times per segment.

    Every layer sees the observation, and a boundary plane (one on the grid's rim, zero inside) that tells
    the convolutions where the grid ends; the lowest also sees the top layer's output of the tick before (the
    top-down connection). Prefix tokens are not on the grid: their mean is added to every cell, and they are
    returned unchanged. Output: `norm(x + W h)` of the top layer.

    Args:
        hidden_size: channels D of the tokens and of every layer.
        length, grid: see `Core`; the grid is needed.
        layers: ConvLSTM layers (the paper's D).
        ticks: updates of all layers per segment (the paper's N).

    Raises:
        ValueError: a count below 1, or no grid.
    """

    boundary: Tensor
    h_init: Tensor
    c_init: Tensor

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        layers: Depth = 3,
        ticks: Depth = 3,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        if self.grid is None:
            raise ValueError(f"core={type(self).__name__.lower()} needs a grid but grid=None; give rows and columns")
        self.ticks = check_at_least("ticks", ticks, 1)
        self.rows, self.cols = self.grid
        self.prefix = length - self.rows * self.cols
        count = check_at_least("layers", layers, 1)
        # The observation does not change between ticks: its part of the gates is computed once.
        self.observers = nn.ModuleList(observer(hidden_size) for _ in range(count))
        self.layers = nn.ModuleList(ConvLSTMLayer(hidden_size) for _ in range(count))
        self.out = linear(hidden_size, hidden_size)
        rim = F.pad(torch.zeros(max(self.rows - 2, 0), max(self.cols - 2, 0)), (1, 1, 1, 1), value=1.0)
        self.register_buffer("boundary", rim[None, None, : self.rows, : self.cols], persistent=False)
        # A cell's output lies in (-1, 1), so its starting value is squashed as every later one is.
        c_init = torch.stack([initial_latent(hidden_size) for _ in range(count)])
        self.register_buffer("h_init", 0.5 * torch.tanh(c_init))
        self.register_buffer("c_init", c_init)

    def initial_state(self, batch_size: int) -> ConvLSTMState:
        shape = (batch_size, 1, self.rows, self.cols, 1)
        h, c = (start[None, :, None, None].repeat(shape) for start in (self.h_init, self.c_init))
        return ConvLSTMState(h, c)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, ConvLSTMState]:
        hs, cs = ([layer.permute(0, 3, 1, 2) for layer in torch.unbind(field, dim=1)] for field in state)
        image = self._image(x)
        observed = [observe(image) for observe in self.observers]
        for _ in range(self.ticks):
            below = hs[-1]
            for i, layer in enumerate(self.layers):
                hs[i], cs[i] = layer(observed[i], below, hs[i], cs[i])
                below = hs[i]
        top = hs[-1].permute(0, 2, 3, 1).flatten(1, 2)
        h, c = (torch.stack([layer.permute(0, 2, 3, 1) for layer in field], dim=1) for field in (hs, cs))
        return self.answer(x, top), ConvLSTMState(h, c)

    def answer(self, x: Tensor, top: Tensor) -> Tensor:
        """The output tokens, from the tokens and the top layer's output float[B, rows * cols, D]."""
        cells = rms_norm(x[:, self.prefix :] + self.out(top))
        return torch.cat([x[:, : self.prefix], cells], dim=1)

    def _image(self, x: Tensor) -> Tensor:
        """float[B, D + 1, rows, cols]: the grid's tokens, with the prefix added, and the boundary."""
        cells = x[:, self.prefix :]
        if self.prefix:
            cells = cells + x[:, : self.prefix].mean(dim=1, keepdim=True)
        image = cells.reshape(-1, self.rows, self.cols, self.hidden_size).permute(0, 3, 1, 2)
        return torch.cat([image, self.boundary.expand(x.shape[0], -1, -1, -1)], dim=1)
