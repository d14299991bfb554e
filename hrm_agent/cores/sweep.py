"""Token mixing by gated linear recurrences along the rows and columns of a grid.

Messages run from every cell along its row in both directions, then along the columns; at each cell a gate sets how much
passes. The gates are functions of the cell and of the one before it, so a wall can stop a message and a corridor can
carry it to its end. One pass takes a message to the end of the row and, around one corner, to every cell of the grid.
The cost is linear in the number of cells, and no weight depends on the size of the grid.

The recurrence is that of the minimal GRU (Feng et al. 2024, arXiv 2410.01201) and of selective state spaces (Gu and Dao
2023, arXiv 2312.00752), run in four directions as in spatial propagation networks (Liu et al. 2017, arXiv 1710.01020).
Value iteration networks (Tamar et al. 2016, arXiv 1602.02867) need as many iterations as a path has cells for the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hrm_agent.cores import sweep_kernel
from hrm_agent.cores.base import check_grid, linear, truncated_normal_
from hrm_agent.cores.norm import rms_norm

GATE_GROUPS = 8
"""Groups of channels that share their gates; where it does not divide the channels, the largest divisor below it."""

SCAN_PRODUCTS = 12
"""Multiplications of a `GridSweep` per cell and channel, besides the gates': 2 axes, 2 ways, 3 of `scan`."""

WEIGHT_STD = 3**0.5
"""With gates at 1/2 a message has a twelfth of the variance of the cells that it comes from. With this weight the sum
of four directions has the variance of a cell, as that of a `GridConv`."""


class _CompiledScan(torch.autograd.Function):
    """`scan_lines` by the compiled kernels of `sweep_kernel`, on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
        x, projected, weight = (tensor.detach().contiguous() for tensor in (x, projected, weight))
        outer, steps, lanes, ways, _, groups = projected.shape
        gates = projected.new_empty(ways, outer, steps, lanes, groups)
        sweep_kernel.lay_logits(projected.numpy(), gates.numpy())
        gates.sigmoid_()
        out = torch.empty_like(x)
        sweep_kernel.scan(x.numpy(), gates.numpy(), weight.numpy(), out.numpy())
        ctx.save_for_backward(x, gates, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gates, weight = ctx.saved_tensors
        x_gradient, gate_gradient, weight_gradient = map(torch.empty_like, (x, gates, weight))
        given = (x, gates, weight, gradient.contiguous(), x_gradient, gate_gradient, weight_gradient)
        sweep_kernel.scan_backward(*(tensor.numpy() for tensor in given))
        ways, outer, steps, lanes, groups = gates.shape
        projected_gradient = gates.new_empty(outer, steps, lanes, ways, 2, groups)
        sweep_kernel.lay_logits_backward(gates.numpy(), gate_gradient.numpy(), projected_gradient.numpy())
        return x_gradient, projected_gradient, weight_gradient


def scan_lines_plain(x: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
    """`scan_lines` in torch alone: for other devices, and for graphs that are traced.

    By doubling (Hillis and Steele 1986, doi:10.1145/7902.7903): after round k every cell holds what the last 2^k cells
    sent, so lines of n cells take log2(n) rounds over the whole tensor. There is no division by a product of gates,
    which may be 0.
    """
    groups, channels = projected.shape[-1], x.shape[-1]
    out = torch.zeros_like(x)
    for way in range(len(weight)):
        logits = projected[..., way, 0, :] + _behind(projected[..., way, 1, :], 1, way)
        gate = torch.cat([torch.sigmoid(logits)] * (channels // groups), dim=-1)
        held, through, span = (1 - gate) * x, gate, 1
        while span < x.shape[1]:
            held = held + through * _behind(held, span, way)
            through = through * _behind(through, span, way)
            span *= 2
        out = out + weight[way] * gate * _behind(held, 1, way)
    return out


def _behind(lines: Tensor, by: int, way: int) -> Tensor:
    """The values `by` steps behind every step of [O, S, M, C]; zero where the line has no such step."""
    if way:
        return F.pad(lines[:, by:], (0, 0, 0, 0, 0, by))
    return F.pad(lines[:, : lines.shape[1] - by], (0, 0, 0, 0, by, 0))


def scan_lines(x: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
    """What arrives at every cell of many lines: the sum over the ways of `weight * m`.

    Way 0 runs from the first cell to the last, way 1, where there is one, back.

    `m_i = a_i h_{i-1}` arrives, `h_i = m_i + (1 - a_i) x_i` is passed on, `h` is 0 before the first cell. As a weighted
    mean of cells it never exceeds the largest of them, however long the line.

    Args:
        x: float [O, S, M, C]: O times M lines of S cells, the lines next to each other in memory.
        projected: float [O, S, M, W, 2, G]; for each of W ways, 1 or 2, a cell's own part of the logits of its gates,
            and its part of those of the cell that comes after it. Channel c has gate c mod G; G divides C.
        weight: float [W, C].

    Returns:
        float [O, S, M, C], in the dtype of `x`; sums of half precision are done in float32.
    """
    exact = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    scan = scan_lines_plain if traced or x.device.type != "cpu" else _CompiledScan.apply
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = scan(x.to(exact), projected.to(exact), weight.to(exact))
    return out.to(x.dtype)


class AxisSweep(nn.Module):
    """`scan_lines` along the rows or the columns of an image, float[B, rows, cols, C] -> the same.

    Args:
        channels: C.
        along: `rows` or `cols`.
        ways: 2: messages run both ways; 1: from the first cell to the last alone.
    """

    def __init__(self, channels: int, along: str, ways: int = 2) -> None:
        super().__init__()
        self.along, self.ways = along, ways
        self.groups = next(g for g in range(min(GATE_GROUPS, channels), 0, -1) if channels % g == 0)
        # No bias at first: gates start around 1/2, and messages reach a few cells either way.
        self.gates = linear(channels, 2 * ways * self.groups, bias=True)
        # One message alone, of a line that runs one way, has the variance of the four.
        std = WEIGHT_STD * (2.0 if ways == 1 else 1.0)
        self.weight = nn.Parameter(truncated_normal_(torch.empty(ways, channels), std))

    def forward(self, image: Tensor) -> Tensor:
        batch, rows, cols, channels = image.shape
        lines = (batch * rows, cols, 1) if self.along == "rows" else (batch, rows, cols)
        projected = self.gates(image).view(*lines, self.ways, 2, self.groups)
        return scan_lines(image.reshape(*lines, channels), projected, self.weight).view(image.shape)


class GridSweep(nn.Module):
    """Messages along the rows of a grid, then along its columns.

    float[B, L, C] -> float[B, L - prefix, C], the grid's part only, without the cells themselves. The row messages are
    input to the sweep of the columns and its gates, so messages turn one corner.
    """

    def __init__(self, channels: int, length: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        checked = check_grid(grid, length)
        if checked is None:
            raise ValueError("mixing by sweeps needs a grid but grid=None; give rows and columns")
        self.rows, self.cols = checked
        self.prefix = length - self.rows * self.cols
        self.along_rows = AxisSweep(channels, "rows")
        self.along_cols = AxisSweep(channels, "cols")

    def forward(self, x: Tensor) -> Tensor:
        cells = x[:, self.prefix :] if self.prefix else x
        image = cells.reshape(x.shape[0], self.rows, self.cols, x.shape[2])
        brought = self.along_rows(image)
        return (brought + self.along_cols(image + brought)).reshape(cells.shape)

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply the initial weights of arriving messages; the gates are not changed."""
        for axis in (self.along_rows, self.along_cols):
            axis.weight.mul_(gain)


