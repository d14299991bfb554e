"""Registration of the environments with Gymnasium."""

import warnings
from typing import Any

import gymnasium

from hrm_envs.config import MazeConfig

# Parameters in which an id differs from ``MazeConfig``'s defaults; all can be overridden in ``make``.
MAZES: dict[str, dict[str, Any]] = {
    "DynamicMaze-v0": {},
    "DynamicGoalMaze-v0": {"goal_process": "jump", "p_goal": 0.05},
    # Four rooms of 3x3 positions on the default maze's 9x9 grid, one doorway of four closed.
    "DynamicFourRooms-v0": {"layout": "four_rooms"},
    "PaperMaze-v0": {"rows": 5, "cols": 6, "walls": 10, "doors": 5, "max_episode_steps": 80},
    "PaperFourRooms-v0": {"rows": 6, "cols": 6, "layout": "four_rooms", "doors": 1, "max_episode_steps": 80},
    # Start and goal as in the authors' code; v0 has them in cells only, and doorways anywhere.
    "PaperMaze-v1": {"rows": 5, "cols": 6, "walls": 10, "doors": 5, "endpoints": "anywhere", "max_episode_steps": 80},
    "PaperFourRooms-v1": {
        "rows": 6,
        "cols": 6,
        "layout": "sutton_rooms",
        "doors": 1,
        "endpoints": "anywhere",
        "max_episode_steps": 80,
    },
}
# Mazes that exist in MiniHack too, which is imported when one is made.
IN_MINIHACK = ("PaperMaze-v0", "PaperFourRooms-v0", "PaperMaze-v1", "PaperFourRooms-v1")

# Gymnasium calls an id out of date once a later version is there. These are other mazes, and stay.
_KEPT = r".*The environment (MiniHack)?Paper(Maze|FourRooms)-v0 is out of date"
warnings.filterwarnings("ignore", _KEPT, DeprecationWarning)


def register_envs() -> None:
    """Register every environment of the package; calling it again changes nothing."""
    for name, parameters in MAZES.items():
        _register(name, "hrm_envs.maze:make_maze", "hrm_envs.vector:MazeVectorEnv", parameters)
    for name in IN_MINIHACK:
        _register(f"MiniHack{name}", "hrm_envs.minihack.env:make_minihack_maze", None, MAZES[name])
    if "Hanoi-v0" not in gymnasium.registry:  # its time limit depends on the number of disks
        hanoi = "hrm_envs.hanoi:Hanoi"
        gymnasium.register("Hanoi-v0", entry_point=f"{hanoi}Env", vector_entry_point=f"{hanoi}VectorEnv")
    _register("CueMaze-v0", "hrm_envs.cue:make_cue_maze", "hrm_envs.cue:CueMazeVectorEnv", {"max_episode_steps": 20})
    chess = ("hrm_envs.endgames.env:make_chess_endgame", "hrm_envs.endgames.env:ChessEndgameVectorEnv")
    _register("ChessEndgame-v0", *chess, {"max_episode_steps": 50})


def _register(name: str, entry_point: str, vector_entry_point: str | None, parameters: dict[str, Any]) -> None:
    if name in gymnasium.registry:
        return
    # The limit of a single environment's wrapper and of a vector's kernel: ``hrm_envs.limits``.
    kwargs = {"max_episode_steps": MazeConfig.max_episode_steps, **parameters}
    limit = kwargs.pop("max_episode_steps")
    gymnasium.register(
        name, entry_point=entry_point, vector_entry_point=vector_entry_point, max_episode_steps=limit, kwargs=kwargs
    )
