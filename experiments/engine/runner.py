"""Studies: train, measure and record what has no record yet, then redraw the pages.

    python -m experiments.engine experiments/main_job [--jobs 2] [--only WORD ...] [--list] [--draw-only]

A study is a folder with `study.yaml`:

    seeds: [0, 1, 2]              # of every arm, unless it has its own
    base: [+experiment=braid]     # overrides of `hrm_agent.train` for all arms
    arms:
      ARM: [carry=full]           # overrides, or {overrides: [...], seeds: [...]}
    worlds: {WORLD: {...}}        # options of the environment; every arm trains in each of these
    which: best                   # best | last: the agent of a run that is evaluated
    threads: 1                    # of a run; without, side-by-side runs share the cores
    levels: true                  # keep the outcome on every level, greedy and sampled, in levels.json
    test: {seed: 0}               # options of `hrm_agent.evaluate`: other test levels than the first 1,000
    lesions:                      # trained agents evaluated under other settings
      NAME: {arms: [ARM, ...], options: {carry: reset}}   # options of `hrm_agent.evaluate`; seeds: some only
    own_table: false              # the folder's `draw.py` makes all tables of the page (`experiments.engine.pages`)

Every finished run adds a flat record to `results.json` and its learning curve to `curves.json`, every lesion one to
`lesions.json`; each has greedy and sampled success and says which split of levels it is of. What has a record is
skipped, and an interrupted run resumes from its checkpoint. What a study does otherwise is in the class `Study` of its
`run.py`, a subclass of the one here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from experiments.engine.machine import commit_of_code
from experiments.engine.pages import draw, module_of, settings_of
from experiments.engine.records import RUNS, Record, load, put
from experiments.engine.runs import agent_info, cost_of, metrics, sampled_curve, train
from experiments.engine.tables import REFERENCES

MEASURED = (
    "success", "success_ci95", "return", "spl", "excess_steps", "changes", "regret_by_change", "decisions_by_change",
    "segments_per_decision", "segments_by_change", "macs_per_decision", "ms_per_decision",
    "split",
)  # fmt: skip
REQUIRED = frozenset({
    "agent", "env", "algo", "core", "carry", "segments", "seed", "frames", "seconds", "success", "success_ci95",
    "spl", "commit",
})  # fmt: skip
COPIED = ("env", "core", "carry", "time_gradient", "segments", "parameters", *MEASURED)
SKILL = (
    "success", "success_ci95", "episodes", "spl", "excess_steps", "changes", "segments_per_decision",
    "macs_per_decision", "ms_per_decision", "ms_per_decision_batched", "parameters",
    "split",
)  # fmt: skip
"""Of an agent beside others, in studies whose references have records of their own."""


class Job(NamedTuple):
    """An agent to train and to measure."""

    arm: str
    seed: int
    world: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.arm, self.world, str(self.seed))))


class Study:
    """A folder with `study.yaml`: what it trains, how that is measured, and where the records go.

    Args:
        folder: of the study.
        side_by_side: how many runs share the machine.

    Attributes:
        module: the command that trains, unless `module_of` says otherwise.
        results: name of the file of records.
        key: fields of a record that say which job it is of: arm, seed and, where there are any, world.
        order: fields by which the file is sorted.
        required: fields that every record has.
        only: words of `--only`; `finish` keeps to them too.
        finished: a file of a run that is there when it has ended.
        untrained: policies that need no training and have records of their own (`reference_records`).
    """

    module = "hrm_agent.train"
    finished = "agents/last/agent.safetensors"
    results = "results.json"
    key: tuple[str, ...] = ("agent", "seed")
    order: tuple[str, ...] = ("agent", "seed")
    required = REQUIRED
    only: Sequence[str] = ()
    untrained: Sequence[str] = REFERENCES

    def __init__(self, folder: Path, side_by_side: int = 1) -> None:
        self.folder, self.side_by_side = folder, side_by_side
        self.settings = settings_of(folder)
        self.references: dict[str, Record] = {}  # played once for every environment

    # What there is to do

    def arms(self) -> dict[str, Any]:
        """Overrides by name, or `{overrides: ..., seeds: ...}`."""
        return self.settings["arms"]

    def arm(self, name: str) -> dict[str, Any]:
        """An arm as a dictionary, with its seeds."""
        given = self.arms()[name]
        return {"seeds": self.settings["seeds"], **(given if isinstance(given, dict) else {"overrides": given})}

    def jobs(self, seeds: Sequence[int] | None = None) -> list[Job]:
        """One seed of every arm before the next: a study that is cut short has all arms."""
        worlds = self.settings.get("worlds", [""])
        jobs = [Job(arm, s, world) for arm in self.arms() for world in worlds for s in seeds or self.arm(arm)["seeds"]]
        return sorted(jobs, key=lambda job: job.seed)

    def missing(self, seeds: Sequence[int] | None = None) -> list[Job]:
        """Jobs without a record."""
        known = {tuple(record.get(field) for field in self.key) for record in load(self.folder / self.results)}
        return [job for job in self.jobs(seeds) if job[: len(self.key)] not in known]

    def place(self, job: Job) -> Path:
        """Folder of the training run; not in the repository."""
        return RUNS / self.folder.name / f"{job.world}{'_' * bool(job.world)}{job.arm}_seed{job.seed}"

    def is_trained(self, place: Path) -> bool:
        return (place / self.finished).exists()

    def module_of(self, job: Job) -> str:
        """The command that trains a job."""
        return self.module

    def overrides(self, job: Job) -> list[str]:
        """Of the command that trains."""
        from hrm_agent.parallel.threads import available_cores

        threads = self.settings.get("threads") or max(1, available_cores() // self.side_by_side)
        world = self.settings.get("worlds", {}).get(job.world, {})
        return [
            *self.settings.get("base", []),
            *self.arm(job.arm)["overrides"],
            *(f"env.options.{name}={value}" for name, value in world.items()),
            f"seed={job.seed}",
            "test_episodes=0",
            f"threads={threads}",
        ]

    # A job

    def run(self, job: Job) -> bool:
        """Train what is not yet trained, measure and record; False where a command failed."""
        try:
            records = self.measure(job)
        except subprocess.CalledProcessError as error:
            print(f"{job}: failed with {error.returncode}, see {self.place(job)}.log", flush=True)
            return False
        put(self.folder / self.results, records, self.key, self.order)
        print(f"{job}: {self.summary(records[0])}", flush=True)
        return True

    def summary(self, record: Record) -> str:
        return f"success {record['success']:.3f} after {record['seconds']:.0f} s"

    def trained(self, job: Job) -> Path:
        """The folder of the finished training run."""
        place = self.place(job)
        if not self.is_trained(place):
            train(place, self.overrides(job), self.side_by_side, self.module_of(job))
        return place

    def measure(self, job: Job) -> list[Record]:
        """The job's record, and further ones that its evaluation gave."""
        place = self.trained(job)
        info = agent_info(place)
        report = self.evaluate_beside_references(place, info)
        own = {"agent": job.arm, "seed": job.seed}
        curve = [[frames, success] for frames, _, success in sampled_curve(metrics(place))]
        put(self.folder / "curves.json", [{**own, "train_success": curve}], self.key)
        if self.settings.get("levels", True):
            put(self.folder / "levels.json", [{**own, **self.outcomes(report)}], self.key)
        record = {
            "agent": job.arm,
            "algo": info["algo"],
            "seed": job.seed,
            **{name: report[name] for name in (*COPIED, *REFERENCES)},
            # the cost of the whole run; the agent evaluated may be an earlier one
            **{name: info[name] for name in ("frames", "seconds")},
            "evaluated_at_frames": report["frames"],
            "sampled": sampled_of(report),
            **{name: info[name] for name in ("kernel", "instruction_set") if name in info},
            **cost_of(place, side_by_side=self.side_by_side),
        }
        return [record]

    def outcomes(self, report: dict[str, Any]) -> dict[str, Any]:
        """What `levels.json` keeps of an evaluation."""
        return outcomes_of(report)

    def evaluate(self, place: Path, **options: Any) -> dict[str, Any]:
        """The report of `hrm_agent.evaluate`, on its 1,000 test levels or those that the study names."""
        from hrm_agent.agents.agent import AgentOverrides
        from hrm_agent.evaluate import evaluate

        given = {**self.settings.get("test", {}), **options}
        overrides = AgentOverrides.taken_from(given)
        split = given.setdefault("split", "test")
        report = evaluate(str(place), overrides=overrides, best=self.settings.get("which", "best") == "best", **given)
        return {**report, "split": split}  # where an environment has none, this says which seeds are taken

    def trial_record(self, job: Job, episodes: int, **what: Any) -> Record:
        """What the last agent of a job's run reaches on validation levels; `what` was tried."""
        place = self.trained(job)
        report = self.evaluate(place, split="validation", episodes=episodes, baselines=False)
        info = agent_info(place)
        return {
            "agent": job.arm,
            **what,
            "seed": job.seed,
            "split": report["split"],
            "episodes": report["seeds"]["count"],
            "success": report["success"],
            "success_ci95": report["success_ci95"],
            "sampled_success": report["sampled"]["success"],
            **{name: info[name] for name in ("frames", "seconds", "parameters")},
            **cost_of(place, side_by_side=self.side_by_side),
        }

    def evaluate_beside_references(self, place: Path, info: dict[str, Any]) -> dict[str, Any]:
        """`evaluate`; the references of an environment are played once."""
        world = json.dumps([info["env"], info["env_options"]])
        report = self.evaluate(place, baselines=world not in self.references)
        own = {name: report[name] for name in REFERENCES}
        return {**report, **self.references.setdefault(world, own)}

    def reference_records(self, report: dict[str, Any], suffix: str = "", **about: Any) -> list[Record]:
        """Records of the policies that need no training, on the levels of a report.

        Args:
            report: of `hrm_agent.evaluate`; where it has none of them, there are no records.
            suffix: of the arm's name.
            about: fields that say which levels these are; what is known there is left out.
        """
        known = [r["agent"] for r in load(self.folder / self.results) if {**r, **about} == r]
        nothing = dict.fromkeys(("algo", "core", "carry", "segments", "commit", "labels", "labels_used"))
        records = []
        for name in self.untrained if report["random"] else ():
            if name not in known and report.get(name):
                found = {**{key: report[name].get(key) for key in SKILL}, "split": report["split"]}
                if name == "clairvoyant":
                    found["spl"] = found["success"]  # its path is the shortest by definition
                world = {"env": report["env"], "env_options": report["env_options"]}
                own = {"agent": name, "arm": name + suffix, **about, **world, "seed": 0, "frames": 0, "seconds": 0.0}
                records.append({**own, **nothing, **found})
        return records

    # Afterwards

    def finish(self) -> None:
        """Evaluate trained agents under the settings of each lesion."""
        path, key = self.folder / "lesions.json", (*self.key, "lesion")
        known = {(r["agent"], r["seed"], r["lesion"]) for r in load(path)}
        for name, lesion in self.settings.get("lesions", {}).items():
            for job in self.jobs_of(lesion):
                place = self.place(job)
                if (job.arm, job.seed, name) in known or not self.is_trained(place):
                    continue
                # Another world has another bound: the references are played there too.
                elsewhere = "env_options" in lesion["options"]
                report = self.evaluate(place, baselines=elsewhere, **lesion["options"])
                record = {"agent": job.arm, "seed": job.seed, "lesion": name, "options": lesion["options"]}
                record |= {field: report[field] for field in MEASURED}
                if elsewhere:
                    record |= {field: report[field]["success"] for field in REFERENCES[1:]}
                record |= {"sampled": sampled_of(report), "commit": commit_of_code()}
                put(path, [record], key)
                print(f"{job}, {name}: success {report['success']:.3f}", flush=True)

    def jobs_of(self, lesion: dict[str, Any]) -> list[Job]:
        """Agents that are evaluated under the settings of a lesion, of those asked for."""
        jobs = [Job(arm, s) for arm in lesion["arms"] for s in lesion.get("seeds", self.arm(arm)["seeds"])]
        return chosen(jobs, self.jobs(), self.only)

    def draw(self) -> None:
        draw(self.folder)


