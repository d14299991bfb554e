"""What dispatch costs: a stack of blocks by the C++ kernels through `torch.autograd.Function`, as it is, and through
`torch.library.custom_op` (with a fake and an autograd rule), which `torch.compile` and `torch.export` would see.

    python -m experiments.speed.custom_op

Both call the same kernels on one thread, by turns. Writes `experiments/speed/custom_op.json`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.engine import machine
from experiments.engine.turns import by_turns, median_seconds
from hrm_agent.cores.blocks import BlockConfig, BlockStack
from hrm_agent.kernels.cpu import stack as kernels
from hrm_agent.recurrence.cpu import shape_of, weights_of

HERE = Path(__file__).resolve().parent
SIZES = {"smallest": (1, (2, 2), 16, 16), "default": (32, (4, 4), 32, 64)}
"""Rows, grid, channels and inner channels of one block that mixes by convolution."""


def custom(shape: kernels.Shape) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """The stack as a custom operator: its output, with a gradient."""
    name = f"hrm_agent_dispatch::stack_{shape.size}_{shape.inner}"

    @torch.library.custom_op(name, mutates_args=())
    def forward(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        stack = kernels.Description(shape, len(x), False, None, None, weights)
        kept = torch.empty(shape.layers * kernels.functions().stack_kept_floats(stack.address))
        return kernels._forward(stack, x.contiguous(), kept), kept

    @forward.register_fake
    def _(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty(1)

    @torch.library.custom_op(f"{name}_backward", mutates_args=())
    def backward(x: Tensor, y: Tensor, kept: Tensor, gradient: Tensor, weights: list[Tensor]) -> list[Tensor]:
        stack = kernels.Description(shape, len(x), False, None, None, weights)
        to_x, to_weights = torch.empty_like(x), kernels.empty_gradients(shape, weights)
        kernels.functions().stack_backward(
            stack.address, x.data_ptr(), y.data_ptr(), kept.data_ptr(), gradient.contiguous().data_ptr(),
            to_x.data_ptr(), kernels.pointers(to_weights),
        )  # fmt: skip
        return [to_x, *kernels.as_weights(shape, weights, to_weights)]

    def save(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], *output, *inputs[1])

    def differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, y, kept, *weights = ctx.saved_tensors
        to_x, *to_weights = backward(x, y, kept, gradient, weights)
        return to_x, to_weights

    forward.register_autograd(differentiate, setup_context=save)
    return lambda x, weights: forward(x, weights)[0]


def measure(size: tuple[int, tuple[int, int], int, int], rounds: int) -> dict[str, Any]:
    """Median microseconds of a forward, and of a forward and a backward, each way."""
    rows, grid, channels, inner = size
    length = grid[0] * grid[1]
    stack = BlockStack(1, channels, length, grid, BlockConfig(2, "conv", inner_size=inner))
    shape, weights = shape_of(stack), weights_of(stack)
    ways = {"function": lambda x, w: kernels.run_stack(shape, x, None, w, False), "custom_op": custom(shape)}
    x = torch.randn(rows, length, channels, requires_grad=True)
    results = [way(x, weights) for way in ways.values()]
    torch.testing.assert_close(*results)

    def forward(way: Callable[[Tensor, list[Tensor]], Tensor]) -> float:
        with torch.no_grad():
            return median_seconds(lambda: way(x, weights), 200)

    def both(way: Callable[[Tensor, list[Tensor]], Tensor]) -> float:
        return median_seconds(lambda: way(x, weights).sum().backward(), 200)

    record: dict[str, Any] = {}
    for what, time in (("forward", forward), ("forward and backward", both)):
        seconds = by_turns({name: lambda way=way: time(way) for name, way in ways.items()}, rounds)  # noqa: B023
        record[what] = {name: round(1e6 * statistics.median(all_rounds), 1) for name, all_rounds in seconds.items()}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "custom_op.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    result = {
        "command": "python -m experiments.speed.custom_op",
        "commit": machine.commit_of_code(),
        "processor": machine.processor(),
        "load": machine.load(),
        "microseconds": {name: measure(size, given.rounds) for name, size in SIZES.items()},
    }
    machine.write(given.out, result)
    print(result["microseconds"])


if __name__ == "__main__":
    main()
