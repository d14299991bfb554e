"""The mazes of this package in NetHack, through MiniHack (arXiv 2109.13202).

Level i here is level i of ``MazeEnv``: the same walls, doors, start and goal, and the same schedule. NetHack runs the
level: it decides moves, collisions and arrival, and draws the screen. Requires the extra ``minihack``, which is
imported when an environment is made.

    des_file   a level as a des-file, NetHack's language for levels
    doors      the schedule of the doors, computed by the functions of ``MazeEnv``
    terrain    opens and closes doors of a running game
    glyphs     NetHack's glyphs as ``hrm_envs.Cell`` ids
    env        the environment
"""

from hrm_envs.minihack.env import MiniHackMazeEnv

__all__ = ["MiniHackMazeEnv"]
