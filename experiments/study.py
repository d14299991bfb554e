"""Run what is missing of a study, and redraw its tables and figures.

    python experiments/study.py experiments/main_job [--jobs 1] [--draw-only]

A study is a folder with `study.yaml`:

    seeds: [0, 1, 2]              # of every arm, unless it has its own
    base: [+experiment=braid]     # overrides of `hrm_agent.train` for all arms
    arms:
      ARM: [carry=full]           # overrides, or {overrides: [...], seeds: [...]}
    which: best                   # best | last: the agent of a run that is evaluated
    levels: false                 # also keep the outcome on every level, in levels.json
    test: {seed: 0}               # options of `hrm_agent.evaluate`: other test levels than the first 1,000
    lesions:                      # trained agents evaluated under other settings
      NAME: {arms: [ARM, ...], options: {carry: reset}}   # options of `hrm_agent.evaluate`; seeds: some only
    own_table: false              # the folder's page has a table of its own in place of this script's

Every finished run adds a flat record to `results.json` and its learning curve to `curves.json`, every lesion one to
`lesions.json`; what has a record is skipped, and a run that was interrupted goes on from its checkpoint. Tables between
the marks `<!-- table NAME -->` of the study's `README.md` and `curves.png` are redrawn from these files. A study may
have a `draw.py` of its own: `tables(folder)` gives further tables by name, `figures(folder)` draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Student's t, two-sided 95%, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
BASELINES = {"random policy": "random", "BFS re-planner": "bfs_replanner", "clairvoyant bound": "clairvoyant"}
MEASURED = (
    "success", "success_ci95", "return", "spl", "excess_steps", "regret_after_material_change", "steps_to_replan",
    "stale_plan_rate", "regret_by_change", "decisions_by_change", "segments_per_decision", "segments_by_change",
    "macs_per_decision", "ms_per_decision",
)  # fmt: skip
COPIED = ("env", "core", "carry", "time_gradient", "segments", "parameters", *MEASURED)
README_COLUMNS = ("agent", "success [95% over seeds]", "each seed", "frames", "training, median")
_write = Lock()
_baselines: dict[str, dict[str, Any]] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with its share of the cores")
    parser.add_argument("--no-training", action="store_true", help="evaluate and draw what has been trained")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    folder = options.study.resolve()
    study = yaml.safe_load((folder / "study.yaml").read_text())
    if not options.draw_only:
        missing = [job for job in jobs_of(study) if not find(folder / "results.json", *job)]
        if options.no_training:
            missing = [job for job in missing if is_trained(place_of(folder, *job))]
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(lambda job: run(folder, study, *job, options.jobs), missing):
                pass
        measure_lesions(folder, study)
    draw(folder, study)


def arm_of(study: dict[str, Any], arm: str) -> dict[str, Any]:
    """An arm as a dictionary, with its seeds."""
    given = study["arms"][arm]
    return {"seeds": study["seeds"], **(given if isinstance(given, dict) else {"overrides": given})}


def jobs_of(study: dict[str, Any]) -> list[tuple[str, int]]:
    """All (arm, seed), one seed of every arm before the next: a study that is cut short has all arms."""
    jobs = [(arm, seed) for arm in study["arms"] for seed in arm_of(study, arm)["seeds"]]
    return sorted(jobs, key=lambda job: job[1])


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def find(path: Path, arm: str, seed: int, lesion: str | None = None) -> dict[str, Any] | None:
    wanted = (arm, seed, lesion)
    return next((r for r in load(path) if (r["agent"], r["seed"], r.get("lesion")) == wanted), None)


def place_of(folder: Path, arm: str, seed: int) -> Path:
    """Folder of the training run; not in the repository."""
    return ROOT / "runs" / "studies" / folder.name / f"{arm}_seed{seed}"


def is_trained(place: Path) -> bool:
    return (place / "agents" / "last" / "agent.safetensors").exists()


def run(folder: Path, study: dict[str, Any], arm: str, seed: int, jobs: int) -> None:
    """Train and evaluate one agent, then record it."""
    place = place_of(folder, arm, seed)
    overrides = [*study.get("base", []), *arm_of(study, arm)["overrides"], f"seed={seed}", "test_episodes=0"]
    if not is_trained(place):
        train(place, [*overrides, f"shards={max(1, cores() // jobs)}"], jobs)
    last = json.loads((place / "agents" / "last" / "agent.json").read_text())["info"]
    report = evaluate_beside_baselines(place, study, json.dumps([last["env"], last["env_options"]]))
    took = place / "study.json"  # missing where the study was killed just after the training
    nothing = {"wall_seconds": None, "peak_memory_mb": None, "side_by_side": jobs, "commit": "unknown"}
    trained = json.loads(took.read_text()) if took.exists() else nothing
    record = {
        "agent": arm,
        "algo": last["algo"],
        "seed": seed,
        **{name: report[name] for name in (*COPIED, *BASELINES.values())},
        # the cost of the whole run; the agent evaluated may be an earlier one
        **{name: last[name] for name in ("frames", "seconds")},
        "evaluated_at_frames": report["frames"],
        "sampled_success": (report["sampled"] or {}).get("success"),
        **{name: last[name] for name in ("kernel", "instruction_set") if name in last},
        "command": command_of(place),
        **trained,
    }
    with _write:
        store(folder / "results.json", record)
        store(folder / "curves.json", {"agent": arm, "seed": seed, "train_success": curve_of(place)})
        if study.get("levels"):
            outcome = {"success": report["levels"]["success"], "regret": report["levels"]["regret"]}
            if report["sampled"] is not None:
                outcome["sampled"] = report["sampled"]["levels"]["success"]
            store(folder / "levels.json", {"agent": arm, "seed": seed, **outcome})
    print(f"{arm} seed {seed}: success {record['success']:.3f} after {record['seconds']:.0f} s", flush=True)


def train(place: Path, overrides: list[str], jobs: int, module: str = "hrm_agent.train") -> None:
    """One training run in a process of its own, begun or gone on with; what it took goes into `study.json`."""
    command = [sys.executable, "-m", module, *overrides, f"hydra.run.dir={place}"]
    resumed = (place / "run.json").exists()
    if resumed:
        command = [sys.executable, "-m", module, f"resume={place}"]
    commit = commit_of_code()
    print(" ".join(["python", *command[1:]]), flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(place.parent / f"{place.name}.log", "a") as log:
        peak_memory_mb = run_logged(command, log)
    wall = time.monotonic() - began
    took = {
        "wall_seconds": None if resumed else round(wall, 1),  # of the whole command
        "peak_memory_mb": peak_memory_mb,
        "side_by_side": jobs,
        "commit": commit,
    }
    (place / "study.json").write_text(json.dumps(took) + "\n")


def command_of(place: Path) -> str:
    """What was typed to begin a run, without its folder, as the run itself wrote it down.

    Not the arm's overrides of today: a run put there by hand may rest on other settings than those that ship now.
    """
    words = json.loads((place / "run.json").read_text())["command"].split(" ")
    return " ".join(word for word in words if not word.startswith("hydra.run.dir="))


def run_logged(command: list[str], log: TextIO) -> int:
    """Run a command to its end, its output going to `log`.

    Returns:
        Peak resident memory in MiB of this process alone, not of whatever else runs beside it.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_maxrss // 1024


