"""From an observation to tokens: `Encoder.forward(obs) -> [B, L, D]`, one class per kind of space.

Tokens have unit variance at initialisation, as in HRM and TRM (embeddings of standard deviation 1/sqrt(D),
scaled by sqrt(D); arXiv 2506.21734). Tokens without a grid position (vectors, discrete values) come first, the grid
last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hrm_agent.names.values import Count, CountOrNone, check_fields, one_of
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, moments
from hrm_agent.recurrence import Backend

Observation = Tensor | Mapping[str, Tensor]

MAX_CATEGORICAL_IDS = 256
MAX_GRID_TOKENS = 16_384
PICTURE_SIDE = 32
"""Grids of bytes 0 to 255 with sides of at least this many cells are images, smaller ones categorical ids."""
PICTURE_TOKENS = 12
"""Patches along the longer side of an image, unless `patch_size` is set."""
CLIP = 10.0
"""A normalised vector's entries are clipped to +- this many standard deviations."""
SMALL_TABLE = 256
"""Rows of an embedding up to which its gradient is a matrix product."""
MOST_CHOSEN = 2**24
"""Size of the other factor of one such product, in floats: 64 MiB."""


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of the encoder.

    Args:
        crop: rings of cells dropped from the border of a grid. A maze's outer wall never changes, so `1` saves a
            third of the tokens of a 9x9 grid and loses nothing.
        patch_size: side of the square of cells that share one token (ViT, arXiv 2010.11929). With `crop=1`,
            `patch_size=2` makes one token of a maze cell with its east and south edges. For an image, 1 stands for the
            size that gives 12 patches along its longer side.
        positions: `none`, or `learned` (added to the tokens, the sum scaled by 1/sqrt(2); ties the agent to one
            size of grid).
        prefix: number of learned tokens before all others, initially zero: the slots of HRM's puzzle embedding
            (arXiv 2506.21734).
        join: sum all entries of a dictionary that have no grid (the words of a mission, a direction) into one token:
            cheaper than a token each.
        frames: last observations that are seen at once, for cores without memory; of grids of ids, as channels.
    """

    crop: CountOrNone = 0
    patch_size: Count = 1
    positions: Annotated[str, one_of(("none", "learned"))] = "none"
    prefix: CountOrNone = 0
    join: bool = False
    frames: Count = 1

    def __post_init__(self) -> None:
        check_fields(self, "encoder")


class Encoder(nn.Module):
    """Base class. `length` counts tokens; `grid` is (rows, cols) of the grid tokens, which come last, or None."""

    length: int
    grid: tuple[int, int] | None
    graphable = False
    """Look up embeddings with operations that a CUDA graph can capture; the backward of torch's own synchronises
    (https://github.com/pytorch/pytorch/issues/82886, https://github.com/pytorch/pytorch/issues/93807)."""

    def forward(self, obs: Observation) -> Tensor:
        raise NotImplementedError

    def observe(self, obs: Observation, processes: Processes = SINGLE_PROCESS) -> None:
        """Update running statistics, if any, with observations `[..., *space.shape]` of all processes."""


def sum_of_rows(ids: Tensor, table: Tensor) -> Tensor:
    """`embedding_bag(ids, table, mode="sum")` for ids int64 `[N, S]`, distinct within a row, and a table `[V, D]`."""
    if len(table) > SMALL_TABLE:
        return nn.functional.embedding_bag(ids, table, mode="sum")
    rows: Tensor = _SumOfRows.apply(ids, table)
    return rows


class _SumOfRows(torch.autograd.Function):
    """The gradient as one matrix product; torch sorts all ids instead, which takes four times as long."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return nn.functional.embedding_bag(ids, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        at_once = max(1, MOST_CHOSEN // ctx.rows)
        total = gradient.new_zeros(ctx.rows, gradient.shape[1])
        for some, part in zip(ids.split(at_once), gradient.split(at_once), strict=True):
            chosen = part.new_zeros(len(some), ctx.rows).scatter_(1, some, 1.0)
            total += chosen.t() @ part
        return None, total


class GridEncoder(Encoder):
    """Categorical grid: integer ids `[..., H, W]` or `[..., H, W, C]` -> tokens `[..., rows*cols, D]`.

    Every (position in the patch, channel, id) has its own embedding; a token is the sum over its patch. Positions
    outside the grid, where patches overhang, have their own id.
    """

    backend: Backend | None = None
    _offsets: Tensor

    def __init__(self, space: gym.spaces.Box, hidden_size: int, config: EncoderConfig) -> None:
        super().__init__()
        height, width = space.shape[:2]
        self.shape = tuple(space.shape)
        self.channels = space.shape[2] if len(space.shape) == 3 else 1
        self.crop, self.patch_size = config.crop, config.patch_size
        inner = (height - 2 * self.crop, width - 2 * self.crop)
        if min(inner) < 1:
            raise ValueError(f"encoder.crop={self.crop}: nothing is left of a {height}x{width} grid")
        p = self.patch_size
        self.grid = (math.ceil(inner[0] / p), math.ceil(inner[1] / p))
        self.length = self.grid[0] * self.grid[1]
        self._pad = (self.grid[0] * p - inner[0], self.grid[1] * p - inner[1])
        self.num_ids = int(space.high.max()) + 1
        per_slot = self.num_ids + 1  # the last id is "outside the grid"
        slots = p * p * self.channels
        self.embedding = nn.Parameter(torch.randn(slots * per_slot, hidden_size) / math.sqrt(slots))
        self.register_buffer("_offsets", torch.arange(slots) * per_slot, persistent=False)

    def forward(self, obs: Observation) -> Tensor:
        assert isinstance(obs, Tensor)
        lead = obs.shape[: obs.dim() - len(self.shape)]
        fast = None if self.backend is None else self.backend.embed_grid(self, obs)
        if fast is not None:
            return fast
        p, (rows, cols) = self.patch_size, self.grid or (0, 0)
        ids = obs.reshape(-1, self.shape[0], self.shape[1], self.channels)  # [N, H, W, C]
        ids = ids[:, self.crop : self.shape[0] - self.crop, self.crop : self.shape[1] - self.crop].long()
        if any(self._pad):
            ids = nn.functional.pad(ids, (0, 0, 0, self._pad[1], 0, self._pad[0]), value=self.num_ids)
        ids = ids.view(-1, rows, p, cols, p, self.channels).permute(0, 1, 3, 2, 4, 5)
        ids = ids.reshape(-1, p * p * self.channels) + self._offsets  # [N*L, slots]
        if self.graphable:
            chosen = self.embedding.new_zeros(len(ids), len(self.embedding)).scatter_(1, ids, 1.0)
            tokens = chosen @ self.embedding
        else:
            tokens = sum_of_rows(ids, self.embedding)
        return tokens.view(*lead, self.length, self.embedding.shape[1])

    def token_of(self, obs: Tensor, cell_id: int) -> Tensor:
        """Index of the token that holds the first cell with `cell_id`: ids `[..., H, W]` -> int64 `[...]`.

        Of a grid with channels, `[..., H, W, C]`, the first channel is searched.
        """
        fast = None if self.backend is None else self.backend.find_cell(self, obs, cell_id)
        if fast is not None:
            return fast
        if len(self.shape) == 3:
            obs = obs[..., 0]
        width = self.shape[1]
        flat = (obs.flatten(-2) == cell_id).to(torch.uint8).argmax(-1)
        row = (flat // width - self.crop) // self.patch_size
        col = (flat % width - self.crop) // self.patch_size
        return row * (self.grid or (0, 0))[1] + col


class PictureEncoder(Encoder):
    """Image -> one token per patch (ViT, arXiv 2010.11929), a grid.

    `[..., H, W]`, `[..., H, W, C]`, or `[..., C, H, W]` where the first side is the short one (stacked frames). Values
    are scaled by the space's bounds to [-1, 1]. Patches overhang at the lower and right edges, padded with zeros.
    """

    def __init__(self, space: gym.spaces.Box, hidden_size: int, config: EncoderConfig) -> None:
        super().__init__()
        self.shape = tuple(space.shape)
        self.channels_first = _has_channels_first(space)
        height, width = space.shape[1:] if self.channels_first else space.shape[:2]
        self.channels = int(np.prod(space.shape)) // (height * width)
        self._picture = (self.channels, height, width) if self.channels_first else (height, width, self.channels)
        # A patch of one cell is the default for ids; an image needs larger ones.
        p = config.patch_size if config.patch_size > 1 else max(1, math.ceil(max(height, width) / PICTURE_TOKENS))
        self.grid = (math.ceil(height / p), math.ceil(width / p))
        self.length = self.grid[0] * self.grid[1]
        self._pad = (self.grid[0] * p - height, self.grid[1] * p - width)
        low, high = float(space.low.min()), float(space.high.max())
        bounded = math.isfinite(low) and math.isfinite(high)
        self._middle, self._half = ((low + high) / 2, (high - low) / 2) if bounded else (0.0, 1.0)
        self.patches = nn.Conv2d(self.channels, hidden_size, p, stride=p)
        nn.init.normal_(self.patches.weight, std=(p * p * self.channels) ** -0.5)

    def forward(self, obs: Observation) -> Tensor:
        assert isinstance(obs, Tensor)
        lead = obs.shape[: obs.dim() - len(self.shape)]
        pixels = obs.reshape(-1, *self._picture)
        if not self.channels_first:
            pixels = pixels.permute(0, 3, 1, 2)
        pixels = (pixels.to(self.patches.weight.dtype) - self._middle) / self._half
        if any(self._pad):
            pixels = nn.functional.pad(pixels, (0, self._pad[1], 0, self._pad[0]))
        return self.patches(pixels).flatten(2).transpose(1, 2).reshape(*lead, self.length, -1)


class VectorEncoder(Encoder):
    """Numbers `[..., *shape]` -> one token `[..., 1, D]`.

    Once `observe` has been called, every entry is normalised by its running mean and standard deviation; before, and
    with algorithms that do not call it (DQN), values are used unchanged.
    """

    grid = None
    length = 1
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, space: gym.spaces.Box, hidden_size: int) -> None:
        super().__init__()
        self.dimensions = len(space.shape)
        size = int(np.prod(space.shape))
        self.linear = nn.Linear(size, hidden_size)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, obs: Observation) -> Tensor:
        assert isinstance(obs, Tensor)
        values = self._flat(obs)
        scaled = ((values - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-CLIP, CLIP)
        values = torch.where(self.count > 0, scaled, values)
        return self.linear(values.to(self.linear.weight.dtype)).unsqueeze(-2)

    def _flat(self, obs: Tensor) -> Tensor:
        return obs.double().reshape(*obs.shape[: obs.dim() - self.dimensions], -1)

    @torch.no_grad()
    def observe(self, obs: Observation, processes: Processes = SINGLE_PROCESS) -> None:
        # Chan et al. 1979: the moments of two samples together.
        assert isinstance(obs, Tensor)
        new, mean, squares = moments(self._flat(obs).flatten(0, -2), processes)
        count = self.count + new
        moved = mean - self.mean
        spread = squares + self.variance * self.count
        spread += moved.square() * self.count * new / count
        self.mean += moved * new / count
        self.variance.copy_(spread / count)
        self.count.copy_(count)


class DiscreteEncoder(Encoder):
    """Integers `[...]` (Discrete) or `[..., m]` (MultiDiscrete) -> one token per integer."""

    grid = None
    _offsets: Tensor

    def __init__(self, sizes: list[int], starts: list[int], scalar: bool, hidden_size: int) -> None:
        super().__init__()
        self.length, self.scalar = len(sizes), scalar
        self.embedding = nn.Parameter(torch.randn(sum(sizes), hidden_size))
        first_row = np.cumsum([0, *sizes[:-1]]) - np.asarray(starts)
        self.register_buffer("_offsets", torch.as_tensor(first_row), persistent=False)

    def forward(self, obs: Observation) -> Tensor:
        assert isinstance(obs, Tensor)
        ids = (obs.long().unsqueeze(-1) if self.scalar else obs.long()) + self._offsets
        if self.graphable:
            return self.embedding.index_select(0, ids.flatten()).view(*ids.shape, -1)
        return nn.functional.embedding(ids, self.embedding)


class DictEncoder(Encoder):
    """Dictionary of the above: the tokens of every entry, entries without a grid first, at most one grid.

    With `join` the tokens without a grid are summed into one, divided by the root of their number.
    """

    def __init__(self, space: gym.spaces.Dict, hidden_size: int, config: EncoderConfig) -> None:
        super().__init__()
        parts = {key: _build_part(sub, hidden_size, config, key) for key, sub in space.spaces.items()}
        grids = [key for key, part in parts.items() if part.grid is not None]
        if len(grids) > 1:
            raise ValueError(
                f"observation space has {len(grids)} grids ({', '.join(grids)}): expected at most one; "
                "stack them as channels of one grid"
            )
        self.keys = sorted(parts, key=lambda k: (k in grids, k))
        self.parts = nn.ModuleList(parts[k] for k in self.keys)
        self.grid = parts[grids[0]].grid if grids else None
        self.num_prefix = sum(part.length for part in parts.values() if part.grid is None)
        cells = sum(part.length for part in parts.values() if part.grid is not None)
        self.join = config.join and self.num_prefix > 1
        self.length = cells + (1 if self.join else self.num_prefix)

    def forward(self, obs: Observation) -> Tensor:
        assert isinstance(obs, Mapping)
        tokens = torch.cat([part(obs[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=-2)
        if not self.join:
            return tokens
        joined = tokens[..., : self.num_prefix, :].sum(-2, keepdim=True) * self.num_prefix**-0.5
        return torch.cat([joined, tokens[..., self.num_prefix :, :]], dim=-2)

    def observe(self, obs: Observation, processes: Processes = SINGLE_PROCESS) -> None:
        assert isinstance(obs, Mapping)
        for key, part in zip(self.keys, self.parts, strict=True):
            part.observe(obs[key], processes)  # type: ignore[operator]


class PrefixedEncoder(Encoder):
    """Learned tokens in front of another encoder's."""

    def __init__(self, inner: Encoder, hidden_size: int, count: int) -> None:
        super().__init__()
        self.inner, self.count = inner, count
        self.length, self.grid = count + inner.length, inner.grid
        self.prefix = nn.Parameter(torch.zeros(count, hidden_size))

    def forward(self, obs: Observation) -> Tensor:
        tokens = self.inner(obs)
        return torch.cat([self.prefix.expand(*tokens.shape[:-2], -1, -1), tokens], dim=-2)

    def observe(self, obs: Observation, processes: Processes = SINGLE_PROCESS) -> None:
        self.inner.observe(obs, processes)


class PositionedEncoder(Encoder):
    """Learned absolute positions around another encoder: `(tokens + position) / sqrt(2)`."""

    def __init__(self, inner: Encoder, hidden_size: int) -> None:
        super().__init__()
        self.inner, self.length, self.grid = inner, inner.length, inner.grid
        self.positions = nn.Parameter(torch.randn(inner.length, hidden_size))

    def forward(self, obs: Observation) -> Tensor:
        return (self.inner(obs) + self.positions) * math.sqrt(0.5)

    def observe(self, obs: Observation, processes: Processes = SINGLE_PROCESS) -> None:
        self.inner.observe(obs, processes)


def _build_part(space: gym.Space, hidden_size: int, config: EncoderConfig, name: str) -> Encoder:
    if isinstance(space, gym.spaces.Box) and _is_picture(space):
        return PictureEncoder(space, hidden_size, config)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.integer) and len(space.shape) in (2, 3):
        cells = space.shape[0] * space.shape[1]
        if space.low.min() < 0 or space.high.max() >= MAX_CATEGORICAL_IDS or cells > MAX_GRID_TOKENS:
            raise ValueError(
                f"{name}: {space} is not a categorical grid: expected ids in 0..{MAX_CATEGORICAL_IDS - 1} "
                f"on at most {MAX_GRID_TOKENS} cells; wrap the environment to give ids"
            )
        return GridEncoder(space, hidden_size, config)
    if isinstance(space, gym.spaces.Box) and len(space.shape) in (0, 1, 2) and np.prod(space.shape) > 0:
        return VectorEncoder(space, hidden_size)
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteEncoder([int(space.n)], [int(space.start)], True, hidden_size)
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return DiscreteEncoder([int(n) for n in space.nvec], [int(s) for s in space.start], False, hidden_size)
    raise ValueError(
        f"{name}: no encoder for {space}: expected an integer grid (H, W) or (H, W, C), a picture (H, W, C), "
        "a vector (n,), Discrete, MultiDiscrete or a Dict of these; wrap the environment"
    )


