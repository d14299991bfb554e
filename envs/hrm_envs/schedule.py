# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""The exogenous schedule: doors and goal as functions of (level seed, step) alone.

They are used by the environment, where a door does not close on the agent, and by the clairvoyant bound, which
looks ahead on a scratch copy without an agent (``agent=-1``).
"""

import numpy as np

from hrm_envs.cells import DOOR, EMPTY
from hrm_envs.config import DOOR_PROCESSES, GOAL_PROCESSES
from hrm_envs.jit import inner
from hrm_envs.levels import flood
from hrm_envs.rng import (
    STREAM_DOOR_DUE,
    STREAM_DOOR_PICK,
    STREAM_DOOR_SPAN,
    STREAM_GOAL_DUE,
    STREAM_GOAL_PICK,
    below,
    draw,
    happens,
)

REROLL, INDEPENDENT, PERIODIC = range(len(DOOR_PROCESSES))
STATIC, JUMP, WALK = range(len(GOAL_PROCESSES))
_FOREVER = 2**30


@inner
def _pick_doors(seed, step, open_edges, count, doors):
    """A uniform subset of the open edges, by Floyd's algorithm (exactly ``len(doors)`` draws, no retries)."""
    wanted = len(doors)
    for k in range(wanted):
        top = count - wanted + k
        edge = open_edges[below(draw(seed, STREAM_DOOR_PICK, step, k), top + 1)]
        for j in range(k):
            if doors[j] == edge:
                edge = open_edges[top]
                break
        doors[k] = edge


@inner
def _draw_span(seed, door, index, p_change):
    """A span of steps, uniform in ``[0.5, 1.5] / p_change`` and at least one."""
    low = max(1, int(min(0.5 / p_change + 0.5, _FOREVER)))
    high = max(low, int(min(1.5 / p_change + 0.5, _FOREVER)))
    return low + below(draw(seed, STREAM_DOOR_SPAN, door, index), high - low + 1)


@inner
def _set_door(grid, position, closed, agent):
    """Close or open a door in the grid. A door at the agent's position stays open until the agent leaves."""
    if position != agent:
        grid[position] = DOOR if closed else EMPTY


@inner
def _start_door(seed, process, p_change, k, closed, spans):
    """Draw whether door ``k`` of a fixed set is closed at step 0, and the spans of a periodic one."""
    if process == INDEPENDENT or p_change == 0.0:
        closed[k] = below(draw(seed, STREAM_DOOR_SPAN, k, 0), 2)
    else:
        spans[k, 0] = _draw_span(seed, k, 1, p_change)
        spans[k, 1] = _draw_span(seed, k, 2, p_change)
        spans[k, 2] = below(draw(seed, STREAM_DOOR_SPAN, k, 3), spans[k, 0] + spans[k, 1])
        closed[k] = spans[k, 2] < spans[k, 0]


@inner
def start_doors(seed, process, p_change, open_edges, count, grid, agent, doors, closed, spans, rare):
    """Draw the doors of step 0 into ``doors`` int32 [D], ``closed`` uint8 [D], ``spans`` int32 [D, 3].

    ``rare`` is None if the process is REROLL (``hrm_envs.kernel.Parts``).
    """
    _pick_doors(seed, 0, open_edges, count, doors)
    for k in range(len(doors)):
        closed[k] = 1
        if rare is not None and process != REROLL:
            _start_door(seed, process, p_change, k, closed, spans)
        _set_door(grid, doors[k], closed[k], agent)


@inner
def may_change(seed, step, door_process, change_threshold, goal_process, goal_threshold):
    """False if certainly nothing changes at ``step``, which holds for most steps and costs two draws to find out."""
    now = np.int64(step)
    return (
        door_process != REROLL
        or happens(draw(seed, STREAM_DOOR_DUE, now, 0), change_threshold)
        or (goal_process != STATIC and happens(draw(seed, STREAM_GOAL_DUE, now, 0), goal_threshold))
    )


@inner
def _reroll_doors(seed, step, threshold, open_edges, count, grid, agent, doors):
    if len(doors) == 0 or not happens(draw(seed, STREAM_DOOR_DUE, step, 0), threshold):
        return False
    for k in range(len(doors)):
        _set_door(grid, doors[k], np.uint8(0), agent)
    _pick_doors(seed, step, open_edges, count, doors)
    for k in range(len(doors)):
        _set_door(grid, doors[k], np.uint8(1), agent)
    return True


@inner
def _turn_doors(seed, step, process, p_change, threshold, grid, agent, doors, closed, spans):
    """Open and close the doors of a fixed set."""
    changed = False
    if process == INDEPENDENT:
        for k in range(len(doors)):
            if happens(draw(seed, STREAM_DOOR_DUE, step, k), threshold):
                closed[k] ^= 1
                _set_door(grid, doors[k], closed[k], agent)
                changed = True
    elif p_change > 0.0:
        for k in range(len(doors)):
            now = (np.int64(step) + spans[k, 2]) % (np.int64(spans[k, 0]) + spans[k, 1]) < spans[k, 0]
            if now != closed[k]:
                closed[k] = now
                _set_door(grid, doors[k], closed[k], agent)
                changed = True
    return changed


@inner
def advance_doors(seed, step, process, p_change, threshold, open_edges, count, grid, agent, doors, closed, spans, rare):
    """Advance the doors from ``step - 1`` to ``step``; True if the schedule has a change.

    ``rare`` is None if the process is REROLL (``hrm_envs.kernel.Parts``).
    """
    # The integer width used at the start of an episode, so that the functions called by both are compiled once.
    now, where = np.int64(step), np.int64(agent)
    if rare is not None and process != REROLL:
        return _turn_doors(seed, now, process, p_change, threshold, grid, where, doors, closed, spans)
    return _reroll_doors(seed, now, threshold, open_edges, np.int64(count), grid, where, doors)


@inner
def advance_goal(seed, step, process, threshold, grid, is_cell, offsets, goal, queue, seen):
    """The goal's position at ``step``, given its position at ``step - 1``. Does not change the grid."""
    if process == STATIC or not happens(draw(seed, STREAM_GOAL_DUE, step, 0), threshold):
        return goal
    choices = 0
    bits = draw(seed, STREAM_GOAL_PICK, step, 0)
    if process == JUMP:
        visited = flood(grid, offsets, goal, -1, queue, seen)
        for k in range(1, visited):
            if is_cell[queue[k]]:
                queue[choices] = queue[k]
                choices += 1
    else:
        for k in range(4):
            neighbour = goal + offsets[k]
            if not is_cell[neighbour] and grid[neighbour] != 1:
                neighbour += offsets[k]
            if is_cell[neighbour]:
                queue[choices] = neighbour
                choices += 1
    return goal if choices == 0 else queue[below(bits, choices)]
