"""Grids of ids to tokens by the C++ kernels, as `hrm_agent.policies.encoders.GridEncoder` in eager torch.

Eager torch makes an int64 index of every cell and copies it five times before the look-up, which costs a tenth of a
segment of a small core.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.cpu.stack import VECTOR, functions

MOST_PLACES = 64
"""Largest side of a patch that the kernels support."""


class _Patches(ctypes.Structure):
    """`struct Patches` of the source."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("count", "height", "width", "crop", "patch", "rows", "cols", "ids", "size", "threads")
    ]


@dataclass(frozen=True)
class Patches:
    """How a grid is cut into patches.

    Args:
        height, width: of the grid, in cells.
        crop: rings of cells that are dropped.
        patch: side of a patch.
        rows, cols: of patches; they may overhang at the lower and right edges.
        ids: number of ids; they are 0 ... ids - 1.
        size: channels D of a token.
    """

    height: int
    width: int
    crop: int
    patch: int
    rows: int
    cols: int
    ids: int
    size: int

    def supports(self, grids: Tensor, table: Tensor) -> bool:
        """Whether the kernels read such grids `[..., height, width]` and such a table."""
        known = self.size % VECTOR == 0 and self.patch**2 <= MOST_PLACES
        types = grids.dtype == torch.uint8 and table.dtype == torch.float32 and table.is_contiguous()
        here = grids.device.type == table.device.type == "cpu"
        return known and types and here and not (torch.compiler.is_compiling() or torch.jit.is_tracing())

    def described(self, count: int, threads: int = 1) -> Any:
        """`struct Patches` for these grids."""
        own = (self.height, self.width, self.crop, self.patch, self.rows, self.cols, self.ids, self.size)
        return _Patches(count, *own, threads)


def embed(patches: Patches, grids: Tensor, table: Tensor, threads: int = 1) -> Tensor:
    """Tokens float32 `[N, rows * cols, D]` of grids uint8 `[N, height, width]`.

    Args:
        patches: must support them.
        table: float32 `[patch^2 * (ids + 1), D]`: the rows of a place in the patch follow each other, its last is for
            places outside the grid.
        threads: over which the grids are divided.

    Raises:
        ValueError: an id that the table does not have.
    """
    if torch.is_grad_enabled() and table.requires_grad:
        tokens: Tensor = _Embed.apply(patches, grids, table, threads)
        return tokens
    return _forward(patches, grids.contiguous(), table, threads)


def find(patches: Patches, grids: Tensor, id: int) -> Tensor:
    """The token that holds the first cell with an id, int64 `[N]`; of the first cell, where no cell has it."""
    grids = grids.contiguous()
    found = torch.empty(len(grids), dtype=torch.int64)
    described = patches.described(len(grids))
    functions().patches_find(ctypes.addressof(described), grids.data_ptr(), id, found.data_ptr())
    return found


def _forward(patches: Patches, grids: Tensor, table: Tensor, threads: int) -> Tensor:
    tokens = torch.empty(len(grids), patches.rows * patches.cols, patches.size)
    described = patches.described(len(grids), threads)
    where = (ctypes.addressof(described), grids.data_ptr(), table.data_ptr(), tokens.data_ptr())
    if functions().patches_forward(*where):
        raise ValueError(f"an observation holds id {int(grids.max())}: expected ids below {patches.ids}")
    return tokens


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Patches, grids: Tensor, table: Tensor, threads: int) -> Tensor:
        grids = grids.contiguous()
        ctx.patches, ctx.shape, ctx.threads = patches, table.shape, threads
        ctx.save_for_backward(grids)
        return _forward(patches, grids, table, threads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None]:
        (grids,) = ctx.saved_tensors
        gradient, to_table = gradient.contiguous(), torch.zeros(ctx.threads, *ctx.shape)
        described = ctx.patches.described(len(grids), ctx.threads)
        where = (ctypes.addressof(described), grids.data_ptr(), gradient.data_ptr(), to_table.data_ptr())
        functions().patches_backward(*where)
        return None, None, to_table.sum(0), None
