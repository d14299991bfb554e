"""The choices of `task` make the tasks that their files describe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hrm_agent.launch.cli import compose_config
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.maze import MazeTask
from hrm_agent.supervised.tasks.published_csv import CsvTask
from hrm_agent.supervised.tasks.sudoku import SudokuTask

SHIPPED = {
    "maze": MazeTask,
    "maze_hard": MazeTask,
    "sudoku": SudokuTask,
    "sudoku_extreme": SudokuTask,
    "csv": CsvTask,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tasks_can_be_solved(name: str) -> None:
    options: Any = OmegaConf.to_container(compose_config([], f"task/{name}").task)
    kind = options.pop("name")
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
