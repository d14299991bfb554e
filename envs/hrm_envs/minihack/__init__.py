"""The mazes of this package, built and played in NetHack by MiniHack (arXiv 2109.13202).

Level i here is level i of the fast environment: the same walls, doors, start and goal, and the same schedule. The
levels, the moves, what blocks them, the arrival and the picture are NetHack's. Needs the extra ``minihack``; nothing
of it is imported before an environment is made.

    des_file   a level as a des-file, NetHack's own language for levels
    doors      the doors' schedule, from the functions that the fast environment uses
    terrain    doors of a running game opened and closed
    glyphs     NetHack's picture as the ids of ``hrm_envs.Cell``
    env        the environment
"""

from hrm_envs.minihack.env import MiniHackMazeEnv

__all__ = ["MiniHackMazeEnv"]
