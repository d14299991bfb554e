"""The blocks that HRM and TRM are built of: token mixing, then a SwiGLU, each with a post-norm residual.

Attention, its positions and the SwiGLU follow the published HRM (arXiv 2506.21734), mixing by a SwiGLU
over positions follows TRM (arXiv 2510.04871). Convolutions and sweeps were added here: they are cheap and local
on the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from hrm_agent.cores.base import check_at_least, check_choice, check_grid, linear, truncated_normal_
from hrm_agent.cores.norm import rms_norm
from hrm_agent.cores.sweep import SweepMixing
from hrm_agent.names.values import one_of

MIXINGS = ("attention", "mlp", "conv", "sweep", "units", "attention_conv", "attention_local")
CAUSAL_MIXINGS = ("attention", "conv", "sweep")
"""Those that can mix backwards only: no token then sees one that comes after it."""
POSITIONS = ("rope", "rope2d", "none")
Mixing = Annotated[str, one_of(MIXINGS)]
Positions = Annotated[str, one_of(POSITIONS)]
Expansion = Annotated[float, Meta(gt=0, le=64)]
ROPE_THETA = 10_000.0
WIDTH_MULTIPLE = 256
CAUSAL_TAPS = 4
"""Tokens that a causal convolution sees: its own and those just before it."""
BIAS_RADIUS = 3
"""Offsets between cells, in rows and columns, are clipped to this by `attention_local`."""

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary positions, each float[L, 1, head_size]."""


def swiglu_width(size: int, expansion: float, inner_size: int | None) -> int:
    """Inner channels of a SwiGLU: the published 2/3 rule rounded up to 256, unless a width is given."""
    if inner_size is not None:
        return check_at_least("inner_size", inner_size, 1)
    if expansion <= 0:
        raise ValueError(f"expansion={expansion!r} is not above 0; the published value is 4")
    return math.ceil(round(expansion * size * 2 / 3) / WIDTH_MULTIPLE) * WIDTH_MULTIPLE


