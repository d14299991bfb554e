"""The cell ids of an observation, and the moves."""

from enum import IntEnum


class Cell(IntEnum):
    """Content of a grid position. ``DOOR`` is a closed door; an open door is ``EMPTY``."""

    EMPTY = 0
    WALL = 1
    DOOR = 2
    AGENT = 3
    GOAL = 4
    UNKNOWN = 5


# Plain integers, because numba compiles module-level ints as constants but boxes enum members.
EMPTY, WALL, DOOR, AGENT, GOAL, UNKNOWN = (int(cell) for cell in Cell)

# Row and column step of the actions N, E, S, W.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
ACTION_NAMES = ("N", "E", "S", "W")
