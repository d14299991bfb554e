"""Train and record what `study.yaml` lists and `results.json` lacks, then redraw page and figure.

    python -m experiments.supervised.run [--only NAME ...] [--draw-only]

A record is the run's own evaluation on test puzzles (`eval.json`) beside what it cost.
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments.engine import runner
from experiments.engine.records import Record
from experiments.engine.runner import Job
from experiments.engine.runs import Curve, cost_of, metrics

HERE = Path(__file__).resolve().parent
REQUIRED = frozenset({
    "agent", "algo", "task", "core", "seed", "parameters", "steps", "seconds", "clock", "command", "commit", "test",
    "curve",
})  # fmt: skip


class Study(runner.Study):
    """Runs of `hrm_agent.supervise`."""

    module = "hrm_agent.supervise"
    finished = "eval.json"
    required = REQUIRED

    def overrides(self, job: Job) -> list[str]:
        return [*self.arm(job.arm)["overrides"].split(), f"seed={job.seed}"]

    def measure(self, job: Job) -> list[Record]:
        place = self.trained(job)
        info = json.loads((place / "models" / "last" / "model.json").read_text())
        report = json.loads((place / "eval.json").read_text())
        if own := report.pop("task", None):
            report["task"] = {key: value for key, value in own.items() if isinstance(value, int | float | str | list)}
            report["task"].pop("attempts", None)
        same = ("core", "seed", "parameters", "steps", "samples", "seconds", "clock")
        record = {
            "agent": job.arm,
            "algo": "supervised",
            **{key: info[key] for key in ("task", "task_options", *same)},
            "puzzles_drawn": info["puzzles"],
            **cost_of(place),
            "test": report,
            "curve": scores(metrics(place)),
        }
        return [record]

    def summary(self, record: Record) -> str:
        return f"exact {record['test']['exact']:.3f} after {record['seconds']:.0f} s"


def scores(lines: list[dict]) -> Curve:
    """Steps, and the score on validation puzzles."""
    known = [line for line in lines if "validation/exact" in line]
    return [[s["steps"], round(s.get("validation/valid", s["validation/exact"]), 4)] for s in known]


if __name__ == "__main__":
    runner.main(Study, HERE)
