# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""The only implementation of a maze's rules: reset and step of a batch over struct-of-arrays state."""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL, UNKNOWN, WALL
from hrm_envs.config import DOOR_PROCESSES, GOAL_PROCESSES, SPLITS, MazeConfig
from hrm_envs.jit import assign, hot_kernel, inner
from hrm_envs.levels import Geometry, draw_level, layout_index
from hrm_envs.oracle import optimal_actions, shortest_distances
from hrm_envs.rng import level_seed
from hrm_envs.schedule import advance_doors, advance_goal, may_change, start_doors
from hrm_envs.sizes import Sizes, draw_corner, draw_size, lay_out

GOAL_REWARD = 1.0
STEP_REWARD = -0.01
FULL_VIEW = -1
RESET, STEP, STEP_AND_RESET = range(3)
# Columns of the oracle's masks: optimal actions, those on the map before this step's change, and two flags.
OPTIMAL, STALE, CHANGED, MATERIAL = slice(0, 4), slice(4, 8), 8, 9


class Rules(NamedTuple):
    """A ``MazeConfig`` as numbers for the kernel (probabilities also as 53-bit thresholds)."""

    layout: int
    walls: int
    loops: float
    door_process: int
    p_change: float
    change_threshold: int
    goal_process: int
    goal_threshold: int
    radius: int
    oracle: bool
    limit: int
    split: int


class State(NamedTuple):
    """Complete state of N environments, one row each; G grid positions, E edges, D doors.

    ``shown`` is [N, 0] with a full view (the grid is the observation), ``spans`` [N, 0, 3] unless doors are
    periodic, and ``distances`` [N, 0] without the oracle.
    """

    env_seed: NDArray[np.int64]  # [N]
    episode: NDArray[np.int64]  # [N]
    level_seed: NDArray[np.int64]  # [N]
    steps: NDArray[np.int32]  # [N] steps taken in this episode
    agent: NDArray[np.int32]  # [N] flat grid position
    goal: NDArray[np.int32]  # [N] flat grid position
    done: NDArray[np.uint8]  # [N] episode over and not yet reset (single environments only)
    grid: NDArray[np.uint8]  # [N, G] the full map with agent, goal and closed doors
    shown: NDArray[np.uint8]  # [N, G] the part of it that fog does not hide
    open_edges: NDArray[np.int32]  # [N, E] where doors may be: the first open_count entries
    open_count: NDArray[np.int32]  # [N]
    doors: NDArray[np.int32]  # [N, D] positions of the scheduled doors
    closed: NDArray[np.uint8]  # [N, D] whether they are closed under the schedule
    spans: NDArray[np.int32]  # [N, D, 3] closed span, open span, phase
    distances: NDArray[np.int32]  # [N, G] from every position to the goal


def _extended(name: str, kind: Any, *fields: str) -> Any:
    """A named tuple with the fields of another, and more."""
    return namedtuple(name, (*kind._fields, *fields))


FramedState = _extended("FramedState", State, "size", "corner")
"""``State`` of mazes in a frame (``hrm_envs.sizes``): with int32 [N] each, the index of the size, and the flat position
of the maze's first corner."""


class Outcome(NamedTuple):
    """Results of a step; the next step overwrites every array."""

    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    ended: NDArray[np.bool_]  # [N]
    success: NDArray[np.bool_]  # [N]
    final_obs: NDArray[np.uint8]  # [N, G] valid where ended
    episode_return: NDArray[np.float64]  # [N] 0 where not ended
    episode_length: NDArray[np.int64]  # [N] 0 where not ended
    distance: NDArray[np.int32]  # [N] or [0]
    masks: NDArray[np.bool_]  # [N, 10] or [0, 10]
    final_distance: NDArray[np.int32]  # as distance, where ended
    final_masks: NDArray[np.bool_]  # as masks, where ended


class Scratch(NamedTuple):
    """Scratch memory of the kernel, which allocates nothing; undefined between calls."""

    queue: NDArray[np.int32]  # [G]
    seen: NDArray[np.uint8]  # [G]
    before: NDArray[np.uint8]  # [G]


def build_scratch(size: int) -> Scratch:
    """Allocate scratch memory for grids of ``size`` positions."""
    return Scratch(np.zeros(size, np.int32), np.zeros(size, np.uint8), np.zeros(size, np.uint8))


