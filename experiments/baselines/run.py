"""Train, measure and record every agent of the comparison that has no record yet, then redraw page and figure.

    python experiments/baselines/run.py --jobs 2
    python experiments/baselines/run.py --list | --only ARM SEED | --draw-only

`arms.yaml` says which agents; each is an arm with fog off (`trm`) and one with fog on (`trm_fog`). Agents of
Stable-Baselines3 have the settings that the search found (`tuned.json`, by `tune.py`), ours are as shipped. Every run
has one thread, and seconds of training are processor time, so that other work on the machine does not count. Runs lie
in `runs/studies/baselines/ARM_seedN`; one that is there and finished is only measured and recorded, one of ours that
was interrupted goes on from its checkpoint. The last agent of a run is measured, greedily, on 1,000 test levels.
Several processes may write to `results.json`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import study  # noqa: E402
from tune import UNLIMITED, write_lines  # noqa: E402

RESULTS = HERE / "results.json"
ENOUGH = 0.9  # sampled success of `frames_to_90` and `seconds_to_90`
POINTS = 60  # of a learning curve
VALIDATE_EVERY = 500_000  # frames, for agents of Stable-Baselines3: they see millions
NETWORKS = {"sb3_recurrent_ppo": "lstm", "sb3_ppo_cnn": "cnn", "sb3_ppo_mlp": "mlp", "sb3_dqn": "mlp"}
REFERENCES = ("random", "bfs_replanner", "clairvoyant")
MEASURED = (
    "success", "success_ci95", "episodes", "spl", "excess_steps", "regret_after_material_change", "steps_to_replan",
    "stale_plan_rate", "macs_per_decision", "ms_per_decision", "ms_per_decision_batched", "parameters",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """An agent in one of the two worlds.

    Args:
        agent: its name in the records.
        fog: whether it sees all of the maze or only what is near.
        options: of the command that trains it, without the world's and the run's own.
    """

    agent: str
    fog: bool
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.agent}_fog" if self.fog else self.agent

    @property
    def is_sb3(self) -> bool:
        return self.agent in NETWORKS

    def command(self, config: dict[str, Any], seed: int, seconds: float, place: Path | str) -> list[str]:
        """Arguments of `python` that train it."""
        world = f"env={config['env']}"
        if self.is_sb3:
            view = [f"env_options.view={config['view']}"] if self.fog else []
            limits = [f"total_steps={UNLIMITED}", f"max_seconds={seconds:g}", "clock=cpu", f"seed={seed}"]
            given = [f"baseline={self.agent}", world, *view, *self.options, *limits]
            return ["-m", "hrm_agent.baselines", *given, f"eval_every={VALIDATE_EVERY}", f"out={place}"]
        return ["-m", "hrm_agent.train", *self.overrides(config, seed), f"hydra.run.dir={place}"]

    def overrides(self, config: dict[str, Any], seed: int) -> list[str]:
        """Of `hrm_agent.train`."""
        view = [f"env.options.view={config['view']}"] if self.fog else []
        alone = ["total_steps=400_000", "test_episodes=0", "shards=1", "clock=cpu"]
        return [f"env={config['env']}", "algo=ppo", *self.options, *view, f"seed={seed}", *alone]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; with --only: how many others say so")
    parser.add_argument("--seconds", type=float, help="of processor time for agents of Stable-Baselines3")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help="this run alone, without drawing")
    parser.add_argument("--list", action="store_true", help="print the runs that have no record, in order")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # of every command below
    if options.draw_only:
        draw()
        return
    config = yaml.safe_load((HERE / "arms.yaml").read_text())
    arms = arms_of(config)
    jobs = missing(arms, options.seeds or config["seeds"])
    if options.list:
        print("\n".join(f"{arm.name} {seed}" for arm, seed in jobs))
        return
    if options.only:
        jobs = [chosen(arms, *options.only)]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(
            pool.map(lambda job: run(config, *job, time_of(config, job[0], options.seconds), options.jobs), jobs)
        )
    if not options.only:
        draw()
    if not all(done):
        sys.exit(1)


def refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def arms_of(config: dict[str, Any]) -> list[Arm]:
    """All arms, in the order in which their runs are worth having."""
    path = HERE / "tuned.json"
    if not path.exists():
        refuse(f"{path.name}: not there, expected the settings that the search found; run tune.py first")
    tuned = json.loads(path.read_text())
    lacking = [name for name in config["sb3"] if name not in tuned]
    if lacking:
        refuse(f"{path.name}: has no settings of {', '.join(lacking)}; run tune.py for them")
    agents = {
        name: tuple(f"settings.{k}={v}" for k, v in sorted(tuned[name]["settings"].items())) for name in config["sb3"]
    }
    agents |= {name: tuple(overrides) for name, overrides in config["ours"].items()}
    searched = config["search"]
    winner = tuned.get(searched, {}).get("settings")
    if winner:
        agents[f"{searched}_tuned"] = (*agents[searched], *(f"{k}={v}" for k, v in sorted(winner.items())))
    return [Arm(name, fog, options) for name, options in agents.items() for fog in (False, True)]


def missing(arms: list[Arm], seeds: list[int]) -> list[tuple[Arm, int]]:
    """Runs without a record, one seed of every arm before the next, so that a study cut short has all arms."""
    known = {(r["arm"], r["seed"]) for r in study.load(RESULTS)}
    return [(arm, seed) for seed in seeds for arm in arms if (arm.name, seed) not in known]


def chosen(arms: list[Arm], name: str, seed: str) -> tuple[Arm, int]:
    found = [arm for arm in arms if arm.name == name]
    if not found:
        refuse(f"--only {name}: no such arm; expected one of {', '.join(arm.name for arm in arms)}")
    if not seed.isdigit():
        refuse(f"--only {name} {seed}: expected a seed, a number from 0")
    return found[0], int(seed)


def time_of(config: dict[str, Any], arm: Arm, given: float | None) -> float:
    """Seconds of processor time that an agent of Stable-Baselines3 trains."""
    return given or config["seconds_of"].get(arm.agent, config["seconds"])


def run(config: dict[str, Any], arm: Arm, seed: int, seconds: float, jobs: int) -> bool:
    """Train and measure one agent, then record it; False where a command of it failed."""
    place = study.place_of(HERE, arm.name, seed)
    try:
        report = train_and_measure(config, arm, seed, seconds, jobs, place)
    except subprocess.CalledProcessError as error:
        print(f"{arm.name} seed {seed}: failed with {error.returncode}, see {place}.log", flush=True)
        return False
    record = describe(config, arm, seed, place, report)
    with locked():
        add([record, *references(report, arm.fog)])
    print(
        f"{arm.name} seed {seed}: success {record['success']:.3f}, {record['frames']:,} frames in "
        f"{record['seconds']:.0f} s, {ENOUGH:.0%} after {record['seconds_to_90']} s",
        flush=True,
    )
    return True


def train_and_measure(
    config: dict[str, Any], arm: Arm, seed: int, seconds: float, jobs: int, place: Path
) -> dict[str, Any]:
    """The evaluator's report on test levels; what is finished already is not done again."""
    if arm.is_sb3:
        # Its command measures it too; what it took is noted last.
        if not all((place / name).exists() for name in ("eval.json", "study.json")):
            train_baseline(arm.command(config, seed, seconds, place), place, jobs)
    else:
        if not study.is_trained(place):
            study.train(place, arm.overrides(config, seed), jobs)
        if not (place / "eval.json").exists():
            given = [f"run={place}", "which=last", f"out={place / 'eval.json'}"]
            logged([sys.executable, "-m", "hrm_agent.evaluate", *given], place)
    return json.loads((place / "eval.json").read_text())


