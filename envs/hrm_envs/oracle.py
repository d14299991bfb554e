# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Shortest distances, optimal actions, earliest arrival and what a level holds, given perfect knowledge."""

import numpy as np

from hrm_envs.cells import DOOR, WALL
from hrm_envs.jit import assign, kernel
from hrm_envs.rng import mix
from hrm_envs.schedule import STATIC, advance_doors, advance_goal

CUT_OFF = -1


@kernel
def shortest_distances(grid, offsets, goal, distances, queue):
    """Steps to the goal from every position, around walls and doors that are closed now.

    Args:
        grid: uint8 [G] of Cell ids. ``offsets``: int32 [4]. ``goal``: position.
        distances: int32 [G], overwritten; -1 where the goal cannot be reached.
        queue: int32 [G], scratch.
    """
    distances[:] = CUT_OFF
    distances[goal] = 0
    queue[0] = goal
    head, tail = 0, 1
    while head < tail:
        position = queue[head]
        head += 1
        for k in range(4):
            neighbour = position + offsets[k]
            if distances[neighbour] < 0 and grid[neighbour] != WALL and grid[neighbour] != DOOR:
                distances[neighbour] = distances[position] + 1
                queue[tail] = neighbour
                tail += 1


@kernel
def optimal_actions(offsets, distances, position, mask):
    """Mark in ``mask`` bool [4] the actions on a shortest path; none when cut off or at the goal."""
    here = distances[position]
    for k in range(4):
        # Blocked positions hold -1, which is never here - 1 for here > 0.
        mask[k] = here > 0 and distances[position + offsets[k]] == here - 1


@kernel
def clairvoyant_arrival(rules, geometry, state, sizes):
    """Earliest possible arrival in every environment, by forward reachability over time.

    Uses the schedule of doors and goal up to the time limit. An agent can wait only by a blocked move, so a
    position stays reachable from one step to the next only if one of its neighbours is blocked at that time. A
    door stays open while an agent stands in it.

    Args:
        rules, geometry, state: of a batch of N mazes; not changed.
        sizes: ``hrm_envs.sizes.Sizes`` of mazes in a frame, or None.

    Returns:
        int32 [N]: steps from now, -1 if no sequence of actions arrives in time.
    """
    size = state.grid.shape[1]
    arrival = np.full(len(state.agent), CUT_OFF, np.int32)
    grid = np.empty(size, np.uint8)
    doors, closed = np.empty_like(state.doors[0]), np.empty_like(state.closed[0])
    here, following = np.empty(size, np.uint8), np.empty(size, np.uint8)
    queue, seen = np.empty(size, np.int32), np.empty(size, np.uint8)
    offsets = geometry.offsets
    still = (len(doors) == 0 or rules.p_change == 0.0) and (rules.goal_process == STATIC or rules.goal_threshold == 0)
    for i in range(len(arrival)):
        limit = np.int64(rules.limit if sizes is None else sizes.limits[state.size[i]])
        # A map that never changes is explored after as many steps as it has positions.
        last = min(limit, np.int64(state.steps[i] + size)) if still else limit
        seed, goal = state.level_seed[i], np.int64(state.goal[i])
        assign(grid, state.grid[i])
        grid[state.agent[i]] = 0
        assign(doors, state.doors[i])
        assign(closed, state.closed[i])
        for k in range(len(doors)):
            if closed[k]:
                grid[doors[k]] = DOOR
        here[:] = 0
        here[state.agent[i]] = 1
        if state.agent[i] == goal:
            arrival[i] = 0
            continue
        for step in range(state.steps[i] + 1, last + 1):
            following[:] = 0
            for position in range(size):
                if here[position]:
                    for k in range(4):
                        neighbour = position + offsets[k]
                        blocked = grid[neighbour] == WALL or grid[neighbour] == DOOR
                        following[position if blocked else neighbour] = 1
            if not following[goal]:
                advance_doors(
                    seed, step, rules.door_process, rules.p_change, rules.change_threshold,
                    state.open_edges[i], state.open_count[i], grid, -1, doors, closed, state.spans[i], True,
                )  # fmt: skip
                goal = advance_goal(
                    seed, step, rules.goal_process, rules.goal_threshold, grid, geometry.is_cell, offsets,
                    goal, queue, seen,
                )  # fmt: skip
            if following[goal]:
                arrival[i] = step - state.steps[i]
                break
            here, following = following, here
    return arrival


@kernel
def level_codes(rules, geometry, state, sizes):
    """A hash of what a level holds, at the start of an episode: its map, then every map and goal of its schedule.

    Where in a frame the maze lies does not enter.

    Args:
        rules, geometry, state: of a batch of N mazes; not changed.
        sizes: ``hrm_envs.sizes.Sizes`` of mazes in a frame, or None.

    Returns:
        uint64 [N]: equal for two levels of the same parameters exactly if nothing tells them apart up to the time
        limit (by chance with probability 2**-64).
    """
    size = state.grid.shape[1]
    codes = np.zeros(len(state.agent), np.uint64)
    grid = np.empty(size, np.uint8)
    doors, closed = np.empty_like(state.doors[0]), np.empty_like(state.closed[0])
    queue, seen = np.empty(size, np.int32), np.empty(size, np.uint8)
    width = np.int64(geometry.offsets[2])
    for i in range(len(codes)):
        corner, rows, cols, limit = np.int64(0), size // width, width, np.int64(rules.limit)
        if sizes is not None:
            own = state.size[i]
            corner, rows, cols = np.int64(state.corner[i]), np.int64(sizes.height[own]), np.int64(sizes.width[own])
            limit = np.int64(sizes.limits[own])
        seed, goal = state.level_seed[i], np.int64(state.goal[i])
        assign(grid, state.grid[i])
        assign(doors, state.doors[i])
        assign(closed, state.closed[i])
        code, shown = np.uint64(0), np.uint64(0)
        for step in range(state.steps[i], limit + 1):
            changed = step == state.steps[i]
            if not changed:
                changed = advance_doors(
                    seed, step, rules.door_process, rules.p_change, rules.change_threshold,
                    state.open_edges[i], state.open_count[i], grid, -1, doors, closed, state.spans[i], True,
                )  # fmt: skip
                before = goal
                goal = advance_goal(
                    seed, step, rules.goal_process, rules.goal_threshold, grid, geometry.is_cell, geometry.offsets,
                    goal, queue, seen,
                )  # fmt: skip
                changed = changed or goal != before
            if changed:
                down, across = goal // width - corner // width, goal % width - corner % width
                now = np.uint64(down * cols + across)
                for row in range(rows):
                    for col in range(cols):
                        now = mix(now ^ np.uint64(grid[corner + row * width + col]))
                if now != shown:  # doors may be redrawn where they were
                    code = mix(mix(code ^ now) ^ np.uint64(step))
                    shown = now
        codes[i] = code
    return codes
