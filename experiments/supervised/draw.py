"""Tables of this page and of docs/supervised/tasks.md, and the figure, from the JSON files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of, success_interval
from experiments.engine.tables import average, estimate, longest, number, table


def tables(folder: Path) -> dict[str, str]:
    """Tables by the name of their marks."""
    records, arms = load(folder / "results.json"), settings_of(folder)["arms"]
    noisy, packed = load(folder / "ptrm.json"), load(folder / "shipped.json")
    speed, tasks = folder.parent / "speed" / "deep_supervision.json", folder / "tasks.json"
    return {
        "supervised": table(rows_of(records, arms)),
        "supervised_arc": table(arc_rows(records)),
        "supervised_ptrm": table(ptrm_rows(noisy)),
        "supervised_ptrm_levels": table(level_rows(noisy)),
        "supervised_shipped": table(shipped_rows(packed)),
        "deep_supervision": table(speed_rows(json.loads(speed.read_text())["records"])),
        "tasks": table(task_rows(json.loads(tasks.read_text())["records"])),
    }


def score_of(report: Record) -> str:
    return "valid" if "valid" in report else "exact"


def rows_of(records: list[Record], arms: dict[str, Any]) -> list[dict[str, str]]:
    """One row an arm that is scored puzzle by puzzle, over its seeds."""
    rows = []
    for arm in arms:
        runs = [record for record in records if record["agent"] == arm and "task" not in record["test"]]
        if not runs:
            continue
        tests = [run["test"] for run in runs]
        name = score_of(tests[0])
        rows.append(
            {
                "run": f"`{arm}`",
                "puzzles": arms[arm]["says"],
                f"right [95%], of {tests[0]['puzzles']:,}": estimate(
                    success_interval([scored(t, name) for t in tests])
                ),
                "each seed": " ".join(f"{test[name]:.3f}" for test in tests),
                "exact": average(tests, "exact"),
                "cells": average(tests, "cells", 4),
                "after one segment": number(mean_of(test["curves"][name][0] for test in tests)),
                "repaired later": average(tests, "repaired"),
                "halting by the published rule": halting(published_of(tests), name),
                "by the rule chosen on validation puzzles": halting([t["halted"] for t in tests if has_rule(t)], name),
                "parameters": f"{runs[0]['parameters']:,}",
                "training": f"{runs[0]['seconds']:.0f} s",
                "whole command, longest": longest(runs),
            }
        )
    return rows


def scored(scores: Record, name: str) -> Record:
    """A score as the success that statistics over seeds are of."""
    return {"success": scores[name], "success_ci95": scores[f"{name}_ci95"]}


def has_rule(test: Record) -> bool:
    """Older records know the published rule alone."""
    return "rule" in test["halted"]


def published_of(tests: list[Record]) -> list[Record]:
    """Scores with the published rule; where that was chosen they stand in its place."""
    return [test["halted"].get("published", test["halted"]) for test in tests]


def halting(found: list[Record], name: str) -> str:
    """Mean score and segments over seeds; blank without any."""
    return f"{average(found, name)} in {average(found, 'segments', 1)} segments" if found else ""


def ptrm_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row an arm and number of runs, over seeds: ways of choosing, and as many segments without noise."""
    rows = []
    for arm in dict.fromkeys(record["agent"] for record in records):
        runs = [record for record in records if record["agent"] == arm]
        for count in runs[0]["samples"]:
            ways = [run["samples"][count] for run in runs]
            name = score_of(ways[0]["surest"])
            deep = [run["depth"][str(int(count) * run["segments"])] for run in runs]
            row = {"run": f"`{arm}`", "noisy runs": count, "noise": " ".join(f"{run['noise']:g}" for run in runs)}
            for way, words in WAYS.items():
                row[words] = over_seeds([way_of[way] for way_of in ways], name)
            row["segments without noise"] = str(int(count) * runs[0]["segments"])
            row["right after them"] = over_seeds([found["last"] for found in deep], "right")
            row["right at the surest of them"] = over_seeds([found["surest"] for found in deep], "right")
            rows.append(row)
    return rows


WAYS = {
    "one_run": "one run, mean",
    "surest": "the surest run",
    "most_frequent": "the most frequent answer",
    "any_run": "the best run, if one knew",
}


