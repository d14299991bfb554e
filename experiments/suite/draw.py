"""The suite's table, for `experiments/study.py`: agents beside the references that `baselines.py` measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))

from baselines import NAME, suite_table
from study import table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    return {NAME: suite_table(), "size_shift": size_shift_table(folder)}


def size_shift_table(folder: Path) -> str:
    """One agent on larger mazes than it was trained on, from size_shift.json."""
    rows = [
        {
            "tested on": r["tested_on"],
            "segments": str(r["segments"]),
            "success [95%]": "{:.3f} [{:.3f}, {:.3f}]".format(r["success"], *r["success_ci95"]),
            "SPL": f"{r['spl']:.3f}",
            "levels": str(r["episodes"]),
        }
        for r in json.loads((folder / "size_shift.json").read_text())
    ]
    return table(rows)


def figures(folder: Path) -> None:
    """The table says it all."""
