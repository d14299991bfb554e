"""Puzzle tasks by name: mazes, Sudoku, ARC-AGI, Towers of Hanoi, chess, files in the published formats, and texts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

from hrm_agent.cores.base import check_choice
from hrm_agent.names.values import checked, shown, types_of
from hrm_agent.supervised.tasks.base import Answers, Examples, Task, TaskSpec

__all__ = ["TASKS", "Answers", "Examples", "Task", "TaskSpec", "build_task", "task_class", "task_options"]

TASKS = {
    "maze": "maze:MazeTask",
    "maze_views": "maze_views:MazeViewsTask",
    "sudoku": "sudoku:SudokuTask",
    "arc": "arc:ArcTask",
    "hanoi": "hanoi:HanoiTask",
    "csv": "published_csv:CsvTask",
    "chess": "chess:ChessTask",
    "text": "text:TextTask",
}
"""Name -> module of this package and class; imported when used, as some need further packages."""


def task_class(name: str) -> Callable[..., Task]:
    """Raises: ValueError for an unknown name, the nearest being named."""
    module, _, kind = TASKS[check_choice("task", name, list(TASKS))].partition(":")
    found: Callable[..., Task] = getattr(import_module(f"hrm_agent.supervised.tasks.{module}"), kind)
    return found


def task_options(name: str) -> dict[str, Any]:
    """The options of a task with their defaults; `???` for one that must be given."""
    found: dict[str, Any] = {}
    for option in signature(task_class(name)).parameters.values():
        if option.name != "seed":
            default = "???" if option.default is option.empty else option.default
            found[option.name] = {} if default is None and str(option.annotation).startswith("dict") else default
    return found


def build_task(name: str, options: dict[str, Any], seed: int = 0) -> Task:
    """The task called `name`.

    Args:
        options: keyword arguments of the task's class, `task.NAME` on the command line.
        seed: of random choices at construction, such as the puzzles of a small training set.

    Raises:
        ValueError: an unknown task or option, or one out of range.
        ModuleNotFoundError: the task needs a package that is not installed; the message says which extra has it.
    """
    make, known, given = task_class(name), task_options(name), {}
    kinds = types_of(make)
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(known)
            raise ValueError(f"task.{option}={shown(value)}: no such option of {name}; expected one of {listed}")
        given[option] = checked(f"task.{option}", value, kinds[option])
    try:
        return make(**given, seed=seed)
    except TypeError as error:
        raise ValueError(f"task={name}: {error}") from None
