"""Decisions and evaluations of two versions of this package, by turns in two processes.

    python -m experiments.speed.versions OLD [--turns 40]

OLD is a checkout of the earlier version, b9efc04 (before the modules moved into folders) or later. Each case has one
process of either version, which prepares itself and then waits; the two are asked for one turn each, in changing order,
so that other work on the machine meets both. The ratio of a turn is the speed now over the speed before; reported are
the median of the turns with a bootstrap interval, and the median by processor time. Writes `versions.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.machine import commit_of_code, git, load, processor
from experiments.engine.records import ROOT

HERE = Path(__file__).resolve().parent
CASES = (
    "decision default fused 16", "decision default fused 128", "decision default plain 16",
    "decision paper fused 8", "decision paper plain 8", "evaluation",
)  # fmt: skip
REPLICATES = 2000


class Side:
    """A process of one version, ready for turns."""

    def __init__(self, checkout: Path, case: str, cache: str) -> None:
        own = {"PYTHONPATH": f"{checkout}:{checkout / 'envs'}", "NUMBA_CACHE_DIR": f"{cache}/numba"}
        environment = {**os.environ, **own, "HRM_AGENT_CACHE": f"{cache}/kernels"}
        environment.pop("OMP_NUM_THREADS", None)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "versions_turns.py"), *case.split()],
            cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"error: {checkout}: its process ended before it was ready for {case}")

    def turn(self) -> tuple[float, float]:
        """Seconds by the wall clock and of the processor."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        wall, cpu = map(float, self.process.stdout.readline().split())
        return wall, cpu


def compare(old: Path, case: str, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        sides = [Side(old, case, f"{cache}/old"), Side(ROOT, case, f"{cache}/new")]
        seconds = np.empty((turns, 2, 2))  # turn, version, clock
        for turn in range(turns):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[turn, side] = sides[side].turn()
        for side in sides:
            side.process.communicate()
    ratios = seconds[:, 0] / seconds[:, 1]
    drawn = np.random.default_rng(0).integers(0, turns, (REPLICATES, turns))
    low, high = np.quantile(np.median(ratios[drawn, 0], axis=1), (0.025, 0.975))
    return {
        "case": case,
        "turns": turns,
        "speed": round(float(np.median(ratios[:, 0])), 3),
        "speed_ci95": [round(float(low), 3), round(float(high), 3)],
        "speed_by_processor_time": round(float(np.median(ratios[:, 1])), 3),
        "seconds_before": round(statistics.median(seconds[:, 0, 0].tolist()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--turns", type=int, default=40)
    given = parser.parse_args()
    old = given.old.resolve()
    record = {
        "command": f"python -m experiments.speed.versions OLD --turns {given.turns}",
        "commit": commit_of_code(),
        "old_commit": git(old, "rev-parse", "--short", "HEAD"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before": load(),
        "cases": [],
    }
    for case in CASES:
        record["cases"].append(compare(old, case, given.turns))
        print(record["cases"][-1], flush=True)
    (HERE / "versions.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