class LineSweep(nn.Module):
    """Messages from every token to those after it, and to none before: float[B, L, C] -> the same, without the tokens
    themselves.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.along_line = AxisSweep(channels, "rows", ways=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.along_line(x[:, None])[:, 0]

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply the initial weights of arriving messages; the gates are not changed."""
        self.along_line.weight.mul_(gain)


class SweepMixing(nn.Module):
    """Messages along the rows and columns of the grid (`GridSweep`) in attention's place, with its residual and norm.

    Prefix tokens are mixed as in `ConvMixing`. There are no rotary positions. With `causal` all tokens are one line,
    along which messages run one way (`LineSweep`).
    """

    def __init__(self, hidden_size: int, length: int, grid: tuple[int, int] | None, causal: bool = False) -> None:
        super().__init__()
        self.sweep: GridSweep | LineSweep | None = None
        self.prefix = 0
        if causal:
            self.sweep = LineSweep(hidden_size)
        elif grid is None:
            self.prefix = length
        else:
            self.sweep = GridSweep(hidden_size, length, grid)
            self.prefix = self.sweep.prefix
        self.pooled = nn.Parameter(torch.ones(2, hidden_size)) if self.prefix else None

    def forward(self, x: Tensor, angles: Any) -> Tensor:
        if self.pooled is None:
            assert self.sweep is not None
            return rms_norm(x + self.sweep(x))
        prefix_tokens = x[:, : self.prefix]
        from_prefix = self.pooled[0] * prefix_tokens.mean(dim=1, keepdim=True)
        if self.sweep is None:
            return rms_norm(x + from_prefix)
        from_grid = self.pooled[1] * x[:, self.prefix :].mean(dim=1, keepdim=True)
        mixed = torch.cat([from_grid.expand_as(prefix_tokens), self.sweep(x)], dim=1)
        return rms_norm(x + mixed + from_prefix)

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply the initial weights of arriving messages and means; the gates are not changed."""
        if self.pooled is not None:
            self.pooled.mul_(gain)
        if self.sweep is not None:
            self.sweep.scale(gain)
