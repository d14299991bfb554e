"""A window of environment steps of a core with two latents (HRM, TRM) by the C++ kernels: one call forward, one back.

What eager torch does between the blocks of such a window (sums of latents, gates, resets, the token that is read) costs
as much as the blocks themselves at the sizes of the default run, and holds the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.cpu.memory import pool
from hrm_agent.kernels.cpu.stack import (
    Description,
    as_weights,
    check_memory,
    empty_gradients,
    functions,
    pointers,
    take_kept,
)
from hrm_agent.kernels.paths import Accelerated

RULES = ("full", "gate", "reset")
PARTS_EACH = 4
SMALL_WEIGHTS = 2**16
"""Numbers in a network's weights, of which a gradient for every part of a batch costs little."""


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
    settles = True

    @property
    def divides(self) -> bool:
        return self.whole and self.low.is_fused and self.high.is_fused

    def suits(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        latents = (*state, *self.fresh)
        ready = self.low.runs_kernels(x) and self.high.runs_kernels(x) and all(z.dtype == x.dtype for z in latents)
        return ready and (self.whole or not torch.is_grad_enabled())

    def think(self, tokens: Tensor, state: tuple[Tensor, ...], segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        z_H, z_L = state
        after = think(self, tokens, (z_H, z_L), segments)
        return after[0], after

    def run(
        self,
        rule: Rule,
        thinking: Thinking,
        tokens: Tensor,
        state: tuple[Tensor, ...],
        episode_start: Tensor,
        read: Tensor | None,
    ) -> Thought:
        return run_window(self, rule, thinking, tokens, state, episode_start, read)


@dataclass(frozen=True)
class Rule:
    """What a step thinks from, in rows whose episode goes on; elsewhere from the fresh latents.

    Args:
        kind: of `RULES`. `full`: the latents after the step before. `gate`: these, mixed with the fresh ones by a gate
            per position and latent. `reset`: the fresh ones, and nothing is kept.
        weights: of `gate`: float32 `[2, 3 D]` of (z_H, z_L, token), for z_H's gate and z_L's, and biases `[2]`.
    """

    kind: str
    weights: tuple[Tensor, ...] = ()

    def suits(self, x: Tensor) -> bool:
        """Whether the weights are such as the kernels read."""
        return all(w.dtype == x.dtype and w.device == x.device and w.is_contiguous() for w in self.weights)


FULL = Rule("full")


@dataclass(frozen=True)
class Thinking:
    """How long a step thinks, and what flows back.

    Args:
        segments: K, of every step; the most of them where a row may settle earlier.
        settled: a row stops when a segment changed its latents by less than this, relative to their norm; 0: never.
        cut: no gradient flows from a step to the one before.
        threads: that share the batch, inside one call.
    """

    segments: int
    settled: float = 0.0
    cut: bool = False
    threads: int = 1


class Thought(NamedTuple):
    """A window's outcome: float32 `[k, B, D]`, what is read; the state after it; int64 `[k, B]`, segments used."""

    reads: Tensor
    state: tuple[Tensor, ...]
    segments: Tensor


class WindowPlan(Protocol):
    """How the kernels run a core over several environment steps."""

    @property
    def settles(self) -> bool:
        """Whether rows may stop once they have settled."""

    @property
    def divides(self) -> bool:
        """Whether the kernels divide a batch over threads (`Thinking.threads`), with and without its gradient."""

    def suits(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        """Whether the kernels compute this window, with the gradient that is wanted, from such a state."""

    def think(self, tokens: Tensor, state: tuple[Tensor, ...], segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The core's output `[B, L, D]` and its state after some segments about tokens `[B, L, D]`."""

    def run(
        self,
        rule: Rule,
        thinking: Thinking,
        tokens: Tensor,
        state: tuple[Tensor, ...],
        episode_start: Tensor,
        read: Tensor | None,
    ) -> Thought:
        """Think about k environment steps in a row; see `run_window`."""


class _Window(ctypes.Structure):
    """`struct Window` of the source."""

    _fields_ = [
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("steps", "segments", "outer", "inner", "carry", "cut")),
        *((name, ctypes.c_void_p) for name in ("fresh_h", "fresh_l", "gate", "gate_bias", "starts", "read")),
        *((name, ctypes.c_void_p) for name in ("tokens", "z_h", "z_l", "used")),
        ("threads", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("threshold", ctypes.c_float),
    ]


def run_window(
    plan: Plan,
    rule: Rule,
    thinking: Thinking,
    tokens: Tensor,
    state: tuple[Tensor, ...],
    episode_start: Tensor,
    read: Tensor | None,
) -> Thought:
    """Think about k environment steps in a row.

    Args:
        plan, rule: must suit.
        thinking: see `Thinking`.
        tokens: float32 `[k, B, L, D]` of the observations.
        state: z_H and z_L before the first step, `[B, L, D]` each; nothing where the rule is `reset`.
        episode_start: bool `[k, B]`.
        read: int64 `[k, B]`, the token of z_H that is read after every step; below 0 it counts back from the end. None:
            the mean of all.

    Raises:
        ValueError: an input of another shape or type; the kernels would read and write where they must not.
    """
    steps, batch, length, size = tokens.shape
    latent = (batch, length, size)
    wanted: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        ("episode_start", episode_start, (steps, batch), torch.bool)
    ]
    if rule.kind != "reset":
        wanted += [(name, z, latent, torch.float32) for name, z in zip(("z_H", "z_L"), state, strict=True)]
    if read is not None:
        wanted.append(("read", read, (steps, batch), torch.int64))
    if rule.kind == "gate":
        shapes = ((2, 3 * size), (2,))
        wanted += [("the gate", w, s, torch.float32) for w, s in zip(rule.weights, shapes, strict=True)]
    for name, given, shape, dtype in wanted:
        if given.shape != shape or given.dtype != dtype or given.device != tokens.device:
            told = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {told}: expected {dtype} {list(shape)} on {tokens.device}")
    used = torch.full((steps, batch), thinking.segments)
    settings = _Settings(plan, rule.kind, thinking, plan.low.in_bfloat16, used)
    stacks = [*plan.low.kernel_weights(), *(plan.high.kernel_weights() if plan.high is not plan.low else ())]
    z_H, z_L = (None, None) if rule.kind == "reset" else state
    at = None if read is None else read % length
    angles = plan.angles or (None, None)
    inputs = (tokens, z_H, z_L, episode_start, at, *angles, *(rule.weights or (None, None)), *stacks)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        reads, *after = _RunWindow.apply(settings, *inputs)
    else:
        reads, *after = _Call(settings, *inputs).forward(None)
    return Thought(reads, tuple(after), used.clone())  # not the one that the backward counts by


def think(plan: Plan, tokens: Tensor, state: tuple[Tensor, Tensor], segments: int = 1) -> tuple[Tensor, Tensor]:
    """The latents after some segments about one observation.

    Args:
        plan: must suit.
        tokens: float32 `[B, L, D]`.
        state: z_H and z_L, `[B, L, D]` each.
    """
    no_start = torch.zeros(1, len(tokens), dtype=torch.bool)
    anywhere = torch.zeros(1, len(tokens), dtype=torch.int64)
    z_H, z_L = run_window(plan, FULL, Thinking(segments), tokens[None], state, no_start, anywhere).state
    return z_H, z_L


@dataclass(frozen=True)
class _Settings:
    plan: Plan
    kind: str
    thinking: Thinking
    bf16: bool
    used: Tensor


STATE, ANGLES, GATE, STACKS = slice(1, 3), slice(5, 7), slice(7, 9), slice(9, None)
"""Where they are among the tensors of a call."""


class _Call:
    """The structures and the tensors that one call of the kernels points to."""

    def __init__(self, settings: _Settings, *inputs: Tensor | None) -> None:
        plan, thinking = settings.plan, settings.thinking
        given = [None if t is None else t.contiguous() for t in inputs[: GATE.stop]]
        tokens, starts = given[0], given[3]
        assert tokens is not None
        assert starts is not None
        cos, sin = given[ANGLES]
        weights = [w for w in inputs[STACKS] if w is not None]
        self.tokens, self.state, self.keeps = tokens, given[STATE], settings.kind != "reset"
        self.shared, self.count = plan.high is plan.low, len(plan.low.kernel_weights())
        batch, low_weights, high_weights = tokens.shape[1], weights[: self.count], weights[self.count :]
        self.low = Description(plan.low.kernel_shape, batch, settings.bf16, cos, sin, low_weights)
        self.high = self.low
        if not self.shared:
            self.high = Description(plan.high.kernel_shape, batch, settings.bf16, cos, sin, high_weights)
        self.parts = _parts(thinking.threads, weights)
        self.given, self.fresh = given, [f.contiguous() for f in plan.fresh]  # alive as long as they are pointed to
        at = [None if t is None else t.data_ptr() for t in given]
        self.window = _Window(
            self.low.address, self.high.address, len(tokens), thinking.segments, plan.outer, plan.inner,
            RULES.index(settings.kind), thinking.cut, *(f.data_ptr() for f in self.fresh), *at[GATE], at[3], at[4],
            at[0], *at[STATE], settings.used.data_ptr() if thinking.settled > 0 else None,
            thinking.threads, self.parts, thinking.settled,
        )  # fmt: skip

    def kept(self) -> Tensor:
        return pool.take(functions().window_kept_floats(ctypes.addressof(self.window)))

    def forward(self, kept: Tensor | None) -> tuple[Tensor, ...]:
        steps, batch, length, size = self.tokens.shape
        reads = torch.empty(steps, batch, size)
        after = tuple(torch.empty(batch, length, size) for _ in range(2)) if self.keeps else (None, None)
        failed = functions().window_forward(
            ctypes.addressof(self.window), *(None if t is None else t.data_ptr() for t in (reads, *after, kept))
        )
        check_memory(failed)
        return (reads, *(z for z in after if z is not None))


class _RunWindow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *inputs: Any) -> tuple[Tensor, ...]:
        call = _Call(settings, *inputs)
        ctx.settings, ctx.kept = settings, call.kept()
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return call.forward(ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, reads_g: Tensor | None, *after_g: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        kept = take_kept(ctx)
        call = _Call(ctx.settings, *inputs)
        if reads_g is None:
            reads_g = torch.zeros(*call.tokens.shape[:2], call.tokens.shape[3])
        down = [None if g is None else g.contiguous() for g in (reads_g, *(after_g or (None, None)))]
        up = [None if t is None else torch.empty_like(t) for t in (call.tokens, *call.state)]
        gate = [None if w is None else torch.zeros(call.parts, *w.shape) for w in inputs[GATE]]
        weights: Sequence[Tensor] = inputs[STACKS]
        parts = [(ctx.settings.plan.low.kernel_shape, weights[: call.count])]
        if not call.shared:
            parts.append((ctx.settings.plan.high.kernel_shape, weights[call.count :]))
        gradients = [[empty_gradients(*part) for _ in range(call.parts)] for part in parts]
        lists = [pointers([g for own in all_own for g in own]) for all_own in gradients]
        before, behind = ([None if t is None else t.data_ptr() for t in ts] for ts in ([kept, *down, *up], gate))
        failed = functions().window_backward(ctypes.addressof(call.window), *before, lists[0], lists[-1], *behind)
        check_memory(failed)
        pool.give(kept)
        sums = [[_sum(own) for own in zip(*all_own, strict=True)] for all_own in gradients]
        turned = [w for part, g in zip(parts, sums, strict=True) for w in as_weights(*part, g)]
        return (None, *up, None, None, None, None, *(None if g is None else _sum(g.unbind()) for g in gate), *turned)


def _parts(threads: int, weights: Sequence[Tensor]) -> int:
    """Parts of a batch in the backward: several for each thread, which take them in turn, so that none waits long for
    the slowest; one for each where that many copies of the weights' gradients would not stay in the cache."""
    small = sum(w.numel() for w in weights) <= SMALL_WEIGHTS
    return threads * PARTS_EACH if threads > 1 and small else threads


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """One after the other, so that it is always the same."""
    first, *others = parts
    for other in others:
        first += other
    return first
