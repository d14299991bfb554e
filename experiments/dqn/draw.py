"""DQN beside PPO in the same maze, from the records of both studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.engine.records import load
from experiments.engine.statistics import success_interval
from experiments.engine.tables import each_seed, estimate, table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    rows = []
    ppo = folder.parent / "main_job" / "first_edition.json"  # played on the same split of levels
    for name, file, arm in (("DQN", folder / "results.json", "dqn"), ("PPO", ppo, "DynamicMaze-v0")):
        runs = [r for r in load(file) if r["agent"] == arm]
        rows.append(
            {
                "algorithm": name,
                "success [95% over seeds and levels]": estimate(success_interval(runs)),
                "each seed": each_seed(runs),
                "frames": f"{runs[0]['frames']:,}",
                "training of each seed": " ".join(f"{r['seconds']:.0f} s" for r in runs),
                "frames a second, median": f"{np.median([r['frames'] / r['seconds'] for r in runs]):,.0f}",
            }
        )
    return {"dqn_and_ppo": table(rows)}