class GridConv(nn.Module):
    """A 3x3 depthwise convolution over the grid tokens.

    float[B, L, C] -> float[B, L - prefix, C], the grid's part only, with zero padding.
    """

    def __init__(self, channels: int, length: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        checked = check_grid(grid, length)
        if checked is None:
            raise ValueError("mixing by convolution needs a grid but grid=None; give rows and columns")
        self.rows, self.cols = checked
        self.prefix = length - self.rows * self.cols
        self.weight = nn.Parameter(truncated_normal_(torch.empty(channels, 1, 3, 3), 1 / 3))

    def forward(self, x: Tensor) -> Tensor:
        cells = x[:, self.prefix :] if self.prefix else x
        batch, length, channels = cells.shape
        # [B, L, C] is already a channels-last image, and the convolution returns one: nothing is copied.
        image = cells.reshape(batch, self.rows, self.cols, channels).permute(0, 3, 1, 2)
        mixed = F.conv2d(image, self.weight, padding=1, groups=channels)
        return mixed.permute(0, 2, 3, 1).reshape(batch, length, channels)


class LineConv(nn.Module):
    """A depthwise convolution of every token with the `CAUSAL_TAPS - 1` before it: float[B, L, C] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(truncated_normal_(torch.empty(channels, 1, 1, CAUSAL_TAPS), CAUSAL_TAPS**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        image = F.pad(x, (0, 0, CAUSAL_TAPS - 1, 0)).transpose(1, 2)[:, :, None]  # channels last, as `GridConv`'s
        return F.conv2d(image, self.weight, groups=x.shape[2])[:, :, 0].transpose(1, 2)


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up being one matrix; optionally a convolution before `down`."""

    def __init__(self, size: int, inner: int, conv: GridConv | None = None) -> None:
        super().__init__()
        self.gate_up = linear(size, 2 * inner)
        self.conv = conv
        self.down = linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        if self.conv is not None:
            mixed = self.conv(hidden)
            prefix = self.conv.prefix
            hidden = torch.cat([hidden[:, :prefix], mixed], dim=1) if prefix else mixed
        down: Tensor = self.down(hidden)
        return down


class OffsetBias(nn.Module):
    """Learned attention biases by the offset between two cells, in rows and columns, clipped to +-`BIAS_RADIUS`.

    Biases of relative positions: Raffel et al. 2020 (T5), arXiv 1910.10683; ours are two-dimensional and begin as
    minus the distance, which favours the neighbourhood, except for head 0, which begins without bias.
    Prefix tokens share one more offset. The weights do not depend on the size of the grid.
    """

    offset: Tensor

    def __init__(self, num_heads: int, length: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        checked = check_grid(grid, length)
        if checked is None:
            raise ValueError("mixing=attention_local needs a grid but grid=None; give rows and columns")
        rows, cols = checked
        prefix, side = length - rows * cols, 2 * BIAS_RADIUS + 1
        at = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).view(-1, 2)
        apart = (at[None] - at[:, None]).clamp(-BIAS_RADIUS, BIAS_RADIUS) + BIAS_RADIUS  # [cells, cells, 2]
        offset = torch.full((length, length), side * side)
        offset[prefix:, prefix:] = apart[..., 0] * side + apart[..., 1]
        self.register_buffer("offset", offset, persistent=False)
        steps = torch.arange(-BIAS_RADIUS, BIAS_RADIUS + 1).abs()
        near = -(steps[:, None] + steps[None]).float().flatten()
        table = torch.cat([near, torch.zeros(1)]).repeat(num_heads, 1)
        table[0] = 0.0
        self.table = nn.Parameter(table)

    def forward(self) -> Tensor:
        """float[heads, L, L]."""
        return self.table[:, self.offset]


class AttentionMixing(nn.Module):
    """Multi-head attention over all tokens, or over those up to its own (`causal`), with its residual and norm."""

    def __init__(self, hidden_size: int, num_heads: int, bias: OffsetBias | None = None, causal: bool = False) -> None:
        super().__init__()
        self.bias, self.causal = bias, causal
        self.num_heads = num_heads
        self.qkv = linear(hidden_size, 3 * hidden_size)
        self.out = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        batch, length, size = x.shape
        qkv = self.qkv(x).view(batch, length, 3 * self.num_heads, size // self.num_heads)
        qk, value = qkv.split([2 * self.num_heads, self.num_heads], dim=2)
        if angles is not None:
            qk = rotate(qk, angles)
        query, key = qk.chunk(2, dim=2)
        bias = None if self.bias is None else self.bias()
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, is_causal=self.causal
        )
        return rms_norm(x + self.out(mixed.transpose(1, 2).reshape(batch, length, size)))


class PositionMLPMixing(nn.Module):
    """TRM's mixing by a SwiGLU over positions; its norm is over positions too, as published."""

    def __init__(self, length: int, inner: int) -> None:
        super().__init__()
        self.swiglu = SwiGLU(length, inner)

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        by_channel = x.transpose(1, 2)
        return rms_norm(by_channel + self.swiglu(by_channel)).transpose(1, 2)


class ConvMixing(nn.Module):
    """A 3x3 depthwise convolution in attention's place.

    Prefix tokens have no neighbours: their mean is added to all tokens, and the grid's mean to them, each with a
    weight per channel. Without a grid this is all the mixing there is. With `causal` all tokens are one line, convolved
    with those before them (`LineConv`), and there are no means.
    """

    def __init__(self, hidden_size: int, length: int, grid: tuple[int, int] | None, causal: bool = False) -> None:
        super().__init__()
        self.conv: GridConv | LineConv | None = None
        self.prefix = 0
        if causal:
            self.conv = LineConv(hidden_size)
        elif grid is None:
            self.prefix = length
        else:
            self.conv = GridConv(hidden_size, length, grid)
            self.prefix = self.conv.prefix
        # Row 0 weighs the mean of the tokens before the grid, row 1 that of the grid.
        self.pooled = nn.Parameter(torch.ones(2, hidden_size)) if self.prefix else None

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        if self.pooled is None:
            assert self.conv is not None
            return rms_norm(x + self.conv(x))
        prefix_tokens = x[:, : self.prefix]
        from_prefix = self.pooled[0] * prefix_tokens.mean(dim=1, keepdim=True)
        if self.conv is None:
            return rms_norm(x + from_prefix)
        from_grid = self.pooled[1] * x[:, self.prefix :].mean(dim=1, keepdim=True)
        mixed = torch.cat([from_grid.expand_as(prefix_tokens), self.conv(x)], dim=1)
        return rms_norm(x + mixed + from_prefix)

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply the initial weights."""
        for weight in self.parameters():
            weight.mul_(gain)


def _units_of(tile: int) -> Tensor:
    """float[3 n^2, n^4] of n^2 x n^2 cells: 1 where a cell lies in a unit; rows first, then columns, then tiles."""
    side = tile**2
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    unit_of_cell = torch.stack([row, side + col, 2 * side + row // tile * tile + col // tile])
    return torch.zeros(3 * side, side**2).scatter_(0, unit_of_cell, 1.0)


class UnitsMixing(nn.Module):
    """Sums over the units of a Sudoku in attention's place: every cell receives those of its row, column and tile.

    One weight per channel and kind of unit; the sums are divided by the root of a unit's size. The tokens are a square
    grid of n^2 x n^2 cells, whose tiles are n x n; prefix tokens are mixed as in `ConvMixing`.
    """

    members: Tensor

    def __init__(self, hidden_size: int, length: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        checked = check_grid(grid, length)
        self.side = 0 if checked is None else checked[0]
        self.tile = math.isqrt(self.side)
        if checked is None or checked[0] != checked[1] or self.tile**2 != self.side:
            raise ValueError(f"mixing=units needs a square grid with square tiles, such as 9x9, but grid={grid}")
        self.prefix = length - self.side**2
        self.register_buffer("members", _units_of(self.tile), persistent=False)
        # Rows: weights of a cell's row, column and tile.
        self.weight = nn.Parameter(truncated_normal_(torch.empty(3, hidden_size), 3**-0.5))
        self.pooled = nn.Parameter(torch.ones(2, hidden_size)) if self.prefix else None

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        if self.pooled is None:
            return rms_norm(x + self._units(x))
        prefix_tokens, cells = x[:, : self.prefix], x[:, self.prefix :]
        from_prefix = self.pooled[0] * prefix_tokens.mean(dim=1, keepdim=True)
        from_grid = self.pooled[1] * cells.mean(dim=1, keepdim=True)
        return rms_norm(x + from_prefix + torch.cat([from_grid.expand_as(prefix_tokens), self._units(cells)], dim=1))

    def _units(self, cells: Tensor) -> Tensor:
        # Two products with a matrix of zeros and ones: sums over strided dimensions are slower.
        sums = self.members @ cells  # [B, 3 n^2, D]
        weighted = sums.view(len(cells), 3, self.side, -1) * (self.weight * self.side**-0.5)[:, None]
        return self.members.T @ weighted.flatten(1, 2)

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply the initial weights."""
        for weight in self.parameters():
            weight.mul_(gain)


@dataclass(frozen=True)
class BlockConfig:
    """Settings of a block.

    Args:
        num_heads: attention heads; they must divide the channels.
        mixing: `attention`, `mlp` (SwiGLU over positions), `conv`, `sweep` (gated messages along rows and columns),
            `units` (a cell's row, column and tile), `attention_conv` (attention, and a convolution inside the SwiGLU
            over channels) or `attention_local` (attention with `OffsetBias`).
        expansion: published width rule of the SwiGLUs, see `swiglu_width`.
        inner_size: width of the SwiGLUs, in place of the rule.
        branch_gain: factor on the initial weights that end a residual branch (convolution, sweep, attention's output,
            `down`). 1 as published; below 1 the block starts near the identity, so that a state carried over
            many steps is not scrambled before anything is learned.
        causal: no token sees one that comes after it, prefix and grid being one line; of `CAUSAL_MIXINGS`.
    """

    num_heads: int = 4
    mixing: str = "attention"
    expansion: float = 4.0
    inner_size: int | None = None
    branch_gain: float = 1.0
    causal: bool = False


class Block(nn.Module):
    """Token mixing, then a SwiGLU over channels; both residual and normed afterwards.

    Args:
        hidden_size: channels D.
        length: tokens L, prefix included.
        grid: rows and columns of the tokens after the prefix; needed by `attention_conv` and `attention_local`.
        config: see `BlockConfig`.

    Raises:
        ValueError: an unknown mixing, one that cannot be causal, heads that do not divide D, a convolution without a
            grid, or a gain that is not above 0.
    """

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None,
        config: BlockConfig,
    ) -> None:
        super().__init__()
        self.config, self.mixing = config, check_choice("mixing", config.mixing, MIXINGS)
        mixing, expansion, inner_size, causal = config.mixing, config.expansion, config.inner_size, config.causal
        if causal and mixing not in CAUSAL_MIXINGS:
            raise ValueError(
                f"causal=true with mixing={mixing}, which mixes forwards too; use one of {', '.join(CAUSAL_MIXINGS)}"
            )
        inner = swiglu_width(hidden_size, expansion, inner_size)
        self.mixer: nn.Module
        if mixing == "conv":
            self.mixer = ConvMixing(hidden_size, length, grid, causal)
        elif mixing == "sweep":
            self.mixer = SweepMixing(hidden_size, length, grid, causal)
        elif mixing == "units":
            self.mixer = UnitsMixing(hidden_size, length, grid)
        elif mixing == "mlp":
            self.mixer = PositionMLPMixing(length, swiglu_width(length, expansion, inner_size))
        else:
            check_heads(hidden_size, config.num_heads)
            bias = OffsetBias(config.num_heads, length, grid) if mixing == "attention_local" else None
            self.mixer = AttentionMixing(hidden_size, config.num_heads, bias, causal)
        conv = GridConv(inner, length, grid) if mixing == "attention_conv" else None
        self.mlp = SwiGLU(hidden_size, inner, conv)
        if config.branch_gain <= 0:
            raise ValueError(f"branch_gain={config.branch_gain!r} is not above 0; the published value is 1")
        if config.branch_gain != 1.0:
            self._scale_branches(config.branch_gain)

    @torch.no_grad()
    def _scale_branches(self, gain: float) -> None:
        if isinstance(self.mixer, ConvMixing | SweepMixing | UnitsMixing):
            self.mixer.scale(gain)
        else:
            end = "swiglu.down.weight" if self.mixing == "mlp" else "out.weight"
            self.mixer.get_parameter(end).mul_(gain)
        self.mlp.down.weight.mul_(gain)

    def forward(self, x: Tensor, angles: Angles | None) -> Tensor:
        x = self.mixer(x, angles)
        return rms_norm(x + self.mlp(x))