def build_rules(config: MazeConfig) -> Rules:
    """The rules of a configuration."""
    assert config.walls is not None
    return Rules(
        layout=layout_index(config),
        walls=int(config.walls),
        loops=float(config.loops),
        door_process=DOOR_PROCESSES.index(config.door_process),
        p_change=float(config.p_change),
        change_threshold=int(config.p_change * 2**53),
        goal_process=GOAL_PROCESSES.index(config.goal_process),
        goal_threshold=int(config.p_goal * 2**53),
        radius=FULL_VIEW if config.view == "full" else min(int(config.view), 2**16),
        oracle=config.oracle,
        limit=int(config.max_episode_steps),
        split=SPLITS.index(config.split),
    )


class Parts(NamedTuple):
    """The parts of the rules that a configuration needs, as arguments of the kernel: None or True.

    numba removes the code behind ``if part is not None`` before compilation if the argument is None. The default maze
    needs less than half of the rules, and compiles that much sooner.

    Attributes:
        rare: layouts other than ``scatter`` with start and goal in cells, doors other than ``reroll``, moving goals,
            fog. The oracle is always compiled with them, and both with mazes in a frame (``hrm_envs.sizes``), so that
            there are four variants of the kernel.
        oracle: the oracle.
    """

    rare: bool | None
    oracle: bool | None


def needed_parts(config: MazeConfig) -> Parts:
    """The smallest ``Parts`` for ``config``."""
    if config.is_framed:
        return Parts(True, True)
    common = ("scatter", "cells", "reroll", "static", "full")
    if (config.layout, config.endpoints, config.door_process, config.goal_process, config.view) != common:
        return Parts(True, True)
    return Parts(None, True if config.oracle else None)


def build_state(config: MazeConfig, geometry: Geometry, sizes: Sizes | None, num_envs: int) -> State | Any:
    """Allocate the state of ``num_envs`` environments, to be seeded and reset; a ``FramedState`` where there are sizes.

    Args:
        geometry: of the whole observation.
    """
    assert config.doors is not None
    size = len(geometry.template)
    edges = len(geometry.edges) if sizes is None else sizes.edges.shape[1]
    edges = edges or 4  # four_rooms has none, and four doorways
    periodic = config.door_process == "periodic"
    state = State(
        env_seed=np.zeros(num_envs, np.int64),
        episode=np.full(num_envs, -1, np.int64),
        level_seed=np.zeros(num_envs, np.int64),
        steps=np.zeros(num_envs, np.int32),
        agent=np.zeros(num_envs, np.int32),
        goal=np.zeros(num_envs, np.int32),
        done=np.zeros(num_envs, np.uint8),
        grid=np.zeros((num_envs, size), np.uint8),
        shown=np.zeros((num_envs, 0 if config.view == "full" else size), np.uint8),
        open_edges=np.zeros((num_envs, edges), np.int32),
        open_count=np.zeros(num_envs, np.int32),
        doors=np.zeros((num_envs, config.doors), np.int32),
        closed=np.zeros((num_envs, config.doors), np.uint8),
        spans=np.zeros((num_envs, config.doors if periodic else 0, 3), np.int32),
        distances=np.zeros((num_envs, size if config.oracle else 0), np.int32),
    )
    if sizes is None:
        return state
    return FramedState(*state, size=np.zeros(num_envs, np.int32), corner=np.zeros(num_envs, np.int32))


def build_outcome(num_envs: int, size: int, oracle: bool) -> Outcome:
    """Allocate the results of a step of ``num_envs`` environments with ``size`` grid positions."""
    judged = num_envs if oracle else 0
    return Outcome(
        reward=np.zeros(num_envs, np.float32),
        terminated=np.zeros(num_envs, np.bool_),
        truncated=np.zeros(num_envs, np.bool_),
        ended=np.zeros(num_envs, np.bool_),
        success=np.zeros(num_envs, np.bool_),
        final_obs=np.zeros((num_envs, size), np.uint8),
        episode_return=np.zeros(num_envs, np.float64),
        episode_length=np.zeros(num_envs, np.int64),
        distance=np.zeros(judged, np.int32),
        masks=np.zeros((judged, 10), np.bool_),
        final_distance=np.zeros(judged, np.int32),
        final_masks=np.zeros((judged, 10), np.bool_),
    )


@inner
def _show(rules, state, i, before, width):
    """Move the visible window from position ``before`` (-1: none yet) to the agent."""
    shown, grid, radius = state.shown[i], state.grid[i], rules.radius
    height = len(grid) // width
    if before < 0:
        shown[:] = UNKNOWN
    else:
        row, col = before // width, before % width
        for r in range(max(row - radius, 0), min(row + radius + 1, height)):
            for c in range(max(col - radius, 0), min(col + radius + 1, width)):
                shown[r * width + c] = UNKNOWN
    row, col = state.agent[i] // width, state.agent[i] % width
    for r in range(max(row - radius, 0), min(row + radius + 1, height)):
        for c in range(max(col - radius, 0), min(col + radius + 1, width)):
            shown[r * width + c] = grid[r * width + c]


