"""Tables and the figure of this page, from kill.json, faults.json and soak.json; what is not there has no rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine.tables import EMPTY, table
from experiments.robustness import soak


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    return {
        "kill": table(kill_rows(read(folder / "kill.json"))),
        "faults": table(fault_rows(read(folder / "faults.json"))),
        "soak": soak_table(folder),
    }


def kill_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    rows = [
        {
            "killed in": phase,
            "times": str(found["killed"]),
            "hit": str(found["hit"]),
            "same bytes in the end": str(found["same"]),
            "unfinished files left": str(found["left_over"]),
        }
        for phase, found in result.get("summary", {}).items()
    ]
    if len(rows) > 1:
        rows.append({name: str(sum(int(row[name]) for row in rows)) for name in rows[0] if name != "killed in"})
        rows[-1]["killed in"] = "all"
    return rows


def fault_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "": record["case"],
            "exit code": str(record["exit_code"]),
            "lines beside the usual": str(record["lines"]),
            "then": record.get("then", ""),
            "same bytes in the end": {True: "yes", False: "NO", None: ""}[record.get("same")],
        }
        for record in result.get("cases", [])
    ]


def soak_table(folder: Path) -> str:
    result = read(folder / "soak.json")
    if not result:
        return EMPTY
    rows = [
        {
            "": soak.SERIES[name][0],
            "median": f"{found['level']:g}",
            "least, most": f"{found['least']:g}, {found['most']:g}",
            "rise an hour [95%]": f"{found['rise_per_hour']:+g} [{found['ci95'][0]:g}, {found['ci95'][1]:g}]",
            "allowed": f"{found['allowed']:g}",
            "verdict": found["verdict"],
        }
        for name, found in result["series"].items()
    ]
    said = (
        f"{result['minutes']:g} minutes, {result['frames']:,} frames, {result['validations']} validations, "
        f"{result['videos']} videos; series after {result['warm_up_minutes']:g} minutes:"
    )
    return f"{said}\n\n{table(rows)}\n\n![Memory, descriptors and threads over the time of training](soak.png)"


def figures(folder: Path) -> None:
    if (folder / "soak.json").exists():
        soak.draw(folder)
