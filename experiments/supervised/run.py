"""Train and record what `runs.yaml` lists and `results.json` lacks, then redraw page and figure.

    python experiments/supervised/run.py [--only NAME ...] [--draw-only]

Runs lie in `runs/studies/supervised/NAME`; what is finished there is only recorded, what was interrupted goes on from
its checkpoint. A record is the run's own evaluation on test puzzles (`eval.json`) beside what it cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

RESULTS = HERE / "results.json"
SPEED = HERE.parent / "speed" / "deep_supervision.json"
COMMAND = "hrm_agent.supervise"
PAGES = (HERE / "README.md", study.ROOT / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = yaml.safe_load((HERE / "runs.yaml").read_text())
    parser.add_argument("--only", nargs="+", default=list(runs), choices=list(runs), metavar="NAME")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    if not options.draw_only:
        known = {record["agent"] for record in study.load(RESULTS)}
        for name in options.only:
            if name not in known:
                place = study.place_of(HERE, name, 0)
                if not (place / "eval.json").exists():
                    study.train(place, runs[name]["command"].split(), 1, COMMAND)
                study.store(RESULTS, record_of(name, place))
    draw(runs)


def record_of(name: str, place: Path) -> dict[str, Any]:
    """What a finished run reached on test puzzles, and what it took."""
    info = json.loads((place / "models" / "last" / "model.json").read_text())
    report = json.loads((place / "eval.json").read_text())
    command = json.loads((place / "run.json").read_text())["command"]
    took = json.loads((place / "study.json").read_text())
    own = report.pop("task", None)
    if own:
        report["task"] = {key: value for key, value in own.items() if isinstance(value, int | float | str | list)}
        report["task"].pop("attempts", None)
    return {
        "agent": name, "algo": "supervised", "task": info["task"], "task_options": info["task_options"],
        **{key: info[key] for key in ("core", "seed", "parameters", "steps", "samples", "seconds", "clock")},
        "puzzles_drawn": info["puzzles"],
        "command": " ".join(word for word in command.split() if not word.startswith("hydra.run.dir=")),
        **took,
        "test": report,
        "curve": learning_curve(place),
    }  # fmt: skip


def learning_curve(place: Path) -> list[list[float]]:
    """Steps, and the score on validation puzzles."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "validation/exact" in line]
    return [[s["steps"], round(s.get("validation/valid", s["validation/exact"]), 4)] for s in scores]


def score_of(report: dict[str, Any]) -> str:
    return "valid" if "valid" in report else "exact"


def rows_of(records: list[dict[str, Any]], runs: dict[str, Any]) -> list[dict[str, str]]:
    """One row a run that is scored puzzle by puzzle."""
    rows = []
    for record in records:
        report, halted = record["test"], record["test"]["halted"]
        if "task" in report:
            continue
        name = score_of(report)
        low, high = report[f"{name}_ci95"]
        rows.append(
            {
                "run": f"`{record['agent']}`",
                "puzzles": runs[record["agent"]]["says"],
                f"right [95%], of {report['puzzles']:,}": f"**{report[name]:.3f}** [{low:.3f}, {high:.3f}]",
                "exact": f"{report['exact']:.3f}",
                "cells": f"{report['cells']:.4f}",
                "after one segment": f"{report['curves'][name][0]:.3f}",
                "repaired later": f"{report['repaired']:.3f}",
                "halting by itself": f"{halted[name]:.3f} in {halted['segments']:.1f} segments",
                "parameters": f"{record['parameters']:,}",
                "training": f"{record['seconds']:.0f} s",
            }
        )
    return rows


def arc_rows(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One row a run that is scored by voting."""
    rows = []
    for record in records:
        own = record["test"].get("task")
        if own:
            plain = {key: value for key, value in own.items() if isinstance(value, int | float | str)}
            rows.append({"run": f"`{record['agent']}`", **{k: shown(v) for k, v in plain.items()}})
    return rows


def speed_rows() -> list[dict[str, str]]:
    """One row a case and precision, of what `experiments/speed/deep_supervision.py` measured."""
    if not SPEED.exists():
        return []
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in json.loads(SPEED.read_text())["records"]:
        about = {"case": f"`{record['case']}`", "products": record["precision"], "batch": str(record["batch"])}
        row = rows.setdefault((record["case"], record["precision"]), about)
        kind = record["kernel"]
        if kind == "plain":
            row["recipe, samples/s"] = f"{record['plain']:.1f}"
        row[f"ours {kind}, samples/s"] = f"{record['ours']:.1f}"
        low, high = min(record["ratios"]), max(record["ratios"])
        row[f"ratio {kind}, median (range)"] = f"**{record['ratio']:.2f}** ({low:.2f} to {high:.2f})"
    return list(rows.values())


def shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tables(records: list[dict[str, Any]], runs: dict[str, Any]) -> dict[str, str]:
    """What stands between the marks of the pages."""
    found = {
        "supervised": rows_of(records, runs),
        "supervised_arc": arc_rows(records),
        "deep_supervision": speed_rows(),
    }
    return {name: study.table(rows) if rows else "No record yet." for name, rows in found.items()}


def draw(runs: dict[str, Any]) -> None:
    records = study.load(RESULTS)
    for page in PAGES:
        text = page.read_text()
        for name, content in tables(records, runs).items():
            text = study.fill(text, name, content)
        page.write_text(text)
    if records:
        figure(records)


def figure(records: list[dict[str, Any]]) -> None:
    """Scores after every segment: what later segments repair."""
    matplotlib.use("Agg")
    shown_here = [r for r in records if "task" not in r["test"]]
    fig, axes = plt.subplots(1, len(shown_here), figsize=(4.2 * len(shown_here), 3.2), squeeze=False)
    for axis, record in zip(axes[0], shown_here, strict=True):
        for name, values in record["test"]["curves"].items():
            axis.plot(range(1, len(values) + 1), values, label=name)
        axis.set(title=record["agent"], xlabel="segment", ylim=(0, 1.02))
        axis.legend()
    fig.tight_layout()
    fig.savefig(HERE / "segments.png", dpi=110)


if __name__ == "__main__":
    main()
