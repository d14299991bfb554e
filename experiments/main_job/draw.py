"""Tables and figures of the main job: greedy and sampled success, each with an interval over seeds and levels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

import study

from hrm_agent.evaluation.statistics import bootstrap_interval

ARMS = ("DynamicMaze-v0", "PaperMaze-v0")


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def scores(records: list[dict[str, Any]], arm: str, key: str) -> np.ndarray:
    """Success `[seeds, levels]`."""
    return np.array([[c == "1" for c in r[key]] for r in records if r["agent"] == arm], dtype=float)


def told(values: np.ndarray) -> str:
    found = bootstrap_interval(values, statistic="mean")
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def rows(folder: Path) -> list[dict[str, str]]:
    results, levels = load(folder / "results.json"), load(folder / "levels.json")
    made = []
    for arm in ARMS:
        runs = [r for r in results if r["agent"] == arm]
        if not runs:
            continue
        made.append(
            {
                "agent": arm,
                "greedy [95% over seeds and levels]": f"**{told(scores(levels, arm, 'success'))}**",
                "sampled [95%]": told(scores(levels, arm, "sampled")),
                "greedy, each seed": " ".join(f"{r['success']:.3f}" for r in runs),
                "frames": f"{runs[0]['frames']:,}",
                "training, median": f"{np.median([r['seconds'] for r in runs]):.0f} s",
                "whole command, longest": study.longest(runs),
                "parameters": f"{runs[0]['parameters']:,}",
            }
        )
        for name, key in study.BASELINES.items():
            known = runs[0][key]
            low, high = known["success_ci95"]
            interval = f"{known['success']:.4f} [{low:.4f}, {high:.4f}]"
            made.append({"agent": f"{name}, {arm}", "greedy [95% over seeds and levels]": interval})
    return made


def tables(folder: Path) -> dict[str, str]:
    return {"main_job": study.table(rows(folder))}


def figures(folder: Path) -> None:
    study.draw_curves(folder, list(ARMS))
