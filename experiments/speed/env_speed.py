"""Steps per second of DynamicMaze-v0 in a batch against MiniGrid-FourRooms-v0 stepped singly.

Both run on one core through their public interface with random actions and automatic resets, alternating in
one process so that a busy machine slows both; medians are compared. Writes ``env_speed.json`` beside it.

    OMP_NUM_THREADS=1 python experiments/speed/env_speed.py
"""

import argparse
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import minigrid  # noqa: F401 - registers its environments
import numpy as np

import hrm_envs  # noqa: F401 - registers its environments
from experiments.engine.machine import command, write
from experiments.engine.turns import by_turns

NUM_ENVS = 1024


def time_batch(env: Any, actions: np.ndarray) -> float:
    """Environment steps per second of a vector environment; it resets by itself."""
    begin = time.perf_counter()
    for action in actions:
        env.step(action)
    return actions.size / (time.perf_counter() - begin)


def time_single(env: Any, actions: np.ndarray) -> float:
    """Environment steps per second of a single environment, reset where an episode ends."""
    begin = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return actions.size / (time.perf_counter() - begin)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="alternations between the two environments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="2-core x86-64, no GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("env_speed.json"))
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = np.random.default_rng(options.seed)
    batch = gymnasium.make_vec("DynamicMaze-v0", num_envs=NUM_ENVS, vectorization_mode="vector_entry_point")
    single = gymnasium.make("MiniGrid-FourRooms-v0")
    batch.reset(seed=options.seed)
    single.reset(seed=options.seed)
    batch_actions = rng.integers(0, 4, (500, NUM_ENVS))
    single_actions = rng.integers(0, 7, 2000)
    # One round of each to load what is compiled and to leave the synchronised start behind.
    time_batch(batch, batch_actions)
    time_single(single, single_actions)
    measured = {
        "ours": lambda: time_batch(batch, batch_actions),
        "theirs": lambda: time_single(single, single_actions),
    }
    rounds = by_turns(measured, options.rounds)
    ours, theirs = map(median, rounds.values())
    result = {
        "command": command(),
        "seed": options.seed,
        "machine": options.machine,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("gymnasium", "minigrid", "numba", "numpy")},
        "num_envs": NUM_ENVS,
        "rounds": options.rounds,
        "dynamic_maze_steps_per_second": round(ours),
        "minigrid_four_rooms_steps_per_second": round(theirs),
        "ratio": round(ours / theirs),
        "all_rounds": [[round(a), round(b)] for a, b in zip(*rounds.values(), strict=True)],
    }
    write(options.out, result, indent=2)
    sys.stdout.write(
        f"DynamicMaze-v0 x {NUM_ENVS}: {ours:,.0f} steps/s; "
        f"MiniGrid-FourRooms-v0: {theirs:,.0f} steps/s; ratio {ours / theirs:,.0f}\n"
    )


if __name__ == "__main__":
    main()