def evaluate(place: Path, study: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The report of `hrm_agent.evaluate`, on the 1,000 levels that it takes by default or those of the study."""
    from hrm_agent.evaluate import evaluate

    return evaluate(run=str(place), best=study.get("which", "best") == "best", **{**study.get("test", {}), **options})


def evaluate_beside_baselines(place: Path, study: dict[str, Any], world: str) -> dict[str, Any]:
    """`evaluate`; the baselines of one world are played once."""
    known = _baselines.get(world)
    report = evaluate(place, study, baselines=known is None)
    with _write:
        _baselines.setdefault(world, {name: report[name] for name in BASELINES.values()})
    return {**report, **_baselines[world]}


def curve_of(place: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [[c["frames"], round(c["train/success"], 4)] for c in lines if "train/success" in c]


def measure_lesions(folder: Path, study: dict[str, Any]) -> None:
    """Evaluate trained agents under the settings of each lesion."""
    for name, lesion in study.get("lesions", {}).items():
        for arm in lesion["arms"]:
            for seed in lesion.get("seeds", arm_of(study, arm)["seeds"]):
                place = place_of(folder, arm, seed)
                if find(folder / "lesions.json", arm, seed, name) or not is_trained(place):
                    continue
                # Another world has another bound: the references are played there too.
                elsewhere = "env_options" in lesion["options"]
                report = evaluate(place, study, baselines=elsewhere, **lesion["options"])
                record = {"agent": arm, "seed": seed, "lesion": name, "options": lesion["options"]}
                record |= {key: report[key] for key in MEASURED}
                if elsewhere:
                    record |= {key: report[key]["success"] for key in ("bfs_replanner", "clairvoyant")}
                store(folder / "lesions.json", record)
                print(f"{arm} seed {seed}, {name}: success {report['success']:.3f}", flush=True)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit_of_code() -> str:
    """Short hash of the checkout, marked where the code that is about to run differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    status = subprocess.run([*git, "status", "--porcelain", "--", "hrm_agent", "envs", "configs"], capture_output=True)
    changed = status.stdout.strip()  # new files too
    return f"{head}-dirty" if changed else head


def store(path: Path, record: dict[str, Any]) -> None:
    """Add a record, one a line, sorted by arm and seed."""
    records = [*load(path), record]
    records.sort(key=lambda r: (r["agent"], r["seed"], r.get("lesion", "")))
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean over seeds and Student's 95% interval, cut to [0, 1]; of one seed all of it."""
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
        if len(runs) == 1:  # nothing to say about seeds: Wilson's, over levels
            low, high = runs[0]["success_ci95"]
        rows.append(
            {
                "agent": arm,
                "success [95% over seeds]": f"**{mean:.3f}** [{low:.3f}, {high:.3f}]",
                "each seed": " ".join(f"{r['success']:.3f}" for r in runs),
                **({"return": average(runs, "return", 1)} if runs[0]["spl"] is None else {}),
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
    """What a page should say, with the study's tables in it; the project's README has fewer columns."""
    text = path.read_text()
    if not study.get("own_table"):
        rows = rows_of(load(folder / "results.json"), list(study["arms"]))
        text = fill(text, folder.name, table(rows, README_COLUMNS if path == ROOT / "README.md" else None))
    own = drawer_of(folder)
    for name, content in (own.tables(folder) if own else {}).items():
        text = fill(text, name, content)
    return text


def drawer_of(folder: Path) -> Any:
    """The study's own `draw.py`, or None."""
    path = folder / "draw.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"draw_{folder.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def longest(rows: list[dict[str, Any]]) -> str:
    walls = [r["wall_seconds"] for r in rows if r.get("wall_seconds") is not None]
    return f"{max(walls):.0f} s" if walls else ""


def average(rows: list[dict[str, Any]], name: str, digits: int = 3) -> str:
    values = [r[name] for r in rows if r.get(name) is not None]
    return f"{np.mean(values):.{digits}f}" if values else ""


def draw(folder: Path, study: dict[str, Any]) -> None:
    """Put the tables into the pages that have their marks, and draw the figures."""
    if not load(folder / "results.json"):
        return
    for page in (folder / "README.md", ROOT / "README.md"):
        page.write_text(filled(page, folder, study))
    own = drawer_of(folder)
    if own:
        own.figures(folder)
    else:
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
