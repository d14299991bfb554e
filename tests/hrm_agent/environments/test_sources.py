"""Ids whose prefix says where they come from: imported, wrapped, or refused with the extra that is missing."""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from enum import IntEnum
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from hrm_agent.environments.make import check_env_id, make_vector_env
from hrm_agent.environments.sources import SOURCES, find_source, import_source, wrap_by_source

ROOT = Path(__file__).resolve().parents[3]
needs_minihack = pytest.mark.skipif(importlib.util.find_spec("minihack") is None, reason="needs the extra minihack")


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [
        ("MiniHack-Room-5x5-v0", "minihack", "minihack"),
        ("MiniHackPaperMaze-v0", "minihack", "minihack"),
        ("NetHackScore-v0", "nle", "minihack"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid", "minigrid"),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ValueError, match="needs") as error:
        check_env_id(env_id)
    assert str(error.value) == (
        f"env={env_id}: needs {module}, which cannot be imported (No module named {module!r}); install the extra by "
        f"pip install 'hrm-agent[{extra}]'"
    )


def test_every_extra_is_one_of_ours() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {source.extra for source in SOURCES.values()} <= set(extras)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "DynamicMaze-v0", "somewhere:MiniHack-Room-5x5-v0"])
def test_other_ids_import_and_wrap_nothing(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    import_source(env_id)
    env = gym.Env()
    assert find_source(env_id) is None
    assert wrap_by_source(env, env_id) is env


class Game(gym.Env):
    """What NLE does: one buffer for every observation, a time limit that looks like an end, dice of its own."""

    class StepStatus(IntEnum):
        ABORTED = -1
        RUNNING = 0
        DEATH = 1

    observation_space = gym.spaces.Dict({"chars": gym.spaces.Box(0, 255, (2,), np.uint8)})
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.buffer, self.dice = np.zeros(2, np.uint8), (0, 0)

    def seed(self, core: int, disp: int, reseed: bool) -> None:
        assert not reseed
        self.dice = (core, disp)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps, self.buffer[:] = 0, 7
        return {"chars": self.buffer}, {"dice": self.dice}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.buffer += 1
        status = self.StepStatus.DEATH if action == 2 else self.StepStatus(-(self.steps >= 3))
        if status:
            self._quit_game(self.buffer, True)
        return {"chars": self.buffer}, 0.0, status != 0, False, {"end_status": status}

    def _quit_game(self, observation: Any, done: bool) -> None:
        self.buffer[:] = 0


def test_a_game_of_nethack_as_gymnasium_means_it() -> None:
    from hrm_agent.environments.wrappers.minihack import RepeatableNetHack

    env = RepeatableNetHack(Game())
    first, info = env.reset(seed=4)
    games = [info["dice"], env.reset()[1]["dice"]]
    assert games[0] != games[1]
    assert games == [env.reset(seed=4)[1]["dice"], env.reset()[1]["dice"]]
    assert games[0] != env.reset(seed=5)[1]["dice"]
    second = env.step(0)[0]
    assert env.step(0)[2:4] == (False, False)
    last, _, terminated, truncated, _ = env.step(0)
    assert (terminated, truncated) == (False, True)  # the time limit
    assert [o["chars"][0] for o in (first, second, last)] == [7, 8, 10]  # copies, and the last not blank
    env.reset()
    assert env.step(2)[2:4] == (True, False)  # a death


@needs_minihack
def test_minihack_trains_from_its_shipped_settings_and_repeats() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "env" / "MiniHack-Room-5x5-v0.yaml").read_text())
    seen = []
    for _ in range(2):
        env = make_vector_env("MiniHack-Room-Random-5x5-v0", 2, settings["options"])
        obs, _ = env.reset(seed=3)
        dice, run = np.random.default_rng(0), [obs["chars_crop"].copy()]
        for _ in range(30):
            run.append(env.step(dice.integers(8, size=2))[0]["chars_crop"].copy())
        seen.append(np.stack(run))
        env.close()
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0][0, 0] != seen[0][0, 1]).any()


@needs_minihack
def test_the_time_limit_of_minihack_is_a_truncation_with_the_last_picture() -> None:
    env = wrap_by_source(gym.make("MiniHack-Room-5x5-v0", observation_keys=["chars_crop"]), "MiniHack-Room-5x5-v0")
    env.reset(seed=0)
    ends = False
    while not ends:
        obs, _, terminated, truncated, _ = env.step(0)  # north, into the wall
        ends = terminated or truncated
    assert (terminated, truncated) == (False, True)
    assert obs["chars_crop"][4, 4] == ord("@")
    env.close()
