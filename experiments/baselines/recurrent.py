"""Recurrent PPO of sb3-contrib, trained until its authors would accept it.

    python -m experiments.baselines.recurrent --list
    python -m experiments.baselines.recurrent [--only mlp_1e3] | --draw-only

`recurrent.yaml` says what is attempted. One that does not learn may be stopped by Ctrl-C: give it `stopped: COMMIT`
there (the commit that ran), and it is recorded as far as it came. The others are measured on 1,000 test levels. Success
is greedy and sampled. Each has one thread; seconds are processor time of training. Records are added to
`recurrent.json`; what has one is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.machine import processor
from experiments.engine.pages import settings_of
from experiments.engine.records import RUNS, Record
from experiments.engine.runner import Job
from experiments.engine.runs import cost_of, metrics, sampled_curve, thinned, validation_curve

HERE = Path(__file__).resolve().parent
BASELINE = "sb3_recurrent_ppo"


class Attempts(runner.Study):
    """Trials and runs of one baseline."""

    module = "hrm_agent.baselines"
    results = "recurrent.json"
    finished = "study.json"  # which is written last
    key = ("arm", "seed")
    order = ("kind", "arm", "seed")

    def __init__(self, folder: Path = HERE, side_by_side: int = 1) -> None:
        super().__init__(folder, side_by_side)
        self.settings = settings_of(HERE, "recurrent.yaml")

    def arms(self) -> dict[str, Any]:
        return self.settings["attempts"]

    def jobs(self, seeds: Any = None) -> list[Job]:
        """In the order of the attempts, all seeds of one before the next."""
        return [Job(arm, seed) for arm, attempt in self.arms().items() for seed in seeds or attempt["seeds"]]

    def place(self, job: Job) -> Path:
        return RUNS / "recurrent" / f"{job.arm}_seed{job.seed}"

    def settings_of(self, arm: str) -> dict[str, Any]:
        """Changed settings of the baseline."""
        return {**self.settings["base"], **self.arms()[arm]["settings"]}

    def overrides(self, job: Job) -> list[str]:
        limits = [
            f"total_steps={self.arms()[job.arm]['frames']}",
            "clock=cpu",
            f"eval_every={self.settings['eval_every']}",
        ]
        given = [f"settings.{name}={value}" for name, value in self.settings_of(job.arm).items()]
        return [f"baseline={BASELINE}", f"env={self.settings['env']}", *given, *limits, f"seed={job.seed}"]

    def is_trained(self, place: Path) -> bool:
        return super().is_trained(place) or self.stopped(place.name.rpartition("_seed")[0]) is not None

    def stopped(self, arm: str) -> str | None:
        """The commit of an attempt that was stopped; None of one that was not."""
        return self.arms()[arm].get("stopped")

    def measure(self, job: Job) -> list[Record]:
        place, commit = self.trained(job), self.stopped(job.arm)
        lines = metrics(place)
        record = {
            "agent": BASELINE,
            "arm": job.arm,
            "seed": job.seed,
            "env": self.settings["env"],
            "fog": False,
            "algo": "ppo",
            "core": "lstm",
            "carry": "lstm",
            "segments": None,
            "settings": self.settings_of(job.arm),
            "planned_frames": self.arms()[job.arm]["frames"],
            "stopped": commit is not None,
            **(reached(lines) if commit else tested(place)),
            "clock": "cpu",
            "curve": thinned(sampled_curve(lines)),
            "validation_curve": thinned(validation_curve(lines)),
            "processor": processor()["model"],
            **cost_of(place, **({"commit": commit} if commit else {})),
        }
        return [{**record, "steps_per_second": round(record["frames"] / record["seconds"], 1)}]

    def summary(self, record: Record) -> str:
        greedy, drawn = record["validation_success"], record["sampled_success"]
        return f"{greedy} greedy on validation levels, {drawn} sampled after {record['frames']:,} frames"


def reached(lines: list[dict[str, Any]]) -> Record:
    """How far an attempt came that was stopped: frames, seconds, the last validation; of test levels it has none."""
    curve, validation = sampled_curve(lines), validation_curve(lines)
    nothing = dict.fromkeys(("success", "success_ci95", "spl", "sampled_success", "split", "levels", "parameters"))
    frames, seconds, _ = curve[-1]
    return {
        **nothing,
        "frames": frames,
        "seconds": seconds,
        "validation_success": validation[-1][2] if validation else None,
    }


def tested(place: Path) -> Record:
    """Frames and seconds of an attempt; success on validation and test levels, greedy and sampled."""
    report = json.loads((place / "eval.json").read_text())
    levels = {"success": report["levels"]["success"], "sampled": report["sampled"]["levels"]["success"]}
    same = ("success", "success_ci95", "spl", "split", "macs_per_decision", "frames", "seconds", "parameters")
    return {
        **{name: report[name] for name in same},
        "validation_success": report["validation"]["success"],
        "validation_sampled_success": report["validation_sampled"]["success"],
        "sampled_success": report["sampled"]["success"],
        "sampled_ci95": report["sampled"]["success_ci95"],
        "levels": levels,
    }


if __name__ == "__main__":
    runner.main(Attempts, HERE)
