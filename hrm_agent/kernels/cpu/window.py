"""A window of environment steps of a core with two latents (HRM, TRM) by the C++ kernels: one call forward, one back.

In eager torch the operations between the blocks (sums of latents, gates, resets, readout) cost as much as the blocks at
the sizes of the default run, and hold the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.cpu.memory import pool
from hrm_agent.kernels.cpu.stack import (
    Description,
    Shape,
    as_weights,
    check_memory,
    empty_gradients,
    functions,
    pointers,
    take_kept,
)

RULES = ("full", "gate", "reset")
PARTS_EACH = 4
SMALL_WEIGHTS = 2**16
"""Parameters of a network up to which separate gradients for every part of a batch cost little."""


@dataclass(frozen=True)
class Network:
    """A stack of blocks: its shape, and its weights in the order of `hrm_agent.kernels.cpu.stack.run_stack`."""

    shape: Shape
    weights: Sequence[Tensor]


@dataclass(frozen=True)
class Segment:
    """A segment: `outer` times, `inner` updates `z_L = low(z_L + (z_H + x))` and one `z_H = high(z_H + z_L)`.

    Args:
        low, high: the networks; the same object for both in TRM.
        outer, inner: H_cycles and L_cycles.
        angles: rotary positions of both networks, or None.
        fresh: initial z_H and z_L, float32 `[D]` each.
        bf16: matrix products of the forward in bfloat16.
    """

    low: Network
    high: Network
    outer: int
    inner: int
    angles: tuple[Tensor, Tensor] | None
    fresh: tuple[Tensor, Tensor]
    bf16: bool


@dataclass(frozen=True)
class Rule:
    """The carry rule: the latents that a step starts from where the episode continues; elsewhere they are initial.

    Args:
        kind: of `RULES`. `full`: the latents after the step before. `gate`: these, mixed with the initial ones by a
            gate per position and latent. `reset`: the initial ones; nothing is carried.
        weights: for `gate`: float32 `[2, 3 D]` over (z_H, z_L, token), for z_H's gate and z_L's, and biases `[2]`.
    """

    kind: str
    weights: tuple[Tensor, ...] = ()

    def supports(self, x: Tensor) -> bool:
        """Whether the kernels support such weights."""
        return all(w.dtype == x.dtype and w.device == x.device and w.is_contiguous() for w in self.weights)


FULL = Rule("full")


@dataclass(frozen=True)
class Schedule:
    """How many segments a step runs, and where the gradient flows.

    Args:
        segments: K per step; a maximum where rows may stop earlier.
        stop_below: a row stops when a segment changed its latents by less than this, relative to their norm; 0: never.
        detach: no gradient flows from a step to the one before.
        threads: over which one call divides the batch.
    """

    segments: int
    stop_below: float = 0.0
    detach: bool = False
    threads: int = 1


class WindowOutput(NamedTuple):
    """A window's outcome: float32 `[k, B, D]`, what is read; the state after it; int64 `[k, B]`, segments used."""

    reads: Tensor
    state: tuple[Tensor, ...]
    segments: Tensor


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
    segment: Segment,
    rule: Rule,
    schedule: Schedule,
    tokens: Tensor,
    state: tuple[Tensor, ...],
    episode_start: Tensor,
    read: Tensor | None,
) -> WindowOutput:
    """Run k environment steps in a row.

    Args:
        segment, rule: supported by the kernels; weights float32 and contiguous.
        schedule: see `Schedule`.
        tokens: float32 `[k, B, L, D]` of the observations.
        state: z_H and z_L before the first step, `[B, L, D]` each; nothing where the rule is `reset`.
        episode_start: bool `[k, B]`.
        read: int64 `[k, B]`, the token of z_H that is read after every step; below 0 it counts back from the end. None:
            the mean of all.

    Raises:
        ValueError: an input of another shape or type, with which the kernels would read and write out of bounds.
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
            found = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {found}: expected {dtype} {list(shape)} on {tokens.device}")
    used = torch.full((steps, batch), schedule.segments)
    settings = _Settings(segment, rule.kind, schedule, used)
    stacks = [*segment.low.weights, *(segment.high.weights if segment.high is not segment.low else ())]
    z_H, z_L = (None, None) if rule.kind == "reset" else state
    at = None if read is None else read % length
    angles = segment.angles or (None, None)
    inputs = (tokens, z_H, z_L, episode_start, at, *angles, *(rule.weights or (None, None)), *stacks)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        reads, *after = _RunWindow.apply(settings, *inputs)
    else:
        reads, *after = _Call(settings, *inputs).forward(None)
    return WindowOutput(reads, tuple(after), used.clone())  # not the one that the backward counts by


@dataclass(frozen=True)
class _Settings:
    segment: Segment
    kind: str
    schedule: Schedule
    used: Tensor


STATE, ANGLES, GATE, STACKS = slice(1, 3), slice(5, 7), slice(7, 9), slice(9, None)
"""Their indices among the tensors of a call."""


class _Call:
    """The structures and tensors of one call of the kernels."""

    def __init__(self, settings: _Settings, *inputs: Tensor | None) -> None:
        segment, schedule = settings.segment, settings.schedule
        given = [None if t is None else t.contiguous() for t in inputs[: GATE.stop]]
        tokens, starts = given[0], given[3]
        assert tokens is not None
        assert starts is not None
        cos, sin = given[ANGLES]
        weights = [w for w in inputs[STACKS] if w is not None]
        self.tokens, self.state, self.keeps = tokens, given[STATE], settings.kind != "reset"
        self.shared, self.count = segment.high is segment.low, len(segment.low.weights)
        batch, low_weights, high_weights = tokens.shape[1], weights[: self.count], weights[self.count :]
        self.low = Description(segment.low.shape, batch, segment.bf16, cos, sin, low_weights)
        self.high = self.low
        if not self.shared:
            self.high = Description(segment.high.shape, batch, segment.bf16, cos, sin, high_weights)
        self.parts = _parts(schedule.threads, weights)
        self.given, self.fresh = given, [f.contiguous() for f in segment.fresh]  # must outlive the pointers
        at = [None if t is None else t.data_ptr() for t in given]
        self.window = _Window(
            self.low.address, self.high.address, len(tokens), schedule.segments, segment.outer, segment.inner,
            RULES.index(settings.kind), schedule.detach, *(f.data_ptr() for f in self.fresh), *at[GATE], at[3], at[4],
            at[0], *at[STATE], settings.used.data_ptr() if schedule.stop_below > 0 else None,
            schedule.threads, self.parts, schedule.stop_below,
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
        parts = [(ctx.settings.segment.low.shape, weights[: call.count])]
        if not call.shared:
            parts.append((ctx.settings.segment.high.shape, weights[call.count :]))
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
    """Parts of a batch in the backward: several per thread, taken in turn, so that no thread waits long; one per
    thread where that many copies of the weights' gradients would not fit in the cache."""
    small = sum(w.numel() for w in weights) <= SMALL_WEIGHTS
    return threads * PARTS_EACH if threads > 1 and small else threads


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum in a fixed order, so that results are reproducible."""
    first, *others = parts
    for other in others:
        first += other
    return first
