"""A level as a des-file, NetHack's language for levels.

Reference: https://nethackwiki.com/wiki/Des-file_format; MiniHack compiles it with NetHack's own level compiler.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import DOOR, WALL

# NetHack's limits: a map of 21 rows and 79 columns less a margin, and 120 doors per level (DOORMAX).
MAX_HEIGHT, MAX_WIDTH, MAX_DOORS = 19, 75, 120


def write_des_file(grid: NDArray[np.uint8], edges: Iterable[int], start: tuple[int, int], goal: tuple[int, int]) -> str:
    """The des-file of one level: walls, a doorway on every edge where a door may be, stairs down as the goal.

    The map is lit, and known from the start (``premapped``), as in ``MazeEnv`` with a full view.

    Args:
        grid: uint8 [H, W] of ``Cell`` ids; only walls and closed doors are read.
        edges: flat positions where a door may be; those that are ``DOOR`` in ``grid`` start closed.
        start, goal: (row, column).
    """
    height, width = grid.shape
    lines = [
        "MAZE:\"mylevel\",' '",  # the level that MiniHack loads
        "FLAGS:noteleport,hardfloor,premapped",
        "GEOMETRY:center,center",
        "MAP",
        *("".join(_wall_or_floor(grid, row, col) for col in range(width)) for row in range(height)),
        "ENDMAP",
        f'REGION:(0,0,{width - 1},{height - 1}),lit,"ordinary"',
        f"BRANCH:{_square(*start)},(0,0,0,0)",  # stairs up, where the agent starts
        f"STAIR:({goal[1]},{goal[0]}),down",
    ]
    for edge in edges:
        row, col = divmod(int(edge), width)
        lines.append(f"DOOR:{'closed' if grid[row, col] == DOOR else 'nodoor'},({col},{row})")
    return "\n".join(lines) + "\n"


def _wall_or_floor(grid: NDArray[np.uint8], row: int, col: int) -> str:
    """One character of the map. NetHack joins walls by itself, corners and crossings included."""
    if grid[row, col] != WALL:
        return "."
    inside = 0 < row < len(grid) - 1
    return "|" if inside and grid[row - 1, col] == WALL and grid[row + 1, col] == WALL else "-"


def _square(row: int, col: int) -> str:
    return f"({col},{row},{col},{row})"
