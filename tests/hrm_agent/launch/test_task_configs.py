"""Shipped settings of tasks hold every option, and the page of tasks says what was measured."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import yaml

from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.maze import MazeTask
from hrm_agent.supervised.tasks.published_csv import CsvTask
from hrm_agent.supervised.tasks.sudoku import SudokuTask

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = {
    "maze": MazeTask,
    "maze_hard": MazeTask,
    "sudoku": SudokuTask,
    "sudoku_extreme": SudokuTask,
    "csv": CsvTask,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_files_hold_every_option(name: str) -> None:
    options = yaml.safe_load((ROOT / "configs" / "task" / f"{name}.yaml").read_text())
    kind = options.pop("name")
    assert set(options) == set(inspect.signature(SHIPPED[name]).parameters) - {"seed"}
    if kind == name:  # the plain ones have the defaults
        for option, parameter in inspect.signature(SHIPPED[name]).parameters.items():
            assert option == "seed" or parameter.default in (inspect.Parameter.empty, options[option]), option
    if name == "csv":
        assert options["train"] == options["test"] == "???"
        return
    task = build_task(kind, {**options, "train_puzzles": 4})
    assert isinstance(task, SHIPPED[name])
    drawn = task.draw(np.random.default_rng(0), 4)
    assert task.score(drawn, drawn.labels)["valid"].all()
    if name == "maze_hard":
        assert task.spec.grid == (31, 31)
        assert ((drawn.labels == 5).sum(1) + 1 > 110).all()
