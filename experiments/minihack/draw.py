"""The table of the page: one row for each agent."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.tables import estimate, table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    return {"minihack": table(rows_of(load(folder / "results.json")))}


def rows_of(records: list[Record]) -> list[dict[str, str]]:
    return [
        {
            "agent": r["agent"],
            "trained on": r["env"],
            "levels": str(r["episodes"]),
            "success there": estimate((r["success"], *r["success_ci95"]), bold=False),
            "success in MiniHack": estimate((r["minihack_success"], *r["minihack_success_ci95"]), bold=False),
            "mean steps there": f"{r['steps']:.2f}",
            "mean steps in MiniHack": f"{r['minihack_steps']:.2f}",
            "levels with the same actions throughout": f"{r['same_actions']:.1%}",
        }
        for r in records
    ]
