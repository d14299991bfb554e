"""Seconds from pressing return to the first line on the screen and to the first frame of training.

    python experiments/speed/cold_start.py                     # this checkout
    python experiments/speed/cold_start.py --old CHECKOUT      # against an earlier one, by turns

Every round starts the README's first command twice in each checkout: with empty caches for the compiled environments
and kernels and without bytecode of ours, as on a fresh machine, then again with what the first left behind. Libraries
(torch, numba) are installed, and were read from the disk once before anything is timed. The first frame is there when
the collector has stepped the environments for the first time; a few lines around the command watch for that, and end
it. Writes `experiments/speed/cold_start.json`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from experiments.engine import machine
from experiments.engine.records import ROOT
from experiments.engine.turns import by_turns

HERE = Path(__file__).resolve().parent
COMMAND = ["env=DynamicMaze-v0", "algo=ppo"]
FRAME = "@@ first frame"
# Stands before the command: once the collector is imported, its first step says so and ends the process.
WATCHED = f"""
import importlib.abc, importlib.machinery, os, runpy, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("hrm_agent.experience.collector", "hrm_agent.collector"):  # of earlier checkouts
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            advance = module.Collector._advance
            def watched(*given):
                advance(*given)
                os.write(2, b"\\n{FRAME}\\n")
                os._exit(0)
            module.Collector._advance = watched
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Watch())
sys.argv[0] = "hrm_agent.train"
runpy.run_module("hrm_agent.train", run_name="__main__", alter_sys=True)
"""


def start(checkout: Path, caches: Path, seed: int) -> dict[str, float]:
    """One start of the command: seconds to the first line and to the first frame, and processor seconds until then."""
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "envs")]),
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "HRM_AGENT_CACHE": str(caches / "kernels"),
    }
    with tempfile.TemporaryDirectory() as folder:
        before, began = os.times(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *COMMAND, f"seed={seed}", f"hydra.run.dir={folder}/run"],
            cwd=checkout, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        seconds: dict[str, float] = {}
        said = []
        for line in process.stderr:
            now = round(time.perf_counter() - began, 2)
            said.append(line)
            if line.strip() == FRAME:
                seconds["first_frame"] = now
            elif line.strip():
                seconds.setdefault("first_line", now)
        process.wait()
        after = os.times()
    if "first_frame" not in seconds:
        raise RuntimeError(f"{checkout}: no frame was trained\n{''.join(said)}")
    used = sum(after[2:4]) - sum(before[2:4])
    return {**seconds, "processor": round(used, 2)}


def forget(checkout: Path) -> None:
    """Remove our bytecode, which a fresh clone has not."""
    for package in ("hrm_agent", "envs"):
        for folder in (checkout / package).rglob("__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)


def measure(checkout: Path, seed: int) -> dict[str, dict[str, float]]:
    """A start with empty caches and one with full ones."""
    forget(checkout)
    with tempfile.TemporaryDirectory() as caches:
        return {name: start(checkout, Path(caches), seed) for name in ("cold", "warm")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="an earlier checkout, started by turns with this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "cold_start.json")
    given = parser.parse_args()
    checkouts = {**({"old": given.old.absolute()} if given.old else {}), "new": ROOT}
    load = machine.load()
    for checkout in checkouts.values():  # so that no library is read from the disk for the first time below
        measure(checkout, given.seed)
    measures = {name: partial(measure, checkout, given.seed) for name, checkout in checkouts.items()}
    rounds = by_turns(measures, given.rounds)
    result = {
        "command": machine.command(*(["--old", "CHECKOUT"] if given.old else [])),
        "started": "python -m hrm_agent.train " + " ".join(COMMAND),
        "seed": given.seed,
        "machine": machine.cores_and_kind(),
        "processor": machine.processor(),
        "load": load,
        "commits": {name: machine.commit_of(checkout) for name, checkout in checkouts.items()},
        "medians": {
            name: {
                kind: {key: round(statistics.median(r[kind][key] for r in runs), 2) for key in runs[0][kind]}
                for kind in ("cold", "warm")
            }
            for name, runs in rounds.items()
        },
        "rounds": rounds,
    }
    for name, kinds in result["medians"].items():
        for kind, seconds in kinds.items():
            print(f"{name}, {kind}: first line {seconds['first_line']} s, first frame {seconds['first_frame']} s")
    machine.write(given.out, result, indent=2)


if __name__ == "__main__":
    main()
