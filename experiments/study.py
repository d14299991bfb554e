"""Run what is missing of a study, and redraw its table and figure.

    python experiments/study.py experiments/main_job [--jobs 1] [--draw-only]

A study is a folder with `study.yaml`: arms (lists of overrides of `hrm_agent.train`) and seeds. Every finished run
adds a flat record to `results.json` and its learning curve to `curves.json`; runs that have a record are skipped, and
a run that was interrupted goes on from its checkpoint. The table between the marks in the study's `README.md` and
`curves.png` are redrawn from those two files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Student's t, two-sided 95%, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
BASELINES = {"random policy": "random", "BFS re-planner": "bfs_replanner", "clairvoyant bound": "clairvoyant"}
COPIED = (
    "env", "core", "carry", "time_gradient", "segments", "parameters", "frames", "seconds", "success",
    "success_ci95", "spl", "excess_steps", "regret_after_material_change", "steps_to_replan", "stale_plan_rate",
    "macs_per_decision", "ms_per_decision", "random", "bfs_replanner", "clairvoyant",
)  # fmt: skip
README_COLUMNS = ("agent", "success [95% over seeds]", "each seed", "frames", "training, median")
_write = Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with its share of the cores")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    folder = options.study.resolve()
    study = yaml.safe_load((folder / "study.yaml").read_text())
    if not options.draw_only:
        missing = [(a, s) for s in study["seeds"] for a in study["arms"] if not find(folder, a, s)]
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda job: run(folder, study, *job, options.jobs), missing):
                draw(folder, study)
    draw(folder, study)


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def find(folder: Path, arm: str, seed: int) -> dict[str, Any] | None:
    found = [r for r in load(folder / "results.json") if (r["agent"], r["seed"]) == (arm, seed)]
    return found[0] if found else None


def run(folder: Path, study: dict[str, Any], arm: str, seed: int, jobs: int) -> None:
    """Train and evaluate one agent, then record it."""
    place = ROOT / "runs" / "studies" / folder.name / f"{arm}_seed{seed}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    overrides = [
        *study.get("base", []),
        *study["arms"][arm],
        f"seed={seed}",
        f"shards={max(1, cores // jobs)}",
    ]
    shown = ["python", "-m", "hrm_agent.train", *overrides]
    command = [sys.executable, *shown[1:], f"hydra.run.dir={place}"]
    if (place / "run.json").exists():
        command = [sys.executable, "-m", "hrm_agent.train", f"resume={place}"]
    commit = commit_of_code()
    print(f"{arm} seed {seed}: {' '.join(shown)}", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    resumed = "resume=" in command[-1]
    began = time.monotonic()
    with open(place.parent / f"{place.name}.log", "a") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    wall = time.monotonic() - began
    report = json.loads((place / "eval.json").read_text())
    last = json.loads((place / "agents" / "last" / "agent.json").read_text())
    record = {
        "agent": arm,
        "algo": "ppo",
        "seed": seed,
        **{name: report[name] for name in COPIED},
        # the cost of the whole run; the agent evaluated is the best on validation levels, perhaps an earlier one
        **{name: last["info"][name] for name in ("frames", "seconds")},
        "best_at_frames": report["frames"],
        "command": " ".join(shown),
        "wall_seconds": None if resumed else round(wall, 1),  # of the whole command, evaluation included
        # of the largest process so far, so an upper bound for this one
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "side_by_side": jobs,
        "commit": commit,
    }
    curve = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    points = [[c["frames"], c["train/success"]] for c in curve if "train/success" in c]
    with _write:
        store(folder / "results.json", [*load(folder / "results.json"), record])
        store(
            folder / "curves.json",
            [*load(folder / "curves.json"), {"agent": arm, "seed": seed, "train_success": points}],
        )
    print(f"{arm} seed {seed}: success {record['success']:.3f} after {record['seconds']:.0f} s", flush=True)


def commit_of_code() -> str:
    """Short hash of the checkout, marked where the code that is about to run differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "hrm_agent", "envs", "configs"]).returncode
    return f"{head}-dirty" if changed else head


