"""Tables of this page and of docs/supervised/tasks.md, and the figure, from the JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.tables import estimate, table


def tables(folder: Path) -> dict[str, str]:
    """Tables by the name of their marks."""
    records, arms = load(folder / "results.json"), settings_of(folder)["arms"]
    speed, tasks = folder.parent / "speed" / "deep_supervision.json", folder / "tasks.json"
    return {
        "supervised": table(rows_of(records, arms)),
        "supervised_arc": table(arc_rows(records)),
        "deep_supervision": table(speed_rows(json.loads(speed.read_text())["records"])),
        "tasks": table(task_rows(json.loads(tasks.read_text())["records"])),
    }


def score_of(report: Record) -> str:
    return "valid" if "valid" in report else "exact"


def rows_of(records: list[Record], arms: dict[str, Any]) -> list[dict[str, str]]:
    """One row a run that is scored puzzle by puzzle."""
    rows = []
    for record in records:
        report, halted = record["test"], record["test"]["halted"]
        if "task" in report:
            continue
        name = score_of(report)
        rows.append(
            {
                "run": f"`{record['agent']}`",
                "puzzles": arms[record["agent"]]["says"],
                f"right [95%], of {report['puzzles']:,}": estimate((report[name], *report[f"{name}_ci95"])),
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


def arc_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a run that is scored by voting."""
    rows = []
    for record in records:
        own = record["test"].get("task")
        if own:
            plain = {key: value for key, value in own.items() if isinstance(value, int | float | str)}
            rows.append({"run": f"`{record['agent']}`", **{k: shown(v) for k, v in plain.items()}})
    return rows


def speed_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a case and precision, of what `experiments/speed/deep_supervision.py` measured."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        about = {"case": f"`{record['case']}`", "products": record["precision"], "batch": str(record["batch"])}
        row = rows.setdefault((record["case"], record["precision"]), about)
        kind = record["kernel"]
        if kind == "plain":
            row["recipe, samples/s"] = f"{record['plain']:.1f}"
        row[f"ours {kind}, samples/s"] = f"{record['ours']:.1f}"
        low, high = min(record["ratios"]), max(record["ratios"])
        row[f"ratio {kind}, median (range)"] = f"**{record['ratio']:.2f}** ({low:.2f} to {high:.2f})"
    return list(rows.values())


def task_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a kind of puzzle, of what `measure_tasks.py` measured."""
    rows = []
    for record in records:
        of, many = record.get("path") or record["guesses"], float(f"{record['per_second']:.2g}")
        rows.append(
            {
                "puzzles": record["puzzles"],
                "fresh ones per second": f"{many:,.0f}",
                "moves of the shortest path, or guesses: mean (5% to 95%)": (
                    f"{of['mean']:.1f} ({of['p5']:.0f} to {of['p95']:.0f})"
                ),
            }
        )
    return rows


def shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figures(folder: Path) -> None:
    """Scores after every segment: what later segments repair."""
    records = [r for r in load(folder / "results.json") if "task" not in r["test"]]
    figure, axes = panels(1, len(records), (4.2 * len(records), 3.2), squeeze=False)
    for axis, record in zip(axes[0], records, strict=True):
        for name, values in record["test"]["curves"].items():
            axis.plot(range(1, len(values) + 1), values, label=name)
        axis.set(title=record["agent"], xlabel="segment", ylim=(0, 1.02))
        axis.legend()
    save(figure, folder / "segments.png")
