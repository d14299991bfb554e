"""Frames a second of the default run on every path, by turns, and what of the processor's limit they reach.

    python experiments/speed/default_run.py [--rounds 5] [--frames 102400] [--paths auto plain] [--earlier] [--whole]

Every run is the README's first command with `total_steps` and `kernel` changed and nothing evaluated; the figure is its
own count of frames over its seconds of training. `--earlier` measures the settings of `+earlier=november_2026` too;
`--whole` ends with the whole command, as a user types it, in both mazes. Beside them, before and after, the rate of
large float32 matrix products on as many threads. Needs a quiet machine; writes `default_run.json` and the table in
`README.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.engine.machine import command, commit_of_code, load, write
from experiments.engine.pages import draw
from experiments.engine.runs import agent_info

HERE = Path(__file__).resolve().parent
COMMAND = ["env=DynamicMaze-v0", "algo=ppo"]
QUIET = ["test_episodes=0", "eval_every=0", "eval_episodes=1", "checkpoint_every=0", "log_every=1000000000"]


def train(settings: list[str], path: str, frames: int) -> dict[str, Any]:
    """One run: what its agent says of it."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*COMMAND, *settings, *QUIET, f"kernel={path}", f"total_steps={frames}", f"hydra.run.dir={folder}/run"]
        subprocess.run([sys.executable, "-m", "hrm_agent.train", *given], check=True, capture_output=True)
        info = agent_info(Path(folder) / "run")
    return {"kernel": info["kernel"], "frames": info["frames"], "seconds": info["seconds"]}


def whole_command(env: str) -> dict[str, Any]:
    """A user's command from return to the table: seconds, and what it says of its agent."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        given = [f"env={env}", "algo=ppo", f"hydra.run.dir={folder}/run"]
        subprocess.run([sys.executable, "-m", "hrm_agent.train", *given], check=True, capture_output=True)
        wall = time.monotonic() - began
        report = json.loads((Path(folder) / "run" / "eval.json").read_text())
        info = agent_info(Path(folder) / "run")
    return {
        "env": env,
        "seconds": round(wall, 1),
        "training_seconds": info["seconds"],
        "frames": info["frames"],
        "kernel": info["kernel"],
        "success": report["success"],
        "sampled_success": report["sampled"]["success"],
        "clairvoyant": report["clairvoyant"]["success"],
        "levels": report["seeds"],
    }


def operations_of_a_frame(settings: list[str]) -> float:
    """A decision, and forward and backward of every pass over the rollout; the backward counts twice the forward."""
    from hrm_agent.benchmarks.networks import build_run
    from hrm_agent.evaluation.cost import measure_cost

    parts = build_run("default", settings)
    macs = measure_cost(parts.policy, parts.env.single_observation_space, batch=1)["macs_per_decision"]
    return 2.0 * macs * (1 + 3 * parts.ppo.epochs)


def limit(threads: int) -> float:
    """Operations a second of large float32 matrix products."""
    from hrm_agent.benchmarks.peaks import matrix_peak

    return max(matrix_peak("float32", threads, size) for size in (512, 1024, 2048))


def summarise(found: list[dict[str, Any]], name: str, path: str, operations: float, limit: float) -> dict[str, Any]:
    """One row: medians over turns, and ratios to the plain path within a turn."""

    def of(which: str) -> dict[int, float]:
        return {r["turn"]: r["frames_per_second"] for r in found if (r["run"], r["path"]) == (name, which)}

    own, plain = of(path), of("plain")
    ratios = [own[turn] / plain[turn] for turn in own]
    return {
        "run": name,
        "path": path,
        "kernel": next(r["kernel"] for r in found if (r["run"], r["path"]) == (name, path)),
        "frames_per_second": statistics.median(own.values()),
        "x_plain": [round(x, 2) for x in (statistics.median(ratios), min(ratios), max(ratios))],
        "operations_of_a_frame": operations,
        "share_of_limit": round(statistics.median(own.values()) * operations / limit, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=102_400)
    parser.add_argument("--paths", nargs="*", default=["auto", "plain"])
    parser.add_argument("--earlier", action="store_true")
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    from hrm_agent.parallel.threads import available_cores, instruction_set

    cores = available_cores()
    runs = {"default": [], **({"earlier": ["+earlier=november_2026"]} if given.earlier else {})}
    load_before, limits = load(), [limit(cores)]
    found: list[dict[str, Any]] = []
    for turn in range(given.rounds):
        for name, settings in runs.items():
            for path in given.paths:
                record = {"run": name, "path": path, "turn": turn, **train(settings, path, given.frames)}
                record["frames_per_second"] = round(record["frames"] / record["seconds"], 1)
                found.append(record)
                print(record, flush=True)
    limits.append(limit(cores))
    commands = [whole_command(env) for env in ("DynamicMaze-v0", "PaperMaze-v0")] if given.whole else []
    summary = [
        summarise(found, name, path, operations_of_a_frame(settings), max(limits))
        for name, settings in runs.items()
        for path in given.paths
    ]
    whole = {
        "command": command(),
        "seed": 0,
        "commit": commit_of_code(),
        "instruction_set": instruction_set(),
        "cores": cores,
        "load_before": load_before,
        "limit_gflops": [round(value / 1e9, 1) for value in limits],
        "summary": summary,
        "whole_commands": commands,
        "runs": found,
    }
    write(HERE / "default_run.json", whole)
    draw(HERE)


if __name__ == "__main__":
    main()
