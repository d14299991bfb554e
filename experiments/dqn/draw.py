"""DQN beside PPO, for `experiments/study.py`: the same core and maze, from the records of both studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from study import draw_curves, mean_interval, table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    rows = []
    for name, study, arm in (("DQN", folder, "dqn"), ("PPO", folder.parent / "main_job", "DynamicMaze-v0")):
        runs = [r for r in json.loads((study / "results.json").read_text()) if r["agent"] == arm]
        mean, low, high = mean_interval([r["success"] for r in runs])
        rows.append(
            {
                "algorithm": name,
                "success [95% over seeds]": f"**{mean:.3f}** [{low:.3f}, {high:.3f}]",
                "each seed": " ".join(f"{r['success']:.3f}" for r in runs),
                "frames": f"{runs[0]['frames']:,}",
                "training of each seed": " ".join(f"{r['seconds']:.0f} s" for r in runs),
                "frames a second, median": f"{np.median([r['frames'] / r['seconds'] for r in runs]):,.0f}",
            }
        )
    return {"dqn_and_ppo": table(rows)}


def figures(folder: Path) -> None:
    draw_curves(folder, ["dqn"])
