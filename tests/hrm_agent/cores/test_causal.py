"""Cores that mix backwards only: what a token becomes does not depend on any token that comes after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.cores import Core, State, build_core, map_state
from hrm_agent.cores.blocks import CAUSAL_MIXINGS, CAUSAL_TAPS, MIXINGS, Block, BlockConfig
from stack_cases import needs_kernels

LENGTH, SIZE, BATCH = 11, 16, 2
OPTIONS: dict[str, dict[str, Any]] = {
    "trm": {"layers": 2, "H_cycles": 2, "L_cycles": 2},
    "hrm": {"H_layers": 1, "L_layers": 2, "H_cycles": 2, "L_cycles": 2},
    "feedforward": {"layers": 3},
}


def make(core: str, mixing: str, causal: bool = True, grid: tuple[int, int] | None = None, **more: Any) -> Core:
    torch.manual_seed(0)
    options = {**OPTIONS[core], "mixing": mixing, "num_heads": 1, "inner_size": 32, **more}
    return build_core(core, hidden_size=SIZE, length=LENGTH, grid=grid, causal=causal, **options)


def used_state(core: Core, seed: int) -> State:
    """Any latents: different at every position, as after a segment."""
    noise = torch.Generator().manual_seed(seed)
    return map_state(lambda s: s + torch.randn(s.shape, generator=noise), core.initial_state(BATCH))


@torch.no_grad()
def outputs(core: Core, x: Tensor, state: State, segments: int) -> list[Tensor]:
    """After each segment."""
    found = []
    for _ in range(segments):
        y, state = core(x, state)
        found.append(y)
    return found


@pytest.mark.parametrize("grid", [None, (3, 3)])
@pytest.mark.parametrize("mixing", CAUSAL_MIXINGS)
@pytest.mark.parametrize("core", OPTIONS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, LENGTH - 1), st.integers(1, 4), st.integers(0, 99))
def test_no_token_depends_on_a_later_one(
    core: str, mixing: str, grid: tuple[int, int] | None, at: int, segments: int, seed: int
) -> None:
    made = make(core, mixing, grid=grid)
    assert made.causal
    generator = torch.Generator().manual_seed(seed)
    x, state = torch.randn(BATCH, LENGTH, SIZE, generator=generator), used_state(made, seed)
    changed = x.clone()
    changed[:, at:] += torch.randn(BATCH, LENGTH - at, SIZE, generator=generator)
    later = map_state(lambda s: torch.cat([s[:, :at], s[:, at:].flip(0, 1)], 1), state)
    for before, after in zip(outputs(made, x, state, segments), outputs(made, changed, later, segments), strict=True):
        torch.testing.assert_close(after[:, :at], before[:, :at], rtol=1e-5, atol=1e-5)
        assert (after[:, at:] - before[:, at:]).abs().amax((0, 2)).min() > 1e-4


@needs_kernels
@pytest.mark.parametrize("path", ["fused", "fused_bf16"])
@pytest.mark.parametrize("core", OPTIONS)
def test_nor_where_the_kernels_compute_it(core: str, path: str) -> None:
    """Bit for bit, of outputs and of gradients."""
    if not recurrence.available(path):
        pytest.skip("no AVX512_BF16")
    made, at = make(core, "attention"), 5
    x = torch.randn(BATCH, LENGTH, SIZE)
    changed = x.clone()
    changed[:, at:] += 1
    assert recurrence.use(made, path) == path
    found = []
    for tokens in (x, changed):
        entry, state = tokens.requires_grad_(), made.initial_state(BATCH)
        y, _ = recurrence.run_segments(made, entry, state, 3, None)
        (gradient,) = torch.autograd.grad(y[:, :at].square().sum() + y[:, :at].sin().sum(), entry)
        assert not gradient[:, at:].any()
        found.append((y[:, :at], gradient[:, :at]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("mixing", CAUSAL_MIXINGS)
def test_how_far_back_one_block_reaches(mixing: str) -> None:
    """Attention and a sweep to the first token, a convolution over its taps."""
    torch.manual_seed(0)
    block = Block(SIZE, LENGTH, None, BlockConfig(num_heads=1, mixing=mixing, inner_size=32, causal=True)).double()
    x = torch.randn(1, LENGTH, SIZE, dtype=torch.float64, requires_grad=True)
    last = block(x, None)[:, -1]
    (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), x)
    reached = int((gradient.abs().amax((0, 2)) > 1e-12).sum())
    assert reached == (CAUSAL_TAPS if mixing == "conv" else LENGTH)


@pytest.mark.parametrize("mixing", sorted(set(MIXINGS) - set(CAUSAL_MIXINGS)))
@pytest.mark.parametrize("core", OPTIONS)
def test_other_mixings_are_refused(core: str, mixing: str) -> None:
    with pytest.raises(ValueError, match=f"causal=true with mixing={mixing}.*use one of attention, conv, sweep"):
        make(core, mixing, grid=(3, 3))


@pytest.mark.parametrize("name", ["gru", "lstm", "convlstm", "drc", "gtrxl", "vin"])
def test_other_cores_have_no_such_option(name: str) -> None:
    with pytest.raises(ValueError, match=f"core={name} has no option 'causal'"):
        build_core(name, hidden_size=SIZE, length=9, grid=(3, 3), causal=True)
    assert not build_core(name, hidden_size=SIZE, length=9, grid=(3, 3)).causal


@pytest.mark.parametrize("core", OPTIONS)
def test_without_the_option_later_tokens_count(core: str) -> None:
    made = make(core, "attention", causal=False)
    assert not made.causal
    x = torch.randn(BATCH, LENGTH, SIZE)
    changed = x.clone()
    changed[:, -1] += 1
    (before,), (after,) = (outputs(made, tokens, made.initial_state(BATCH), 1) for tokens in (x, changed))
    assert (after - before)[:, 0].abs().max() > 1e-4
