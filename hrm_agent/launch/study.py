"""Compare ideas: arms over training seeds, measured on the same levels (`python -m hrm_agent.study FILE.yaml`).

The file says what differs:

    seeds: [0, 1, 2]                                    # of every arm
    base: [env=DynamicMaze-v0, total_steps=300_000]     # settings of `hrm_agent.train` for all arms
    arms:                                               # settings of each; the others are compared with the first
      full: [carry=full]
      reset: [carry=reset]
    levels: {split: test, episodes: 1000, seed: 0}      # what is played in the end; these are the defaults

What has a result is skipped, what was interrupted is resumed, so the same command continues a study, and seeds or arms
may be added to the file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.evaluation.statistics import Comparison, crossed_difference, holm, mean_interval
from hrm_agent.files.locking import LOCK_FILE
from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.reading import CheckpointError, convert_json, read_json
from hrm_agent.files.records import Record, load, put
from hrm_agent.files.writing import write_atomically
from hrm_agent.launch.cli import UsageError, parse_overrides, say_traceback
from hrm_agent.launch.groups import RunGroup, outcomes_of, show, success_of
from hrm_agent.launch.plot import choose_panels, draw
from hrm_agent.launch.run_records import Outcomes, Played, Row, read_curves, read_run
from hrm_agent.launch.side_by_side import SET_FOR_ALL, SET_HERE, RunFailed, train_in
from hrm_agent.names.values import Count, Episodes, Seed, check_fields, one_of, printable, shown

RESULTS_FILE, LEVELS_FILE, SPEC_FILE, CURVES_FILE = "results.json", "levels.json", "study.json", "curves.png"
KEY = ("arm", "seed")
MOST = 10_000
"""Runs of a study."""
ARM = re.compile(r"[A-Za-z0-9][\w.+ -]{0,60}")
MEASURED = ("success", "success_ci95", "return", "spl", "episodes", "frames", "seconds", "parameters")
MEASURED_SAMPLED = ("success", "success_ci95", "return", "spl")

Evaluate = Callable[..., dict[str, Any]]
"""`hrm_agent.evaluate.evaluate`."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Train the arms of a file over seeds, measure them on the same levels, test differences and draw the curves."""

    jobs: Count = 1  # runs at once, which share the cores of the machine
    out: str | None = None  # folder of the runs and results; None: beside the file, with its name

    def __post_init__(self) -> None:
        check_fields(self)


class PlayedLevels(Struct, forbid_unknown_fields=True):
    """What the agents play in the end."""

    split: Annotated[str, one_of(("validation", "test"))] = "test"
    episodes: Episodes = 1000
    seed: Seed = 0


class Spec(Struct, forbid_unknown_fields=True):
    """A study's file."""

    seeds: Annotated[list[Seed], Meta(min_length=1, max_length=1000)]
    arms: Annotated[dict[str, list[str]], Meta(min_length=1, max_length=1000)]
    base: list[str] = []
    levels: PlayedLevels = msgspec.field(default_factory=PlayedLevels)

    def overrides(self, arm: str) -> list[str]:
        return [*self.base, *self.arms[arm]]


class Job(NamedTuple):
    """A training run of a study."""

    arm: str
    seed: int


def read_spec(path: Path) -> Spec:
    """A study's file.

    Raises:
        ValueError: it cannot be read, or says something that no study can do.
    """
    spec: Spec = convert_json(read_yaml(path), Spec, str(path))
    if spec.levels.split not in ("validation", "test"):
        raise UsageError(f"{path}: levels.split={shown(spec.levels.split)}: expected validation or test")
    if len(set(spec.seeds)) < len(spec.seeds):
        raise UsageError(f"{path}: seeds: one is given twice")
    if len(spec.seeds) * len(spec.arms) > MOST:
        raise UsageError(f"{path}: {len(spec.seeds) * len(spec.arms):,} runs; expected at most {MOST:,}")
    for arm in spec.arms:
        if not ARM.fullmatch(arm):
            raise UsageError(f"{path}: arm {shown(arm)}: expected a name of letters, digits and .+-_")
        check_overrides(spec.overrides(arm), f"{path}: arm {arm}")
    check_folders(spec.arms, str(path))
    return spec


def check_folders(arms: Iterable[str], where: str) -> None:
    """Raises: UsageError for two arms whose runs would have the same folders, on any file system."""
    known: dict[str, str] = {}
    for arm in arms:
        other = known.setdefault(folder_name(arm).lower(), arm)
        if other != arm:
            raise UsageError(f"{where}: arms {shown(other)} and {shown(arm)} would share a folder; rename one of them")


def folder_name(arm: str) -> str:
    return arm.replace(" ", "_")


def check_overrides(overrides: Sequence[str], where: str) -> None:
    """Refuse settings that are swept over, or that belong to what starts the runs.

    Raises:
        UsageError: one of them.
    """
    reserved = []
    for typed in parse_overrides(list(overrides)):
        if (typed.key_or_group or "").partition(".")[0] in SET_HERE:
            reserved.append(printable(str(typed.input_line)))
        if typed.is_sweep_override():
            raise UsageError(
                f"{where}: {printable(str(typed.input_line))}: expected one value; each arm is one setting"
            )
    if reserved:
        raise UsageError(f"{where}: {SET_FOR_ALL.format(', '.join(reserved))}")