@inner
def _begin_oracle(geometry, state, outcome, i, queue):
    """Set the oracle's values of environment i at the start of an episode."""
    agent, distances, mask = state.agent[i], state.distances[i], outcome.masks[i]
    shortest_distances(state.grid[i], geometry.offsets, state.goal[i], distances, queue)
    optimal_actions(geometry.offsets, distances, agent, mask[0:4])
    assign(mask[4:8], mask[0:4])
    mask[CHANGED] = False
    mask[MATERIAL] = False
    outcome.distance[i] = distances[agent]


@inner
def _draw_framed(rules, geometry, state, sizes, i, seed, queue, seen, rare):
    """Draw the size and the place of a level, and the level there; returns what ``draw_level`` does."""
    size = draw_size(seed, state.episode[i], sizes.begins, sizes.weights)
    width = np.int64(geometry.offsets[2])
    free_rows = len(geometry.template) // width - sizes.height[size]
    corner = draw_corner(seed, free_rows, width - sizes.width[size], width)
    state.size[i] = size
    state.corner[i] = corner
    lay_out(sizes, size, corner)
    open_edges = state.open_edges[i]
    for k in range(len(open_edges)):
        open_edges[k] = 0
    cells, edges = np.int64(sizes.cell_counts[size]), np.int64(sizes.edge_counts[size])
    return draw_level(
        seed, sizes.template, sizes.own_cells[:cells], sizes.own_edges[:edges], geometry.offsets, rules.layout,
        np.int64(sizes.walls[size]), rules.loops, state.grid[i], open_edges[:edges], queue, seen, rare,
    )  # fmt: skip


@inner
def _reset_one(rules, geometry, state, outcome, i, queue, seen, rare, oracle, sizes):
    """Begin the next episode of environment i."""
    state.episode[i] += 1
    seed = level_seed(state.env_seed[i], state.episode[i], rules.split)
    state.level_seed[i] = seed
    grid = state.grid[i]
    if sizes is None:
        agent, goal, count = draw_level(
            seed, geometry.template, geometry.cells, geometry.edges, geometry.offsets, rules.layout, rules.walls,
            rules.loops, grid, state.open_edges[i], queue, seen, rare,
        )  # fmt: skip
    else:
        agent, goal, count = _draw_framed(rules, geometry, state, sizes, i, seed, queue, seen, rare)
    grid[agent] = AGENT
    grid[goal] = GOAL
    state.agent[i] = agent
    state.goal[i] = goal
    state.open_count[i] = count
    state.steps[i] = 0
    state.done[i] = 0
    start_doors(
        seed, rules.door_process, rules.p_change, state.open_edges[i], count, grid, -1,
        state.doors[i], state.closed[i], state.spans[i], rare,
    )  # fmt: skip
    if rare is not None and rules.radius != FULL_VIEW:
        _show(rules, state, i, -1, geometry.offsets[2])
    if oracle is not None and rules.oracle:
        _begin_oracle(geometry, state, outcome, i, queue)


@inner
def _advance_schedule(rules, geometry, state, i, queue, seen, rare):
    """Advance doors and goal to the current step."""
    grid, agent = state.grid[i], state.agent[i]
    advance_doors(
        state.level_seed[i], state.steps[i], rules.door_process, rules.p_change, rules.change_threshold,
        state.open_edges[i], state.open_count[i], grid, agent, state.doors[i], state.closed[i],
        state.spans[i], rare,
    )  # fmt: skip
    if rare is not None:
        _move_goal(rules, geometry, state, i, queue, seen)


@inner
def _move_goal(rules, geometry, state, i, queue, seen):
    """Advance the goal to the current step."""
    grid = state.grid[i]
    goal = advance_goal(
        state.level_seed[i], state.steps[i], rules.goal_process, rules.goal_threshold, grid, geometry.is_cell,
        geometry.offsets, np.int64(state.goal[i]), queue, seen,
    )  # fmt: skip
    if goal != state.goal[i]:
        grid[state.goal[i]] = EMPTY
        state.goal[i] = goal
        if goal != state.agent[i]:
            grid[goal] = GOAL


