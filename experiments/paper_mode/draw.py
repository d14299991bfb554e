"""Both tables of the page, from log.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments.engine.tables import table

SEGMENTS, FRAMES = 8, 256  # of an iteration: updates, and new frames
# Measured with the authors' own code on two cores of such a machine (batch 256, 8 segments): float32, bfloat16.
ORIGINAL = {"decisions a second": (10.8, 23.4), "seconds a training segment": (8.7, 4.4)}
SHOWN = (8, 40, 80, 120, 160, 200)  # updates
COLUMNS = ("updates", "frames", "loss", "q_mean", "target_q", "td_error", "gradient_norm")


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    rows = json.loads((folder / "log.json").read_text())["iterations"]
    collect = float(np.median([r["collect_seconds"] for r in rows]))
    update = float(np.median([r["update_seconds"] for r in rows]))
    # An update of a batch holds its 8 segments and the target, which is 8 segments forward of as many decisions as
    # are collected in an iteration.
    ours = {"decisions a second": FRAMES / collect, "seconds a training segment": (update - collect) / SEGMENTS}
    speeds = [
        {
            "": name,
            "ours, one core, float32": f"{ours[name]:.1f}",
            "authors' code, two cores, float32": f"{float32:.1f}",
            "authors' code, two cores, bfloat16": f"{bfloat16:.1f}",
        }
        for name, (float32, bfloat16) in ORIGINAL.items()
    ]
    shown = [r for r in rows if r["updates"] in SHOWN]
    updates = [{c: f"{r[c]:,}" if isinstance(r[c], int) else f"{r[c]:.4f}" for c in COLUMNS} for r in shown]
    return {"paper_mode": table(speeds), "updates": table(updates)}
