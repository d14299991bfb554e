"""The fused kernel gives the cores' numbers, under Triton's interpreter, and compiles for a GPU that is not here."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hrm_agent.cores import HRM, TRM
from hrm_agent.cores.gru import GRUCore
from hrm_agent.recurrence.cuda import AGREEMENT, CUDACore

segment_kernel = pytest.importorskip("hrm_agent.recurrence.triton", exc_type=ImportError)

CASES = Path(__file__).parents[2] / "support" / "triton_cases.py"


def run(mode: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(CASES), mode], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_kernel_gives_the_cores_numbers() -> None:
    found = run("interpret")
    assert len(found) == 4
    for name, errors in found.items():
        for what in ("output", "z_L", "two segments", "new weights"):
            assert errors[what] < 1e-4, (name, what)
        assert 1e-4 < errors["bf16"] < AGREEMENT * errors["all in bf16"], name


def test_the_kernel_compiles_for_hopper_and_uses_its_matrix_instructions() -> None:
    for made in run("compile").values():
        assert made["matrix_instructions"] > 10
        assert made["stack"] == 0  # nothing is spilled
        assert made["registers"] * 128 * 2 <= 65536
        assert made["shared"] <= 113 * 1024  # two programs fit a multiprocessor of 227 kB


@pytest.mark.parametrize(
    ("length", "rows", "cut"),
    [
        (144, 64, (2, 64, 16)),
        (143, 64, (2, 64, 16)),
        (128, 64, (2, 64, 0)),
        (25, 64, (0, 64, 32)),
        (97, 32, (3, 32, 16)),
    ],
)
def test_tiles_cover_the_tokens_with_little_to_spare(length: int, rows: int, cut: tuple[int, int, int]) -> None:
    tiles = segment_kernel.tiles_of(length, rows)
    assert (tiles.count, tiles.wide, tiles.tail) == cut
    assert length <= tiles.rows < length + max(16, length)


@pytest.mark.parametrize("rows", [8, 48, 0])
def test_tiles_are_powers_of_two(rows: int) -> None:
    with pytest.raises(ValueError, match=f"rows={rows}: expected a power of 2 from 16 on"):
        segment_kernel.tiles_of(144, rows)


def test_what_the_kernel_is_not_written_for_is_named() -> None:
    small = {"inner_size": 32, "num_heads": 2, "H_cycles": 1, "L_cycles": 1}
    for core, reason in (
        (GRUCore(32, 9, (3, 3)), "neither HRM nor TRM"),
        (HRM(24, 9, (3, 3), **small), "hidden_size=24"),
        (TRM(32, 9, (3, 3), **small, mixing="mlp"), "mixing=mlp"),
        (TRM(32, 9, (3, 3), **small, mixing="attention_conv"), "mixing=attention_conv"),
        (TRM(32, 9, (3, 3), **small, mixing="attention_local"), "mixing=attention_local"),
        (TRM(32, 10, (3, 3), **small, mixing="conv"), "tokens before the grid"),
        (TRM(32, 9, (3, 3), **{**small, "num_heads": 4}), "heads of 8"),
        (TRM(32, 9, (3, 3), **{**small, "inner_size": 24}), "inner_size=24"),
    ):
        assert reason in str(segment_kernel.unsupported(core))
        with pytest.raises(ValueError, match="no Triton kernel for this core"):
            segment_kernel.SegmentKernel(core)
    fits = TRM(32, 9, (3, 3), **small, mixing="conv")
    assert segment_kernel.unsupported(fits) is None
    with pytest.raises(ValueError, match="precision='fp8': expected one of bf16, float32"):
        segment_kernel.SegmentKernel(fits, "fp8")


class Holder(nn.Module):
    """As a policy does, it has a core and what computes it."""

    def __init__(self, core: TRM) -> None:
        super().__init__()
        self.core, self.backend = core, CUDACore(True, segment_kernel.SegmentKernel(core))


def test_a_copied_core_has_a_kernel_of_its_own() -> None:
    holder = Holder(TRM(32, 9, (3, 3), layers=1, inner_size=32, mixing="conv"))
    holder.backend.weights_changed()
    other = copy.deepcopy(holder)
    assert other.backend.kernel.core is other.core
    other.backend.weights_changed()
    before = other.backend.kernel._packed["down"].clone()
    with torch.no_grad():
        holder.core.net.layers[0].mlp.down.weight.zero_()  # type: ignore[union-attr]
    holder.backend.weights_changed()
    assert not holder.backend.kernel._packed["down"].any()
    other.backend.weights_changed()
    assert torch.equal(other.backend.kernel._packed["down"], before)


def test_the_kernel_norms_as_the_cores_do() -> None:
    from hrm_agent.cores import blocks
    from hrm_agent.kernels.triton import segment as triton_segment

    assert triton_segment.NORM_EPS == blocks.NORM_EPS