def train_baseline(command: list[str], place: Path, jobs: int) -> None:
    """Train and measure an agent of Stable-Baselines3, anew if it was interrupted; fields as `study.train`'s."""
    shutil.rmtree(place, ignore_errors=True)
    commit, began = study.commit_of_code(), time.monotonic()
    peak_memory_mb = logged([sys.executable, *command], place)
    took = {
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_memory_mb": peak_memory_mb,
        "side_by_side": jobs,
        "commit": commit,
    }
    (place / "study.json").write_text(json.dumps(took) + "\n")


def logged(command: list[str], place: Path) -> int:
    """Run a command, its output going to the log of a run; its peak memory in MiB."""
    print(" ".join(["python", *command[1:]]), flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f"{place.name}.log", "a") as log:
        return study.run_logged(command, log)


def describe(config: dict[str, Any], arm: Arm, seed: int, place: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The flat record of one run, from what lies in its folder."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    curve, took = progress(lines), place / "study.json"
    reached = next(([frames, spent] for frames, spent, success in curve if success >= ENOUGH), [None, None])
    validation = on_validation(lines)
    earlier = {"wall_seconds": None, "peak_memory_mb": None, "side_by_side": None}
    earlier["commit"] = config["commit_of_earlier_runs"]
    return {
        "agent": arm.agent,
        "arm": arm.name,
        "fog": arm.fog,
        "view": config["view"] if arm.fog else None,
        "seed": seed,
        **described(arm, place, report),
        **{name: report[name] for name in MEASURED},
        "frames": report["frames"],
        "seconds": report["seconds"],
        "steps_per_second": round(report["frames"] / report["seconds"], 1),
        "frames_to_90": reached[0],
        "seconds_to_90": reached[1],
        "sampled_success": curve[-1][2] if curve else None,
        "validation_success": validation[-1][2] if validation else None,
        "curve": thinned(curve),
        "validation_curve": thinned(validation),
        "command": "python " + " ".join(command_of(place)),
        **(json.loads(took.read_text()) if took.exists() else earlier),
    }


def described(arm: Arm, place: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What was trained, as the run itself tells."""
    world = {"env": report["env"], "env_options": report["env_options"]}
    if not arm.is_sb3:
        info = json.loads((place / "agents" / "last" / "agent.json").read_text())["info"]
        same = {name: info[name] for name in ("algo", "core", "carry", "segments", "time_gradient")}
        return {**world, **same, "clock": info.get("clock", "wall")}
    settings = report["settings"]
    network = NETWORKS[arm.agent]
    if network != "cnn" and settings.get("channels"):
        network = f"cnn+{network}"
    return {
        **world,
        "algo": "dqn" if arm.agent == "sb3_dqn" else "ppo",
        "core": network,
        "carry": "lstm" if "lstm" in network else None,
        "segments": None,
        "time_gradient": "bptt" if "lstm" in network else None,
        "clock": report["clock"],
        "settings": settings,
    }


def command_of(place: Path) -> list[str]:
    """Arguments of `python` that the run was trained with, its folder left open."""
    given = json.loads((place / "run.json").read_text())["command"].removeprefix("python ").split()
    return [f"{a.split('=')[0]}=RUN" if a.startswith(("out=", "hydra.run.dir=")) else a for a in given]


def progress(lines: list[dict[str, Any]]) -> list[list[float]]:
    """Frames, seconds of training and success of sampled actions in the last episodes, over the run."""
    known = [line for line in lines if "train/success" in line]
    return [[c["frames"], round(seconds_of(c), 1), round(c["train/success"], 4)] for c in known]


def seconds_of(line: dict[str, Any]) -> float:
    """Of training up to a line of `metrics.jsonl`; our trainer logs the mean speed so far instead."""
    return line.get("train/seconds", line["frames"] / line["train/frames_per_second"])


def on_validation(lines: list[dict[str, Any]]) -> list[list[float]]:
    """Frames, seconds of training and greedy success on validation levels, over the run."""
    timed = {line["frames"]: seconds_of(line) for line in lines if "train/frames_per_second" in line}
    scored = {line["frames"]: line["validation/success"] for line in lines if "validation/success" in line}
    curve = []
    for frames, success in scored.items():
        # Both are logged after the same update; where only one is, the nearest earlier speed tells the time.
        nearest = max((f for f in timed if f <= frames), default=min(timed))
        curve.append([frames, round(timed[nearest] * frames / nearest, 1), success])
    return curve


def thinned(curve: list[list[float]]) -> list[list[float]]:
    """At most `POINTS` of a curve, evenly spaced, its last one among them."""
    step = -(-len(curve) // POINTS) or 1
    return curve[::-1][::step][::-1]


def references(report: dict[str, Any], fog: bool) -> list[dict[str, Any]]:
    """Records of who needs no training, on the same levels; only those that are not known yet."""
    known = {(r["agent"], r["fog"]) for r in study.load(RESULTS)}
    untrained = dict.fromkeys(("algo", "core", "carry", "segments", "commit"))
    records = []
    for name in REFERENCES:
        if (name, fog) in known:
            continue
        measured = {key: report[name][key] for key in MEASURED if key in report[name]}
        if name == "clairvoyant":
            measured["spl"] = measured["success"]  # its path is the shortest by definition
        world = {"env": report["env"], "env_options": report["env_options"], "fog": fog}
        arm = f"{name}_fog" if fog else name
        records.append({"agent": name, "arm": arm, **world, "seed": 0, "frames": 0, "seconds": 0.0, **measured})
        records[-1] |= untrained
    return records


@contextmanager
def locked() -> Iterator[None]:
    """Only one process at a time."""
    path = study.ROOT / "runs" / "studies" / "baselines.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(records: list[dict[str, Any]]) -> None:
    """Put records into the file, in place of those of the same runs."""
    new = {(r["arm"], r["seed"]) for r in records}
    kept = [r for r in study.load(RESULTS) if (r["arm"], r["seed"]) not in new]
    write_lines(RESULTS, sorted([*kept, *records], key=lambda r: (r["fog"], r["agent"], r["seed"])))


def draw() -> None:
    with locked():
        study.draw(HERE, {"own_table": True})


if __name__ == "__main__":
    main()
