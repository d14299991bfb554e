"""Random maze parameters, and plain-Python references that share no code with the kernels."""

from collections import deque
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm_envs import Cell, MazeConfig
from hrm_envs.config import SPLITS

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


@st.composite
def maze_parameters(draw: Any, largest: int = 6) -> dict[str, Any]:
    """Any combination of parameters that ``MazeConfig`` takes."""
    layout = draw(st.sampled_from(["scatter", "braid", "four_rooms", "sutton_rooms"]))
    rows, cols = draw(st.integers(2, largest)), draw(st.integers(2, largest))
    if layout == "sutton_rooms":
        rows = cols = 6
    endpoints = draw(st.sampled_from(["cells", "anywhere"])) if layout in ("scatter", "sutton_rooms") else "cells"
    ends = 2 if endpoints == "anywhere" else 0  # passages that start and goal may take
    edges = rows * (cols - 1) + cols * (rows - 1)
    walls = draw(st.integers(0, edges - max(ends, 1))) if layout == "scatter" else 0
    room = {"scatter": edges - walls, "braid": rows * cols - 1}.get(layout, 4) - ends
    return {
        "rows": rows,
        "cols": cols,
        "layout": layout,
        "walls": walls,
        "doors": draw(st.integers(0, min(room, 8))),
        "loops": draw(st.sampled_from([0.0, 0.3, 1.0])) if layout == "braid" else 0.0,
        "door_process": draw(st.sampled_from(["reroll", "independent", "periodic"])),
        "p_change": draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        "goal_process": draw(st.sampled_from(["static", "jump", "walk"])),
        "p_goal": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "endpoints": endpoints,
        "view": draw(st.sampled_from(["full", 1, 2, 5])),
        "max_episode_steps": draw(st.integers(1, 60)),
        "split": draw(st.sampled_from(SPLITS)),
    }


@st.composite
def framed_parameters(draw: Any, largest: int = 6) -> dict[str, Any]:
    """Mazes of several sizes, or of one, somewhere in a frame; those in a frame alone may be no square."""
    parameters = draw(maze_parameters(largest).filter(lambda given: given["layout"] in ("scatter", "braid")))
    rows, cols = parameters["rows"], parameters["cols"]
    frame = draw(st.sampled_from([None, 0, 2, 6]))
    largest_side = 2 * max(rows, cols) + 1
    if draw(st.booleans()):
        sides = draw(st.lists(st.sampled_from(range(7, 2 * largest + 2, 2)), min_size=1, max_size=4, unique=True))
        largest_side = max(sides)
        parameters |= {"sizes": sides, "walls": None, "doors": min(parameters["doors"], 4)}
        if draw(st.booleans()):
            weights = st.lists(st.sampled_from([0, 1, 2.5]), min_size=len(sides), max_size=len(sides)).filter(any)
            begins = [0, *draw(st.sampled_from([[], [1], [2, 5]]))]
            parameters["size_schedule"] = [[episodes, *draw(weights)] for episodes in begins]
    elif frame is None:
        frame = 4
    if frame is not None:
        parameters["canvas"] = largest_side + frame
    return parameters


def edge_positions(config: MazeConfig) -> NDArray[np.bool_]:
    """bool [H, W], True between two neighbouring cells."""
    row, col = np.indices((config.height, config.width))
    inside = (row > 0) & (row < config.height - 1) & (col > 0) & (col < config.width - 1)
    return inside & (row % 2 != col % 2)


def distances_to(grid: NDArray[np.uint8], target: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Breadth-first steps to ``target`` past walls and closed doors."""
    found = {target: 0}
    queue = deque([target])
    while queue:
        here = queue.popleft()
        for dr, dc in MOVES:
            there = here[0] + dr, here[1] + dc
            if there not in found and grid[there] not in (Cell.WALL, Cell.DOOR):
                found[there] = found[here] + 1
                queue.append(there)
    return found


def optimal_mask(found: dict[tuple[int, int], int], here: tuple[int, int]) -> list[bool]:
    """The actions that lead one step nearer to the target of ``found``."""
    distance = found.get(here, -1)
    return [distance > 0 and found.get((here[0] + dr, here[1] + dc), -1) == distance - 1 for dr, dc in MOVES]
