"""How new are test levels? `python -m experiments.levels.run` counts it (minutes, one core) and writes `repeats.json`.

For each world: how many of the first 1,000 test levels are among the levels seen before them (validation, development,
earlier test levels), and how many are met among the first 200,000 levels of training. Levels are compared as wholes
(first map, and the schedule of doors and goal up to the time limit) and by their first maps alone. A training run draws
its levels as the first episodes of 200,000 environment seeds are drawn here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.engine.machine import command, commit_of_code
from experiments.engine.pages import draw
from experiments.engine.records import Record, save
from hrm_agent.evaluation.level_sets import LevelSet, contents_of, count_repeats

HERE = Path(__file__).resolve().parent
TEST = 1000
AT_ONCE = 20_000
BRAID = {"layout": "braid", "loops": 0.5, "doors": 2, "p_change": 0.1}
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DynamicMaze-v0": ("DynamicMaze-v0", {}),
    "DynamicGoalMaze-v0": ("DynamicGoalMaze-v0", {}),
    "DynamicFourRooms-v0": ("DynamicFourRooms-v0", {}),
    "PaperMaze-v0": ("PaperMaze-v0", {}),
    "PaperMaze-v1": ("PaperMaze-v1", {}),
    "PaperFourRooms-v0": ("PaperFourRooms-v0", {}),
    "PaperFourRooms-v1": ("PaperFourRooms-v1", {}),
    "loops and two doors (carry_budget)": ("DynamicMaze-v0", BRAID),
    "perfect mazes (braid)": ("DynamicMaze-v0", {"layout": "braid", "loops": 0.0, "doors": 0}),
    "CueMaze-v0 (memory)": ("CueMaze-v0", {}),
}


def measure(world: str, training: int) -> Record:
    """The record of a world."""
    env, options = WORLDS[world]
    test = LevelSet(env, options, count=TEST)
    wholes: set[int] = set()
    starts: set[bytes] = set()
    for first in range(0, training, AT_ONCE):
        part = contents_of(LevelSet(env, options, "train", first, min(AT_ONCE, training - first)))
        wholes.update(part.wholes)
        starts.update(part.starts)
    own = contents_of(test)
    return {
        "world": world,
        "env": env,
        "env_options": options,
        "split": test.split,
        "first": test.first,
        "levels": test.count,
        **count_repeats(test),
        "training_levels": training,
        "trained_on": sum(whole in wholes for whole in own.wholes),
        "trained_on_start": sum(start in starts for start in own.starts),
        "different_training_starts": len(starts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--training", type=int, default=200_000, metavar="N", help="levels of training")
    training = parser.parse_args().training
    about = {"command": command(), "commit": commit_of_code()}
    records = []
    for world in WORLDS:
        records.append({**measure(world, training), **about})
        print({name: value for name, value in records[-1].items() if name not in about}, flush=True)
    save(HERE / "repeats.json", records)
    draw(HERE)


if __name__ == "__main__":
    main()
