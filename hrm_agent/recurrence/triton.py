"""Passes a core's weights and state to the fused kernel (`hrm_agent.kernels.triton.segment`) and returns its results.

The plain cores (`hrm_agent.cores`) are the reference, and are used where `unsupported` names a reason.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn

from hrm_agent.cores import Core, State
from hrm_agent.cores.blocks import AttentionMixing, Block, ConvMixing
from hrm_agent.cores.two_latents import TwoLatentCore
from hrm_agent.kernels.triton.segment import run_segments

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
LEAST = 16
"""Smallest side of a matrix product's operands that Triton takes."""


@dataclass(frozen=True)
class Tiles:
    """Tiling of a sample's tokens: `count` tiles of `wide` rows, then one of `tail` rows (0: none)."""

    count: int
    wide: int
    tail: int

    @property
    def rows(self) -> int:
        return self.count * self.wide + self.tail


def tiles_of(length: int, rows: int) -> Tiles:
    """Full tiles of `rows` tokens, and for the remainder the least sufficient power of 2, at least 16.

    Raises:
        ValueError: `rows` is no power of 2 of at least 16.
    """
    if rows < LEAST or rows & (rows - 1):
        raise ValueError(f"rows={rows}: expected a power of 2 from {LEAST} on")
    count, left = divmod(length, rows)
    return Tiles(count, rows, max(LEAST, triton.next_power_of_2(left)) if left else 0)


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on the CPU for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unsupported(core: nn.Module) -> str | None:
    """Why the kernel does not support this core, in half a line; None where it does."""
    if not isinstance(core, TwoLatentCore):
        return f"{type(core).__name__} is neither HRM nor TRM"
    size = core.hidden_size
    if size < 2 * LEAST or size & (size - 1):
        return f"hidden_size={size} is no power of 2 from {2 * LEAST} on"
    for block in _blocks(core):
        mixer = block.mixer
        if block.config.causal:
            return "causal mixing is not written for it"
        if block.mlp.conv is not None or not isinstance(mixer, AttentionMixing | ConvMixing):
            return f"mixing={block.mixing} is not written for it"
        inner = block.mlp.down.in_features
        if inner % LEAST:
            return f"inner_size={inner} is no multiple of {LEAST}"
        if isinstance(mixer, ConvMixing):
            if mixer.conv is None or mixer.prefix:
                return "a convolution with tokens before the grid is not written for it"
        elif mixer.bias is not None:
            return f"mixing={block.mixing} is not written for it"
        elif (head := size // mixer.num_heads) < LEAST or head & (head - 1):
            return f"heads of {head} channels are no power of 2 from {LEAST} on"
    return None


def _blocks(core: Any) -> list[Block]:
    """Those of the low level's network, and of the high level's where it is a different one."""
    stacks = [core.low] if core.low is core.high else [core.low, core.high]
    return [layer for stack in stacks for layer in stack.layers]


class SegmentKernel:
    """Segments of a core in one launch: `core(x, state)` to the precision of the products.

    Args:
        core: HRM or TRM on a CUDA device (or on the CPU under Triton's interpreter); its weights are copied when they
            have changed, see `refresh`.
        precision: of matrix products and of activations between layers: `bf16` or `float32`. Sums are float32.
        rows: of a tile; a power of 2 from 16 on.
        warps, stages: of a program, and of its software pipeline.
        programs: that run at once; 0: two a multiprocessor.

    Raises:
        ValueError: a core that the kernel does not support (`unsupported`), or a setting out of range.
    """

    def __init__(
        self,
        core: Core,
        precision: str = "bf16",
        rows: int = 64,
        warps: int = 4,
        stages: int = 2,
        programs: int = 0,
    ) -> None:
        reason = unsupported(core)
        if reason is not None:
            raise ValueError(f"no Triton kernel for this core: {reason}; use the plain path")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.core, self.precision = core, precision
        self.tiles = tiles_of(core.length, rows)
        self.warps, self.stages, self.programs = warps, stages, programs
        self._versions: tuple[int, ...] | None = None
        self._packed: dict[str, Tensor] = {}
        self._scratch: Tensor | None = None

    def __call__(self, x: Tensor, state: State, segments: int = 1) -> tuple[Tensor, State]:
        """Consecutive segments of the core, without gradient: output `[B, L, D]` and state."""
        self.refresh()
        with torch.no_grad():
            z_h, z_l = (z.to(x.dtype).contiguous() for z in state)
            x = x.contiguous()
            new_h, new_l = torch.empty_like(z_h), torch.empty_like(z_l)
            self._launch(x, z_h, z_l, new_h, new_l, segments)
        make: Any = type(state)
        return new_h, make._make((new_h, new_l)) if hasattr(make, "_make") else make((new_h, new_l))

    def refresh(self) -> None:
        """Copy the weights if they have changed since the last call.

        Nothing is copied while a CUDA graph is being captured. Changes by a replayed graph are not detected: call
        `invalidate()` after such an update.
        """
        if is_capturing():
            return
        versions = tuple(p._version for p in self.core.parameters())
        if versions != self._versions:
            self._pack()
            self._versions = versions

    def invalidate(self) -> None:
        """Copy the weights at the next `refresh`, after a change that cannot be detected."""
        self._versions = None

    @torch.no_grad()
    def _pack(self) -> None:
        """All layers' weights, transposed to [inputs, outputs], in the precision of the products.

        Always written into the same memory, from which captured graphs read.
        """
        blocks = _blocks(self.core)
        fresh = {
            "gate_up": torch.stack([b.mlp.gate_up.weight.T for b in blocks]),
            "down": torch.stack([b.mlp.down.weight.T for b in blocks]),
        }
        mixers: list[Any] = [b.mixer for b in blocks]
        if self._attends:
            order = _halves_first(self.core.hidden_size, mixers[0].num_heads).to(fresh["down"].device)
            fresh["qkv"] = torch.stack([m.qkv.weight[order].T for m in mixers])
            fresh["mix"] = torch.stack([m.out.weight.T for m in mixers])
        else:
            fresh["mix"] = torch.stack([m.conv.weight.flatten(1).T for m in mixers])
        for name, value in fresh.items():
            if name in self._packed:
                self._packed[name].copy_(value)
            else:
                self._packed[name] = value.to(PRECISIONS[self.precision]).contiguous()

    @property
    def _attends(self) -> bool:
        return isinstance(_blocks(self.core)[0].mixer, AttentionMixing)

    def _turns(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines float32[rows, head_size / 2], padded to whole tiles."""
        core: Any = self.core
        angles = core.rotary() if self._attends else None
        if angles is None:
            return None
        if "cos" not in self._packed:
            for name, table in zip(("cos", "sin"), angles, strict=True):
                half = table[:, 0, : table.shape[-1] // 2].float()
                padded = torch.zeros(self.tiles.rows, half.shape[1], device=device)
                padded[: len(half)] = half
                self._packed[name] = padded
        return self._packed["cos"], self._packed["sin"]

    def _launch(self, x: Tensor, z_h: Tensor, z_l: Tensor, new_h: Tensor, new_l: Tensor, segments: int) -> None:
        core: Any = self.core
        batch, length, size = x.shape
        blocks: list[Any] = _blocks(core)
        slots = 7 if self._attends else 5
        low, shared = len(core.low.layers), core.low is core.high
        grid = core.grid or (0, 0)
        inner = blocks[0].mlp.down.in_features
        programs = self.programs or _default_programs(x.device)
        if self._scratch is None:
            # For the largest number of programs, whatever the batch: captured graphs write there.
            shape = (programs, slots, self.tiles.rows, size)
            self._scratch = torch.empty(shape, dtype=PRECISIONS[self.precision], device=x.device)
        packed, turns = self._packed, self._turns(x.device)
        cos, sin = turns if turns is not None else (packed["mix"], packed["mix"])  # unused
        run_segments[(min(batch, programs),)](
            x, z_h, z_l, new_h, new_l, self._scratch,
            packed.get("qkv", packed["mix"]), packed["mix"], packed["gate_up"], packed["down"], cos, sin,
            batch,
            segments * core.updates,
            ATTENTION=self._attends,
            ROPE=turns is not None,
            GRID_ROWS=grid[0],
            GRID_COLS=grid[1],
            LENGTH=length,
            D=size,
            HEAD=size // blocks[0].mixer.num_heads if self._attends else size,
            INNER=inner,
            CHUNK=min(64, inner & -inner),
            L_CYCLES=core.L_cycles,
            LOW_LAYERS=low,
            HIGH_FIRST=0 if shared else low,
            HIGH_LAYERS=low if shared else len(blocks) - low,
            TILES=self.tiles.count,
            WIDE=self.tiles.wide,
            TAIL=self.tiles.tail,
            SLOTS=slots,
            PRECISION="upcast" if interpreted() else "ieee",
            num_warps=self.warps,
            num_stages=self.stages,
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> SegmentKernel:
        """The kernel of a copied core, with its own buffers and so its own weights."""
        other = copy.copy(self)
        other.core = copy.deepcopy(self.core, memo)
        other._versions, other._packed, other._scratch = None, {}, None
        return other


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on this stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _default_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return os.cpu_count() or 1
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _halves_first(size: int, heads: int) -> Tensor:
    """Rows of a qkv matrix [3 D, D] in the order of `_project`, the first halves of all heads first."""
    of_head = torch.arange(size).view(heads, 2, -1).transpose(0, 1).flatten()  # all first halves, all second halves
    return torch.cat([of_head, size + of_head, 2 * size + torch.arange(size)])