class Study:
    """A study, its folder, and what has been measured.

    Args:
        spec: what is compared.
        folder: of the runs and results; made by `begin`.
        jobs: runs at once.
        cores: of the machine, which the runs share.
        evaluate: measures a trained run.

    Attributes:
        problems: lines about runs that failed.
    """

    def __init__(self, spec: Spec, folder: Path, jobs: int, cores: int, evaluate: Evaluate) -> None:
        self.spec, self.folder, self.evaluate = spec, folder, evaluate
        self.threads = max(1, cores // jobs)
        self.problems: list[str] = []
        self._measuring = threading.Lock()

    def check_unchanged(self) -> None:
        """Raises: ValueError where the folder has results of the same arms with other settings, or on other levels."""
        path = self.folder / SPEC_FILE
        if not os.path.lexists(path):
            if self.folder.exists() and (not self.folder.is_dir() or {*os.listdir(self.folder)} - {LOCK_FILE}):
                raise UsageError(f"{self.folder}: not the folder of a study; give another one with out=FOLDER")
            return
        before: Spec = read_json(path, Spec)
        if before.levels != self.spec.levels:
            raise UsageError(f"{self.folder}: holds results on other levels; give another folder with out=FOLDER")
        for arm in self.spec.arms:
            if arm in before.arms and before.overrides(arm) != self.spec.overrides(arm):
                raise UsageError(
                    f"{self.folder}: arm {arm} was begun with {' '.join(before.overrides(arm))}; give the arm another "
                    "name, or another folder with out=FOLDER"
                )
        check_folders([*before.arms, *self.spec.arms], str(self.folder))  # its runs of arms that were renamed, too

    def begin(self) -> None:
        """Keep what is compared, so that later commands notice a change."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SPEC_FILE
        known: dict[str, Any] = {}
        if os.path.lexists(path):
            before: Spec = read_json(path, Spec)
            known = {arm: before.overrides(arm) for arm in before.arms}  # those that the file has no more, too
        kept = {arm: self.spec.overrides(arm) for arm in self.spec.arms}
        whole = {"seeds": self.spec.seeds, "arms": {**known, **kept}, "levels": msgspec.to_builtins(self.spec.levels)}
        write_atomically(path, (json.dumps(whole, indent=1) + "\n").encode())

    def missing(self) -> list[Job]:
        """Runs without a result, one seed of every arm before the next."""
        known = {(record["arm"], record["seed"]) for record in self.records()}
        return [Job(arm, seed) for seed in self.spec.seeds for arm in self.spec.arms if (arm, seed) not in known]

    def records(self) -> list[Record]:
        """Of the arms and seeds that the file has."""
        return self._own(RESULTS_FILE)

    def _own(self, file: str) -> list[Record]:
        arms, seeds = self.spec.arms, self.spec.seeds
        return [r for r in load(self.folder / file) if r.get("arm") in arms and r.get("seed") in seeds]

    def place(self, job: Job) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / f"{folder_name(job.arm)}_seed{job.seed}"

    def run(self, job: Job) -> bool:
        """Train what is not trained to its end, measure and record it; False where that failed."""
        place = self.place(job)
        name = f"{job.arm}, seed {job.seed}"
        try:
            print(f"{name}: training, see {place}.log", file=sys.stderr, flush=True)
            train_in(place, self.overrides(job))  # of a run that has ended it changes nothing
            record = self.measure(job, place)
        except RunFailed as error:
            self.problems.append(f"{name}: ended with exit code {error.code}: {error}")
        except (ValueError, EnvironmentFailed) as error:  # the other runs do not suffer from it
            if isinstance(error, EnvironmentFailed):
                say_traceback(error)
            self.problems.append(f"{name}: {printable(str(error))}")
        else:
            sampled = record["sampled"]
            more = "" if sampled is None else f", {sampled['success']:.3f} sampled"
            print(f"{name}: success {record['success']:.3f} greedy{more}", file=sys.stderr, flush=True)
            return True
        print(self.problems[-1], file=sys.stderr, flush=True)
        return False

    def overrides(self, job: Job) -> list[str]:
        """Of the command that trains."""
        return [*self.spec.overrides(job.arm), f"seed={job.seed}", "test_episodes=0", f"threads={self.threads}"]

    def measure(self, job: Job, place: Path) -> Record:
        """Play the levels and keep what came out."""
        levels = self.spec.levels
        with self._measuring:  # one at a time: it uses all cores
            report = self.evaluate(
                str(place), episodes=levels.episodes, seed=levels.seed, split=levels.split, baselines=False
            )
        own = {"arm": job.arm, "seed": job.seed}
        sampled = report["sampled"]
        record = {
            **own,
            "settings": self.spec.overrides(job.arm),
            **{name: report[name] for name in ("env", "env_options", "split", "core", "carry", *MEASURED)},
            "sampled": None if sampled is None else {name: sampled[name] for name in MEASURED_SAMPLED},
            "hrm_agent": report["hrm_agent_version"],
        }
        outcome = {"success": report["levels"]["success"]}
        if sampled is not None:
            outcome["sampled"] = sampled["levels"]["success"]
        with self._measuring:
            put(self.folder / LEVELS_FILE, [{**own, **outcome}], KEY)
            put(self.folder / RESULTS_FILE, [record], KEY)
        return record

    def table(self) -> list[Row]:
        """A row for each arm that has a result: success with intervals, and what differs from the first arm."""
        played = {way: self.played(way) for way in ("success", "sampled")}
        first = next(iter(self.spec.arms))
        same = self.in_the_world_of(first)
        compared = {
            way: compare_with_first({arm: seeds for arm, seeds in arms.items() if arm in same}, first)
            for way, arms in played.items()
        }
        corrected = iter(holm([c.p_value for comparisons in compared.values() for c in comparisons.values()]))
        p_values = {(way, arm): next(corrected) for way, comparisons in compared.items() for arm in comparisons}
        names = {"success": "greedy", "sampled": "sampled"}
        rows = []
        for arm in self.spec.arms:
            records = [record for record in self.records() if record["arm"] == arm]
            if not records:
                continue
            row: Row = {"arm": arm, "seeds": " ".join(str(record["seed"]) for record in records)}
            for way, name in names.items():
                seeds = played[way].get(arm)
                row[f"success, {name} [95%]"] = show(success_of(seeds, same_levels=True)) if seeds else None
            if any(record["spl"] is None for record in records):
                sampled = [record["sampled"]["return"] for record in records if record["sampled"] is not None]
                row["return, greedy [95%]"] = show(mean_interval([record["return"] for record in records]))
                row["return, sampled [95%]"] = show(mean_interval(sampled)) if sampled else None
            for way, name in names.items():
                if any(compared.values()):
                    found = compared[way].get(arm)
                    row[f"{name}, less the first"] = found and _difference(found, p_values[way, arm])
            rows.append(row)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return [{name: row.get(name) for name in columns} for row in rows]

    def in_the_world_of(self, arm: str) -> set[str]:
        """The arms that were measured in the same environment, with the same options."""
        worlds = {r["arm"]: (r["env"], json.dumps(r["env_options"], sort_keys=True)) for r in self.records()}
        return {other for other, world in worlds.items() if world == worlds.get(arm)}

    def played(self, way: str) -> dict[str, list[Played]]:
        """Outcomes on every level of each arm's seeds, greedy (`success`) or `sampled`."""
        found: dict[str, list[Played]] = {}
        for level in sorted(self._own(LEVELS_FILE), key=lambda level: list(self.spec.arms).index(level["arm"])):
            if way in level:
                outcome = str(level[way])
                success = outcome.count("1") / max(1, len(outcome))
                found.setdefault(level["arm"], []).append(Played(success, len(outcome), Outcomes(outcome)))
        return found

    def draw(self) -> Path | None:
        """Learning curves of the arms; None where no run has any."""
        groups = []
        for arm in self.spec.arms:
            places = [self.place(Job(arm, seed)) for seed in self.spec.seeds]
            runs = [read_run(place) for place in places if (place / "config.yaml").exists()]
            runs = [run for run in runs if read_curves(run.folder).get("validation/success")]
            groups += [RunGroup(arm, runs)] if runs else []
        runs = [run for group in groups for run in group.runs]
        if not runs:
            return None
        panels = choose_panels("success", runs, [read_curves(run.folder) for run in runs])
        path = self.folder / CURVES_FILE
        environments = dict.fromkeys(str(run.settings.get("env.id")) for run in runs)
        write_atomically(path, draw(groups, panels, "success", ", ".join(environments), "png"))
        return path


def compare_with_first(arms: dict[str, list[Played]], first: str) -> dict[str, Comparison]:
    """Success of every further arm less that of the first, on the same levels; of arms with two seeds or more."""
    outcomes = {arm: outcomes_of(seeds) for arm, seeds in arms.items() if len(seeds) > 1}
    base = outcomes.pop(first, None)
    return {
        arm: crossed_difference(own, base)
        for arm, own in outcomes.items()
        if own is not None and base is not None and own.shape[1] == base.shape[1]
    }


def _difference(found: Comparison, p_value: float) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {p_value:.2g}"


def folder_of(file: Path, out: str | None) -> Path:
    """Where a study's runs and results go."""
    if not file.suffix:
        raise UsageError(f"{file}: expected a file whose name ends in .yaml")
    return Path(out) if out is not None else file.with_suffix("")


def check_file(given: Sequence[str]) -> Path:
    """Raises: UsageError unless one file is given, which is there."""
    if len(given) != 1:
        raise UsageError(f"{' '.join(given) or 'which study?'}: expected one FILE.yaml")
    path = Path(given[0])
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return path
