"""The table of repeated levels, from the JSON alone."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.tables import table


def tables(folder: Path) -> dict[str, str]:
    return {"levels": table([row_of(record) for record in load(folder / "repeats.json")])}


def row_of(record: Record) -> dict[str, str]:
    levels = record["levels"]
    return {
        "world": record["world"],
        "test levels seen before": str(record["repeated"]),
        "only begin alike": str(record["same_start"] - record["repeated"]),
        f"share met in {record['training_levels']:,} levels of training": f"{record['trained_on'] / levels:.3f}",
        "share whose beginning was met": f"{record['trained_on_start'] / levels:.3f}",
        "different beginnings in training": f"{record['different_training_starts']:,}",
    }
