"""Training samples per second of one deep-supervision step: ours against the published recipe written plainly.

    python experiments/speed/deep_supervision.py [--rounds 5] [--seconds 3] [--cores 1] [--clock cpu] [--only NAME ...]

The same weights, batch and settings on either side (`plain_recipe.py`), measured in turns in one process after a check
that their losses and their weights after two steps are equal. A sample is one puzzle for one segment. Ratios are the
medians over rounds of what both did in the same round. On a machine with other work, measure one core in processor
seconds (`--cores 1 --clock cpu`): torch's own threads, which the plain recipe uses, wait for each other there, and the
ratio would flatter us.
Results go to `deep_supervision.json`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.engine.machine import command, machine, write
from experiments.engine.turns import by_turns, turn
from experiments.speed.plain_recipe import PlainModel, PlainTraining
from hrm_agent.parallel.threads import Threads, available_cores
from hrm_agent.recurrence import use
from hrm_agent.supervised import ModelConfig, build_model
from hrm_agent.supervised.deep_supervision import DeepSupervision, SupervisedConfig
from hrm_agent.supervised.tasks.base import Examples, TaskSpec
from hrm_agent.training.tracking import CLOCKS

HERE = Path(__file__).parent
SUDOKU = TaskSpec(sequence_length=81, input_ids=11, answer_ids=11, grid=(9, 9))
TRM = {"layers": 2, "H_cycles": 3, "L_cycles": 6}
# Published shapes at a width that two cores can train: a Sudoku's tokens, head size 64, prefix of one slot.
CASES: dict[str, dict[str, Any]] = {
    "trm_mlp_128": {"core": "trm", "width": 128, "options": {**TRM, "mixing": "mlp", "positions": "none"}},
    "trm_attention_128": {"core": "trm", "width": 128, "options": {**TRM, "mixing": "attention", "positions": "rope"}},
    "hrm_128": {
        "core": "hrm",
        "width": 128,
        "options": {"H_layers": 4, "L_layers": 4, "mixing": "attention", "positions": "rope"},
    },
    "trm_attention_512": {"core": "trm", "width": 512, "options": {**TRM, "mixing": "attention", "positions": "rope"}},
}
SETTINGS = {"learning_rate": 1e-4, "weight_decay": 1.0, "ema": 0.999}
KERNELS = ("plain", "fused")  # which follow the precision of training
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def draw(generator: np.random.Generator, count: int) -> Examples:
    """Puzzles that cost nothing to make: the core is what is measured."""
    tokens = generator.integers(1, 11, (2, count, 81), dtype=np.int32)
    return Examples(tokens[0], tokens[1], np.zeros(count, np.int32))


def competitors(
    case: dict[str, Any], batch: int, precision: str, kernel: str, cores: int
) -> tuple[Callable, Callable, Any, Any]:
    """One step of ours and one of the plain recipe, from the same weights and puzzles."""
    torch.manual_seed(0)
    heads = case["width"] // 64
    config = ModelConfig(
        case["core"],
        {**case["options"], "num_heads": heads},
        case["width"],
        puzzle_embedding_size=case["width"],
        slots=1,
    )
    model = build_model(config, SUDOKU)
    plain = PlainModel(model, DTYPES[precision])
    q_learning = case["core"] == "hrm"
    puzzles = draw(np.random.default_rng(0), batch)
    given = tuple(torch.from_numpy(t).long() for t in (puzzles.inputs, puzzles.labels))
    theirs = PlainTraining(plain, batch, lambda: given, q_learning, **SETTINGS)
    settings = SupervisedConfig(
        batch_size=batch, halting="q_learning" if q_learning else "halt_only", warmup=0, puzzle_learning_rate=0.0,
        precision=precision, **SETTINGS,
    )  # fmt: skip
    use(model, kernel)
    ours = DeepSupervision(
        model, settings, lambda generator, count: draw(generator, batch).rows(slice(count)), 0, Threads(cores)
    )
    ours.draw = lambda generator, count: puzzles.rows(slice(count))
    return lambda: ours.step(0.0), theirs.step, ours, theirs


def check(case: dict[str, Any], kernel: str, cores: int) -> float:
    """Largest difference of losses and of the answer head's weights after two steps, in float32."""
    step, plain_step, ours, theirs = competitors(case, 8, "float32", kernel, cores)
    worst = 0.0
    for _ in range(2):
        worst = max(worst, abs(step()["loss"] - plain_step()))
    difference = (ours.model.lm_head.weight - theirs.model.ours.lm_head.weight).abs().max().item()
    return max(worst, difference)


def rate(step: Callable[[], Any], seconds: float, batch: int, threads: int, clock: str) -> float:
    """Samples per second, after a step that does not count."""
    torch.set_num_threads(threads)
    step()
    taken = turn(step, seconds, clock)
    return taken.calls * batch / getattr(taken, clock)


def measure(name: str, precision: str, kernel: str, options: argparse.Namespace) -> dict[str, Any]:
    case, cores, batch, seconds, clock = CASES[name], options.cores, options.batch, options.seconds, options.clock
    difference = check(case, kernel, cores)
    step, plain_step, ours, _ = competitors(case, batch, precision, kernel, cores)
    sides = {
        "ours": lambda: rate(step, seconds, batch, 1, clock),
        "plain": lambda: rate(plain_step, seconds, batch, cores, clock),
    }
    rates = by_turns(sides, options.rounds)
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    record = {
        "case": name, "precision": precision, "kernel": kernel, "batch": batch,
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        **{side: statistics.median(found) for side, found in rates.items()},
        "ratio": statistics.median(ratios), "ratios": ratios, "largest_difference": difference,
    }  # fmt: skip
    print(f"{name} {precision} {kernel}: {record['ours']:.1f} against {record['plain']:.1f} "
          f"samples/s, ratio {record['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
          f"difference {difference:.1e}", flush=True)  # fmt: skip
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cores", type=int, default=available_cores(), help="threads of either side")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    options = parser.parse_args()
    records = [
        measure(name, precision, kernel, options) for name in options.only for precision in DTYPES for kernel in KERNELS
    ]
    result = {"command": command(), "machine": machine(cores=options.cores), "records": records}
    write(HERE / "deep_supervision.json", result)


if __name__ == "__main__":
    main()
