"""Run by `test_triton.py` in processes of their own: whether Triton interprets is decided when it is imported.

python tests/support/triton_cases.py interpret     errors of the kernel under the interpreter, as JSON
python tests/support/triton_cases.py compile       the kernel compiled for a Hopper GPU, without one
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from hrm_agent.cores import HRM, TRM, Core
from hrm_agent.kernels.triton import segment as triton_segment
from hrm_agent.recurrence.cuda import all_in_bf16
from hrm_agent.recurrence.triton import SegmentKernel, tiles_of

CORES: dict[str, tuple[type[Core], tuple[int, tuple[int, int] | None], dict[str, Any]]] = {
    "hrm, rope, a tail of 3": (
        HRM,
        (19, (3, 6)),
        {"H_layers": 2, "L_layers": 1, "H_cycles": 1, "L_cycles": 1, "num_heads": 1, "positions": "rope"},
    ),
    "trm, rope2d, two heads": (
        TRM,
        (16, (4, 4)),
        {"layers": 1, "H_cycles": 2, "L_cycles": 1, "num_heads": 2, "positions": "rope2d"},
    ),
    "hrm, no positions": (
        HRM,
        (16, None),
        {"H_layers": 1, "L_layers": 1, "H_cycles": 1, "L_cycles": 2, "num_heads": 2, "positions": "none"},
    ),
    "trm, conv, a tail of 4": (TRM, (20, (4, 5)), {"layers": 2, "H_cycles": 1, "L_cycles": 2, "mixing": "conv"}),
}


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def errors(name: str) -> dict[str, float]:
    """Of outputs and states after one segment and, in one launch, two; and of weights that were changed in between."""
    torch.manual_seed(0)
    make, (length, grid), options = CORES[name]
    core = make(32, length, grid, inner_size=48, **options)
    x = torch.randn(2, length, 32)
    state = type(core.initial_state(2))(*(z + torch.randn(2, length, 32) for z in core.initial_state(2)))
    first, after = core(x, state)
    second, _ = core(x, after)
    kernel = SegmentKernel(core, "float32", rows=16, programs=1)  # one program for both samples
    output, thought = kernel(x, state)
    found = {"output": difference(output, first), "z_L": difference(thought[1], after[1])}
    one, own = x[:1], type(state)(*(z[:1] for z in state))
    found["two segments"] = difference(kernel(one, own, segments=2)[0], second[:1])
    rough = all_in_bf16(core)(x, state)[0]
    halved = SegmentKernel(core, "bf16", rows=16, programs=2)(x, state)[0]
    found["all in bf16"] = float((rough - first).norm() / first.norm())
    found["bf16"] = float((halved - first).norm() / first.norm())
    for p in core.parameters():
        p.mul_(0.5)
    found["new weights"] = difference(kernel(one, own)[0], core(one, own)[0])
    return found


def compile_for_hopper(attention: bool) -> dict[str, Any]:
    """The paper's network, 144 tokens of width 64, or a convolution over 143."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tiles = tiles_of(144 if attention else 143, 64)
    constants = {
        "ATTENTION": attention, "ROPE": attention, "GRID_ROWS": 11, "GRID_COLS": 13, "D": 64, "HEAD": 32,
        "LENGTH": 144 if attention else 143, "INNER": 256, "CHUNK": 64, "L_CYCLES": 2, "LOW_LAYERS": 4,
        "HIGH_FIRST": 4, "HIGH_LAYERS": 4, "TILES": tiles.count, "WIDE": tiles.wide, "TAIL": tiles.tail,
        "SLOTS": 7 if attention else 5, "PRECISION": "ieee",
    }  # fmt: skip
    tensors = dict.fromkeys(("x", "z_h", "z_l", "new_h", "new_l"), "*fp32")
    tensors |= dict.fromkeys(("scratch", "qkv", "mix", "gate_up", "down"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    signature = {**tensors, "batch": "i32", "updates": "i32", **dict.fromkeys(constants, "constexpr")}
    aligned: dict[Any, Any] = {(i,): [["tt.divisibility", 16]] for i in range(len(tensors))}
    source = ASTSource(triton_segment.run_segments, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 2})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "shared": made.metadata.shared,
        "matrix_instructions": made.asm["ptx"].count("wgmma.mma_async"),
        "stack": sum(map(int, re.findall(r"STACK:(\d+)", usage))),
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
    }


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        print(json.dumps({name: errors(name) for name in CORES}))
    else:
        print(json.dumps({str(attention): compile_for_hopper(attention) for attention in (True, False)}))