def sampled_of(report: dict[str, Any]) -> dict[str, Any] | None:
    """What actions drawn from the policy achieve, without the levels; None where a policy is no distribution."""
    return report["sampled"] and {name: report["sampled"].get(name) for name in ("success", "success_ci95", "spl")}


def outcomes_of(report: dict[str, Any]) -> dict[str, Any]:
    """Success and regret on every level, and the pairs of worlds of those that have one."""
    outcome = {name: report["levels"][name] for name in ("success", "regret", "pairs") if name in report["levels"]}
    return outcome | ({"sampled": report["sampled"]["levels"]["success"]} if report["sampled"] else {})


def refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def chosen(jobs: list[Job], every: list[Job], words: Sequence[str]) -> list[Job]:
    """Those of `jobs` whose arm, seed and world are among the words, as far as the words name any."""
    columns = [list(dict.fromkeys(map(str, column))) for column in zip(*every, strict=True)]
    known = [value for values in columns for value in values if value]
    for word in words:
        if word not in known:
            refuse(f"--only {word}: expected some of {', '.join(known)}")
    asked = [set(values) & set(words) or set(values) for values in columns]
    return [job for job in jobs if all(str(value) in some for value, some in zip(job, asked, strict=True))]


def study_of(folder: Path, side_by_side: int = 1) -> Study:
    """The study of a folder: the class `Study` of its `run.py`, or the one here."""
    own = module_of(folder, "run")
    return getattr(own, "Study", Study)(folder, side_by_side)


