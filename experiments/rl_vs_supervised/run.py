"""Train, measure and record every agent of the comparison that has no record yet, then redraw page and figure.

    python experiments/rl_vs_supervised/run.py --jobs 2
    python experiments/rl_vs_supervised/run.py --list | --only ARM WORLD [SEED] | --draw-only

`arms.yaml` says what: supervised runs that learn to say the path, agents that are readings of these (solve the view,
take one step, solve again), and policies trained by imitation or by rewards, some of which start with the weights of a
supervised run. All train for the same processor time in one thread, learning rates ending with it, and are measured
greedily as they are at the end, on the same 1,000 test levels. Runs lie in
`runs/studies/rl_vs_supervised/WORLD_ARM_seedN`; what is finished there is only measured and recorded, what was
interrupted goes on from its checkpoint. Several processes may run side by side.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

RESULTS = HERE / "results.json"
ENOUGH = 0.9
MODEL = Path("models") / "last"  # of a supervised run
UNLIMITED = 10**9  # frames or steps: the clock ends every run
LEVELS = 1_000
POINTS = 60  # of a learning curve
SAMPLED = ("ppo", "dqn")  # algorithms whose own actions are what training episodes show
REFERENCES = ("random", "bfs_replanner", "clairvoyant")
MEASURED = (
    "success", "success_ci95", "episodes", "spl", "excess_steps", "regret_after_material_change", "steps_to_replan",
    "stale_plan_rate", "segments_per_decision", "macs_per_decision", "ms_per_decision", "ms_per_decision_batched",
    "parameters",
)  # fmt: skip


class Job(NamedTuple):
    """An agent in a world with a seed; in this order they are sorted in the records."""

    world: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} {self.world} {self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; with --only: how many others say so")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--only", nargs="+", metavar="", help="ARM, WORLD and SEED in any order: runs with all of them")
    parser.add_argument("--list", action="store_true", help="print the runs that have no record, in order")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # of every command below
    if options.draw_only:
        draw()
        return
    config = yaml.safe_load((HERE / "arms.yaml").read_text())
    jobs = missing(config, options.seeds or config["seeds"])
    if options.only:
        jobs = chosen(config, jobs, options.only)
    if options.list:
        print("\n".join(map(str, jobs)))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda job: run(config, job, options.jobs), jobs))
    draw()
    if not all(done):
        sys.exit(1)


def refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def arms_of(config: dict[str, Any]) -> list[str]:
    """Every agent that is measured, what others start with first."""
    return [*config["readings"], *config["policies"]]


def missing(config: dict[str, Any], seeds: list[int]) -> list[Job]:
    """Agents without a record, one seed of everything before the next, so that a study cut short has all arms."""
    known = {(r["world"], r["agent"], r["seed"]) for r in study.load(RESULTS)}
    every = (Job(world, arm, seed) for seed in seeds for arm in arms_of(config) for world in config["worlds"])
    return [job for job in every if job not in known]


def chosen(config: dict[str, Any], jobs: list[Job], words: list[str]) -> list[Job]:
    """Those jobs whose arm, world and seed are among the words, as far as words say any."""
    arms, worlds = arms_of(config), list(config["worlds"])
    for word in words:
        if word not in (*arms, *worlds) and not word.isdigit():
            refuse(f"--only {word}: no such arm, world or seed; arms: {', '.join(arms)}; worlds: {', '.join(worlds)}")

    def asked(values: list[str], value: str) -> bool:
        return value in words or not set(values) & set(words)

    seeds = [word for word in words if word.isdigit()]
    return [j for j in jobs if asked(arms, j.arm) and asked(worlds, j.world) and asked(seeds, str(j.seed))]


def place_of(world: str, arm: str, seed: int) -> Path:
    """Folder of a training run; not in the repository."""
    return study.place_of(HERE, f"{world}_{arm}", seed)


def run(config: dict[str, Any], job: Job, jobs: int) -> bool:
    """Train what is not yet trained and measure one agent, then record it; False where a command of it failed."""
    try:
        record, report = read(config, job, jobs) if job.arm in config["readings"] else act(config, job, jobs)
    except subprocess.CalledProcessError as error:
        print(f"{job}: failed with {error.returncode}, see the log in {place_of(*job).parent}", flush=True)
        return False
    about = {"agent": job.arm, "arm": job.arm, "world": job.world, "seed": job.seed}
    record = {**about, "env": report["env"], "env_options": report["env_options"], **record}
    record |= {name: report[name] for name in MEASURED}
    add([record, *references(report, job.world)])
    print(f"{job}: success {record['success']:.3f}, SPL {record['spl']:.3f}, {record['seconds']:.0f} s", flush=True)
    return True


def supervised_command(config: dict[str, Any], arm: str, world: str, seed: int) -> list[str]:
    """Overrides of `hrm_agent.supervise`."""
    options = [f"++task.env_options.{name}={value}" for name, value in config["worlds"][world].items()]
    task = [*config["supervised"][arm], f"task.env={config['env']}", *options]
    return [*task, *config["core"], *limits(config, seed)]


def policy_command(config: dict[str, Any], arm: str, world: str, seed: int) -> list[str]:
    """Overrides of `hrm_agent.train`."""
    options = [f"env.options.{name}={value}" for name, value in config["worlds"][world].items()]
    given, base = config["policies"][arm]["options"], config["policies"][arm].get("from")
    start = [f"init_from={place_of(world, base, seed).relative_to(study.ROOT) / MODEL}"] if base else []
    always = [*config["core"], *config["validated"]]
    return [f"env={config['env']}", *options, *given, *start, *always, *limits(config, seed)]


def limits(config: dict[str, Any], seed: int) -> list[str]:
    return [f"seed={seed}", f"total_steps={UNLIMITED}", f"max_seconds={config['seconds']}", *config["alone"]]


def is_trained(place: Path) -> bool:
    """Whether a supervised run is finished; its scores on test views are written last."""
    return (place / "eval.json").exists()


def train_supervised(config: dict[str, Any], arm: str, world: str, seed: int, jobs: int) -> Path:
    """The folder of a finished supervised run; whoever needs it first trains it, others wait."""
    place = place_of(world, arm, seed)
    with locked(place.name):
        if not is_trained(place):
            study.train(place, supervised_command(config, arm, world, seed), jobs, "hrm_agent.supervise")
    return place


def read(config: dict[str, Any], job: Job, jobs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record and report of an agent that is a reading of a supervised run."""
    from hrm_agent.supervised import load_model
    from hrm_agent.supervised.path_policy import evaluate_path_policy

    how, options = config["readings"][job.arm], config["worlds"][job.world]
    place = train_supervised(config, how["of"], job.world, job.seed, jobs)
    trained = supervised_facts(place)
    report = evaluate_path_policy(
        load_model(place), config["env"], options, LEVELS, how["segments"], how["carry"], how.get("halting"),
        baselines=not measured_references(job.world),
    )  # fmt: skip
    record = {
        "algo": "supervised",
        **{name: report[name] for name in ("core", "carry", "segments", "stop", "time_gradient")},
        "frames": 0,
        "seconds_before": 0.0,
        "frames_to_90": None,
        "seconds_to_90": None,
        "curve": [],
        **trained,
        **took(place),
    }
    return record, report


