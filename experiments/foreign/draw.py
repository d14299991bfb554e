"""The LSTM beside ours, from `lstm.json`: what `hrm_agent.baselines` wrote into its run's `eval.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import study


def tables(folder: Path) -> dict[str, str]:
    path = folder / "lstm.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return {"foreign_lstm": study.table([_row(r) for r in records])} if records else {}


def _row(record: dict[str, Any]) -> dict[str, str]:
    low, high = record["success_ci95"]
    return {
        "agent": record["agent"],
        "environment": record["env"],
        "success, 1,000 episodes": f"**{record['success']:.3f}** [{low:.3f}, {high:.3f}]",
        "random policy": f"{record['random_success']:.3f}",
        "frames": f"{record['frames']:,}",
        "training, processor time": f"{record['seconds']:.0f} s",
        "parameters": f"{record['parameters']:,}",
    }


def figures(folder: Path) -> None:
    config = yaml.safe_load((folder / "study.yaml").read_text())
    study.draw_curves(folder, list(config["arms"]))