def main(kind: type[Study] | None = None, folder: Path | None = None) -> None:
    """The command line of a study.

    Args:
        kind: its class; the folder's own where None.
        folder: the study; an argument of the command where None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if folder is None:
        parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of those of the study")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="arms, seeds, worlds: runs that have them"
    )
    parser.add_argument("--list", action="store_true", help="print the runs that have no record, in order")
    parser.add_argument("--no-training", action="store_true", help="measure and draw what has been trained")
    parser.add_argument("--draw-only", action="store_true", help="redraw tables and figures from the records")
    options = parser.parse_args()
    if options.jobs < 1:
        refuse(f"--jobs {options.jobs}: expected 1 or more")
    folder = (folder or options.folder).resolve()
    if not (folder / "study.yaml").exists():
        if not options.draw_only or not (folder / "README.md").exists():
            refuse(f"{folder}: expected a folder with a study.yaml; one without can be drawn anew by --draw-only")
        draw(folder)
        return
    study = (kind or study_of)(folder, options.jobs)
    study.only = options.only
    if options.draw_only:
        study.draw()
        return
    if threads := study.settings.get("threads"):
        os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))  # of every command too
    jobs = chosen(study.missing(options.seeds), study.jobs(options.seeds), options.only)
    if options.no_training:
        jobs = [job for job in jobs if study.is_trained(study.place(job))]
    if options.list:
        print("\n".join(map(str, jobs)))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(study.run, jobs))
    study.finish()
    study.draw()
    if not all(done):
        sys.exit(1)
