"""The table of the page: the agents inside the wheel."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.tables import number, success, table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    return {"shipped_agents": table([row_of(record) for record in load(folder / "results.json")])}


def row_of(record: Record) -> dict[str, str]:
    return {
        "id": f"`{record['agent']}`",
        "greedy, 1,000 test levels": success(record, bold=True),
        "sampled": success(record["sampled"]) if "sampled" in record else "",
        "SPL": number(record["spl"]),
        "random": number(record["random"]),
        "BFS": number(record["bfs_replanner"]),
        "clairvoyant": number(record["clairvoyant"]),
        "parameters": f"{record['parameters']:,}",
        "frames": f"{record['frames']:,}",
        "size": f"{record['bytes'] / 1000:.0f} kB",
    }
