"""The oracle and the planners compared with plain-Python searches."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrm_envs import Cell, MazeEnv, MazeVectorEnv, RandomPolicy, ReplanPolicy
from strategies import MOVES, distances_to, framed_parameters, maze_parameters, optimal_mask

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def row_and_column(env: MazeEnv, position: int) -> tuple[int, int]:
    return position // env.config.width, position % env.config.width


@settings(max_examples=40, **RELAXED)
@given(parameters=maze_parameters(4) | framed_parameters(4), seed=st.integers(0, 2**40))
def test_oracle_equals_a_plain_search(parameters: dict[str, Any], seed: int) -> None:
    env = MazeEnv(oracle=True, **parameters)
    _, info = env.reset(seed=seed)
    assert not info["changed"]
    assert not info["material"]
    rng, ended = np.random.default_rng(seed), False
    shape = (env.config.height, env.config.width)
    for _ in range(40):
        state = env.batch.state
        grid, here = state.grid[0].reshape(shape), row_and_column(env, int(state.agent[0]))
        found = distances_to(grid, row_and_column(env, int(state.goal[0])))
        assert info["distance"] == found.get(here, -1)
        assert info["optimal_actions"].tolist() == optimal_mask(found, here)
        if ended:
            break
        before = np.where(grid == Cell.AGENT, Cell.EMPTY, grid)
        goal = row_and_column(env, int(state.goal[0]))
        action = rng.integers(0, 4)
        _, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        # The old map, with the agent where it is now: its optimal actions if nothing had changed.
        there = row_and_column(env, int(state.agent[0]))
        stale = distances_to(before, goal)
        assert info["stale_optimal_actions"].tolist() == optimal_mask(stale, there)
        now = state.grid[0].reshape(shape)
        now = np.where(now == Cell.AGENT, Cell.EMPTY, now)
        before[goal], now[row_and_column(env, int(state.goal[0]))] = Cell.GOAL, Cell.GOAL
        assert info["changed"] == bool((before != now).any())
        fresh = distances_to(now, row_and_column(env, int(state.goal[0])))
        material = stale.get(there, -1) != fresh.get(there, -1)
        material |= optimal_mask(stale, there) != optimal_mask(fresh, there)
        assert info["material"] == material


def earliest_by_brute_force(env: MazeEnv) -> int:
    """Try every action from every position that any sequence of actions can reach, step by step."""
    frontier = {int(env.batch.state.agent[0]): env.get_state()}
    for step in range(1, env.config.max_episode_steps + 1):
        following: dict[int, dict[str, Any]] = {}
        for saved in frontier.values():
            for action in range(len(MOVES)):
                for name, array in env.batch.state._asdict().items():
                    array[...] = saved[name]  # set_state would check each of thousands of states
                _, _, terminated, truncated, _ = env.step(action)
                if terminated:
                    return step
                if not truncated:
                    following[int(env.batch.state.agent[0])] = env.get_state()
        frontier = following
    return -1


@settings(max_examples=25, **RELAXED)
@given(parameters=maze_parameters(3), seed=st.integers(0, 2**40))
def test_clairvoyant_bound_equals_brute_force(parameters: dict[str, Any], seed: int) -> None:
    parameters["max_episode_steps"] = min(parameters["max_episode_steps"], 12)
    env = MazeEnv(**parameters)
    env.reset(seed=seed)
    state = env.get_state()
    bound = env.clairvoyant()
    assert all((state[name] == value).all() for name, value in env.get_state().items())
    assert bound == earliest_by_brute_force(env)


def test_the_bound_allows_no_waiting_in_the_open() -> None:
    # Where nothing blocks a move, t steps reach only positions whose distance has the parity of t, so that a goal
    # that jumps at every step can only be met there.
    parameters: dict[str, Any] = {"rows": 12, "cols": 12, "layout": "four_rooms", "doors": 0}
    env = MazeVectorEnv(6000, goal_process="jump", p_goal=1.0, max_episode_steps=4, **parameters)
    env.reset(seed=0)
    state, bound, width = env.batch.state, env.clairvoyant(), env.config.width
    row, col = state.agent // width, state.agent % width
    middle = (np.abs(row % 12 - 6) <= 1) & (np.abs(col % 12 - 6) <= 1)
    expected, undecided = np.full(6000, -1), middle.copy()
    # At step 4, the limit, the vector begins new levels: the first three steps are compared.
    for t in range(1, 4):
        arrived = np.zeros(6000, bool)
        for meeting in range(2):
            if meeting:
                # All agents stay near the start, so that few episodes end by chance; those are left out.
                _, _, terminated, _, _ = env.step(np.full(6000, 0 if t % 2 else 2))
                middle &= ~terminated
            distance = np.abs(state.goal // width - row) + np.abs(state.goal % width - col)
            arrived |= (distance <= t) & (distance % 2 == t % 2)
        expected[undecided & arrived] = t
        undecided &= ~arrived
    known = middle & ~undecided
    assert known.sum() > 20
    assert (bound == expected)[known].all()
    assert ((bound == -1) | (bound == 4))[middle & undecided].all()


def first_episodes(env: MazeVectorEnv, policy: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Success bool [N] and length int [N] of each environment's first episode."""
    observations, _ = env.reset(seed=seed)
    success, length = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, int)
    while not length.all():
        observations, *_, infos = env.step(policy.act(observations))
        if "episode" in infos:
            new = infos["_episode"] & (length == 0)
            success[new], length[new] = infos["episode"]["success"][new], infos["episode"]["l"][new]
    return success, length


