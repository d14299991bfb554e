"""The search behind the default settings of `python -m hrm_agent.train`, judged on validation levels alone.

    python experiments/defaults/search.py [--jobs N] [--arms NAME ...] [--seeds S ...] [--draw-only]

Runs what `arms.yaml` lists and `search.json` lacks, one core a run, and adds a record for each. Frames are such that
all arms cost about the same processor time. No test level is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

HERE = Path(__file__).parent
JSON = HERE / "search.json"
lock = Lock()


def records() -> list[dict[str, Any]]:
    return json.loads(JSON.read_text()) if JSON.exists() else []


def commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    return told.stdout.strip()


def run(name: str, overrides: list[str], common: list[str], seed: int) -> None:
    """Train one arm with one seed and keep its record."""
    own = [] if any(o.startswith("env=") for o in overrides) else ["env=DynamicMaze-v0"]
    settings = [*own, *common, *overrides, f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hrm_agent.train", *settings, f"hydra.run.dir={folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if told.returncode:
            print(f"{name} seed {seed}: {told.stderr[-300:]}", flush=True)
            return
        info = json.loads((Path(folder) / "run" / "agents" / "last" / "agent.json").read_text())["info"]
    kept = ("frames", "seconds", "clock", "kernel", "instruction_set", "core", "carry", "segments", "parameters")
    record = {
        "arm": name,
        "seed": seed,
        **{key: info.get(key) for key in kept},
        "validation": {k: info["validation"].get(k) for k in ("success", "return", "episodes", "spl")},
        "settings": overrides,
        "command": " ".join(["python -m hrm_agent.train", *settings]),
        "commit": commit(),
        "processor": platform.machine(),
    }
    with lock:
        JSON.write_text(json.dumps([*records(), record], indent=1) + "\n")
    print(f"{name} seed {seed}: {record['validation']['success']:.4f} in {record['seconds']:.0f} s", flush=True)


def draw() -> None:
    """The table of `README.md`, best first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records():
        rows.setdefault(record["arm"], []).append(record)
    lines = ["| arm | success on validation levels, each seed | mean | frames | seconds of a core | settings |"]
    lines.append("|" + "---|" * 6)

    def mean(runs: list[dict[str, Any]]) -> float:
        return sum(r["validation"]["success"] for r in runs) / len(runs)

    for arm, runs in sorted(rows.items(), key=lambda row: -mean(row[1])):
        each = " ".join(f"{r['validation']['success']:.4f}" for r in sorted(runs, key=lambda r: r["seed"]))
        seconds = sum(r["seconds"] for r in runs) / len(runs)
        told = f"`{' '.join(runs[0]['settings'])}`"
        lines.append(f"| {arm} | {each} | {mean(runs):.4f} | {runs[0]['frames']:,} | {seconds:.0f} | {told} |")
    page = HERE / "README.md"
    before, rest = page.read_text().split("<!-- table search -->")
    page.write_text(
        before + "<!-- table search -->\n" + "\n".join(lines) + "\n<!-- /table -->" + rest.split("<!-- /table -->")[1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--draw-only", action="store_true")
    given = parser.parse_args()
    if given.draw_only:
        return draw()
    study = yaml.safe_load((HERE / "arms.yaml").read_text())
    done = {(r["arm"], r["seed"]) for r in records()}
    with ThreadPoolExecutor(given.jobs) as pool:
        for seed in given.seeds:
            for name, overrides in study["arms"].items():
                if (given.arms and name not in given.arms) or (name, seed) in done:
                    continue
                pool.submit(run, name, overrides, study["common"], seed)
    draw()


if __name__ == "__main__":
    main()
