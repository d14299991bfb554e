"""The default training run before and after: whole runs of two checkouts, or of two paths, by turns.

    python experiments/speed/main_job.py --old CHECKOUT      # this checkout against an earlier one
    python experiments/speed/main_job.py                     # kernel=plain against kernel=auto, both of this checkout

Every run is the README's first command with all cores of the machine, followed by its evaluation on 1,000 test levels;
seeds are 0, 1, ...; old and new alternate. A run's folder that is already there is not run again, so that the script
can be called until it is through. Writes `experiments/speed/main_job.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.engine import machine
from experiments.engine.records import ROOT
from experiments.engine.turns import ratios

HERE = Path(__file__).resolve().parent
COMMAND = ["-m", "hrm_agent.train", "env=DynamicMaze-v0", "algo=ppo"]


def run(checkout: Path, folder: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """One whole run: wall-clock seconds of the command and of training, and what the agent reached."""
    record = folder / "whole.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)  # half a run would be resumed, and its seconds with it
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "envs")])}
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *COMMAND, f"seed={seed}", f"hydra.run.dir={folder}", *extra],
            cwd=checkout, env=env, check=True,
        )  # fmt: skip
        record.write_text(json.dumps({"whole_seconds": round(time.perf_counter() - began, 1)}))
    info = json.loads((folder / "agents" / "last" / "agent.json").read_text())["info"]
    report = json.loads((folder / "eval.json").read_text())
    return {
        "seed": seed,
        **json.loads(record.read_text()),
        "training_seconds": info["seconds"],
        "frames": info["frames"],
        "kernel": info.get("kernel", "plain"),
        "success": report["success"],
        "success_ci95": report["success_ci95"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="an earlier checkout; without, this one with kernel=plain")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "speed" / "main_job")
    parser.add_argument("--new-options", nargs="*", default=[], help="settings of the new runs")
    given = parser.parse_args()
    old, folder = given.old.absolute() if given.old else ROOT, given.runs.absolute()
    runs: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
    for seed in range(given.seeds):
        runs["old"].append(run(old, folder / f"old_{seed}", seed, [] if given.old else ["kernel=plain"]))
        runs["new"].append(run(ROOT, folder / f"new_{seed}", seed, given.new_options))
    result = {
        "command": machine.command(*(["--old", "CHECKOUT"] if given.old else [])),
        "machine": machine.cores_and_kind(),
        "commits": {"old": machine.commit_of(old), "new": machine.commit_of(ROOT)},
        "runs": runs,
        **{
            f"ratio_{kind}": ratios(*([run[f"{kind}_seconds"] for run in runs[name]] for name in ("old", "new")))
            for kind in ("training", "whole")
        },
    }
    for name, records in runs.items():
        seconds = statistics.median(r["training_seconds"] for r in records)
        whole = statistics.median(r["whole_seconds"] for r in records)
        success = statistics.fmean(r["success"] for r in records)
        print(f"{name}: training {seconds:.0f} s, whole command {whole:.0f} s (medians), success {success:.3f} (mean)")
    print(f"ratios, training: {result['ratio_training']}; whole command: {result['ratio_whole']}")
    machine.write(HERE / "main_job.json", result, indent=2)


if __name__ == "__main__":
    main()
