"""Mixing by sweeps: the compiled scans are the plain ones and the definition, and messages go where gates let them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.cores import sweep_kernel
from hrm_agent.cores.blocks import BlockConfig, BlockStack
from hrm_agent.cores.sweep import SCAN_PRODUCTS, AxisSweep, GridSweep, _CompiledScan, scan_lines, scan_lines_plain

CHANNELS, GROUPS = 6, 3


def problem(outer: int, steps: int, lanes: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Random cells, logits and weights; some gates are shut and some wide open."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (outer, steps, lanes, CHANNELS), (outer, steps, lanes, 2, 2, GROUPS), (2, CHANNELS)
    x, projected, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    projected *= 1 + 40 * (torch.rand(projected.shape, generator=generator) < 0.1)
    return x.requires_grad_(), projected.requires_grad_(), weight.requires_grad_()


def by_definition(x: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
    """`scan_lines`, one number at a time."""
    x, projected, weight = (t.detach().numpy() for t in (x, projected, weight))
    out = np.zeros_like(x)
    outer, steps, lanes, channels = x.shape
    for o, m, c, way in np.ndindex(outer, lanes, channels, 2):
        held, behind = 0.0, None
        for s in range(steps)[:: -1 if way else 1]:
            logit = projected[o, s, m, way, 0, c % GROUPS]
            if behind is not None:
                logit = logit + projected[o, behind, m, way, 1, c % GROUPS]
            gate = 1 / (1 + math.exp(-logit))
            out[o, s, m, c] += weight[way, c] * gate * held
            held, behind = gate * held + (1 - gate) * x[o, s, m, c], s
    return torch.from_numpy(out)


@pytest.mark.thorough
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
def test_compiled_plain_and_definition_agree_with_their_gradients(o: int, s: int, m: int, seed: int) -> None:
    inputs = problem(o, s, m, seed)
    expected = by_definition(*inputs)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    compiled, plain = _CompiledScan.apply(*inputs), scan_lines_plain(*inputs)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(plain, expected)
    mine, theirs = (torch.autograd.grad((out * direction).sum(), inputs) for out in (compiled, plain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.thorough
def test_gradients_are_those_of_finite_differences() -> None:
    inputs = problem(2, 5, 2, 0)
    assert torch.autograd.gradcheck(_CompiledScan.apply, inputs)
    assert torch.autograd.gradcheck(scan_lines_plain, inputs)


@pytest.mark.thorough
def test_single_precision_stays_close_on_a_long_line() -> None:
    exact = problem(1, 101, 2, 3)
    single = tuple(t.detach().float().requires_grad_() for t in exact)
    compiled, wanted = scan_lines(*single), scan_lines_plain(*exact)
    assert compiled.dtype == torch.float32
    torch.testing.assert_close(compiled.double(), wanted, rtol=1e-4, atol=1e-5)
    mine = torch.autograd.grad(compiled.square().sum(), single)
    theirs = torch.autograd.grad(wanted.square().sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


def test_half_precision_is_summed_in_float32() -> None:
    x, projected, weight = (t.detach() for t in problem(1, 40, 1, 5, torch.float32))
    halved = scan_lines(x.bfloat16(), projected, weight)
    assert halved.dtype == torch.bfloat16
    assert torch.equal(halved, scan_lines(x.bfloat16().float(), projected, weight).bfloat16())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_what_arrives_is_never_larger_than_the_cells(steps: int, seed: int) -> None:
    x, projected, _ = (t.detach() for t in problem(1, steps, 1, seed))
    for way in range(2):
        weight = torch.zeros(2, CHANNELS, dtype=torch.float64)
        weight[way] = 1
        assert scan_lines(x, projected, weight).abs().max() <= x.abs().max() + 1e-12


def test_arrays_that_are_not_contiguous_give_the_same() -> None:
    x, projected, weight = problem(2, 4, 3, 7)
    loose = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not loose.is_contiguous()
    out = scan_lines(loose, projected, weight)
    assert torch.equal(out, scan_lines(x, projected, weight))
    direction = torch.randn(2, 3, 4, CHANNELS, dtype=torch.float64).transpose(1, 2)
    mine, theirs = (torch.autograd.grad((scan_lines(t, projected, weight) * direction).sum(), t)[0] for t in (loose, x))
    assert torch.equal(mine, theirs)


# Where messages go

ROWS, COLS, PREFIX = 5, 7, 2


def changed_cells(module: torch.nn.Module, image: Tensor, row: int, col: int) -> Tensor:
    """bool [rows, cols]: which cells of the output feel a change of one cell of the input."""
    other = image.clone()
    other[:, row, col] += 1.0
    return (module(image) - module(other)).abs().amax(dim=(0, 3)) > 1e-9


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, ROWS, COLS, CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("along", ["rows", "cols"])
def test_an_axis_carries_to_the_ends_of_its_line_and_nowhere_else(along: str, image: Tensor) -> None:
    torch.manual_seed(0)
    felt = changed_cells(AxisSweep(CHANNELS, along).double(), image, 2, 3)
    expected = torch.zeros(ROWS, COLS, dtype=torch.bool)
    if along == "rows":
        expected[2] = True
    else:
        expected[:, 3] = True
    assert torch.equal(felt, expected)  # the cell itself too, through the gates next to it


@torch.no_grad()
def test_one_pass_reaches_every_cell_of_the_grid() -> None:
    torch.manual_seed(0)
    length = PREFIX + ROWS * COLS
    sweep = GridSweep(CHANNELS, length, (ROWS, COLS)).double()
    x = torch.randn(1, length, CHANNELS, dtype=torch.float64)
    other = x.clone()
    other[:, PREFIX + 2 * COLS + 3] += 1.0
    felt = (sweep(x) - sweep(other)).abs().amax(dim=(0, 2))
    assert felt.shape == (ROWS * COLS,)
    assert felt.min() > 1e-9
    other = x.clone()
    other[:, :PREFIX] += 1.0
    assert torch.equal(sweep(x), sweep(other))


WALL = 0
"""The channel that shuts gates in the next test."""


@torch.no_grad()
@pytest.mark.parametrize("part", ["own", "behind"])
def test_gates_that_content_shuts_stop_messages(part: str, image: Tensor) -> None:
    """A wall at column 4 of row 2 lets nothing past it; where `behind`, the wall itself still hears the message."""
    torch.manual_seed(0)
    axis = AxisSweep(CHANNELS, "rows").double()
    logits = axis.gates.weight.view(2, 2, -1, CHANNELS).zero_()
    logits[:, ["own", "behind"].index(part), :, WALL] = -1000.0
    image[..., WALL] = 0.0
    image[:, 2, 4, WALL] = 1.0

    def felt_from(col: int) -> list[int]:
        other = image.clone()
        other[:, 2, col, 1:] += 1.0
        return torch.nonzero((axis(image) - axis(other)).abs().amax(dim=(0, 1, 3)) > 1e-9).flatten().tolist()

    # Without a wall a cell is heard by all others of its row, but not by itself: the gates look at WALL alone.
    assert felt_from(2) == ([0, 1, 3] if part == "own" else [0, 1, 3, 4])
    assert felt_from(6) == ([5] if part == "own" else [4, 5])
    image[..., WALL] = 0.0
    assert felt_from(2) == [0, 1, 3, 4, 5, 6]


@torch.no_grad()
def test_columns_are_rows_of_the_transposed_image_and_ways_swap_when_it_is_mirrored(image: Tensor) -> None:
    torch.manual_seed(0)
    by_row = AxisSweep(CHANNELS, "rows").double()
    by_col = AxisSweep(CHANNELS, "cols").double()
    by_col.load_state_dict(by_row.state_dict())
    torch.testing.assert_close(by_col(image.transpose(1, 2)).transpose(1, 2), by_row(image))
    mirrored = AxisSweep(CHANNELS, "rows").double()
    mirrored.weight.copy_(by_row.weight.flip(0))
    for name in ("weight", "bias"):
        here, there = (getattr(a.gates, name) for a in (by_row, mirrored))
        there.copy_(here.unflatten(0, (2, -1)).flip(0).flatten(0, 1))
    torch.testing.assert_close(mirrored(image.flip(2)).flip(2), by_row(image))


@torch.no_grad()
def test_a_line_is_mixed_alike_in_a_grid_of_any_size(image: Tensor) -> None:
    """Weights know no size: a row alone gives what it gives among others, and a shut cell ends a line as a border."""
    torch.manual_seed(0)
    axis = AxisSweep(CHANNELS, "rows").double()
    torch.testing.assert_close(axis(image)[:, 2:3], axis(image[:, 2:3]))
    small = GridSweep(CHANNELS, ROWS * COLS, (ROWS, COLS))
    large = GridSweep(CHANNELS, 101 * 101, (101, 101))
    large.load_state_dict(small.state_dict())
    assert large(torch.randn(1, 101 * 101, CHANNELS)).isfinite().all()


def test_blocks_begin_near_the_identity_with_a_small_gain_and_gates_near_a_half() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, ROWS * COLS, 16)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    near, far = (
        BlockStack(1, 16, ROWS * COLS, (ROWS, COLS), BlockConfig(2, "sweep", inner_size=12, branch_gain=gain))(x) - x
        for gain in (0.1, 1.0)
    )
    assert near.square().mean() < 0.03
    assert far.square().mean() > 0.3
    sweep = GridSweep(16, ROWS * COLS, (ROWS, COLS))
    gates = sweep.along_rows.gates(x).sigmoid()
    assert 0.4 < gates.mean() < 0.6
    assert 0.3 < sweep(x).square().mean() < 2.0  # about as much as the cells


# What it costs


class Counted:
    """A number that counts multiplications."""

    products = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __mul__(self, other: Any) -> Counted:
        Counted.products += 1
        return Counted(self.value * getattr(other, "value", other))

    def __add__(self, other: Any) -> Counted:
        return Counted(self.value + getattr(other, "value", other))

    def __sub__(self, other: Any) -> Counted:
        return Counted(self.value - getattr(other, "value", other))

    __rmul__, __radd__ = __mul__, __add__


def products_of(rows: int, cols: int) -> int:
    """Multiplications of the compiled kernel, run by Python, for both axes of a grid."""
    Counted.products = 0
    for outer, steps, lanes in ((rows, cols, 1), (1, rows, cols)):
        x, gates, weight = (
            np.vectorize(Counted, otypes=[object])(np.full(shape, 0.5))
            for shape in ((outer, steps, lanes, 4), (2, outer, steps, lanes, 2), (2, 4))
        )
        sweep_kernel.scan.py_func(x, gates, weight, np.empty_like(x))
    return Counted.products


def test_products_grow_in_proportion_to_the_cells() -> None:
    for rows, cols in ((3, 3), (6, 3), (6, 6), (12, 12)):
        assert products_of(rows, cols) == SCAN_PRODUCTS * 4 * rows * cols


# Traced


def test_traced_graphs_hold_the_plain_scan(image: Tensor) -> None:
    sweep = GridSweep(CHANNELS, ROWS * COLS, (ROWS, COLS)).double()
    x = image.flatten(1, 2)
    program = torch.export.export(sweep, (x,), strict=False)
    assert not any("Scan" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), sweep(x))


def test_torch_compile_takes_the_plain_scan_without_a_break(image: Tensor) -> None:
    sweep = GridSweep(CHANNELS, ROWS * COLS, (ROWS, COLS)).double()
    x = image.flatten(1, 2)
    torch.testing.assert_close(torch.compile(sweep, backend="eager", fullgraph=True)(x), sweep(x))
