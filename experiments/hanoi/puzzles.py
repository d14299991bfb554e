"""The next move of the Towers of Hanoi as a puzzle: train, test on every number of disks, and record.

    python -m experiments.hanoi.puzzles --list
    python -m experiments.hanoi.puzzles [--jobs 2] [--only trm 0] | --draw-only

`puzzles.yaml` says what is trained and tested. Each run has one thread; seconds are processor time of training. A
record is one trained model, with its scores by number of disks, in `puzzles.json`; what has one is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.pages import settings_of
from experiments.engine.records import RUNS, Record
from experiments.engine.runner import Job
from experiments.engine.runs import Curve, cost_of, metrics, thinned

HERE = Path(__file__).resolve().parent
REQUIRED = frozenset({
    "agent", "algo", "task", "task_options", "core", "seed", "parameters", "steps", "samples", "seconds", "clock",
    "by_disks", "curve", "command", "commit",
})  # fmt: skip


class Puzzles(runner.Study):
    """Runs of `hrm_agent.supervise`, each tested by `hrm_agent.solve`."""

    module = "hrm_agent.supervise"
    finished = "models/last/model.safetensors"
    results = "puzzles.json"
    required = REQUIRED

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.settings = settings_of(HERE, "puzzles.yaml")

    def place(self, job: Job) -> Path:
        return RUNS / "hanoi_puzzles" / f"{job.arm}_seed{job.seed}"

    def is_trained(self, place: Path) -> bool:
        """The last model is written before the validation that ends a run, and that adds its score."""
        info = place / "models" / "last" / "model.json"
        return info.exists() and bool(json.loads(info.read_text())["validation"])

    def overrides(self, job: Job) -> list[str]:
        own = self.arm(job.arm)["overrides"]
        return [*self.settings["base"], *own, f"seed={job.seed}", f"threads={self.settings['threads']}"]

    def measure(self, job: Job) -> list[Record]:
        place = self.trained(job)
        info = json.loads((place / "models" / "last" / "model.json").read_text())
        same = ("task", "task_options", "core", "seed", "parameters", "steps", "samples", "seconds", "clock")
        record = {
            "agent": job.arm,
            "algo": "supervised",
            **{name: info[name] for name in same},
            "max_segments": info["max_segments"],
            "by_disks": {str(disks): self.test(place, disks) for disks in self.settings["test"]["disks"]},
            "curve": thinned(learning_curve(metrics(place))),
            **cost_of(place, side_by_side=self.side_by_side),
        }
        return [record]

    def test(self, place: Path, disks: int) -> Record:
        """States and whole games of so many disks; of the trained number of tokens, or of as many as are needed."""
        from hrm_agent.launch.solve import solve

        given = self.settings["test"]
        trained = json.loads((place / "models" / "last" / "model.json").read_text())["task_options"]["disks"]
        options: dict[str, Any] = {"disks": max(disks, trained), "test_disks": disks, "solutions": given["games"]}
        report = solve(str(place), task_options=options, puzzles=given["states"], best=False)
        found: Record = report["task"]["by_disks"][str(disks)]
        return {**found, "segments": report["segments"], "exact_by_segment": report["curves"]["exact"]}

    def summary(self, record: Record) -> str:
        solved = {disks: own["solved_2x"] for disks, own in record["by_disks"].items()}
        return f"solved {' '.join(f'{disks}: {share:.2f}' for disks, share in solved.items())}"

    def finish(self) -> None:
        """There is nothing to do."""


def learning_curve(lines: list[dict[str, Any]]) -> Curve:
    """Steps, seconds of training, and the share of training puzzles whose first choice is an optimal move."""
    known = [line for line in lines if "train/exact" in line]
    return [[line["steps"], round(line["train/seconds"], 1), round(line["train/exact"], 4)] for line in known]


if __name__ == "__main__":
    runner.main(Puzzles, HERE)
