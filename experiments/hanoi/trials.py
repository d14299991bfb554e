"""Settings of the models of `puzzles.py`, tried with one seed and compared on validation pairs.

    python -m experiments.hanoi.trials [--jobs 2] [--only NAME ...]

`puzzles.yaml` has them under `trials`; the records go to `trials.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import RUNS
from experiments.engine.runner import Job
from experiments.hanoi.puzzles import HERE, Puzzles


class Trials(Puzzles):
    """Models that are trained as those of the page, and that none of its tables has."""

    results = "trials.json"

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.settings = {**self.settings, **self.settings["trials"]}

    def place(self, job: Job) -> Path:
        return RUNS / "hanoi_trials" / f"{job.arm}_seed{job.seed}"

    def finish(self) -> None:
        """There is nothing to do."""


def trial_rows(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One row a trial, that which solves most of the games of all numbers of disks first."""

    def solved(record: dict[str, Any]) -> float:
        return sum(own["solved_2x"] for own in record["by_disks"].values()) / len(record["by_disks"])

    rows = []
    for record in sorted(records, key=solved, reverse=True):
        games = {f"games solved, {n} disks": f"{own['solved_2x']:.2f}" for n, own in record["by_disks"].items()}
        moves = {f"optimal move, {n}": f"{own['exact']:.4f}" for n, own in list(record["by_disks"].items())[-1:]}
        rows.append({"trial": f"`{record['agent']}`", **games, **moves, "training": f"{record['seconds']:.0f} s"})
    return rows


if __name__ == "__main__":
    runner.main(Trials, HERE)
