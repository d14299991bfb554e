"""Does carrying pay, or freshness of the states, or depth: train, measure and record what has no record yet.

    python -m experiments.carry_or_depth.tune --jobs 2       # first: a learning rate for every arm
    python -m experiments.carry_or_depth.run --jobs 2
    python -m experiments.carry_or_depth.run --list | --only gate-K1 0 | --no-training | --draw-only

`study.yaml` has the arms, the settings under which trained agents are evaluated, and the comparisons, all chosen
before any run; `tuned.json` has the learning rates. The last agent of a run is measured on 1,000 test levels, greedily
and sampled, with the outcome on every level.
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments.carry_or_depth.tune import best_two, rates_to_try
from experiments.engine import runner
from experiments.engine.records import load, put
from experiments.engine.runner import MEASURED, Job, refuse
from experiments.engine.tables import REFERENCES

HERE = Path(__file__).resolve().parent


class Study(runner.Study):
    """Every arm with the learning rate that was best for it on validation levels."""

    def overrides(self, job: Job) -> list[str]:
        return [*super().overrides(job), f"algo.learning_rate={self.learning_rate(job.arm)}"]

    def learning_rate(self, arm: str) -> float:
        path, tuning = self.folder / "tuned.json", self.settings["tuning"]
        tuned = json.loads(path.read_text()) if path.exists() else {}
        seeds = {trial["learning_rate"]: trial["seeds"] for trial in tuned.get(arm, {}).get("tried", ())}
        wanted = rates_to_try(tuned.get(arm), tuning["learning_rates"], tuning["bounds"])
        again = best_two(tuned[arm]) if arm in tuned else []
        if not set(wanted) <= set(seeds) or any(seeds[rate] < len(tuning["seeds"]) for rate in again):
            refuse(f"{path.name}: no learning rate for {arm}; run tune.py first, or other arms with --only")
        return float(tuned[arm]["learning_rate"])

    def finish(self) -> None:
        """Evaluate trained agents under other settings, greedily and sampled; every level's outcome is kept too."""
        path, key = self.folder / "lesions.json", (*self.key, "lesion")
        for name, lesion in self.settings.get("lesions", {}).items():
            options = lesion["options"]
            for job in self.jobs_of(lesion):
                records = [r for r in load(path) if r["lesion"] == name]
                place, own = self.place(job), {"agent": job.arm, "seed": job.seed, "lesion": name}
                if any(own.items() <= r.items() for r in records) or not self.is_trained(place):
                    continue
                # Another world has another bound, which is played once.
                elsewhere = "env_options" in options and not any(REFERENCES[1] in r for r in records)
                report = self.evaluate(place, baselines=elsewhere, **options)
                record = {**own, "options": options, **{field: report[field] for field in MEASURED if field in report}}
                record["sampled_success"] = report["sampled"]["success"]
                if elsewhere:
                    record |= {field: report[field]["success"] for field in REFERENCES}
                outcomes = {"success": report["levels"]["success"], "sampled": report["sampled"]["levels"]["success"]}
                put(self.folder / "lesion_levels.json", [{**own, **outcomes}], key)
                put(path, [record], key)
                print(f"{job}, {name}: {record['success']:.3f}, sampled {record['sampled_success']:.3f}", flush=True)


if __name__ == "__main__":
    runner.main(Study, HERE)
