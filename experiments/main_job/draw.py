"""The main job's table: greedy and sampled success, each with an interval over seeds and levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import Estimate, crossed_interval
from experiments.engine.tables import LABELS, each_seed, estimate, longest, seconds, success, table

GREEDY = "greedy [95% over seeds and levels]"


def over_seeds_and_levels(records: list[Record], arm: str, key: str) -> Estimate:
    scores = np.array([[c == "1" for c in r[key]] for r in records if r["agent"] == arm], dtype=float)
    return crossed_interval(scores)


def rows(folder: Path) -> list[dict[str, str]]:
    results, levels = load(folder / "results.json"), load(folder / "levels.json")
    made = []
    for arm in settings_of(folder)["arms"]:
        runs = [r for r in results if r["agent"] == arm]
        if not runs:
            continue
        made.append(
            {
                "agent": arm,
                GREEDY: f"**{estimate(over_seeds_and_levels(levels, arm, 'success'), False, 4)}**",
                "sampled [95%]": estimate(over_seeds_and_levels(levels, arm, "sampled"), False, 4),
                "greedy, each seed": each_seed(runs),
                "frames": f"{runs[0]['frames']:,}",
                "training, median": seconds(runs),
                "whole command, longest": longest(runs),
                "parameters": f"{runs[0]['parameters']:,}",
            }
        )
        for key, name in LABELS.items():
            made.append({"agent": f"{name}, {arm}", GREEDY: success(runs[0][key], digits=4)})
    return made


def tables(folder: Path) -> dict[str, str]:
    return {"main_job": table(rows(folder))}