def supervised_facts(place: Path) -> dict[str, Any]:
    """What a supervised run took: `seconds` of training, labelled views there were (`labels`) and those begun to think
    about (`labels_used`, with repetitions), `samples` (one for every segment of each); and its scores on test views."""
    info = json.loads((place / MODEL / "model.json").read_text())
    tested = json.loads((place / "eval.json").read_text())
    return {
        "seconds": info["seconds"],
        "labels": info["task_options"]["pool"],
        "labels_used": info["puzzles"],
        "samples": info["samples"],
        "test_views": {name: tested[name] for name in ("exact", "valid", "action", "cells")},
    }


def act(config: dict[str, Any], job: Job, jobs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record and report of a policy."""
    place, base = place_of(*job), config["policies"][job.arm].get("from")
    before = 0.0
    if base:
        before = supervised_facts(train_supervised(config, base, job.world, job.seed, jobs))["seconds"]
    if not study.is_trained(place):
        study.train(place, policy_command(config, job.arm, job.world, job.seed), jobs)
    world = json.dumps([config["env"], config["worlds"][job.world]])
    report = study.evaluate_beside_baselines(place, {"which": "last"}, world)
    info = json.loads((place / "agents" / "last" / "agent.json").read_text())["info"]
    lines = metrics(place)
    labels = labelled_steps(place)
    sampled = [[*at(line), line["train/success"]] for line in lines if "train/success" in line]
    reached = next((c[:2] for c in sampled if c[2] >= ENOUGH), None) if info["algo"] in SAMPLED else None
    record = {
        **{name: info[name] for name in ("algo", "core", "carry", "segments", "time_gradient", "frames", "seconds")},
        "seconds_before": before,
        "labels": labels,
        "labels_used": labels,
        "frames_to_90": reached[0] if reached else None,
        "seconds_to_90": reached[1] if reached else None,
        "curve": thinned(on_validation(lines)),
        **took(place),
    }
    return record, report


def labelled_steps(place: Path) -> int:
    """Steps for which the oracle told an imitating policy what to do, over the whole run; 0 for the others."""
    from hrm_agent.tensors.files import load_tensors
    from hrm_agent.training.checkpoints import CheckpointFolder

    path = CheckpointFolder(place / "checkpoints").latest()
    return 0 if path is None else load_tensors(path)[1].get("learner", {}).get("labels", 0)


def metrics(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def at(line: dict[str, Any]) -> list[float]:
    """Frames and seconds of training up to a line of `metrics.jsonl`, which tells the mean speed so far."""
    return [line["frames"], round(line["frames"] / line["train/frames_per_second"], 1)]


def on_validation(lines: list[dict[str, Any]]) -> list[list[float]]:
    """Frames, seconds of training and greedy success on validation levels."""
    speeds = {line["frames"]: line["train/frames_per_second"] for line in lines if "train/frames_per_second" in line}
    if not speeds:
        return []
    curve = []
    for line in lines:
        if "validation/success" in line:
            frames = line["frames"]
            nearest = min(speeds, key=lambda known: abs(known - frames))
            curve.append([frames, round(frames / speeds[nearest], 1), round(line["validation/success"], 4)])
    return curve


def thinned(curve: list[list[float]]) -> list[list[float]]:
    """At most `POINTS`, the last one among them."""
    every = -(-len(curve) // POINTS) or 1
    return curve[::-1][::every][::-1]


def took(place: Path) -> dict[str, Any]:
    """The run's command, without its folder, and what it cost."""
    words = json.loads((place / "run.json").read_text())["command"].split(" ")
    command = " ".join(word for word in words if not word.startswith("hydra.run.dir="))
    path = place / "study.json"
    nothing = {"wall_seconds": None, "peak_memory_mb": None, "side_by_side": None, "commit": "unknown"}
    return {"clock": "cpu", "command": command, **(json.loads(path.read_text()) if path.exists() else nothing)}


def measured_references(world: str) -> bool:
    return any(r["world"] == world and r["agent"] in REFERENCES for r in study.load(RESULTS))


def references(report: dict[str, Any], world: str) -> list[dict[str, Any]]:
    """Records of those that are not trained, unless the world has them already or nobody played them now."""
    if measured_references(world) or report["random"] is None:
        return []
    records = []
    nothing = dict.fromkeys(("algo", "core", "carry", "segments", "commit", "labels", "labels_used"))
    for name in REFERENCES:
        found = {key: report[name].get(key) for key in MEASURED}
        if name == "clairvoyant":
            found["spl"] = found["success"]  # its path is the shortest by definition
        about = {"agent": name, "arm": name, "world": world, "seed": 0, "frames": 0, "seconds": 0.0}
        records.append({**about, "env": report["env"], "env_options": report["env_options"], **nothing, **found})
    return records


@contextmanager
def locked(name: str = "records") -> Iterator[None]:
    """Only one process and thread at a time."""
    path = study.ROOT / "runs" / "studies" / HERE.name / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(records: list[dict[str, Any]]) -> None:
    """Put records into the file, in place of those of the same agents."""

    def key(record: dict[str, Any]) -> Job:
        return Job(record["world"], record["agent"], record["seed"])

    with locked():
        new = {key(r) for r in records}
        kept = [r for r in study.load(RESULTS) if key(r) not in new]
        write_lines(RESULTS, sorted([*kept, *records], key=key))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A JSON list, one record a line, replaced as a whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    temporary.replace(path)


def draw() -> None:
    with locked():
        study.draw(HERE, {"own_table": True})


if __name__ == "__main__":
    main()
