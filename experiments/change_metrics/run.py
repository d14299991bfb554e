"""What changes do to agents, by the former measures and by pairs of worlds, on the same levels.

`python -m experiments.change_metrics.run` plays what `agents.yaml` lists and has no record yet, writes `results.json`
and `pairs.json`, and redraws the page; with names of worlds, those alone. Runs are taken from `runs/studies`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.change_metrics import old
from experiments.engine.machine import command, commit_of_code
from experiments.engine.pages import draw, settings_of
from experiments.engine.records import RUNS, Record, load, put
from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import load_agent
from hrm_agent.evaluation.change import list_pairs, summarize_pairs
from hrm_agent.evaluation.counterfactual import play_pairs
from hrm_agent.evaluation.episodes import Actor, PolicyActor, RandomActor, ReplanActor
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.recurrence import use

HERE = Path(__file__).resolve().parent
BATCH = 256
KEY = ("world", "agent", "seed")


def jobs(settings: dict[str, Any]) -> Iterator[Record]:
    """World, agent and seed of every record, and what it takes to make it."""
    for world, what in settings["worlds"].items():
        for name, player in what["players"].items():
            for seed in player.get("seeds", [0]):
                yield {"world": world, "agent": name, "seed": seed, "player": player}


def run_of(job: Record) -> Path | None:
    """The folder of the run that trained a player, if it is of one."""
    return RUNS / job["player"]["run"].format(seed=job["seed"]) if "run" in job["player"] else None


def make_actor(job: Record) -> Callable[[], Actor]:
    """A player, greedy."""
    player = job["player"]
    if job["agent"] in ("random", "bfs_replanner"):
        return RandomActor if job["agent"] == "random" else ReplanActor
    run = run_of(job)
    overrides = AgentOverrides(**player.get("overrides", {}))
    agent = load_agent(None if run is None else str(run), player.get("agent"), True, overrides)
    use(agent.policy, "fused")
    return partial(PolicyActor, agent.policy)


def measure(job: Record, settings: dict[str, Any]) -> tuple[Record, Record]:
    """The record of a player, and its pairs."""
    world, make, split = settings["worlds"][job["world"]], make_actor(job), settings["split"]
    env, options, n = world["env"], world["options"], settings["episodes"]
    levels = np.arange(n)
    parts = [old.play(make(), env, options, part, split) for part in np.split(levels, range(BATCH, n, BATCH))]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pairs = play_pairs(make, env, options, levels[found["replaced"]], split, BATCH)
    own = {name: job[name] for name in KEY}
    successes = int(found["success"].sum())
    record = {
        **own,
        "env": env,
        "env_options": options,
        "split": split,
        "episodes": n,
        "success": successes / n,
        "success_ci95": list(wilson_interval(successes, n)),
        **old.summarize(found),
        "material_changes": len(found["regret"]),
        **{f"pair_{name}" if name.startswith("success") else name: v for name, v in summarize_pairs(pairs, n).items()},
        "command": command(),
        "commit": commit_of_code(),
    }
    return record, {**own, "pairs": list_pairs(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", metavar="WORLD")
    wanted = parser.parse_args().worlds
    torch.set_num_threads(1)
    settings = settings_of(HERE, "agents.yaml")
    known = {tuple(record[name] for name in KEY) for record in load(HERE / "results.json")}
    for job in jobs(settings):
        name = f"{job['world']}, {job['agent']}, seed {job['seed']}"
        if tuple(job[field] for field in KEY) in known or (wanted and job["world"] not in wanted):
            continue
        if (run := run_of(job)) is not None and not (run / "agents").exists():
            print(f"{name}: left out, {run} has no agent", flush=True)
            continue
        record, pairs = measure(job, settings)
        put(HERE / "pairs.json", [pairs], KEY)
        put(HERE / "results.json", [record], KEY)
        print(f"{name}: success {record['success']:.3f}", flush=True)
    draw(HERE)


if __name__ == "__main__":
    main()
