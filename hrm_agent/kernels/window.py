"""A window of environment steps of a core with two latents (HRM, TRM) by the C++ kernels: one call forward, one back.

What eager torch does between the blocks of such a window (sums of latents, resets, the token that is read) costs as
much as the blocks themselves at the sizes of the default run, and holds the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.memory import pool
from hrm_agent.kernels.paths import Accelerated
from hrm_agent.kernels.stack import (
    Description,
    as_weights,
    check_memory,
    empty_gradients,
    functions,
    pointers,
    take_kept,
)


@dataclass(frozen=True)
class Plan:
    """A core's segment: `outer` times, `inner` updates `z_L = low(z_L + (z_H + x))` and one `z_H = high(z_H + z_L)`.

    Args:
        low, high: the networks; TRM has one for both.
        outer, inner: H_cycles and L_cycles.
        angles: rotary positions of both networks, or None.
        fresh: z_H and z_L that an episode begins with, float32 `[D]` each.
        whole: every cycle has a gradient.
    """

    low: Accelerated
    high: Accelerated
    outer: int
    inner: int
    angles: tuple[Tensor, Tensor] | None
    fresh: tuple[Tensor, Tensor]
    whole: bool

    def suits(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        """Whether the kernels compute this window, with the gradient that is wanted, from such latents."""
        ready = self.low.runs_kernels(x) and self.high.runs_kernels(x) and all(z.dtype == x.dtype for z in state)
        return ready and (self.whole or not torch.is_grad_enabled())


class _Window(ctypes.Structure):
    """`struct Window` of the source."""

    _fields_ = [
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("steps", "segments", "outer", "inner", "cut")),
        *((name, ctypes.c_void_p) for name in ("fresh_h", "fresh_l", "starts", "read")),
    ]


def run_window(
    plan: Plan,
    tokens: Tensor,
    state: tuple[Tensor, Tensor],
    episode_start: Tensor,
    read: Tensor,
    segments: int,
    cut: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Think about k environment steps in a row, carrying the whole latents.

    Args:
        plan: must suit.
        tokens: float32 `[k, B, L, D]` of the observations.
        state: z_H and z_L before the first step, `[B, L, D]` each.
        episode_start: bool `[k, B]`.
        read: int64 `[k, B]`, the token of z_H that is read after every step; below 0 it counts back from the end.
        segments: K, of every step.
        cut: no gradient flows from a step to the one before.

    Returns:
        float32 `[k, B, D]`, the tokens read, and the state after the last step.

    Raises:
        ValueError: an input of another shape or type; the kernels would read and write where they must not.
    """
    steps, batch, length, size = tokens.shape
    for name, given, shape, dtype in (
        ("z_H", state[0], (batch, length, size), torch.float32),
        ("z_L", state[1], (batch, length, size), torch.float32),
        ("episode_start", episode_start, (steps, batch), torch.bool),
        ("read", read, (steps, batch), torch.int64),
    ):
        if given.shape != shape or given.dtype != dtype or given.device != tokens.device:
            told = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {told}: expected {dtype} {list(shape)} on {tokens.device}")
    weights = [*plan.low.kernel_weights(), *(plan.high.kernel_weights() if plan.high is not plan.low else ())]
    cos, sin = plan.angles if plan.angles is not None else (None, None)
    settings = _Settings(plan, segments, cut, plan.low.in_bfloat16)
    inputs: tuple[Any, ...] = (tokens, *state, episode_start, read % tokens.shape[2], cos, sin, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        reads, z_H, z_L = _RunWindow.apply(settings, *inputs)
    else:
        reads, z_H, z_L = _Call(settings, *inputs).forward(None)
    return reads, (z_H, z_L)


def think(plan: Plan, tokens: Tensor, state: tuple[Tensor, Tensor], segments: int = 1) -> tuple[Tensor, Tensor]:
    """The latents after some segments about one observation.

    Args:
        plan: must suit.
        tokens: float32 `[B, L, D]`.
        state: z_H and z_L, `[B, L, D]` each.
    """
    nobody = torch.zeros(1, len(tokens), dtype=torch.bool)
    anywhere = torch.zeros(1, len(tokens), dtype=torch.int64)
    return run_window(plan, tokens[None], state, nobody, anywhere, segments, cut=False)[1]


@dataclass(frozen=True)
class _Settings:
    plan: Plan
    segments: int
    cut: bool
    bf16: bool


class _Call:
    """The structures and the tensors that one call of the kernels points to."""

    def __init__(
        self,
        settings: _Settings,
        tokens: Tensor,
        z_H: Tensor,
        z_L: Tensor,
        episode_start: Tensor,
        read: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        *weights: Tensor,
    ) -> None:
        plan = settings.plan
        self.tokens, self.z_H, self.z_L = tokens.contiguous(), z_H.contiguous(), z_L.contiguous()
        self.episode_start, self.read = episode_start.contiguous(), read.contiguous()
        batch = tokens.shape[1]
        self.shared = plan.high is plan.low
        self.count = len(plan.low.kernel_weights())
        low_weights, high_weights = weights[: self.count], weights[self.count :]
        self.low = Description(plan.low.kernel_shape, batch, settings.bf16, cos, sin, low_weights)
        self.high = (
            self.low
            if self.shared
            else Description(plan.high.kernel_shape, batch, settings.bf16, cos, sin, high_weights)
        )
        self.fresh = tuple(f.contiguous() for f in plan.fresh)
        self.window = _Window(
            self.low.address, self.high.address, len(tokens), settings.segments, plan.outer, plan.inner, settings.cut,
            self.fresh[0].data_ptr(), self.fresh[1].data_ptr(), self.episode_start.data_ptr(), self.read.data_ptr(),
        )  # fmt: skip

    def kept(self) -> Tensor:
        return pool.take(functions().window_kept_floats(ctypes.addressof(self.window)))

    def forward(self, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, _, size = self.tokens.shape
        reads = torch.empty(steps, batch, size)
        z_H, z_L = torch.empty_like(self.z_H), torch.empty_like(self.z_L)
        failed = functions().window_forward(
            ctypes.addressof(self.window), self.tokens.data_ptr(), self.z_H.data_ptr(), self.z_L.data_ptr(),
            reads.data_ptr(), z_H.data_ptr(), z_L.data_ptr(), None if kept is None else kept.data_ptr(),
        )  # fmt: skip
        check_memory(failed)
        return reads, z_H, z_L


class _RunWindow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        call = _Call(settings, *inputs)
        ctx.settings, ctx.kept = settings, call.kept()
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return call.forward(ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, reads_g: Tensor | None, z_H_g: Tensor | None, z_L_g: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        kept = take_kept(ctx)
        call = _Call(ctx.settings, *inputs)
        if reads_g is None:
            reads_g = torch.zeros(*call.tokens.shape[:2], call.tokens.shape[3])
        reads_g = reads_g.contiguous()
        z_H_g, z_L_g = (None if g is None else g.contiguous() for g in (z_H_g, z_L_g))
        tokens_g, before_H, before_L = (torch.empty_like(t) for t in (call.tokens, call.z_H, call.z_L))
        weights: Sequence[Tensor] = inputs[7:]
        parts = [(ctx.settings.plan.low.kernel_shape, weights[: call.count])]
        if not call.shared:
            parts.append((ctx.settings.plan.high.kernel_shape, weights[call.count :]))
        gradients = [empty_gradients(*part) for part in parts]
        lists = [pointers(g) for g in gradients]
        failed = functions().window_backward(
            ctypes.addressof(call.window), kept.data_ptr(), reads_g.data_ptr(),
            None if z_H_g is None else z_H_g.data_ptr(), None if z_L_g is None else z_L_g.data_ptr(),
            tokens_g.data_ptr(), before_H.data_ptr(), before_L.data_ptr(), lists[0], lists[-1],
        )  # fmt: skip
        check_memory(failed)
        pool.give(kept)
        turned = [w for part, g in zip(parts, gradients, strict=True) for w in as_weights(*part, g)]
        return (None, tokens_g, before_H, before_L, None, None, None, None, *turned)
