"""Stacks of blocks by the C++ kernels: the same function as `hrm_agent.cores.blocks.BlockStack`, gradient included.

A whole stack is one call, which releases the GIL: slices of a batch run in parallel on several threads. Results differ
from eager torch by rounding alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.cpu.build import library
from hrm_agent.kernels.cpu.memory import pool

VECTOR = 16
"""Channels and inner widths must be multiples of this many floats."""
MOST_ATTENDED = 4096
"""Tokens up to which attention's scores, a matrix that every thread holds, are worth their memory."""
MIXINGS = ("conv", "attention", "mlp")


@dataclass(frozen=True)
class Shape:
    """The shape of a stack.

    Args:
        mixing: one of `MIXINGS`.
        layers: blocks.
        length: tokens L; those before the grid's cells are the prefix.
        size: channels D, a multiple of 16.
        inner: width of the SwiGLU over channels, a multiple of 16.
        epsilon: of the norms.
        grid: rows and columns, for `conv`; zeros without one.
        heads: for `attention`; D / heads a multiple of 16.
        position_inner: for `mlp`, width of the SwiGLU over positions, a multiple of 16.
        causal: for `attention`, of a token to itself and those before it; other mixings have no causal form here.
    """

    mixing: str
    layers: int
    length: int
    size: int
    inner: int
    epsilon: float
    grid: tuple[int, int] = (0, 0)
    heads: int = 1
    position_inner: int = 0
    causal: bool = False

    @property
    def fits(self) -> bool:
        """Whether the kernels support it."""
        if self.mixing not in MIXINGS or self.size % VECTOR or self.inner % VECTOR:
            return False
        if self.causal and self.mixing != "attention":
            return False
        if self.mixing == "conv":
            return True
        if self.mixing == "attention":
            return self.length <= MOST_ATTENDED and self.size % (self.heads * VECTOR) == 0
        return self.position_inner % VECTOR == 0

    @property
    def weights(self) -> int:
        """Number of a layer's weights: the mixing's, at most two, then `gate_up` and `down` of the SwiGLU.

        Those of `conv` are the convolution kernel, where there is a grid, and the weights of means, where there is a
        prefix.
        """
        cells = self.grid[0] * self.grid[1]
        return 2 + (cells > 0) + (cells < self.length) if self.mixing == "conv" else 4

    def is_turned(self, index: int) -> bool:
        """Whether the kernels return this weight's gradient transposed; weights are numbered over all layers."""
        place = index % self.weights
        first = self.mixing == "mlp" or (self.mixing == "conv" and self.grid != (0, 0))
        return place == self.weights - 2 or (first and place == 0)


class _Stack(ctypes.Structure):
    """`struct Stack` of the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("mixing", "layers", "batch", "length", "size", "inner", "rows", "cols")),
        *((name, ctypes.c_int64) for name in ("heads", "position_inner", "bf16", "causal")),
        ("epsilon", ctypes.c_float),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    ]


@cache
def functions() -> Any:
    """The library with its signatures declared.

    Raises:
        NoKernels: see `hrm_agent.kernels.cpu.build.library`.
    """
    found: Any = library()
    pointer = ctypes.c_void_p
    arguments = {
        "stack_has_bfloat16": 0,
        "stack_kept_floats": 1,
        "stack_forward": 4,
        "stack_backward": 7,
        "window_kept_floats": 1,
        "window_forward": 5,
        "window_backward": 12,
        "patches_forward": 4,
        "patches_backward": 4,
    }
    whole = ctypes.c_int64
    signatures: dict[str, list[Any]] = {name: [pointer] * count for name, count in arguments.items()}
    signatures["pool_forward"] = [*[whole] * 3, *[pointer] * 2]
    signatures["pool_backward"] = [*[whole] * 3, *[pointer] * 6]
    signatures["gru_forward"] = [whole, whole, *[pointer] * 5]
    signatures["gru_backward"] = [whole, whole, *[pointer] * 6, whole]
    signatures["patches_find"] = [pointer, pointer, whole, pointer]
    for name, signature in signatures.items():
        function = getattr(found, name)
        function.argtypes, function.restype = signature, ctypes.c_int64
    found.stack_instructions.argtypes, found.stack_instructions.restype = [], ctypes.c_char_p
    return found


def instructions() -> str:
    """The instruction set that the kernels are compiled for: `avx512_bf16`, `avx512`, `avx2`, `avx`, `neon` or `plain`.

    Raises:
        NoKernels: see `hrm_agent.kernels.cpu.build.library`.
    """
    return str(functions().stack_instructions().decode())


def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 products.

    Raises:
        NoKernels: see `hrm_agent.kernels.cpu.build.library`.
    """
    return bool(functions().stack_has_bfloat16())