def store(path: Path, records: list[dict[str, Any]]) -> None:
    records.sort(key=lambda r: (r["agent"], r["seed"]))
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean over seeds and Student's 95% interval, cut to [0, 1]."""
    mean, n = float(np.mean(values)), len(values)
    half = T95[n - 1] * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else float("nan")
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def rows_of(records: list[dict[str, Any]], arms: list[str]) -> list[dict[str, str]]:
    """One row an arm, then the baselines on the levels of its environment; from the records alone."""
    rows: list[dict[str, str]] = []
    seen = set()
    for arm in arms:
        runs = [r for r in records if r["agent"] == arm]
        if not runs:
            continue
        mean, low, high = mean_interval([r["success"] for r in runs])
        rows.append(
            {
                "agent": arm,
                "success [95% over seeds]": f"**{mean:.3f}** [{low:.3f}, {high:.3f}]",
                "each seed": " ".join(f"{r['success']:.3f}" for r in runs),
                "SPL": average(runs, "spl"),
                "regret after a material change": average(runs, "regret_after_material_change"),
                "frames": f"{runs[0]['frames']:,}",
                "training, median": f"{np.median([r['seconds'] for r in runs]):.0f} s",
                "whole command, longest": longest(runs),
                "parameters": f"{runs[0]['parameters']:,}",
            }
        )
        for name, key in BASELINES.items():
            known = runs[0][key]
            label = f"{name}, {runs[0]['env']}"
            if known and (label, known["success"]) not in seen:
                seen.add((label, known["success"]))
                low, high = known["success_ci95"]
                rows.append(
                    {
                        "agent": label,
                        "success [95% over seeds]": f"{known['success']:.3f} [{low:.3f}, {high:.3f}]",
                        "SPL": average([known], "spl"),
                        "regret after a material change": average([known], "regret_after_material_change"),
                    }
                )
    return rows


def table(rows: list[dict[str, str]], columns: tuple[str, ...] | None = None) -> str:
    """Markdown; `columns` picks some of them."""
    names = columns or tuple(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in rows]
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between `<!-- table NAME -->` and `<!-- /table -->` replaced by `content`."""
    begin, end = f"<!-- table {name} -->", "<!-- /table -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def filled(path: Path, folder: Path, study: dict[str, Any]) -> str:
    """What a page should say, with the study's table in it; the project's README has fewer columns."""
    rows = rows_of(load(folder / "results.json"), list(study["arms"]))
    content = table(rows, README_COLUMNS if path == ROOT / "README.md" else None)
    return fill(path.read_text(), folder.name, content)


def longest(rows: list[dict[str, Any]]) -> str:
    walls = [r["wall_seconds"] for r in rows if r.get("wall_seconds") is not None]
    return f"{max(walls):.0f} s" if walls else ""


def average(rows: list[dict[str, Any]], name: str) -> str:
    values = [r[name] for r in rows if r.get(name) is not None]
    return f"{np.mean(values):.3f}" if values else ""


def draw(folder: Path, study: dict[str, Any]) -> None:
    """Put the table into the pages that have its marks, and draw the learning curves."""
    if not load(folder / "results.json"):
        return
    for page in (folder / "README.md", ROOT / "README.md"):
        page.write_text(filled(page, folder, study))
    draw_curves(folder, list(study["arms"]))


def draw_curves(folder: Path, arms: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, arm in enumerate(arms):
        for curve in [c for c in load(folder / "curves.json") if c["agent"] == arm]:
            frames, success = zip(*curve["train_success"], strict=True)
            label = arm if curve["seed"] == 0 else None
            axes.plot(frames, success, color=f"C{number}", alpha=0.75, lw=1.3, label=label)
    axes.set(xlabel="environment frames", ylabel="success of sampled actions in training", ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
