"""Invariants of the rules over a million steps of random mazes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrm_envs import Cell, MazeVectorEnv
from strategies import edge_positions, maze_parameters

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
NUM_ENVS, STEPS, EXAMPLES = 256, 50, 80  # 1,024,000 steps


@pytest.mark.thorough
@settings(max_examples=EXAMPLES, **RELAXED)
@given(parameters=maze_parameters(), seed=st.integers(0, 2**40))
def test_a_million_steps_keep_every_rule(parameters: dict[str, Any], seed: int) -> None:
    env = MazeVectorEnv(NUM_ENVS, **parameters)
    env.reset(seed=seed)
    state, config = env.batch.state, env.config
    actions = np.random.default_rng(seed).integers(0, 4, (STEPS, NUM_ENVS))
    offsets = env.batch.geometry.offsets
    every = np.arange(NUM_ENVS)
    levels = [levels_of(env, every == every)]
    walls = state.grid == Cell.WALL
    for action in actions:
        grid, agent = state.grid.copy(), state.agent.copy()
        _, reward, terminated, truncated, infos = env.step(action)
        ended = terminated | truncated
        assert not (terminated & truncated).any()
        assert bool(ended.any()) == ("episode" in infos)
        levels.append(levels_of(env, ended))
        walls[ended] = state.grid[ended] == Cell.WALL
        assert ((state.grid == Cell.WALL) == walls).all()
        # The move itself: one position, unless the map before the step has a wall or closed door there.
        wanted = agent + offsets[action]
        blocked = np.isin(grid[every, wanted], (Cell.WALL, Cell.DOOR))
        expected = np.where(blocked, agent, wanted)
        assert (state.agent == expected)[~ended].all()
        assert np.allclose(reward, np.where(terminated, 1.0, -0.01))
        assert (state.steps < config.max_episode_steps).all()
        assert (state.steps[ended] == 0).all()
        check_position(env)
        if ended.any():
            # Moving onto the goal always ends an episode with success.
            assert (terminated[grid[every, expected] == Cell.GOAL]).all()
            assert (infos["episode"]["success"] == terminated)[ended].all()
    check_levels(env, *map(np.concatenate, zip(*levels, strict=True)))


def levels_of(env: MazeVectorEnv, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies of the maps, agents and goals of the environments that were just reset."""
    state = env.batch.state
    return state.grid[fresh], state.agent[fresh], state.goal[fresh]


def check_levels(env: MazeVectorEnv, maps: np.ndarray, agents: np.ndarray, goals: np.ndarray) -> None:
    """New levels: the given numbers of walls and doors, distinct start and goal, which walls do not separate."""
    config = env.config
    grids = maps.reshape(-1, config.height, config.width)
    if config.layout == "scatter":
        assert ((grids == Cell.WALL)[:, edge_positions(config)].sum(1) == config.walls).all()
    if config.door_process == "reroll":
        assert ((grids == Cell.DOOR).sum((1, 2)) == config.doors).all()
    assert (agents != goals).all()
    assert_endpoints(env, agents)
    reached = grids == Cell.AGENT
    for _ in range(grids[0].size):
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= grids != Cell.WALL
        if (grown == reached).all():
            break
        reached = grown
    assert reached[grids == Cell.GOAL].all()
    if config.layout != "scatter":
        assert (reached == (grids != Cell.WALL)).all()


def assert_endpoints(env: MazeVectorEnv, positions: np.ndarray) -> None:
    """In cells; with ``endpoints="anywhere"`` in passages too."""
    geometry = env.batch.geometry
    allowed = np.flatnonzero(geometry.is_cell)
    if env.config.endpoints == "anywhere":
        allowed = np.concatenate([allowed, geometry.edges])
    assert np.isin(positions, allowed).all()