@inner
def _update_oracle(geometry, state, outcome, i, before, queue):
    """Set the oracle's values of environment i; ``before`` is the grid after the move, before doors and goal change."""
    grid, agent, distances, mask = state.grid[i], state.agent[i], state.distances[i], outcome.masks[i]
    changed = False
    for position in range(len(grid)):
        if grid[position] != before[position]:
            changed = True
            break
    # If the goal moved onto the agent, the grid is the same there, but the goal's old position differs.
    optimal_actions(geometry.offsets, distances, agent, mask[4:8])
    distance = distances[agent]
    if changed:
        shortest_distances(grid, geometry.offsets, state.goal[i], distances, queue)
    optimal_actions(geometry.offsets, distances, agent, mask[0:4])
    outcome.distance[i] = distances[agent]
    material = distance != distances[agent]
    for k in range(4):
        material = material or mask[k] != mask[4 + k]
    mask[CHANGED] = changed
    mask[MATERIAL] = material


@inner
def _record_end(rules, state, outcome, i, rare, oracle):
    """Record the last observation and the statistics of an episode that has just ended."""
    assign(outcome.final_obs[i], state.grid[i])
    if rare is not None and rules.radius != FULL_VIEW:
        assign(outcome.final_obs[i], state.shown[i])
    length = state.steps[i]
    last = GOAL_REWARD if outcome.terminated[i] else STEP_REWARD
    outcome.episode_return[i] = STEP_REWARD * (length - 1) + last
    outcome.episode_length[i] = length
    if oracle is not None and rules.oracle:
        outcome.final_distance[i] = outcome.distance[i]
        assign(outcome.final_masks[i], outcome.masks[i])


@hot_kernel
def run_batch(rules, geometry, state, outcome, scratch, actions, command, rare, oracle, sizes):
    """Reset or step every environment. Both are one function, so that their common code is compiled once.

    Args:
        actions: int64 [N], each 0 to 3 (N, E, S, W).
        command: RESET (begin each environment's next episode; actions are ignored), STEP, or STEP_AND_RESET
            (environments that end begin their next episode at once).
        rare, oracle: ``Parts`` of the configuration.
        sizes: ``Sizes`` of mazes in a frame, or None.

    Returns:
        The number of episodes that ended, or ``-1 - i`` if action i is invalid (then no environment has been stepped).
    """
    queue, seen, before = scratch.queue, scratch.seen, scratch.before
    if command != RESET:
        for i in range(len(actions)):
            if actions[i] < 0 or actions[i] > 3:
                return -1 - i
    # Arrays that every step uses are local names. Rare events are functions of the whole tuples, since passing
    # a tuple costs a reference count for each of its arrays.
    grid, agent, goal, steps = state.grid, state.agent, state.goal, state.steps
    doors, closed, level_seeds = state.doors, state.closed, state.level_seed
    reward, terminated, truncated = outcome.reward, outcome.terminated, outcome.truncated
    ended, success = outcome.ended, outcome.success
    episode_return, episode_length = outcome.episode_return, outcome.episode_length
    offsets, is_cell = geometry.offsets, geometry.is_cell
    count = 0
    for i in range(len(agent)):
        if command == RESET:
            _reset_one(rules, geometry, state, outcome, i, queue, seen, rare, oracle, sizes)
            continue
        old = agent[i]
        new = old + offsets[actions[i]]
        steps[i] += 1
        moved = grid[i, new] != WALL and grid[i, new] != DOOR
        if moved:
            grid[i, old] = EMPTY
            grid[i, new] = AGENT
            agent[i] = new
        arrived = agent[i] == goal[i]
        if oracle is not None and rules.oracle:
            assign(before, grid[i])
        if not arrived:
            if moved and not is_cell[old]:
                # A door whose closing was delayed by the agent closes behind it.
                for k in range(doors.shape[1]):
                    if doors[i, k] == old and closed[i, k]:
                        grid[i, old] = DOOR
            if may_change(
                level_seeds[i], steps[i], rules.door_process, rules.change_threshold, rules.goal_process,
                rules.goal_threshold,
            ):  # fmt: skip
                _advance_schedule(rules, geometry, state, i, queue, seen, rare)
                arrived = agent[i] == goal[i]
        if oracle is not None and rules.oracle:
            _update_oracle(geometry, state, outcome, i, before, queue)
        if rare is not None and rules.radius != FULL_VIEW:
            _show(rules, state, i, old, offsets[2])
        limit = rules.limit if sizes is None else sizes.limits[state.size[i]]
        timeout = not arrived and steps[i] >= limit
        reward[i] = GOAL_REWARD if arrived else STEP_REWARD
        terminated[i] = arrived
        truncated[i] = timeout
        ended[i] = arrived or timeout
        success[i] = arrived
        episode_return[i] = 0.0
        episode_length[i] = 0
        if arrived or timeout:
            count += 1
            _record_end(rules, state, outcome, i, rare, oracle)
            if command == STEP_AND_RESET:
                _reset_one(rules, geometry, state, outcome, i, queue, seen, rare, oracle, sizes)
            else:
                state.done[i] = 1
    return count