def over_seeds(scores: list[Record], name: str) -> str:
    return estimate(success_interval([scored(found, name) for found in scores]), bold=False)


def level_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a level of noise that was tried on validation puzzles: the surest of the runs, each seed."""
    rows: dict[tuple[str, float], dict[str, str]] = {}
    for record in records:
        tried = record["validation"]
        for level in tried["levels"]:
            row = rows.setdefault(
                (record["agent"], level["noise"]), {"run": f"`{record['agent']}`", "noise": f"{level['noise']:g}"}
            )
            taken = "**" if level["noise"] == record["noise"] else ""
            words = f"seed {record['seed']}: the surest of {tried['samples']}, of {tried['puzzles']} validation puzzles"
            row[words] = f"{taken}{level['surest']:.3f}{taken} (one run {level['one_run']:.3f})"
    return list(rows.values())


def shipped_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a model in the package."""
    rows = []
    for record in records:
        test = record["test"]
        name = score_of(test)
        rows.append(
            {
                "id": f"`{record['agent']}`",
                f"right [95%], of {test['puzzles']:,}": estimate((test[name], *test[f"{name}_ci95"])),
                "halting": halting([test["halted"]], name),
                "parameters": f"{record['parameters']:,}",
                "training": f"{record['seconds']:.0f} s",
                "size": f"{record['bytes'] / 1000:.0f} kB",
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
    """Scores after every segment, and what noisy runs add, each where there are records."""
    records = [r for r in load(folder / "results.json") if "task" not in r["test"]]
    if records:
        draw_segments(folder, records)
    noisy = load(folder / "ptrm.json")
    if noisy:
        draw_ptrm(folder, noisy)


def draw_segments(folder: Path, records: list[Record]) -> None:
    """`segments.png`: what later segments repair; a line a score and seed."""
    arms = list(dict.fromkeys(record["agent"] for record in records))
    figure, axes = panels(1, len(arms), (4.2 * len(arms), 3.2), squeeze=False)
    for axis, arm in zip(axes[0], arms, strict=True):
        for place, record in enumerate(r for r in records if r["agent"] == arm):
            for number_, (name, values) in enumerate(record["test"]["curves"].items()):
                label = name if place == 0 else None
                axis.plot(
                    range(1, len(values) + 1), values, label=label, color=f"C{number_}", alpha=1 if label else 0.6
                )
        axis.set(title=arm, xlabel="segment", ylim=(0, 1.02))
        axis.legend()
    save(figure, folder / "segments.png")


def draw_ptrm(folder: Path, records: list[Record]) -> None:
    """`ptrm.png`: right answers against segments spent on a puzzle, by noisy runs and by one long run."""
    arms = list(dict.fromkeys(record["agent"] for record in records))
    figure, axes = panels(1, len(arms), (4.6 * len(arms), 3.6), squeeze=False)
    for axis, arm in zip(axes[0], arms, strict=True):
        runs = [record for record in records if record["agent"] == arm]
        counts = [int(count) for count in runs[0]["samples"]]
        spent = [count * runs[0]["segments"] for count in counts]
        lines = {
            words: [[run["samples"][str(count)][way] for run in runs] for count in counts]
            for way, words in WAYS.items()
            if way != "one_run"
        }
        depth = [[run["depth"][str(segments)] for run in runs] for segments in spent]
        lines["no noise"] = [[found["last"] for found in deep] for deep in depth]
        lines["no noise, the surest segment"] = [[found["surest"] for found in deep] for deep in depth]
        for place, (words, points) in enumerate(lines.items()):
            dashed = "--" if words.startswith("no noise") else "-"
            means = [float(mean_of(right(scores) for scores in point) or 0.0) for point in points]
            axis.plot(spent, means, dashed, marker="o", color=f"C{place}", label=words)
            for at, point in zip(spent, points, strict=True):
                axis.scatter([at] * len(point), [right(s) for s in point], color=f"C{place}", s=10, alpha=0.5)
        axis.set(title=arm, xlabel="segments of a puzzle", ylabel="right", xscale="log")
        axis.set_xticks(spent, [str(at) for at in spent])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    save(figure, folder / "ptrm.png")


def right(scores: Record) -> float:
    """Of a way of choosing the share of puzzles that are right."""
    return float(scores["right"] if "right" in scores else scores[score_of(scores)])