class BlockStack(nn.Module):
    """A stack of blocks, float[B, L, D] -> float[B, L, D].

    Args:
        layers: number of blocks.
        hidden_size, length, grid, config: see `Block`.

    Attributes:
        backend: what computes it (`hrm_agent.recurrence.use`); None: the blocks themselves, in eager torch.
    """

    backend: Any = None

    def __init__(
        self,
        layers: int,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None,
        config: BlockConfig,
    ) -> None:
        super().__init__()
        self.hidden_size, self.length, self.grid, self.config = hidden_size, length, grid, config
        self.layers = nn.ModuleList(Block(hidden_size, length, grid, config) for _ in range(layers))

    def forward(self, x: Tensor, angles: Angles | None = None) -> Tensor:
        if self.backend is None:
            return self.reference(x, angles)
        result: Tensor = self.backend.stack(self, x, angles)
        return result

    def reference(self, x: Tensor, angles: Angles | None = None) -> Tensor:
        """The blocks in eager torch, which every backend must agree with."""
        for layer in self.layers:
            x = layer(x, angles)
        return x


class RotaryPositions(nn.Module):
    """Tables of rotary angles for a core; not saved with the weights.

    `rope` numbers all tokens, prefix first. `rope2d` rotates one half of each head by the row and the other
    by the column, and leaves prefix tokens alone. `none`, or mixing without attention, has no table.
    """

    cos: Tensor | None
    sin: Tensor | None

    def __init__(
        self,
        positions: str,
        mixing: str,
        hidden_size: int,
        num_heads: int,
        length: int,
        grid: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        check_choice("positions", positions, POSITIONS)
        check_choice("mixing", mixing, MIXINGS)
        turns = None
        if mixing.startswith("attention") and positions != "none":
            check_heads(hidden_size, num_heads)
            head_size = hidden_size // num_heads
            turns = _turns_1d(length, head_size) if positions == "rope" else _turns_2d(length, head_size, grid)
        # [L, 1, head_size]: one angle for all heads. The two halves of a head share their angles.
        both = None if turns is None else torch.cat([turns, turns], dim=-1)[:, None]
        self.register_buffer("cos", None if both is None else both.cos(), persistent=False)
        self.register_buffer("sin", None if both is None else both.sin(), persistent=False)

    def forward(self) -> Angles | None:
        return None if self.cos is None or self.sin is None else (self.cos, self.sin)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate the pairs (first half, second half) of each head, float[B, L, heads, head_size]."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise ValueError where attention heads do not divide the channels."""
    check_at_least("num_heads", num_heads, 1)
    if hidden_size % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide hidden_size={hidden_size}; choose a divisor of it")


def _frequencies(pairs: int) -> Tensor:
    return 1.0 / ROPE_THETA ** (torch.arange(pairs, dtype=torch.float32) / pairs)


def _turns_1d(length: int, head_size: int) -> Tensor:
    if head_size % 2:
        raise ValueError(f"positions=rope needs an even head size, not {head_size}; choose fewer heads")
    return torch.outer(torch.arange(length, dtype=torch.float32), _frequencies(head_size // 2))


def _turns_2d(length: int, head_size: int, grid: tuple[int, int] | None) -> Tensor:
    checked = check_grid(grid, length)
    if checked is None:
        raise ValueError("positions=rope2d needs a grid but grid=None; give rows and columns, or use rope")
    if head_size % 4:
        raise ValueError(f"positions=rope2d needs a head size divisible by 4, not {head_size}; choose fewer heads")
    rows, cols = checked
    frequencies = _frequencies(head_size // 4)
    by_row = torch.outer(torch.arange(rows, dtype=torch.float32), frequencies)[:, None].expand(-1, cols, -1)
    by_col = torch.outer(torch.arange(cols, dtype=torch.float32), frequencies)[None].expand(rows, -1, -1)
    cells = torch.cat([by_row, by_col], dim=-1).reshape(rows * cols, head_size // 2)
    return torch.cat([torch.zeros(length - rows * cols, head_size // 2), cells])
