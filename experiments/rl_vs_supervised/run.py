"""Told the answer, shown the action, or only rewarded: train, measure and record, then redraw page and figure.

    python -m experiments.rl_vs_supervised.run --jobs 2
    python -m experiments.rl_vs_supervised.run --list | --only ppo fog 1 | --draw-only

`study.yaml` says what: supervised runs that learn to say the path, agents that are readings of these (solve the view,
take one step, solve again), and policies trained by imitation or by rewards, some of which start with the weights of a
supervised run. All train for the same processor time in one thread, learning rates ending with it, and are measured
greedily as they are at the end, on the same 1,000 test levels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.engine import runner
from experiments.engine.records import ROOT, Record, load, locked, put
from experiments.engine.runner import SKILL, Job, outcomes_of, sampled_of
from experiments.engine.runs import (
    agent_info,
    cost_of,
    first_above,
    metrics,
    sampled_curve,
    thinned,
    train,
    validation_curve,
)
from experiments.engine.tables import REFERENCES

HERE = Path(__file__).resolve().parent
MODEL = Path("models") / "last"  # of a supervised run
FINISHED = "eval.json"  # of a supervised run, whose scores on test views are written last
LEVELS = 1_000
SAMPLED = ("ppo", "dqn")  # algorithms whose own actions are what training episodes show


class Study(runner.Study):
    """Readings of supervised runs, then policies, each in every world."""

    key = ("agent", "seed", "world")
    order = ("world", "agent", "seed")
    required = runner.Study.required | {"world", "labels", "labels_used", "segments_per_decision"}

    def arms(self) -> dict[str, Any]:
        """Every agent that is measured, those first that others start with."""
        return {**self.settings["readings"], **self.settings["policies"]}

    def overrides(self, job: Job) -> list[str]:
        base = self.arm(job.arm).get("from")
        start = []
        if base:
            start = [f"init_from={self.place(job._replace(arm=base)).relative_to(ROOT) / MODEL}"]
        return [*super().overrides(job), *start, *self.settings["always"]]

    def supervised_overrides(self, job: Job) -> list[str]:
        """Of `hrm_agent.supervise`."""
        options = [f"++task.env_options.{name}={v}" for name, v in self.settings["worlds"][job.world].items()]
        task = [*self.settings["supervised"][job.arm], f"task.env={self.settings['env']}", *options]
        return [*task, f"seed={job.seed}", "threads=1", *self.settings["always"]]

    def trained_supervised(self, job: Job) -> Path:
        """The folder of a finished supervised run: the first job that needs it trains it, others wait."""
        place = self.place(job)
        with locked(place):
            if not (place / FINISHED).exists():
                train(place, self.supervised_overrides(job), self.side_by_side, "hrm_agent.supervise")
        return place

    def measure(self, job: Job) -> list[Record]:
        own, report = self.read(job) if job.arm in self.settings["readings"] else self.act(job)
        about = {"agent": job.arm, "arm": job.arm, "world": job.world, "seed": job.seed}
        world = {"env": report["env"], "env_options": report["env_options"]}
        record = {**about, **world, **own, **{name: report[name] for name in SKILL}, "sampled": sampled_of(report)}
        put(self.folder / "levels.json", [{**about, **outcomes_of(report)}], self.key)
        return [record, *self.reference_records(report, world=job.world)]

    def read(self, job: Job) -> tuple[Record, dict[str, Any]]:
        """Record and report of an agent that is a reading of a supervised run."""
        from hrm_agent.supervised import load_model
        from hrm_agent.supervised.path_policy import evaluate_path_policy

        how, options = self.arms()[job.arm], self.settings["worlds"][job.world]
        place = self.trained_supervised(job._replace(arm=how["of"]))
        known = any((r["agent"], r["world"]) == (REFERENCES[0], job.world) for r in load(self.folder / self.results))
        report = evaluate_path_policy(
            load_model(place), self.settings["env"], options, LEVELS, how["segments"], how["carry"],
            how.get("halting"), baselines=not known,
        )  # fmt: skip
        record = {
            "algo": "supervised",
            **{name: report[name] for name in ("core", "carry", "segments", "stop", "time_gradient")},
            "frames": 0,
            "seconds_before": 0.0,
            "frames_to_90": None,
            "seconds_to_90": None,
            "curve": [],
            **supervised_facts(place),
            "clock": "cpu",
            **cost_of(place),
        }
        return record, report

    def act(self, job: Job) -> tuple[Record, dict[str, Any]]:
        """Record and report of a policy."""
        base, before = self.arm(job.arm).get("from"), 0.0
        if base:
            before = supervised_facts(self.trained_supervised(job._replace(arm=base)))["seconds"]
        place = self.trained(job)
        info, lines, labels = agent_info(place), metrics(place), labelled_steps(place)
        report = self.evaluate_beside_references(place, info)
        reached = first_above(sampled_curve(lines)) if info["algo"] in SAMPLED else [None, None]
        record = {
            **{n: info[n] for n in ("algo", "core", "carry", "segments", "time_gradient", "frames", "seconds")},
            "seconds_before": before,
            "labels": labels,
            "labels_used": labels,
            "frames_to_90": reached[0],
            "seconds_to_90": reached[1],
            "curve": thinned(validation_curve(lines)),
            "clock": "cpu",
            **cost_of(place),
        }
        return record, report


def supervised_facts(place: Path) -> dict[str, Any]:
    """What a supervised run took: `seconds` of training, labelled views there were (`labels`) and those it began with
    (`labels_used`, with repetitions), `samples` (one for every segment of each); and its scores on test views."""
    info = json.loads((place / MODEL / "model.json").read_text())
    tested = json.loads((place / FINISHED).read_text())
    return {
        "seconds": info["seconds"],
        "labels": info["task_options"]["pool"],
        "labels_used": info["puzzles"],
        "samples": info["samples"],
        "test_views": {name: tested[name] for name in ("exact", "valid", "action", "cells")},
    }


def labelled_steps(place: Path) -> int:
    """Steps that the oracle labelled for an imitating policy, over the whole run; 0 for the others."""
    from hrm_agent.tensors.files import load_tensors
    from hrm_agent.training.checkpoints import CheckpointFolder

    path = CheckpointFolder(place / "checkpoints").latest()
    return 0 if path is None else load_tensors(path)[1].get("learner", {}).get("labels", 0)


if __name__ == "__main__":
    runner.main(Study, HERE)
