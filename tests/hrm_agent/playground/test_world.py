"""A person changes a maze: what is changed stays, nothing else does, and no change leaves an impossible map."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from failing_envs import Blind, Mute
from hrm_agent.playground.world import MazeWorld, Refused, World, make_world
from hrm_envs.cells import AGENT, DOOR, GOAL, UNKNOWN, WALL

WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "reroll": ("DynamicMaze-v0", {"p_change": 0.5}),
    "fog": ("DynamicMaze-v0", {"view": 2, "p_change": 0.3}),
    "independent": ("DynamicMaze-v0", {"door_process": "independent", "p_change": 0.3}),
    "periodic": ("DynamicMaze-v0", {"layout": "braid", "door_process": "periodic", "p_change": 0.3}),
    "goal": ("DynamicGoalMaze-v0", {"goal_process": "walk", "p_goal": 0.5}),
    "rooms": ("DynamicFourRooms-v0", {}),
    "anywhere": ("PaperMaze-v1", {}),
    "sutton": ("PaperFourRooms-v1", {}),
    "sizes": ("DynamicMaze-v0", {"layout": "braid", "sizes": [7, 9, 11], "canvas": 13, "p_change": 0.3}),
    "cue": ("CueMaze-v0", {}),
}
MAZES = [name for name in WORLDS if name != "cue"]


@cache
def world_of(kind: str) -> MazeWorld:
    env_id, options = WORLDS[kind]
    world = make_world(env_id, options, "test", 0)
    assert isinstance(world, MazeWorld)
    return world


def begin(kind: str, level: int = 0) -> MazeWorld:
    world = world_of(kind)
    world.begin(level)
    return world


def check(world: MazeWorld) -> None:
    """What holds whatever a person and the schedule did."""
    grid, level_map = world.state.grid[0], world.map().ravel()
    assert (grid == AGENT).sum() == 1
    assert grid[world.agent] == AGENT
    assert (level_map == GOAL).sum() == (world.agent != world.goal)
    assert world.goal in world.cells or world.changed == 0 or world.maze.config.endpoints == "anywhere"
    assert {world.agent, world.goal}.isdisjoint(world.walls - {e for e, is_open in world.set_open.items() if is_open})
    for edge, is_open in world.set_open.items():
        if edge not in (world.agent, world.goal):
            assert (grid[edge] not in (WALL, DOOR)) == is_open
    border = world.map().copy()
    border[1:-1, 1:-1] = WALL
    assert (border == WALL).all()
    seen = np.asarray(world.obs).ravel()
    hidden = seen == UNKNOWN
    assert np.array_equal(seen[~hidden], grid[~hidden])
    assert world.is_fogged or not hidden.any()


acts = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["edge", "goal", "agent"]), st.integers(0, 200)),
)


@settings(max_examples=40)
@given(kind=st.sampled_from(list(WORLDS)), level=st.integers(0, 50), done=st.lists(acts, max_size=30))
def test_whatever_is_done_agent_and_goal_stand_in_the_open_and_set_edges_stay(
    kind: str, level: int, done: list[tuple[str, int]]
) -> None:
    world = begin(kind, level)
    for what, value in done:
        before = world.map()
        try:
            if what == "step":
                world.step(value)
            elif what == "edge":
                edge = world.edges[value % len(world.edges)] if world.edges else value % before.size
                world.set_edge(edge, not world.is_open(edge))
            elif what == "goal":
                world.put_goal(value)
            else:
                world.put_agent(value)
        except Refused:
            assert np.array_equal(world.map(), before)
        check(world)


@settings(max_examples=40)
@given(kind=st.sampled_from(MAZES), level=st.integers(0, 50), edges=st.lists(st.integers(0, 200), max_size=8))
def test_toggling_twice_restores_the_map_and_the_level_begun_anew_knows_of_nothing(
    kind: str, level: int, edges: list[int]
) -> None:
    world = begin(kind, level)
    before, seen = world.map(), np.array(world.obs)
    chosen = {world.edges[k % len(world.edges)] for k in edges} - {world.agent, world.goal}
    for _ in range(2):
        for edge in chosen:
            world.set_edge(edge, not world.is_open(edge))
    assert np.array_equal(world.map(), before)
    assert np.array_equal(world.obs, seen)
    assert world.set_open == {}
    for edge in chosen:
        world.set_edge(edge, not world.is_open(edge))
    world.begin(level)
    assert np.array_equal(world.map(), before)
    assert world.changed == 0


@pytest.mark.parametrize("kind", WORLDS)
def test_a_world_that_no_one_changes_is_the_environment(kind: str) -> None:
    env_id, options = WORLDS[kind]
    env = gym.make(env_id, **options, split="test")
    world, moves = begin(kind, 7), np.random.default_rng(0).integers(0, 4, 200)
    obs, _ = env.reset(seed=7)
    for move in moves:
        assert np.array_equal(world.obs, obs)
        obs, _, terminated, truncated, info = env.step(move)
        world.step(move)
        if terminated or truncated:
            break
    assert world.outcome == ("arrived" if info["is_success"] else "ended" if terminated else "out of time")
    with pytest.raises(Refused, match="the episode is over"):
        world.step(0)


def test_a_door_that_a_person_opened_stays_open_behind_the_agent() -> None:
    """The schedule would close it as soon as the agent has left it."""
    for level in range(20):
        world = begin("reroll", level)
        closed = [e for e in world.edges if world.state.grid[0, e] == DOOR and e - 1 not in (world.goal, world.agent)]
        upright = [e for e in closed if e - 1 in world.cells and e + 1 in world.cells and world.goal != e + 1]
        if upright:
            break
    door = upright[0]
    world.put_agent(door - 1)
    world.set_edge(door, True)
    for _ in range(2):
        world.step(1)
    assert world.agent == door + 1
    assert world.is_open(door)


def test_a_wall_that_was_taken_out_comes_back_as_a_wall() -> None:
    world = begin("reroll")
    wall = next(e for e in world.edges if e in world.walls)
    world.set_edge(wall, True)
    assert world.is_open(wall)
    world.set_edge(wall, False)
    assert world.state.grid[0, wall] == WALL


@pytest.mark.parametrize("kind", WORLDS)
def test_what_is_not_possible_is_refused_in_a_line(kind: str) -> None:
    world = begin(kind)
    with pytest.raises(Refused, match="no edge"):
        world.set_edge(0, True)
    with pytest.raises(Refused, match="a wall, a closed door or outside"):
        world.put_agent(0)
    with pytest.raises(Refused, match="a wall, a closed door or outside"):
        world.put_agent(10**4)
    with pytest.raises(Refused, match="in a cell alone"):
        world.put_goal(0)
    if world.goal in world.cells:
        with pytest.raises(Refused):
            world.put_agent(world.goal)
    if world.agent in world.cells:
        with pytest.raises(Refused, match="the agent is there"):
            world.put_goal(world.agent)


def test_regret_and_path_are_those_of_the_map_as_it_is_now() -> None:
    world = begin("reroll", 3)
    path = world.path()
    shortest = int(world.distances()[world.agent])
    assert path[0] == world.agent
    assert path[-1] == world.goal
    assert len(path) == shortest + 1
    best = {-world.width: 0, 1: 1, world.width: 2, -1: 3}[path[1] - path[0]]
    edges = [edge for edge in path[1:-1] if edge in world.edges]
    world.set_edge(edges[0], False)
    detour = int(world.distances()[world.agent])
    assert detour < 0 or detour > shortest
    world.set_edge(edges[0], True)
    world.step((best + 2) % 4)
    assert world.last_regret in (1, 2)
    assert world.regret == world.last_regret


def test_a_cue_maze_shows_a_moved_goal_at_the_first_observation_alone() -> None:
    world = begin("cue")
    other = next(cell for cell in world.cells if cell != world.goal)
    world.put_goal(other)
    assert np.asarray(world.obs).ravel()[other] == GOAL
    world.step(1)
    assert GOAL not in np.asarray(world.obs)
    assert world.map().ravel()[other] == GOAL
    north = other < 2 * world.width
    while world.outcome is None:
        at_end = world.agent % world.width == world.width - 2
        world.step((0 if north else 2) if at_end else 1)
    assert world.outcome == "arrived"


def test_a_foreign_environment_draws_itself() -> None:
    world = make_world("CartPole-v1", {}, "test", 0)
    assert not isinstance(world, MazeWorld)
    world.begin(0)
    picture = world.picture()
    assert picture is not None
    assert picture.startswith("data:image/png;base64,")
    while world.outcome is None:
        world.step(0)
    assert world.steps == world.total
    world.close()


class Broken(Mute):
    """It raises when it is to be drawn."""

    def render(self) -> Any:
        raise KeyError("screen")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Blind, "the page needs an environment that accepts render_mode='rgb_array'"),
        (Mute, r"render\(\) gave no picture; the page needs an environment"),
        (Broken, "failed in render: KeyError"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_page_is_there(
    kind: type[gym.Env], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    gym.register(f"{kind.__name__}-v0", entry_point=kind)
    with pytest.raises(ValueError, match=message) as caught:
        make_world(f"{kind.__name__}-v0", {}, "test", 0)
    assert "\n" not in str(caught.value)


def test_worlds_are_those_of_run_episodes() -> None:
    """An environment without splits has its test levels at distant seeds."""
    assert World(gym.make("DynamicMaze-v0"), 5).limit == 60
    foreign = make_world("CartPole-v1", {}, "test", 2)
    assert foreign.first == 2**29 + 2**27 + 2
    foreign.close()
    assert make_world("DynamicMaze-v0", {}, "test", 2).first == 2
