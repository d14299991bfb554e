"""A GRU over a window of environment steps on a CPU: matrix products by BLAS, what lies between by our C++ kernels.

Autograd's GRU cell is a dozen operations a step forward and two dozen back, and multiplies by every step's gradient
alone; here the gradients of the weights are one product a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrm_agent.kernels.stack import functions


def run_gru(
    inputs: Tensor,
    memory: Tensor,
    episode_start: Tensor,
    fresh: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    segments: int,
    cut: bool,
) -> Tensor:
    """The memory after every step of a window, float32 `[k, B, M]`.

    Args:
        inputs: float32 `[k, B, 3 M]`, what the observations give the reset gate, the update gate and the candidate,
            biases included.
        memory: `[B, M]`, before the first step.
        episode_start: bool `[k, B]`; there the memory is `fresh`, `[M]`.
        weight, bias: `[3 M, M]` and `[3 M]` of the memory, as `torch.nn.GRUCell` lays them out.
        segments: updates of every step, all from the same inputs.
        cut: no gradient flows from a step to the one before.

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
            told = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {told}: expected {dtype} {list(shape)} on cpu")
    states: Tensor = _RunGRU.apply(inputs, memory, episode_start, fresh, weight, bias, segments, cut)
    return states


class _RunGRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, memory: Tensor, starts: Tensor, fresh: Tensor, weight: Tensor, bias: Tensor,
        segments: int, cut: bool,
    ) -> Tensor:  # fmt: skip
        steps, batch, size = *inputs.shape[:2], memory.shape[1]
        inputs, kernel = inputs.contiguous(), functions().gru_forward
        before = inputs.new_empty(steps, segments, batch, size)  # the memory that every update reads
        kept = inputs.new_empty(steps, segments, batch, 3 * size)
        candidates, states = torch.empty_like(before), inputs.new_empty(steps, batch, size)
        turned, h = weight.t(), memory
        for t in range(steps):
            torch.where(starts[t, :, None], fresh, h, out=before[t, 0])
            for k in range(segments):
                own, products = before[t, k], kept[t, k]
                torch.addmm(bias, own, turned, out=products)
                h = states[t] if k == segments - 1 else before[t, k + 1]
                kernel(
                    batch, size, inputs[t].data_ptr(), products.data_ptr(), own.data_ptr(),
                    candidates[t, k].data_ptr(), h.data_ptr(),
                )  # fmt: skip
        ctx.save_for_backward(starts, weight, before, kept, candidates)
        ctx.cut = cut
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        starts, weight, before, kept, candidates = ctx.saved_tensors
        steps, segments, batch, size = before.shape
        kernel = functions().gru_backward
        inputs_g, products_g = before.new_empty(steps, batch, 3 * size), torch.empty_like(kept)
        goes_on = (~starts[..., None]).to(before.dtype)
        h_g = torch.zeros(batch, size)
        for t in reversed(range(steps)):
            h_g += gradient[t]
            for k in reversed(range(segments)):
                products = products_g[t, k]
                kernel(
                    batch, size, kept[t, k].data_ptr(), candidates[t, k].data_ptr(), before[t, k].data_ptr(),
                    h_g.data_ptr(), inputs_g[t].data_ptr(), products.data_ptr(), k < segments - 1,
                )  # fmt: skip
                if t or k or ctx.needs_input_grad[1]:
                    h_g.addmm_(products, weight)
            h_g = torch.zeros_like(h_g) if ctx.cut else h_g.mul_(goes_on[t])
        rows = products_g.view(-1, 3 * size)
        weight_g = rows.t() @ before.view(-1, size)
        return inputs_g, h_g, None, None, weight_g, rows.sum(0), None, None
