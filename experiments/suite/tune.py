"""Which HRM or TRM agent and which baseline the suite is filled with, and their learning rates: on validation levels.

    python -m experiments.suite.tune [--jobs 2] [--only hrm-gate@size_13@3.0e-03]
    python -m experiments.suite.tune --draw-only

Every candidate of `study.yaml` trains on the first level with each learning rate, for the same processor time and with
a seed that the study does not have; its last agent plays validation levels, greedily and sampled. The `finalists`,
those that learnt something there, train on the other levels too and with further rates (`next_rates`: of those whose
best rate was the highest). Trials are added to `tuning.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import RUNS, Record
from experiments.engine.runner import Job
from experiments.suite.run import HERE, of_level, timed


class Search(runner.Study):
    """`CANDIDATE@LEVEL@RATE` in place of an arm."""

    results = "tuning.json"

    def arms(self) -> dict[str, Any]:
        tuning, arms = self.settings["tuning"], {}
        for level in tuning["levels"]:
            world, is_first = of_level(level), level == tuning["levels"][0]
            for name, own in self.settings["candidates"].items():
                is_finalist = name in tuning["finalists"]
                rates = tuning["learning_rates"] if is_first or is_finalist else []
                further = [*tuning["further_rates"], *tuning["next_rates"].get(name, [])]
                for rate in [*rates, *(further if is_finalist else [])]:
                    overrides = [*world, *own, f"algo.learning_rate={rate}", *timed(tuning["seconds"])]
                    arms[f"{name}@{level}@{rate:.1e}"] = {"overrides": overrides, "seeds": [tuning["seed"]]}
        return arms

    def place(self, job: Job) -> Path:
        return RUNS / f"{self.folder.name}_tuning" / f"{job.arm}_seed{job.seed}"

    def measure(self, job: Job) -> list[Record]:
        candidate, level, rate = job.arm.split("@")
        what = {"candidate": candidate, "learning_rate": float(rate), "level": level}
        return [self.trial_record(job, self.settings["tuning"]["episodes"], **what)]


if __name__ == "__main__":
    runner.main(Search, HERE)
