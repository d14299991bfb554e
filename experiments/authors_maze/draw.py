"""The table of the page, from the records."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.tables import LABELS, number, success, table


def tables(folder: Path) -> dict[str, str]:
    records = load(folder / "results.json")
    return {"authors_maze": table([row(record) for record in sorted(records, key=lambda r: (r["world"], rank(r)))])}


def rank(record: Record) -> tuple[bool, float]:
    return record["agent"] in LABELS, -record["success"]


def row(record: Record) -> dict[str, str]:
    return {
        "world": record["world"],
        "agent": LABELS.get(record["agent"], record["agent"]),
        "greedy [95%]": success(record),
        "sampled [95%]": success(record["sampled"]) if "sampled" in record else "",
        "steps of successes": number(record["steps_of_successes"], 1),
        "episodes": str(record["episodes"]),
        "frames of training": f"{record['trained']['frames']:,}" if "trained" in record else "",
        "parameters": f"{record['parameters']:,}" if "parameters" in record else "",
    }
