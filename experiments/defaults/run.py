"""The search behind the default settings of `python -m hrm_agent.train`, judged on validation levels alone.

    python -m experiments.defaults.run [--jobs 2] [--only NAME ...] [--seeds 101 102] [--draw-only]

Runs what `study.yaml` lists and `search.json` lacks, one core a run, and adds a record for each. Frames are such that
all arms cost about the same processor time. No test level is played.
"""

from __future__ import annotations

import platform
from pathlib import Path

from experiments.engine import runner
from experiments.engine.records import Record
from experiments.engine.runner import Job
from experiments.engine.runs import agent_info, cost_of

HERE = Path(__file__).resolve().parent
KEPT = ("frames", "seconds", "clock", "kernel", "instruction_set", "core", "carry", "segments", "parameters")


class Study(runner.Study):
    """Arms judged by the validation levels of their training runs."""

    results = "search.json"
    key = ("arm", "seed")
    order = ()
    required = frozenset({"arm", "seed", "settings", "validation", "command", "commit", *KEPT})

    def measure(self, job: Job) -> list[Record]:
        place = self.trained(job)
        info = agent_info(place)
        record = {
            "arm": job.arm,
            "seed": job.seed,
            **{key: info.get(key) for key in KEPT},
            "validation": {k: info["validation"].get(k) for k in ("success", "return", "episodes", "spl")},
            "settings": self.arm(job.arm)["overrides"],
            **cost_of(place),
            "processor": platform.machine(),
        }
        return [record]

    def summary(self, record: Record) -> str:
        return f"success {record['validation']['success']:.4f} in {record['seconds']:.0f} s"


if __name__ == "__main__":
    runner.main(Study, HERE)