def _is_picture(space: gym.spaces.Box) -> bool:
    """Floats with rows, columns and channels, or bytes of the full range on a grid of some size."""
    if np.issubdtype(space.dtype, np.floating):
        return len(space.shape) == 3
    full_range = space.dtype == np.uint8 and space.low.min() == 0 and space.high.max() == 255
    if not full_range or len(space.shape) not in (2, 3):
        return False
    return min(space.shape[:2]) >= PICTURE_SIDE or _has_channels_first(space)


def _has_channels_first(space: gym.spaces.Box) -> bool:
    return len(space.shape) == 3 and space.shape[0] < PICTURE_SIDE <= min(space.shape[1:])


def build_encoder(space: gym.Space, hidden_size: int, config: EncoderConfig) -> Encoder:
    """The encoder for observations of `space`.

    Raises:
        ValueError: no encoder supports the space, or the options do not fit it.
    """
    if isinstance(space, gym.spaces.Dict):
        encoder: Encoder = DictEncoder(space, hidden_size, config)
    else:
        encoder = _build_part(space, hidden_size, config, "observation space")
    if config.prefix:
        encoder = PrefixedEncoder(encoder, hidden_size, config.prefix)
    return PositionedEncoder(encoder, hidden_size) if config.positions == "learned" else encoder


def find_grid(encoder: Encoder) -> tuple[GridEncoder, str | None, int] | None:
    """The grid inside an encoder: (grid encoder, its key in the observation or None, tokens before the grid)."""
    if isinstance(encoder, PositionedEncoder | PrefixedEncoder):
        found = find_grid(encoder.inner)
        return found and (found[0], found[1], encoder.length - found[0].length)
    if isinstance(encoder, GridEncoder):
        return encoder, None, 0
    if isinstance(encoder, DictEncoder):
        for key, part in zip(encoder.keys, encoder.parts, strict=True):
            if isinstance(part, GridEncoder):
                return part, key, encoder.length - part.length
    return None
