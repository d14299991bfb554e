"""Mazes whose doors and goals move, for reinforcement learning: Gymnasium environments on a numba kernel.

Importing the package registers the environments, so that ``gymnasium.make("DynamicMaze-v0")`` and
``gymnasium.make_vec("DynamicMaze-v0", num_envs=64)`` work; without it, ``"hrm_envs:DynamicMaze-v0"`` imports it, since
Gymnasium loads no plugins. Importing compiles nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hrm_envs.registration import register_envs

if TYPE_CHECKING:
    from hrm_envs.cells import Cell
    from hrm_envs.config import MazeConfig
    from hrm_envs.cue import CueConfig, CueMazeEnv, CueMazeVectorEnv
    from hrm_envs.endgames.batch import EndgameConfig
    from hrm_envs.endgames.env import ChessEndgameEnv, ChessEndgameVectorEnv
    from hrm_envs.hanoi import HanoiConfig, HanoiEnv, HanoiVectorEnv
    from hrm_envs.maze import MazeEnv
    from hrm_envs.planners import RandomPolicy, ReplanPolicy
    from hrm_envs.rendering import render_ansi, render_grid
    from hrm_envs.vector import MazeVectorEnv

__all__ = [
    "Cell",
    "ChessEndgameEnv",
    "ChessEndgameVectorEnv",
    "CueConfig",
    "CueMazeEnv",
    "CueMazeVectorEnv",
    "EndgameConfig",
    "HanoiConfig",
    "HanoiEnv",
    "HanoiVectorEnv",
    "MazeConfig",
    "MazeEnv",
    "MazeVectorEnv",
    "RandomPolicy",
    "ReplanPolicy",
    "register_envs",
    "render_ansi",
    "render_grid",
]

_MODULES = {
    "ChessEndgameEnv": "endgames.env", "ChessEndgameVectorEnv": "endgames.env", "EndgameConfig": "endgames.batch",
    "Cell": "cells", "CueConfig": "cue", "CueMazeEnv": "cue", "CueMazeVectorEnv": "cue", "MazeConfig": "config",
    "MazeEnv": "maze", "MazeVectorEnv": "vector", "RandomPolicy": "planners", "ReplanPolicy": "planners",
    "render_ansi": "rendering", "render_grid": "rendering",
    "HanoiConfig": "hanoi", "HanoiEnv": "hanoi", "HanoiVectorEnv": "hanoi",
}  # fmt: skip

register_envs()


def __getattr__(name: str) -> Any:
    """The public names and the modules, imported at first use: numba, which most need, takes half a second."""
    if name in _MODULES:
        globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return globals()[name]
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
