"""The LSTM beside ours, from `lstm.json`: what `hrm_agent.baselines` wrote into its run's `eval.json`."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.records import Record, load
from experiments.engine.tables import success, table


def tables(folder: Path) -> dict[str, str]:
    return {"foreign_lstm": table([_row(r) for r in load(folder / "lstm.json")])}


def _row(record: Record) -> dict[str, str]:
    return {
        "agent": record["agent"],
        "environment": record["env"],
        "success, 1,000 episodes": success(record, bold=True),
        "random policy": f"{record['random_success']:.3f}",
        "frames": f"{record['frames']:,}",
        "training, processor time": f"{record['seconds']:.0f} s",
        "parameters": f"{record['parameters']:,}",
    }
