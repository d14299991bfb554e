"""Suite `blocks`: one pass through a stack of blocks, in one thread."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import grad

from hrm_agent.benchmarks.cases import CHECKED_ROWS, Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.networks import SHAPES, WIDTH, StackShape
from hrm_agent.benchmarks.paths import PLAIN, put_on
from hrm_agent.cores.blocks import Angles, BlockStack
from hrm_agent.evaluation.cost import count_operations

MIXINGS = ("conv", "attention", "mlp")


def blocks(options: Options) -> Iterator[Case]:
    """Every mixing, forward alone and with the gradient, at the shapes of the default run and of the paper's."""
    for size, shape in SHAPES.items():
        for mixing in MIXINGS:
            for training in (False, True):
                yield block_case(size, shape, mixing, training, options)


def block_case(size: str, shape: StackShape, mixing: str, training: bool, options: Options) -> Case:
    """One pass through a stack: its output, or the gradient of a weighted sum of it."""
    if options.quick:
        shape = replace(shape, batch=max(1, shape.batch // 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stack = shape.build(mixing)
    x = torch.randn(shape.batch, shape.length, WIDTH)

    def make(path: str) -> Competitor:
        own = copy.deepcopy(stack)
        put_on(own, path)
        dtype = next(own.parameters()).dtype
        angles = shape.angles(mixing)
        angles = angles and (angles[0].to(dtype), angles[1].to(dtype))
        given = x.to(dtype)

        def run() -> None:
            if training:
                _gradients(own, angles, given, given)
            else:
                with torch.inference_mode():
                    own(given, angles)

        def outputs(seed: int) -> Outputs:
            generator = torch.Generator().manual_seed(seed)
            inputs, weights = torch.randn(2, CHECKED_ROWS, shape.length, WIDTH, generator=generator).to(dtype)
            if training:
                return _gradients(own, angles, inputs, weights)
            with torch.inference_mode():
                return {"output": own(inputs, angles)}

        return Competitor(run, outputs)

    operations = count_operations(make(PLAIN).run)
    name = f"{size} {mixing} {'training' if training else 'inference'}"
    return Case("blocks", name, make, options.paths, operations, shape.batch, "rows")


def _gradients(stack: BlockStack, angles: Angles | None, x: Tensor, weights: Tensor) -> Outputs:
    x = x.detach().requires_grad_()
    y = stack(x, angles)
    names, parameters = zip(*stack.named_parameters(), strict=True)
    gradients = grad((y * weights).sum(), [x, *parameters])
    return {"output": y, **dict(zip(["input", *names], gradients, strict=True))}
