"""A GRU over a window of environment steps on a CPU: matrix products by BLAS, everything else by our C++ kernels.

Autograd's GRU cell takes a dozen operations a step forward, two dozen back, and one product a step for the gradient of
the weights; here that is one product a window.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.cpu.memory import pool
from hrm_agent.kernels.cpu.stack import functions, take_kept


def run_gru(
    inputs: Tensor,
    memory: Tensor,
    episode_start: Tensor,
    fresh: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    segments: int,
    detach: bool,
) -> Tensor:
    """The memory after every step of a window, float32 `[k, B, M]`.

    Args:
        inputs: float32 `[k, B, 3 M]`, the observations' part of reset gate, update gate and candidate, biases
            included.
        memory: `[B, M]`, before the first step.
        episode_start: bool `[k, B]`; there the memory is `fresh`, `[M]`.
        weight, bias: `[3 M, M]` and `[3 M]` of the memory, as `torch.nn.GRUCell` lays them out.
        segments: updates of every step, all from the same inputs.
        detach: no gradient flows from a step to the one before.

    Raises:
        ValueError: an input of another shape or type.
    """
    steps, batch, size = *inputs.shape[:2], memory.shape[-1]
    for name, given, shape, dtype in (
        ("the input", inputs, (steps, batch, 3 * size), torch.float32),
        ("the memory", memory, (batch, size), torch.float32),
        ("episode_start", episode_start, (steps, batch), torch.bool),
        ("the weight", weight, (3 * size, size), torch.float32),
        ("the bias", bias, (3 * size,), torch.float32),
    ):
        if given.shape != shape or given.dtype != dtype or given.device.type != "cpu":
            found = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {found}: expected {dtype} {list(shape)} on cpu")
    everything = (inputs, memory, episode_start, fresh, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in everything):
        learned: Tensor = _RunGRU.apply(segments, detach, *everything)
        return learned
    updates = _Updates((steps, segments, batch, size))
    states = updates.run(*everything)
    pool.give(updates.memory)
    return states


def pool_tokens(tokens: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The mean and the maximum of all tokens, and one selected token.

    Args:
        tokens: float32 `[k, B, L, D]`.
        read: int64 `[k, B]`, from 0 to L - 1, or None.

    Returns:
        `[k, B, 2 D]`, and `[k, B, D]` or None.
    """
    if torch.is_grad_enabled() and tokens.requires_grad:
        pooled, *token = _Pool.apply(tokens, read)
    else:
        pooled, *token = _pool(tokens.contiguous(), read)
    return pooled, token[0] if token else None


class _Updates:
    """Inputs and results of a window's updates, in one piece of memory.

    Attributes:
        before: `[k, K, B, M]`, the memory before every update.
        kept: `[k, K, B, 3 M]`, its gates, and the memory's part of the candidate.
        candidates: `[k, K, B, M]`.
    """

    def __init__(self, shape: tuple[int, int, int, int], memory: Tensor | None = None) -> None:
        *cells, size = shape
        count = math.prod(shape)
        self.memory = pool.take(5 * count) if memory is None else memory
        self.before = self.memory[:count].view(shape)
        self.candidates = self.memory[count : 2 * count].view(shape)
        self.kept = self.memory[2 * count : 5 * count].view(*cells, 3 * size)

    def run(
        self, inputs: Tensor, memory: Tensor, starts: Tensor, fresh: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        steps, segments, batch, size = self.before.shape
        inputs, kernel = inputs.contiguous(), functions().gru_forward
        states, turned, h = inputs.new_empty(steps, batch, size), weight.t(), memory
        for t in range(steps):
            torch.where(starts[t, :, None], fresh, h, out=self.before[t, 0])
            for k in range(segments):
                own, products = self.before[t, k], self.kept[t, k]
                torch.addmm(bias, own, turned, out=products)
                h = states[t] if k == segments - 1 else self.before[t, k + 1]
                kernel(
                    batch, size, inputs[t].data_ptr(), products.data_ptr(), own.data_ptr(),
                    self.candidates[t, k].data_ptr(), h.data_ptr(),
                )  # fmt: skip
        return states


class _RunGRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, segments: int, detach: bool, inputs: Tensor, memory: Tensor, *others: Tensor) -> Tensor:
        ctx.shape = (inputs.shape[0], segments, *memory.shape)
        updates = _Updates(ctx.shape)
        with torch.no_grad():
            states = updates.run(inputs, memory, *others)
        starts, _, weight, _ = others
        ctx.save_for_backward(starts, weight)
        ctx.kept, ctx.detach = updates.memory, detach
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        starts, weight = ctx.saved_tensors
        steps, segments, batch, size = ctx.shape
        updates = _Updates(ctx.shape, take_kept(ctx))
        kernel = functions().gru_backward
        spare = pool.take(updates.kept.numel())
        products_g = spare[: updates.kept.numel()].view(updates.kept.shape)
        inputs_g, h_g = weight.new_empty(steps, batch, 3 * size), weight.new_zeros(batch, size)
        goes_on = (~starts[..., None]).to(weight.dtype)
        for t in reversed(range(steps)):
            h_g += gradient[t]
            for k in reversed(range(segments)):
                own = (part[t, k] for part in (updates.kept, updates.candidates, updates.before))
                kernel(
                    batch, size, *(part.data_ptr() for part in own), h_g.data_ptr(), inputs_g[t].data_ptr(),
                    products_g[t, k].data_ptr(), k < segments - 1,
                )  # fmt: skip
                if k or (not ctx.detach and (t or ctx.needs_input_grad[3])):  # else it is not needed
                    h_g.addmm_(products_g[t, k], weight)
            h_g = torch.zeros_like(h_g) if ctx.detach else h_g.mul_(goes_on[t])
        rows = products_g.view(-1, 3 * size)
        weight_g, bias_g = rows.t() @ updates.before.view(-1, size), rows.sum(0)
        pool.give(updates.memory)
        pool.give(spare)
        return None, None, inputs_g, h_g, None, None, weight_g, bias_g


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, read: Tensor | None) -> tuple[Tensor, ...]:
        tokens = tokens.contiguous()
        pooled = _pool(tokens, read)
        ctx.save_for_backward(tokens, pooled[0], read)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_g: Tensor, *read_g: Tensor) -> tuple[Tensor, None]:
        tokens, pooled, read = ctx.saved_tensors
        given = [None if t is None else t.contiguous() for t in (pooled_g, read, *(read_g or (None,)))]
        tokens_g = torch.empty_like(tokens)
        functions().pool_backward(
            *_sizes(tokens), tokens.data_ptr(), pooled.data_ptr(),
            *(None if t is None else t.data_ptr() for t in given), tokens_g.data_ptr(),
        )  # fmt: skip
        return tokens_g, None


def _pool(tokens: Tensor, read: Tensor | None) -> tuple[Tensor, ...]:
    pooled = tokens.new_empty(*tokens.shape[:2], 2 * tokens.shape[3])
    functions().pool_forward(*_sizes(tokens), tokens.data_ptr(), pooled.data_ptr())
    if read is None:
        return (pooled,)
    at = read[..., None, None].expand(-1, -1, 1, tokens.shape[3])
    return pooled, tokens.gather(2, at).squeeze(2)


def _sizes(tokens: Tensor) -> tuple[int, int, int]:
    steps, batch, length, size = tokens.shape
    return steps * batch, length, size
