"""The categorical ids an observation is made of."""

from enum import IntEnum


class Cell(IntEnum):
    """What a grid position shows. ``DOOR`` is a closed door; an open one is ``EMPTY``."""

    EMPTY = 0
    WALL = 1
    DOOR = 2
    AGENT = 3
    GOAL = 4
    UNKNOWN = 5


# Plain integers: numba folds module-level ints into the machine code, enum members it would box.
EMPTY, WALL, DOOR, AGENT, GOAL, UNKNOWN = (int(cell) for cell in Cell)

# Row and column step of the actions N, E, S, W.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
ACTION_NAMES = ("N", "E", "S", "W")
