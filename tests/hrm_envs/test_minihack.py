"""The mazes in NetHack equal those of the kernel at every level and step."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest

import hrm_envs
from hrm_envs import MazeEnv, ReplanPolicy
from hrm_envs.batch import MazeBatch
from hrm_envs.config import MazeConfig
from hrm_envs.minihack.des_file import write_des_file
from hrm_envs.minihack.doors import DoorSchedule
from hrm_envs.registration import IN_MINIHACK, MAZES

needs_minihack = pytest.mark.skipif(
    importlib.util.find_spec("minihack") is None or importlib.util.find_spec("nle") is None,
    reason="needs the extra minihack",
)

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": MAZES["PaperMaze-v0"],
    "paper, frequent changes": {**MAZES["PaperMaze-v0"], "p_change": 0.5, "split": "test"},
    "paper, four rooms": {**MAZES["PaperFourRooms-v0"], "p_change": 0.3},
    "paper, anywhere": {**MAZES["PaperMaze-v1"], "p_change": 0.3},
    "paper, four rooms, anywhere": {**MAZES["PaperFourRooms-v1"], "p_change": 0.3},
    "independent": {"rows": 4, "cols": 7, "doors": 9, "door_process": "independent", "p_change": 0.3},
    "periodic": {"rows": 9, "cols": 3, "layout": "braid", "loops": 0.5, "doors": 6, "door_process": "periodic",
                 "p_change": 0.3, "max_episode_steps": 90},
    "tiny": {"rows": 1, "cols": 2, "walls": 0, "doors": 1, "door_process": "independent", "p_change": 0.5},
    "widest": {"rows": 1, "cols": 37, "walls": 0, "doors": 5, "p_change": 0.2},
    "most doors": {"rows": 9, "cols": 7, "walls": 0, "doors": 40, "p_change": 0.2, "max_episode_steps": 40},
}  # fmt: skip


def assert_schedules_agree(config: dict[str, Any], seed: int, steps: int) -> None:
    """`DoorSchedule` and the kernel have the same doors at every step of random moves."""
    env, batch = MazeEnv(**config), MazeBatch(1, MazeConfig(**config))
    env.reset(seed=seed)
    batch.reset(seed, None)
    schedule = DoorSchedule(batch)
    rng = np.random.default_rng(seed)
    state = env.batch.state
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(int(rng.integers(4)))
        if terminated:
            return
        before = schedule.grid.copy()
        changes = schedule.advance(int(state.agent[0]))
        grid = state.grid[0].reshape(schedule.grid.shape).copy()
        grid[(grid == hrm_envs.Cell.AGENT) | (grid == hrm_envs.Cell.GOAL)] = hrm_envs.Cell.EMPTY
        np.testing.assert_array_equal(schedule.grid, grid)
        for position, closed in changes:
            assert before.flat[position] == (hrm_envs.Cell.EMPTY if closed else hrm_envs.Cell.DOOR)
        if truncated:
            return


@pytest.mark.parametrize("name", ["paper, frequent changes", "paper, four rooms", "independent", "periodic", "tiny"])
def test_the_schedule_equals_the_kernels(name: str) -> None:
    for seed in range(20):
        assert_schedules_agree(CONFIGS[name], seed, 90)


def test_a_level_as_a_des_file() -> None:
    W, D = hrm_envs.Cell.WALL, hrm_envs.Cell.DOOR
    grid = np.array([[W, W, W, W, W], [W, 0, D, 0, W], [W, W, W, 0, W], [W, 0, 0, 0, W], [W, W, W, W, W]], np.uint8)
    written = write_des_file(grid, [7, 17], (1, 1), (3, 3)).splitlines()
    assert written[written.index("MAP") + 1 : written.index("ENDMAP")] == ["-----", "|...|", "|--.|", "|...|", "-----"]
    assert "DOOR:closed,(2,1)" in written
    assert "DOOR:nodoor,(2,3)" in written
    assert "STAIR:(3,3),down" in written
    assert "BRANCH:(1,1,1,1),(0,0,0,0)" in written


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"view": 2}, r"view=2 is not supported in NetHack; use view='full'"),
        ({"goal_process": "jump", "p_goal": 0.1}, r"goal_process='jump' .* use goal_process='static'"),
        ({"oracle": True}, r"oracle=True .* use oracle=False"),
        ({"sizes": [9, 11]}, r"sizes and canvas are not supported in NetHack"),
        ({"rows": 10, "cols": 4}, r"rows=10, cols=4 is too large"),
        ({"rows": 9, "cols": 20}, r"a NetHack level at most 120"),
        ({"door": 3}, r"did you mean 'doors'"),
    ],
)
def test_unsupported_parameters_are_one_line_that_helps(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        gymnasium.make("MiniHackPaperMaze-v0", **{"walls": None, "doors": None, **parameters})
    assert "\n" not in str(error.value)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "minihack" else True)
    with pytest.raises(ModuleNotFoundError, match=r"need minihack, .* pip install 'hrm-agent\[minihack\]'"):
        gymnasium.make("MiniHackPaperMaze-v0")


@needs_minihack
@pytest.mark.parametrize("name", CONFIGS)
def test_nethack_equals_the_kernel_at_every_step(name: str) -> None:
    """Observation, reward, ends and info are equal at every step, for random and for planned actions."""
    from hrm_envs.minihack import MiniHackMazeEnv

    fast, nethack = MazeEnv(**CONFIGS[name]), MiniHackMazeEnv(**CONFIGS[name])
    rng, planner = np.random.default_rng(0), ReplanPolicy()
    endings, moved, delayed = set(), 0, 0
    for seed in range(10):
        seen, _ = fast.reset(seed=seed)
        shown, info = nethack.reset(seed=seed)
        assert (nethack.level_seed, info) == (fast.level_seed, {})
        np.testing.assert_array_equal(shown, seen)
        assert shown in nethack.observation_space
        ended = False
        while not ended:
            planned = seed % 2 and rng.random() < 0.8
            action = int(planner.act(seen[None])[0]) if planned else int(rng.integers(4))
            before = seen
            seen, *expected = fast.step(action)
            shown, *rest = nethack.step(action)
            np.testing.assert_array_equal(shown, seen)
            assert rest == expected
            state = fast.batch.state
            moved += ((before == hrm_envs.Cell.DOOR) != (seen == hrm_envs.Cell.DOOR)).any()
            delayed += (state.closed[0] & (state.doors[0] == state.agent[0])).any()
            ended = expected[1] or expected[2]
        endings.add("arrived" if expected[1] else "late")
    nethack.close()
    assert moved > 0
    assert "arrived" in endings
    if name == "paper, frequent changes":
        assert delayed > 0  # a door did not close on the agent


@needs_minihack
@pytest.mark.parametrize("name", IN_MINIHACK)
def test_make_limits_episodes_as_those_of_any_environment(name: str) -> None:
    for limit, given in ((80, {}), (3, {"max_episode_steps": 3}), (100, {"max_episode_steps": 100})):
        env = gymnasium.make(f"MiniHack{name}", **given)
        assert env.spec.max_episode_steps == limit
        env.reset(seed=1)
        ends = [env.step(0)[3] for _ in range(limit)]
        assert ends == [False] * (limit - 1) + [True]
        env.close()


@needs_minihack
@pytest.mark.parametrize("name", IN_MINIHACK)
def test_an_environment_made_by_id_has_the_same_levels(name: str) -> None:
    env = gymnasium.make(f"MiniHack{name}", split="validation", max_episode_steps=3)
    fast = gymnasium.make(name, split="validation")
    for seed in (7, None):  # the first episode of a seed, and the next
        np.testing.assert_array_equal(env.reset(seed=seed)[0], fast.reset(seed=seed)[0])
    assert env.observation_space == fast.observation_space
    assert env.action_space == fast.action_space
    ends = [env.step(0)[2:4] for _ in range(3)]
    assert ends[-1] != (False, False)
    env.close()


@needs_minihack
def test_a_reset_within_an_episode_and_two_games_at_once() -> None:
    """Games do not share terrain: each has its own copy of NetHack, reloaded at every reset."""
    from hrm_envs.minihack import MiniHackMazeEnv

    config = CONFIGS["paper, frequent changes"]
    pairs = [(MazeEnv(**config), MiniHackMazeEnv(**config)) for _ in range(2)]
    for seed in (1, 2):
        for i, (fast, nethack) in enumerate(pairs):
            fast.reset(seed=seed + 10 * i)
            nethack.reset(seed=seed + 10 * i)
        for step in range(8):
            for fast, nethack in pairs:
                np.testing.assert_array_equal(nethack.step(step % 4)[0], fast.step(step % 4)[0])
    for _, nethack in pairs:
        nethack.close()


@needs_minihack
def test_bad_calls() -> None:
    from hrm_envs.minihack import MiniHackMazeEnv

    env = MiniHackMazeEnv(max_episode_steps=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    for action in (4, -1, 0.5, [0]):
        with pytest.raises(ValueError, match="give N, E, S or W"):
            env.step(action)
    assert env.step(0)[3]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.close()


@needs_minihack
def test_an_unexpected_memory_layout_is_refused() -> None:
    from hrm_envs.minihack import MiniHackMazeEnv
    from hrm_envs.minihack.terrain import Terrain

    env = MiniHackMazeEnv(**CONFIGS["paper"])
    env.reset(seed=0)
    terrain = Terrain(env._game.nethack.dlpath)
    level = env._doors
    terrain.check(level.grid, level.edges, env._to_nethack(0))
    x, y = env._to_nethack(0)
    with pytest.raises(RuntimeError, match="doors cannot be moved in this build of nle"):
        terrain.check(level.grid, level.edges, (x + 1, y))
    with pytest.raises(RuntimeError, match="doors cannot be moved in this build of nle"):
        Terrain("/nowhere/libnethack.so")
    env.close()
