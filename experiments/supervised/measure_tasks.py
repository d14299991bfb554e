"""Measure what the puzzle tasks yield: writes tasks.json here and the table of docs/supervised/tasks.md.

    python experiments/supervised/measure_tasks.py

takes about a minute on one core. Every set is made anew, whatever is kept on disk.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.pages import draw
from experiments.engine.turns import median_seconds
from hrm_agent.supervised.tasks.maze import MazeTask
from hrm_agent.supervised.tasks.maze_rules import PATH
from hrm_agent.supervised.tasks.sudoku import SudokuTask
from hrm_agent.supervised.tasks.sudoku_sets import Difficulty, make

HERE = Path(__file__).resolve().parent
MAZES: dict[str, dict[str, Any]] = {
    "maze, 9x9 cells": {},
    "maze, 9x9 cells, loops 0.3, unique": {"loops": 0.3, "unique": True},
    "maze, 15x15 cells, path of 111 or more": {"rows": 15, "cols": 15, "min_path": 111},
    "maze, 15x15 cells, path of 111 or more, loops 0.1": {"rows": 15, "cols": 15, "min_path": 111, "loops": 0.1},
}
SUDOKUS = {
    "Sudoku, no guess": Difficulty(0, 0, 0),
    "Sudoku, any": Difficulty(0, -1, 0),
    "Sudoku, 5 guesses or more": Difficulty(5, -1, 0),
    "Sudoku, 14 guesses or more": Difficulty(14, -1, 0),
}
PUZZLES = 1000
BATCH = 128


def summary(numbers: np.ndarray) -> dict[str, float]:
    """Mean and quantiles."""
    quantiles = {f"p{q}": float(np.percentile(numbers, q)) for q in (5, 25, 50, 75, 95)}
    return {"mean": float(numbers.mean()), "least": float(numbers.min()), **quantiles, "most": float(numbers.max())}


def measure_maze(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A record: fresh mazes per second, and the lengths of their paths."""
    task, generator = MazeTask(**options), np.random.default_rng(0)
    seconds = median_seconds(lambda: task.draw(generator, BATCH))
    paths = (task.examples("test", PUZZLES).labels == PATH).sum(1) + 1
    return {"puzzles": name, "options": options, "per_second": BATCH / seconds, "path": summary(paths)}


def measure_sudoku(name: str, difficulty: Difficulty) -> dict[str, Any]:
    """A record: new puzzles per second, their guesses and clues."""
    make(difficulty, "train", np.zeros(1, np.int64))
    begun = time.perf_counter()
    made = make(difficulty, "train", np.arange(PUZZLES))
    seconds = time.perf_counter() - begun
    clues = (made.clues > 0).sum(1)
    options = {"min_guesses": difficulty.min_guesses, "max_guesses": difficulty.max_guesses}
    return {
        "puzzles": name,
        "options": options,
        "per_second": PUZZLES / seconds,
        "guesses": summary(made.guesses),
        "clues": summary(clues),
    }


def measure_sets() -> dict[str, float]:
    """Milliseconds to draw a batch from a fixed set of 1,000, augmented."""
    tasks = {"maze": MazeTask(train_puzzles=PUZZLES), "sudoku": SudokuTask(train_puzzles=PUZZLES)}
    generator = np.random.default_rng(0)
    return {
        name: 1e3 * median_seconds(lambda task=task: task.draw(generator, BATCH))  # type: ignore[misc]
        for name, task in tasks.items()
    }


def main() -> None:
    """Measure, write the records and the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        records = [measure_maze(name, options) for name, options in MAZES.items()]
        records += [measure_sudoku(name, difficulty) for name, difficulty in SUDOKUS.items()]
        measured = {
            "command": "python experiments/supervised/measure_tasks.py",
            "machine": f"one core, {platform.machine()}",
            "batch": BATCH,
            "milliseconds_per_batch_from_a_set_of_1000": measure_sets(),
            "records": records,
        }
    (HERE / "tasks.json").write_text(json.dumps(measured, indent=1) + "\n")
    draw(HERE)


if __name__ == "__main__":
    main()