@settings(max_examples=25, **RELAXED)
@given(parameters=maze_parameters() | framed_parameters(), seed=st.integers(0, 2**40))
def test_no_policy_arrives_before_the_bound(parameters: dict[str, Any], seed: int) -> None:
    env = MazeVectorEnv(64, **parameters)
    env.reset(seed=seed)
    bound = env.clairvoyant()
    for policy in (ReplanPolicy(), RandomPolicy(64)):
        success, length = first_episodes(env, policy, seed)
        assert (bound[success] >= 0).all()
        assert (length >= bound)[success].all()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 0.97),
        ({"rows": 5, "cols": 6, "doors": 5, "max_episode_steps": 80}, 0.985),
        ({"layout": "braid", "doors": 0}, 1.0),
        ({"layout": "four_rooms"}, 0.99),
    ],
)
def test_the_replanner_solves_most_levels(parameters: dict[str, Any], expected: float) -> None:
    env = MazeVectorEnv(2000, split="test", **parameters)
    success, _ = first_episodes(env, ReplanPolicy(), 0)
    assert success.mean() >= expected
    assert success.mean() > first_episodes(env, RandomPolicy(2000), 0)[0].mean() + 0.4


def test_the_replanner_takes_shortest_paths_on_still_maps() -> None:
    env = MazeVectorEnv(300, doors=0, oracle=True)
    _, infos = env.reset(seed=2)
    distance = infos["distance"]
    assert (env.clairvoyant() == distance).all()
    success, length = first_episodes(env, ReplanPolicy(), 2)
    assert success.all()
    assert (length == distance).all()


def test_the_replanner_explores_fog_and_waits_at_doors() -> None:
    grid = np.full((3, 7), Cell.WALL, np.uint8)
    grid[1, 1:6] = Cell.EMPTY
    grid[1, 2] = Cell.AGENT
    fog, door = grid.copy(), grid.copy()
    fog[1, 5] = Cell.UNKNOWN
    door[1, 3], door[1, 5] = Cell.DOOR, Cell.GOAL
    lost = grid.copy()
    assert ReplanPolicy().act(np.stack([fog, door, lost])).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="give a batch of grids"):
        ReplanPolicy().act(grid)


def test_the_random_policy_depends_on_its_seed_only() -> None:
    observations = np.zeros((50, 3, 3), np.uint8)
    first, second = (RandomPolicy(50, seed=3).act(observations) for _ in range(2))
    assert (first == second).all()
    assert set(RandomPolicy(50).act(observations)) == {0, 1, 2, 3}
