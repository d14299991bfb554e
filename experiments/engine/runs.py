"""Training runs: each a command in a process of its own, and what its folder says afterwards."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from experiments.engine.machine import commit_of_code
from experiments.engine.records import ROOT, Record

FOLDER_OPTION = {"hrm_agent.baselines": "out"}
"""Commands whose runs keep no checkpoints, so that an interrupted one begins anew, and their option for the folder."""

ENOUGH = 0.9
"""Success of `frames_to_90` and `seconds_to_90`."""

POINTS = 60
"""Of a learning curve in a record, at most."""

Curve = list[list[float]]
"""Frames, seconds of training and success."""


def run_logged(command: list[str], log: TextIO) -> resource.struct_rusage:
    """Run a command to its end, its output going to `log`.

    Returns:
        What this process alone used, not whatever else runs beside it.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used


def run_python(place: Path, arguments: list[str]) -> resource.struct_rusage:
    """`python ARGUMENTS`, its output added to the log of the run in `place`."""
    print(" ".join(["python", *arguments]), flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f"{place.name}.log", "a") as log:
        return run_logged([sys.executable, *arguments], log)


def train(place: Path, overrides: list[str], side_by_side: int, module: str = "hrm_agent.train") -> None:
    """Train in the folder `place`, or resume what was interrupted there; its cost goes into `study.json`."""
    arguments = ["-m", module, *overrides, f"{FOLDER_OPTION.get(module, 'hydra.run.dir')}={place}"]
    if module in FOLDER_OPTION:
        shutil.rmtree(place, ignore_errors=True)
    resumed = (place / "run.json").exists()
    if resumed:
        arguments = ["-m", module, f"resume={place}"]
    commit, began = commit_of_code(), time.monotonic()
    used = run_python(place, arguments)
    wall = time.monotonic() - began
    cost = {
        "wall_seconds": None if resumed else round(wall, 1),  # of the whole command
        "cpu_share": round((used.ru_utime + used.ru_stime) / wall, 3),  # of one core
        "peak_memory_mb": used.ru_maxrss // 1024,
        "side_by_side": side_by_side,
        "commit": commit,
    }
    (place / "study.json").write_text(json.dumps(cost) + "\n")


def cost_of(place: Path, **unknown: Any) -> Record:
    """Command and cost of a run; without `study.json` (killed just after the training) what `unknown` says."""
    nothing = {"wall_seconds": None, "peak_memory_mb": None, "side_by_side": None, "commit": "unknown", **unknown}
    path = place / "study.json"
    return {"command": command_of(place), **(json.loads(path.read_text()) if path.exists() else nothing)}


def command_of(place: Path) -> str:
    """The command that began a run, without its folder, as the run itself wrote it down.

    Not the arm's overrides of today: a run put there by hand may rest on other settings than those that ship now.
    """
    words = json.loads((place / "run.json").read_text())["command"].split(" ")
    return " ".join(word for word in words if not word.startswith(("hydra.run.dir=", "out=")))


def agent_info(place: Path) -> dict[str, Any]:
    """What the last agent of a run says of itself."""
    return json.loads((place / "agents" / "last" / "agent.json").read_text())["info"]


def metrics(place: Path) -> list[dict[str, Any]]:
    """The lines that the run logged."""
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def seconds_at(line: dict[str, Any]) -> float:
    """Seconds of training up to a line of the log; our trainer logs the mean speed so far instead."""
    return line.get("train/seconds") or line["frames"] / line["train/frames_per_second"]


def sampled_curve(lines: list[dict[str, Any]]) -> Curve:
    """Success of sampled actions in the last episodes, over the run."""
    known = [line for line in lines if "train/success" in line]
    return [[line["frames"], round(seconds_at(line), 1), round(line["train/success"], 4)] for line in known]


def validation_curve(lines: list[dict[str, Any]]) -> Curve:
    """Greedy success on validation levels, over the run; times follow from the nearest line that has one."""
    timed = {line["frames"]: seconds_at(line) for line in lines if "train/frames_per_second" in line}
    curve: Curve = []
    for line in [line for line in lines if timed and "validation/success" in line]:
        frames = line["frames"]
        nearest = min(timed, key=lambda known: abs(known - frames))
        curve.append([frames, round(timed[nearest] * frames / nearest, 1), round(line["validation/success"], 4)])
    return curve


def first_above(curve: Curve, success: float = ENOUGH) -> list[Any]:
    """Frames and seconds of training until a curve is first at least that high; `[None, None]` where it never is."""
    return next((point[:2] for point in curve if point[2] >= success), [None, None])


def thinned(curve: Curve) -> Curve:
    """At most `POINTS` of a curve, evenly spaced, the last one among them."""
    step = -(-len(curve) // POINTS) or 1
    return curve[::-1][::step][::-1]
