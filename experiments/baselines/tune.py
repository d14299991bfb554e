"""The same search for everybody: a few short runs of each agent, settings drawn at random from a declared space.

    python experiments/baselines/tune.py [--jobs 2] [--trials 5] [--seconds 60] [--agents trm sb3_dqn]
    python experiments/baselines/tune.py --write

Trial 0 of an agent has the library's or our own defaults; trial t draws every setting of `SPACES` from a stream of its
own, so more trials leave the earlier ones as they are; trial 4 of an agent of Stable-Baselines3 has settings chosen by
hand. A trial trains in one thread with fog off for the same processor time (other work on the machine does not count),
then plays greedily on the 500 validation levels of every training run.
Trials are added to `tuning.json`, and what stands there is not run again. `--write` puts the best trial of every agent
(validation success, then sampled success) into `tuned.json`, which a whole search does at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

from study import commit_of_code, load  # noqa: E402

HERE = Path(__file__).parent
RUNS = ROOT / "runs" / "baselines" / "tuning"
ENV = "DynamicMaze-v0"
UNLIMITED = 10**9  # frames: the clock ends every trial
OURS = ("trm",)
_write = Lock()

Range = tuple[float, float]  # drawn log-uniformly; a list is a choice
PPO: dict[str, list | Range] = {
    "num_envs": [32, 64, 128],
    "n_steps": [32, 64, 128],
    "minibatches": [4, 8, 16],  # of a rollout; settings.batch_size follows
    "n_epochs": [2, 4, 8],
    "learning_rate": (1e-4, 3e-3),
    "anneal": [False, True],
    "gamma": [0.95, 0.97, 0.99],
    "ent_coef": [0.0, 0.003, 0.01, 0.03],
}
SPACES: dict[str, dict[str, list | Range]] = {
    "sb3_ppo_mlp": {**PPO, "width": [64, 128, 256]},
    "sb3_ppo_cnn": {**PPO, "channels": [16, 32, 64], "conv_layers": [2, 3], "features": [128, 256]},
    # Its updates run step by step through every sequence, so short rollouts of many environments and few minibatches.
    "sb3_recurrent_ppo": {
        **PPO,
        "n_steps": [16, 32, 64],
        "minibatches": [1, 2, 4],
        "n_epochs": [1, 2, 4],
        "lstm_size": [64, 128, 256],
        "channels": [0, 32],
    },
    "sb3_dqn": {
        "num_envs": [32, 64, 128],
        "learning_rate": (1e-4, 3e-3),
        "anneal": [False, True],
        "gamma": [0.95, 0.97, 0.99],
        "batch_size": [128, 256, 512],
        "train_freq": [1, 2],
        "gradient_steps": [1, 2, 4],
        "learning_starts": [5_000],
        "target_update_interval": [2_000, 5_000, 10_000],
        "exploration_fraction": [0.1, 0.3, 0.5],
        "exploration_final": [0.01, 0.05, 0.1],
        "width": [64, 128, 256],
        "channels": [0, 32],
    },
    "trm": {
        "algo.num_envs": [64, 128, 256],
        "algo.rollout_steps": [16, 32],
        "algo.minibatch_windows": [32, 64, 128],
        "algo.epochs": [1, 2, 4],
        "algo.learning_rate": (3e-4, 1e-2),
        "algo.anneal": [False, True],
        "algo.gamma": [0.95, 0.97, 0.99],
        "algo.entropy_coef": [0.0, 0.003, 0.01, 0.03],
        "core.hidden_size": [32, 48, 64, 96],  # core.inner_size is twice that
    },
}


# What somebody who knows these mazes would try; ours has its turn with its defaults.
BY_HAND: dict[str, dict[str, Any]] = {
    "sb3_ppo_mlp": {
        "num_envs": 128, "n_steps": 64, "batch_size": 1024, "n_epochs": 4, "learning_rate": 1e-3, "anneal": True,
        "gamma": 0.97, "ent_coef": 0.01, "width": 128,
    },
    "sb3_ppo_cnn": {
        "num_envs": 128, "n_steps": 32, "batch_size": 1024, "n_epochs": 4, "learning_rate": 1e-3, "anneal": True,
        "gamma": 0.97, "ent_coef": 0.01, "channels": 32, "features": 128,
    },
    "sb3_recurrent_ppo": {
        "num_envs": 64, "n_steps": 32, "batch_size": 512, "n_epochs": 2, "learning_rate": 1e-3, "anneal": True,
        "gamma": 0.97, "ent_coef": 0.01, "lstm_size": 128,
    },
    "sb3_dqn": {
        "num_envs": 64, "learning_rate": 1e-3, "anneal": True, "gamma": 0.97, "batch_size": 256, "train_freq": 1,
        "learning_starts": 5_000, "target_update_interval": 2_000, "exploration_fraction": 0.3, "width": 256,
    },
}  # fmt: skip
HAND = 4  # the trial that has these
# After a minute every trial of recurrent PPO was at the level of an untrained network: the search tells none apart.
CHOSEN = {"sb3_recurrent_ppo": HAND}


def draw(agent: str, trial: int) -> dict[str, Any]:
    """The changed settings of a trial; none in trial 0."""
    if trial == 0:
        return {}
    if trial == HAND and agent in BY_HAND:
        return BY_HAND[agent]
    generator = np.random.default_rng([zlib.crc32(agent.encode()), trial])
    drawn: dict[str, Any] = {}
    for name, space in SPACES[agent].items():
        if isinstance(space, tuple):
            drawn[name] = float(f"{np.exp(generator.uniform(*np.log(space))):.2e}")
        else:
            drawn[name] = space[int(generator.integers(len(space)))]
    if "minibatches" in drawn:
        drawn["batch_size"] = drawn["num_envs"] * drawn["n_steps"] // drawn.pop("minibatches")
    if "core.hidden_size" in drawn:
        drawn["core.inner_size"] = 2 * drawn["core.hidden_size"]
    return drawn


def command_of(agent: str, settings: dict[str, Any], seconds: float, place: Path | str) -> list[str]:
    """Arguments of `python` that train an agent on one core, with nothing evaluated but the validation levels."""
    limits = [f"total_steps={UNLIMITED}", f"max_seconds={seconds:g}", "clock=cpu"]
    same = [*limits, "eval_every=0", "test_episodes=0", "seed=0"]
    if agent in OURS:
        given = [f"{name}={value}" for name, value in settings.items()]
        alone = ["shards=1", "checkpoint_every=0", "keep_checkpoints=1", f"hydra.run.dir={place}"]
        begins = ["-m", "hrm_agent.train", "+earlier=november_2026", f"env={ENV}", "algo=ppo", f"core={agent}"]
        return [*begins, *given, *same, *alone]
    given = [f"settings.{name}={value}" for name, value in settings.items()]
    return ["-m", "hrm_agent.baselines", f"baseline={agent}", f"env={ENV}", *given, *same, f"out={place}"]


def result_of(agent: str, place: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    if agent in OURS:
        described = json.loads((place / "agents" / "last" / "agent.json").read_text())["info"]
    else:
        described = json.loads((place / "result.json").read_text())
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    sampled = [line["train/success"] for line in lines if "train/success" in line]
    return {
        "success": described["validation"]["success"],
        "success_ci95": described["validation"]["success_ci95"],
        "sampled_success": round(sampled[-1], 4) if sampled else None,
        "frames": described["frames"],
        "seconds": described["seconds"],
        "steps_per_second": round(described["frames"] / described["seconds"], 1),
        "parameters": described["parameters"],
    }


def run(agent: str, trial: int, seconds: float, jobs: int) -> None:
    """Train one trial in a process of its own and record it."""
    settings, place = draw(agent, trial), RUNS / f"{agent}_trial{trial}"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    commit, began = commit_of_code(), time.monotonic()
    with open(place.parent / f"{place.name}.log", "w") as log:
        command = [sys.executable, *command_of(agent, settings, seconds, place)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)  # for what this very process used
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        last = (place.parent / f"{place.name}.log").read_text().strip().splitlines()[-1:]
        print(f"{agent} trial {trial}: failed with {process.returncode}: {' '.join(last)}", flush=True)
        return
    record = {
        "agent": agent,
        "trial": trial,
        "settings": settings,
        **result_of(agent, place),
        "budget_seconds": seconds,
        "clock": "cpu",
        "wall_seconds": round(wall, 1),
        "cpu_share": round((used.ru_utime + used.ru_stime) / wall, 3),  # of one core, over the whole command
        "side_by_side": jobs,
        "env": ENV,
        "fog": False,
        "seed": 0,
        "commit": commit,
        "command": "python " + " ".join(command_of(agent, settings, seconds, "RUN")),
    }
    with _write:
        kept = [r for r in load(HERE / "tuning.json") if (r["agent"], r["trial"]) != (agent, trial)]
        records = sorted([*kept, record], key=lambda r: (r["agent"], r["trial"]))
        write_lines(HERE / "tuning.json", records)
    print(
        f"{agent} trial {trial}: success {record['success']:.3f} ({record['sampled_success']} sampled), "
        f"{record['frames']:,} frames in {record['seconds']:.0f} s, {record['cpu_share']:.2f} of a core",
        flush=True,
    )


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A JSON list, one record a line, replaced as a whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    temporary.replace(path)


def best_of(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of every agent the trial in `CHOSEN`, or the best: validation success, sampled success, then the earlier one."""

    def worth(record: dict[str, Any]) -> tuple[bool, float, float, int]:
        chosen = record["trial"] == CHOSEN.get(record["agent"])
        return chosen, record["success"], record["sampled_success"] or 0.0, -record["trial"]

    agents = sorted({r["agent"] for r in records})
    return {agent: max((r for r in records if r["agent"] == agent), key=worth) for agent in agents}


def write_best() -> None:
    best = best_of(load(HERE / "tuning.json"))
    kept = {
        a: {"trial": r["trial"], "success": r["success"], "seconds": r["seconds"], "settings": r["settings"]}
        for a, r in best.items()
    }
    (HERE / "tuned.json").write_text(json.dumps(kept, indent=2) + "\n")
    for agent, record in best.items():
        print(f"{agent}: trial {record['trial']}, success {record['success']:.3f}, {record['settings']}")


def missing(agents: list[str], trials: int) -> list[tuple[str, int]]:
    """One trial of every agent before the next, so that a search that is cut short is still the same for all."""
    known = {(r["agent"], r["trial"]) for r in load(HERE / "tuning.json")}
    return [(agent, trial) for trial in range(trials) for agent in agents if (agent, trial) not in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side, one core each")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time in training")
    parser.add_argument("--agents", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--write", action="store_true", help="only write tuned.json")
    options = parser.parse_args()
    if not options.write:
        jobs = missing(options.agents, options.trials)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda job: run(*job, options.seconds, options.jobs), jobs))
    write_best()


if __name__ == "__main__":
    main()