class Description:
    """`struct Stack` of a shape with its weights, and the objects that must outlive it."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        bf16: bool,
        cos: Tensor | None,
        sin: Tensor | None,
        weights: Sequence[Tensor],
    ) -> None:
        self._weights, self._pointers = weights, pointers(weights)
        self.stack = _Stack(
            MIXINGS.index(shape.mixing), shape.layers, batch, shape.length, shape.size, shape.inner, *shape.grid,
            shape.heads, shape.position_inner, bf16, shape.causal, shape.epsilon,
            None if cos is None else cos.data_ptr(), None if sin is None else sin.data_ptr(),
            ctypes.cast(self._pointers, ctypes.c_void_p),
        )  # fmt: skip

    @property
    def address(self) -> int:
        return ctypes.addressof(self.stack)


def run_stack(
    shape: Shape, x: Tensor, angles: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor], bf16: bool
) -> Tensor:
    """The output of a stack.

    Args:
        shape: must be supported (`Shape.fits`).
        x: float32 `[B, L, D]` on the CPU.
        angles: cosines and sines of rotary positions, `[L, 1, D / heads]` or None.
        weights: `shape.weights` of every layer in turn, float32 and contiguous, in the layout of `torch.nn`.
        bf16: round the factors of matrix products to bfloat16, forward and backward (except inside the backward of
            attention and of the position MLP); sums, norms, weights and latents are float32.

    Returns:
        float32 `[B, L, D]`.
    """
    cos, sin = (None, None) if angles is None else angles
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        result: Tensor = _RunStack.apply(shape, bf16, cos, sin, x, *weights)
        return result
    x = x.contiguous()
    return _forward(Description(shape, len(x), bf16, cos, sin, weights), x, None)


class _RunStack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: Shape, bf16: bool, cos: Tensor | None, sin: Tensor | None, x: Tensor, *weights: Tensor
    ) -> Tensor:
        x = x.contiguous()
        stack = Description(shape, len(x), bf16, cos, sin, weights)
        ctx.shape, ctx.bf16 = shape, bf16
        ctx.kept = pool.take(shape.layers * functions().stack_kept_floats(stack.address))
        y = _forward(stack, x, ctx.kept)
        ctx.save_for_backward(x, y, cos, sin, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shape: Shape = ctx.shape
        x, y, cos, sin, *weights = ctx.saved_tensors
        kept = take_kept(ctx)
        gradient = gradient.contiguous()
        to_x, to_weights = torch.empty_like(x), empty_gradients(shape, weights)
        stack = Description(shape, len(x), ctx.bf16, cos, sin, weights)
        failed = functions().stack_backward(
            stack.address, x.data_ptr(), y.data_ptr(), kept.data_ptr(), gradient.data_ptr(), to_x.data_ptr(),
            pointers(to_weights),
        )  # fmt: skip
        check_memory(failed)
        pool.give(kept)
        return (None, None, None, None, to_x, *as_weights(shape, weights, to_weights))


def take_kept(ctx: Any) -> Tensor:
    """The activations that a forward saved for its backward; their buffer is then free for reuse.

    Raises:
        RuntimeError: the backward has already been run.
    """
    kept: Tensor | None = ctx.kept
    if kept is None:
        raise RuntimeError("backward through the kernels a second time: saved activations are freed; rerun the forward")
    ctx.kept = None
    return kept


def pointers(tensors: Sequence[Tensor]) -> Any:
    """An array of pointers to tensors; they must outlive it."""
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def check_memory(failed: int) -> None:
    """Raises: MemoryError where a call of the kernels reports it."""
    if failed:
        raise MemoryError("the kernels found no memory for a chunk's temporaries")


def _forward(stack: Description, x: Tensor, kept: Tensor | None) -> Tensor:
    y = torch.empty_like(x)
    at = None if kept is None else kept.data_ptr()
    check_memory(functions().stack_forward(stack.address, x.data_ptr(), y.data_ptr(), at))
    return y


def empty_gradients(shape: Shape, weights: Sequence[Tensor]) -> list[Tensor]:
    """Zeros to which the kernels add the gradients of `weights`, in the kernels' layout."""
    return [torch.zeros((w[0].numel(), w.shape[0]) if shape.is_turned(i) else w.shape) for i, w in enumerate(weights)]


def as_weights(shape: Shape, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients in the weights' memory layout, which torch's fused optimizers assume."""
    return [
        g.t().contiguous().view(w.shape) if shape.is_turned(i) else g
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True))
    ]
