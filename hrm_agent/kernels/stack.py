"""Stacks of blocks by the C++ kernels: the same function as `hrm_agent.cores.blocks.BlockStack`, gradient included.

A whole stack is one call, for which the interpreter's lock is released: batch shards on several threads run side by
side. Numbers differ from eager torch by rounding alone.
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

from hrm_agent.kernels.build import library

VECTOR = 16
"""Sizes that are summed over columns must be multiples of this many floats."""
MIXINGS = ("conv", "attention", "mlp")
WEIGHTS = {"conv": 3, "attention": 4, "mlp": 4}
"""Of a layer: the mixing's one or two matrices, then those of the SwiGLU, `gate_up` and `down`."""


@dataclass(frozen=True)
class Shape:
    """What the kernels must know of a stack.

    Args:
        mixing: one of `MIXINGS`.
        layers: blocks.
        length: tokens L; with `conv` the cells of the grid, without a prefix.
        size: channels D, a multiple of 16.
        inner: width of the SwiGLU over channels, a multiple of 16.
        epsilon: of the norms.
        grid: rows and columns, of `conv`.
        heads: of `attention`; D / heads a multiple of 16.
        position_inner: of `mlp`, width of the SwiGLU over positions, a multiple of 16.
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

    @property
    def fits(self) -> bool:
        """Whether the kernels can compute it."""
        if self.mixing not in MIXINGS or self.size % VECTOR or self.inner % VECTOR:
            return False
        if self.mixing == "conv":
            return self.grid[0] * self.grid[1] == self.length
        if self.mixing == "attention":
            return self.size % self.heads == 0 and self.size // self.heads % VECTOR == 0
        return self.position_inner % VECTOR == 0


_Floats = ctypes.POINTER(ctypes.c_float)


class _Stack(ctypes.Structure):
    """`struct Stack` of the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("mixing", "layers", "batch", "length", "size", "inner", "rows", "cols")),
        *((name, ctypes.c_int64) for name in ("heads", "position_inner", "bf16")),
        ("epsilon", ctypes.c_float),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    ]


@cache
def _functions() -> Any:
    """The library with its signatures declared.

    Raises:
        NoKernels: see `hrm_agent.kernels.build.library`.
    """
    functions: Any = library()
    stack, pointer = ctypes.POINTER(_Stack), ctypes.c_void_p
    functions.stack_has_bfloat16.argtypes = ()
    functions.stack_kept_floats.argtypes = (stack,)
    functions.stack_forward.argtypes = (stack, pointer, pointer, pointer)
    functions.stack_backward.argtypes = (stack, *[pointer] * 6)
    for name in ("stack_has_bfloat16", "stack_kept_floats", "stack_forward", "stack_backward"):
        getattr(functions, name).restype = ctypes.c_int64
    return functions


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers.

    Raises:
        NoKernels: see `hrm_agent.kernels.build.library`.
    """
    return bool(_functions().stack_has_bfloat16())


def run_stack(
    shape: Shape, x: Tensor, angles: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor], bf16: bool
) -> Tensor:
    """What the stack makes of `x`.

    Args:
        shape: must fit.
        x: float32 `[B, L, D]` on the CPU.
        angles: cosines and sines of rotary positions, `[L, 1, D / heads]` or None.
        weights: `WEIGHTS[mixing]` of every layer in turn, float32 and contiguous, as `torch.nn` lays them out.
        bf16: round the factors of the forward's matrix products to bfloat16; sums, norms and all of the backward
            stay in float32.

    Returns:
        float32 `[B, L, D]`.
    """
    cos, sin = (None, None) if angles is None else angles
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        result: Tensor = _RunStack.apply(shape, bf16, cos, sin, x, *weights)
        return result
    x = x.contiguous()
    y = torch.empty_like(x)
    _forward(_describe(shape, len(x), bf16, cos, sin, weights), x, y, None)
    return y


class _RunStack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: Shape, bf16: bool, cos: Tensor | None, sin: Tensor | None, x: Tensor, *weights: Tensor
    ) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        stack = _describe(shape, len(x), bf16, cos, sin, weights)
        kept = torch.empty(shape.layers * _functions().stack_kept_floats(stack[0]))
        _forward(stack, x, y, kept)
        ctx.shape = shape
        ctx.save_for_backward(x, y, kept, cos, sin, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shape: Shape = ctx.shape
        x, y, kept, cos, sin, *weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x = torch.empty_like(x)
        to_weights = [torch.zeros(_gradient_shape(shape, i, w)) for i, w in enumerate(weights)]
        stack = _describe(shape, len(x), False, cos, sin, weights)
        pointers = _pointers(to_weights)
        failed = _functions().stack_backward(
            stack[0], x.data_ptr(), y.data_ptr(), kept.data_ptr(), gradient.data_ptr(), to_x.data_ptr(), pointers
        )
        _check(failed)
        turned = (_as_weight(shape, i, g, w) for i, (g, w) in enumerate(zip(to_weights, weights, strict=True)))
        return (None, None, None, None, to_x, *turned)


def _describe(
    shape: Shape, batch: int, bf16: bool, cos: Tensor | None, sin: Tensor | None, weights: Sequence[Tensor]
) -> tuple[_Stack, Any]:
    """The structure, and what must live as long as it."""
    pointers = _pointers(weights)
    stack = _Stack(
        MIXINGS.index(shape.mixing), shape.layers, batch, shape.length, shape.size, shape.inner, *shape.grid,
        shape.heads, shape.position_inner, bf16, shape.epsilon,
        None if cos is None else cos.data_ptr(), None if sin is None else sin.data_ptr(),
        ctypes.cast(pointers, ctypes.c_void_p),
    )  # fmt: skip
    return stack, pointers


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _forward(stack: tuple[_Stack, Any], x: Tensor, y: Tensor, kept: Tensor | None) -> None:
    _check(_functions().stack_forward(stack[0], x.data_ptr(), y.data_ptr(), None if kept is None else kept.data_ptr()))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the kernels found no memory for a chunk's temporaries")


def _is_turned(shape: Shape, index: int) -> bool:
    """Whether the kernels give the transpose of this weight's gradient."""
    return shape.mixing != "attention" and index % WEIGHTS[shape.mixing] == 0


def _gradient_shape(shape: Shape, index: int, weight: Tensor) -> tuple[int, ...]:
    if not _is_turned(shape, index):
        return tuple(weight.shape)
    return weight[0].numel(), weight.shape[0]


def _as_weight(shape: Shape, index: int, gradient: Tensor, weight: Tensor) -> Tensor:
    # Contiguous as the weight is: torch's fused optimizers take for granted that both are laid out alike.
    return gradient.t().contiguous().view(weight.shape) if _is_turned(shape, index) else gradient
