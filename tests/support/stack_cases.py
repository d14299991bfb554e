"""Stacks of blocks, and how near the kernels are to eager torch on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.cores.blocks import BlockConfig, BlockStack, RotaryPositions

needs_kernels = pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")
needs_bfloat16 = pytest.mark.skipif(not recurrence.available("fused_bf16"), reason="no AVX512_BF16")

Case = tuple[BlockStack, Any, Tensor]


def make(
    mixing: str, batch: int, grid: tuple[int, int], heads: int, head: int, inner: int, layers: int, prefix: int = 0
) -> Case:
    """`causal` is attention that mixes backwards only."""
    length, size, causal = prefix + grid[0] * grid[1], heads * head, mixing == "causal"
    mixing = "attention" if causal else mixing
    block = BlockConfig(num_heads=heads, mixing=mixing, inner_size=inner, causal=causal)
    stack = BlockStack(layers, size, length, grid if grid[0] else None, block)
    with torch.no_grad():
        for weight in stack.parameters():
            if weight.shape == (2, size):  # of means, which are ones at first
                weight.normal_()
    angles = RotaryPositions("rope", mixing, size, heads, length, None)()
    return stack, angles, torch.randn(batch, length, size)


@st.composite
def cases(draw: st.DrawFn, small: bool = False) -> Case:
    """Stacks of any kind and size; small ones for an emulator, which takes a hundred times as long."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    rows, cols, most = (4, 6, 5) if small else (9, 17, 20)
    grid = draw(st.one_of(st.tuples(st.integers(1, rows), st.integers(2, cols)), st.just((0, 0))))
    return make(
        draw(st.sampled_from(["conv", "attention", "causal", "mlp"])),
        batch=draw(st.integers(1, most)),
        grid=grid,
        prefix=draw(st.integers(0 if grid[0] else 3, 5)),  # a norm over few positions is mostly cancellation
        heads=draw(st.integers(1, 2 if small else 3)),
        head=draw(st.sampled_from([16, 48] if small else [16, 32, 48, 80])),
        inner=draw(st.sampled_from([16, 48] if small else [16, 48, 80, 144])),
        layers=draw(st.integers(1, 2 if small else 3)),
    )


def results(case: Case, path: str, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of input and weights."""
    stack, angles, x = case
    recurrence.use(stack.to(dtype), path)
    turns = None if angles is None else tuple(a.to(dtype) for a in angles)
    entry = x.to(dtype).requires_grad_()
    y = stack(entry, turns)
    down = torch.arange(x.numel(), dtype=torch.float64).view_as(x).sin().to(dtype)
    return [y.detach(), *torch.autograd.grad(y, [entry, *stack.parameters()], down)]


def assert_near(case: Case, fused: list[Tensor]) -> None:
    """Results are as near the exact ones as those of eager torch in float32."""
    exact, plain = results(case, "plain", torch.float64), results(case, "plain", torch.float32)
    largest = max(gradient.abs().max() for gradient in exact)
    for right, theirs, ours in zip(exact, plain, fused, strict=True):
        allowed = 4 * (theirs - right).abs().max() + 1e-5 * right.abs().max() + 1e-6 * largest
        assert (ours - right).abs().max() <= allowed


def assert_rows_are_independent(mixing: str, grid: tuple[int, int], prefix: int) -> None:
    """Bit for bit: chunks, threads and what is kept for the backward change nothing."""
    torch.manual_seed(0)
    stack, angles, x = make(mixing, 37, grid, 2, 16, 48, 2, prefix)
    recurrence.use(stack, "fused")
    with torch.no_grad():
        whole = stack(x, angles)
        alone = torch.cat([stack(row, angles) for row in x.split(1)])
        with ThreadPoolExecutor(4) as pool:

            def part(rows: Tensor) -> Tensor:
                with torch.no_grad():
                    return stack(rows, angles)

            threaded = torch.cat(list(pool.map(part, x.split(5))))
    assert torch.equal(whole, alone)
    assert torch.equal(whole, threaded)
    assert torch.equal(whole, stack(x, angles).detach())


def assert_bfloat16_is_near(mixing: str, grid: tuple[int, int]) -> None:
    """Forward outputs in bfloat16 are at least as near the exact ones as torch's autocast."""
    torch.manual_seed(2)
    stack, angles, x = make(mixing, 40, grid, 2, 32, 128, 3)
    with torch.no_grad():
        exact = stack(x, angles)
        with torch.autocast("cpu", torch.bfloat16):
            torchs = (stack(x, angles) - exact).square().mean()
        recurrence.use(stack, "fused_bf16")
        ours = (stack(x, angles) - exact).square().mean()
        recurrence.use(stack, "fused")
        with torch.autocast("cpu", torch.bfloat16):
            automatic = (stack(x, angles) - exact).square().mean()
    assert 0 < ours <= torchs
    assert torch.equal(ours, automatic)


def assert_bfloat16_gradients(mixing: str) -> None:
    """Gradients in bfloat16 point where the exact ones do."""
    torch.manual_seed(3)
    stack, angles, x = make(mixing, 12, (4, 5), 2, 32, 64, 2)
    grads = []
    for path in ("plain", "fused_bf16"):
        recurrence.use(stack, path)
        entry = x.clone().requires_grad_()
        y = stack(entry, angles)
        down = torch.arange(y.numel()).view_as(y).sin()
        grads.append(torch.autograd.grad(y, [entry, *stack.parameters()], down))
    for exact, ours in zip(*grads, strict=True):
        assert torch.cosine_similarity(exact.flatten(), ours.flatten(), dim=0) > 0.999
