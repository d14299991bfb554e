"""The suite's tables: agents beside the references that `baselines.py` measured, and one agent on larger mazes."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.statistics import success_interval
from experiments.engine.tables import average, estimate, number, seconds, success, table

AGENT_COLUMNS = ("ours [95%]", "our SPL", "frames", "training")


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    levels = rows_of(load(folder / "baselines.json"), load(folder / "results.json"))
    return {"suite": table(levels), "size_shift": table([shift_row(r) for r in load(folder / "size_shift.json")])}


def shift_row(record: Record) -> dict[str, str]:
    """One agent on larger mazes than it was trained on."""
    return {
        "tested on": record["tested_on"],
        "segments": str(record["segments"]),
        "success [95%]": success(record),
        "SPL": average([record], "spl"),
        "levels": str(record["episodes"]),
    }


def rows_of(baselines: list[Record], results: list[Record]) -> list[dict[str, str]]:
    """One row a level; the columns of agents are there if any agent has a record."""
    rows = []
    for level in baselines:
        row = row_of(level)
        if results:
            row |= agent_columns([r for r in results if r["agent"] == level["level"]])
        rows.append(row)
    return rows


def row_of(level: Record) -> dict[str, str]:
    bfs, bound, best = level["bfs_replanner"], level["clairvoyant"], level["best_reference"]
    reference, share = level["references"][best], level["material_share"]
    return {
        "level": level["level"],
        "time limit": str(level["env_options"]["max_episode_steps"]),
        "random": f"{level['random']['success']:.3f}",
        "BFS re-planner": f"{bfs['success']:.3f}",
        "SPL": f"{bfs['spl']:.3f}",
        "best reference": best,
        "success": f"{reference['success']:.3f}",
        "its SPL": f"{reference['spl']:.3f}",
        "clairvoyant bound": f"{bound['success']:.3f}",
        "arrival": f"{bound['steps']:.1f}",
        "changes an episode": f"{level['changes_per_episode']:.1f}",
        "material": number(share, 2),
    }


def agent_columns(runs: list[Record]) -> dict[str, str]:
    """Our agents on one level: Wilson's interval of a single run, Student's over seeds of several."""
    if not runs:
        return dict.fromkeys(AGENT_COLUMNS, "")
    return {
        "ours [95%]": estimate(success_interval(runs)),
        "our SPL": average(runs, "spl"),
        "frames": f"{runs[0]['frames']:,}",
        "training": seconds(runs),
    }


def figures(folder: Path) -> None:
    """None: the table says it all."""