def check_position(env: MazeVectorEnv) -> None:
    """The current map: one agent, one goal, and exactly the scheduled doors, except one under the agent."""
    state, config = env.batch.state, env.config
    every = np.arange(env.num_envs)
    assert (state.grid[every, state.agent] == Cell.AGENT).all()
    assert ((state.grid == Cell.AGENT).sum(1) == 1).all()
    assert (state.grid[every, state.goal] == Cell.GOAL).all()
    assert ((state.grid == Cell.GOAL).sum(1) == 1).all()
    assert_endpoints(env, state.goal)
    scheduled = np.zeros(state.grid.shape, bool)
    for k in range(int(config.doors or 0)):
        assert not scheduled[every, state.doors[:, k]][state.closed[:, k] == 1].any()
        scheduled[every, state.doors[:, k]] |= state.closed[:, k] == 1
    if config.door_process == "reroll":
        assert (scheduled.sum(1) == config.doors).all()
    scheduled[every, state.agent] = False
    assert ((state.grid == Cell.DOOR) == scheduled).all()
    if config.view != "full":
        row, col = np.indices((config.height, config.width)).reshape(2, -1)
        far = np.maximum(
            np.abs(row - (state.agent // config.width)[:, None]),
            np.abs(col - (state.agent % config.width)[:, None]),
        )
        shown = np.where(far > int(config.view), int(Cell.UNKNOWN), state.grid)
        assert (state.shown == shown).all()


@settings(max_examples=25, **RELAXED)
@given(parameters=maze_parameters(), seed=st.integers(0, 2**40))
def test_schedule_does_not_depend_on_actions(parameters: dict[str, Any], seed: int) -> None:
    first, second = (MazeVectorEnv(64, **parameters) for _ in range(2))
    first.reset(seed=seed)
    second.reset(seed=seed)
    rng = np.random.default_rng(seed)
    compared = 0
    for _ in range(40):
        first.step(rng.integers(0, 4, 64))
        second.step(rng.integers(0, 4, 64))
        a, b = first.batch.state, second.batch.state
        same = (a.episode == b.episode) & (a.steps == b.steps)
        compared += int(same.sum())
        assert (a.doors[same] == b.doors[same]).all()
        assert (a.closed[same] == b.closed[same]).all()
        assert (a.goal[same] == b.goal[same]).all()
    assert compared > 0


def test_doors_change_at_the_given_rate() -> None:
    for process, per_door in (("reroll", False), ("independent", True)):
        env = MazeVectorEnv(2000, door_process=process, p_change=0.1, doors=2, max_episode_steps=50)
        env.reset(seed=0)
        changes = total = 0
        for _ in range(30):
            doors, closed, episode = (
                x.copy() for x in (env.batch.state.doors, env.batch.state.closed, env.batch.state.episode)
            )
            env.step(np.zeros(2000, np.int64))
            same = env.batch.state.episode == episode
            moved = (env.batch.state.doors != doors) | (env.batch.state.closed != closed)
            changes += int(moved[same].sum() if per_door else moved[same].any(1).sum())
            total += int(same.sum()) * (2 if per_door else 1)
        # A redraw may pick the same set again: below 1 in 171 of the sets of 2 among 19 edges.
        assert 0.095 < changes / total < 0.105


def test_periodic_doors_repeat() -> None:
    env = MazeVectorEnv(50, door_process="periodic", p_change=0.2, walls=0, doors=4, max_episode_steps=200)
    env.reset(seed=3)
    history, episode = [], env.batch.state.episode.copy()
    for _ in range(80):
        history.append(env.batch.state.closed.copy())
        env.step(np.zeros(50, np.int64))
    # Moving north ends at a wall: environments still in their first episode have run 80 steps of it.
    stayed = env.batch.state.episode == episode
    assert stayed.sum() > 20
    spans, closed = env.batch.state.spans, np.array(history)
    for i in np.flatnonzero(stayed):
        for k in range(4):
            shut, period = spans[i, k, 0], spans[i, k, :2].sum()
            assert (closed[period:, i, k] == closed[:-period, i, k]).all()
            assert closed[:period, i, k].sum() == shut
            assert 3 <= shut <= 8


def test_a_door_closes_behind_the_agent_not_on_it() -> None:
    env = MazeVectorEnv(500, walls=0, doors=12, p_change=0.5)
    env.reset(seed=5)
    rng, state = np.random.default_rng(0), env.batch.state
    delayed = 0
    for _ in range(40):
        under = ((state.doors == state.agent[:, None]) & (state.closed == 1)).any(1)
        agent, episode = state.agent.copy(), state.episode.copy()
        env.step(rng.integers(0, 4, 500))
        still = ((state.doors == agent[:, None]) & (state.closed == 1)).any(1)
        left = under & still & (state.agent != agent) & (state.episode == episode)
        delayed += int(left.sum())
        assert (state.grid[left, agent[left]] == Cell.DOOR).all()
    assert delayed > 20


@pytest.mark.parametrize("name", ["PaperMaze-v1", "PaperFourRooms-v1"])
def test_start_and_goal_lie_anywhere_that_is_no_wall(name: str) -> None:
    """As often in every position as in any other, and a passage that holds one of them is never a door."""
    env = gymnasium.make_vec(name, num_envs=4096)
    env.reset(seed=0)
    state, geometry = env.unwrapped.batch.state, env.unwrapped.batch.geometry
    places = geometry.cells
    assert set(places) == set(np.flatnonzero(geometry.is_cell)) | set(geometry.edges)
    ends = np.concatenate([state.agent, state.goal])
    counts = np.bincount(ends, minlength=len(geometry.template))
    assert (counts[places] > 0).all()
    if name == "PaperFourRooms-v1":  # no walls, so nothing is rejected
        expected = len(ends) / len(places)
        assert (np.abs(counts[places] - expected) < 5 * expected**0.5).all()
    every, start, goal = np.arange(4096), state.agent.copy(), state.goal.copy()
    first = state.episode.copy()
    for _ in range(30):
        env.step(np.zeros(4096, np.int64))
        same = state.episode == first
        for end in (start, goal):
            assert (state.grid[every, end] != Cell.DOOR)[same].all()
            assert not (state.doors == end[:, None])[same].any()


def test_as_many_walls_as_fit_leave_a_path() -> None:
    for walls in (20, 22, 23):
        env = MazeVectorEnv(300, walls=walls, doors=0)
        env.reset(seed=1)
        check_levels(env, *levels_of(env, np.ones(300, bool)))
        assert (env.clairvoyant() >= 2).all()


def test_loops_open_dead_ends() -> None:
    def openings(loops: float) -> np.ndarray:
        env = MazeVectorEnv(50, layout="braid", loops=loops, doors=0, rows=6, cols=6)
        env.reset(seed=0)
        grids = env.batch.state.grid.reshape(-1, 13, 13)
        return (grids != Cell.WALL)[:, edge_positions(env.config)].sum(1)

    tree, half, full = openings(0.0), openings(0.5), openings(1.0)
    assert (tree == 35).all()
    assert (half > tree).all()
    assert (full > half).all()
