"""The floor under one segment of each core, and how far above it each path is.

    OMP_NUM_THREADS=1 python experiments/speed/roofline.py [--rounds 3] [--seconds 0.3]     measure, then draw

One thread. Floor: the larger of operations / rate of matrix products, and bytes / bandwidth; both rates are measured in
the same run, the bandwidth at the size of what has to move. Bytes are those that any way of computing a segment moves:
weights, tokens, and latents in and out (with the gradient, weights twice and theirs once, and the gradients of the
rest). Eager bytes are what torch's operations read and write, one after the other. Writes `roofline.json`,
`roofline.png` and the tables in `README.md`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.engine.machine import command, machine, write
from experiments.engine.pages import draw
from hrm_agent.benchmarks.cases import Case, Competitor, Outputs, measure
from hrm_agent.benchmarks.networks import HEADS, SHAPES, WIDTH, StackShape
from hrm_agent.benchmarks.paths import COMPILED, PLAIN, available_paths, put_on
from hrm_agent.benchmarks.peaks import BANDWIDTH_BYTES, bandwidth, matrix_peaks
from hrm_agent.cores import build_core
from hrm_agent.evaluation.cost import count
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings

HERE = Path(__file__).resolve().parent
MIXINGS = ("conv", "attention", "mlp")
ATTENTION = {"positions": "rope", "num_heads": HEADS}
PAPER = {
    "hrm": {"H_layers": 4, "L_layers": 4, "H_cycles": 2, "L_cycles": 2, "inner_size": None},
    "trm": {"layers": 2, "H_cycles": 3, "L_cycles": 6, "inner_size": None},
}
"""Published depths and cycles (arXiv 2506.21734, 2510.04871) at the width of HRM-Agent.

Not the initial weights: with those, rounding of bfloat16 changes everything within one segment, and no comparison of
paths says anything.
"""
NAMES = [*((core, mixing) for core in PAPER for mixing in MIXINGS), ("convlstm", ""), ("gru", ""), ("feedforward", "")]


def core_options(size: str, core: str, mixing: str) -> dict[str, Any]:
    """Of the configuration `core=NAME`; at the paper's size with the published depths."""
    chosen = [f"core={core}", *([f"core.mixing={mixing}"] if mixing else [])]
    _, policy, _ = settings(resolve(compose_config(["shards=1", *chosen], "train")))
    published = PAPER.get(core, {}) if size == "paper" else {}
    return {**policy.core_options, **(ATTENTION if mixing == "attention" else {}), **published}


def segment_case(size: str, shape: StackShape, core: str, mixing: str, training: bool, paths: list[str]) -> Case:
    """One segment of a core for some rows: its output and state, or the gradient of a weighted sum of them."""
    torch.manual_seed(0)
    options = core_options(size, core, mixing)
    network = build_core(core, hidden_size=WIDTH, length=shape.length, grid=shape.grid, **options)

    def inputs(own: nn.Module, rows: int, seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        generator, dtype = torch.Generator().manual_seed(seed), next(own.parameters()).dtype
        x = torch.randn(rows, shape.length, WIDTH, generator=generator).to(dtype)
        return x, tuple(torch.randn(s.shape, generator=generator).to(dtype) for s in network.initial_state(rows))

    def think(own: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> Outputs:
        given = type(network.initial_state(1))(*state) if state else network.initial_state(len(x))
        if not training:
            with torch.no_grad():
                y, new = own(x, given)
            return {"output": y, **{f"state{i}": s for i, s in enumerate(new)}}
        y, new = own(x, given)
        loss = sum(((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in new), y.sum())
        names, weights = zip(*own.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return {"output": y, **{n: g for n, g in zip(names, found, strict=True) if g is not None}}

    def make(path: str) -> Competitor:
        own = copy.deepcopy(network)
        put_on(own, path)
        given = inputs(own, shape.batch, 0)
        return Competitor(lambda: think(own, *given), lambda seed: think(own, *inputs(own, 4, seed)))

    operations = count(make(PLAIN).run).operations
    name = " ".join([size, core, *([mixing] if mixing else []), "training" if training else "inference"])
    return Case("segment", name, make, paths, operations, shape.batch, "rows")


def least_bytes(size: str, shape: StackShape, core: str, mixing: str, training: bool) -> int:
    """See the head of this file; float32."""
    options = core_options(size, core, mixing)
    network = build_core(core, hidden_size=WIDTH, length=shape.length, grid=shape.grid, **options)
    weights = sum(p.numel() for p in network.parameters())
    tokens = shape.batch * shape.length * WIDTH
    state = sum(s.numel() for s in network.initial_state(shape.batch))
    moved = tokens + 2 * state  # the output is part of the new state
    return 4 * (weights + moved + (2 * weights + moved if training else 0))


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    peaks: dict[str, float] = {}
    bandwidths = {str(size): round(bandwidth(size) / 1e9, 2) for size in BANDWIDTH_BYTES}
    paths = [path for path in available_paths() if path != COMPILED]
    records = []
    for size, shape in SHAPES.items():
        for core, mixing in NAMES:
            for training in (False, True):
                # Again and again: other work on the machine must not pass for its limit.
                for precision, rates in matrix_peaks(1, seconds=0.1).items():
                    peaks[precision] = max(peaks.get(precision, 0.0), rates["1"])
                case = segment_case(size, shape, core, mixing, training, paths)
                least = least_bytes(size, shape, core, mixing, training)
                eager = count(case.make(PLAIN).run).bytes
                for r in measure(case, rounds=options.rounds, seconds=options.seconds, seed=1, peaks={}):
                    records.append(floors(r, size, core, mixing, training, int(case.operations), least, eager))
                print(case.name, *(f"{r['path']} {r['ratio']}" for r in records if r["name"] == case.name), flush=True)
    return {
        "command": command(),
        "machine": machine(threads=1),
        "peak_gflops": peaks,
        "bandwidth_gigabytes_per_second": bandwidths,
        "records": [record | floor_times(record, peaks, bandwidths) for record in records],
    }  # fmt: skip


def floors(
    r: dict[str, Any], size: str, core: str, mixing: str, training: bool, operations: int, least: int, eager: int
) -> dict[str, Any]:
    return {
        "name": r["name"], "size": size, "core": core, "mixing": mixing, "training": training, "path": r["path"],
        "precision": r["precision"], "rows": SHAPES[size].batch, "operations": operations, "bytes": least,
        "eager_bytes": eager, "intensity": round(operations / least, 2), "seconds": r["seconds"],
        "ratio": r["ratio"], "error": r["error"], "tolerance": r["tolerance"], "passed": r["passed"],
    }  # fmt: skip


def floor_times(record: dict[str, Any], peaks: dict[str, float], at: dict[str, float]) -> dict[str, Any]:
    """Seconds that the operations and the bytes need at least, and how many times the larger was measured."""
    by_operations = record["operations"] / (peaks[record["precision"]] * 1e9)
    fits = [rate for size, rate in at.items() if int(size) >= record["bytes"]]
    by_bytes = record["bytes"] / ((fits[0] if fits else list(at.values())[-1]) * 1e9)
    floor = max(by_operations, by_bytes)
    above = None if record["seconds"] is None else round(record["seconds"] / floor, 2)
    return {"floor_operations": by_operations, "floor_bytes": by_bytes, "floor": floor, "above_floor": above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a path in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write(HERE / "roofline.json", measure_all(options))
    draw(HERE)


if __name__ == "__main__":
    main()
