"""The table of the search, the best arm first."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of
from experiments.engine.tables import table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    groups: dict[str, list[Record]] = {}
    for record in load(folder / "search.json"):
        groups.setdefault(record["arm"], []).append(record)
    rows = [row_of(arm, runs) for arm, runs in sorted(groups.items(), key=lambda group: -success(group[1]))]
    return {"search": table(rows)}


def success(runs: list[Record]) -> float:
    return mean_of(run["validation"]["success"] for run in runs) or 0.0


def row_of(arm: str, runs: list[Record]) -> dict[str, str]:
    by_seed = sorted(runs, key=lambda run: run["seed"])
    return {
        "arm": arm,
        "success on validation levels, each seed": " ".join(f"{r['validation']['success']:.4f}" for r in by_seed),
        "mean": f"{success(runs):.4f}",
        "frames": f"{runs[0]['frames']:,}",
        "seconds of a core": f"{mean_of(run['seconds'] for run in runs):.0f}",
        "settings": f"`{' '.join(runs[0]['settings'])}`",
    }
