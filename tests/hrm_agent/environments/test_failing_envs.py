"""Environments of other packages that fail are named in one line, with their own traceback."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from failing_envs import Failing, Numbers
from hrm_agent.environments.checked import EPISODE_LIMIT, EnvironmentFailed, Guard, episode_limit, own_traceback
from hrm_agent.environments.make import make_vector_env

FAILING, NUMBERS = "failing_envs:Failing-v0", "failing_envs:FailingNumbers-v0"


def play(env_id: str, num_envs: int, steps: int = 4, **options: Any) -> None:
    env = make_vector_env(env_id, num_envs, options)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(np.zeros(num_envs, np.int64))
    env.close()


def failure(env_id: str, num_envs: int = 3, **options: Any) -> EnvironmentFailed:
    with pytest.raises(EnvironmentFailed) as raised:
        play(env_id, num_envs, **options)
    assert "\n" not in str(raised.value)
    assert str(raised.value).isprintable()
    return raised.value


@pytest.mark.filterwarnings("ignore:.*WARN")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "not_a_number",
            "step 3 after the reset: environment 1: observation 'speed' is nan at [1], expected finite numbers",
        ),
        ("infinite", "observation 'speed' is -inf at [0], expected finite numbers"),
        ("range", "environment 1: observation 'place' is 50, expected 0 to 49, as its space says"),
        ("shape", "environment 1: observation 'speed' is float32(3,), expected float32(2,)"),
        ("type", "environment 1: observation 'place' is float64(), expected int64()"),
        ("missing", "environment 1: no observation 'speed'"),
        ("nan_reward", "step 3 after the reset: environment 1: reward is nan, expected a finite number"),
        ("no_reward", "environment 1 failed in step 3 of an episode: TypeError: "),
        ("exit", "environment 1 failed in step 3 of an episode: SystemExit: 0"),
    ],
)
def test_what_an_environment_returns_is_checked(fault: str, message: str) -> None:
    error = failure(FAILING, fault=fault, seeds=1)
    assert str(error).startswith(f"env={FAILING}: ")
    assert message in str(error)


@pytest.mark.parametrize("length", [3, 6])
def test_final_observations_are_checked_too(length: int) -> None:
    error = failure(FAILING, fault="not_a_number", seeds=2, length=length)
    which = "final observation" if length == 3 else "observation"
    assert f"environment 2: {which} 'speed' is nan at [1]" in str(error)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("step", "environment 1 failed in step 3 of an episode"),
        ("reset", "environment 1 failed in reset"),
        ("close", "environment 0 failed in close"),
        ("constructor", "failed in its constructor"),
    ],
)
def test_what_an_environment_raises_keeps_its_own_traceback_alone(fault: str, where: str) -> None:
    error = failure(FAILING, fault=fault, seeds=1)
    assert str(error) == f"env={FAILING}: {where}: ZeroDivisionError: the gadget is \\x1b[31mbroken"
    assert isinstance(error.__cause__, ZeroDivisionError)
    lines = own_traceback(error.__cause__).splitlines()
    assert lines[-1] == "ZeroDivisionError: the gadget is \\x1b[31mbroken"
    files = [line for line in lines if line.lstrip().startswith("File ")]
    assert len(files) == 2  # the method, and what it calls
    assert all("failing_envs.py" in line for line in files)
    assert "broken_gadget" in files[1]


def test_a_failure_within_gymnasium_has_no_traceback_of_the_environment() -> None:
    error = failure(FAILING, fault="no_reward")
    assert error.__cause__ is not None
    assert own_traceback(error.__cause__) == ""


def test_ctrl_c_in_a_step_and_memory_that_is_used_up_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        play(FAILING, 2, fault="interrupt")
    monkeypatch.setattr(Failing, "step", lambda *_: (_ for _ in ()).throw(MemoryError("used up")))
    with pytest.raises(MemoryError, match="used up"):
        play(FAILING, 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", "step 2 after the reset: observation of shape (3, 1), expected (3, 2)"),
        ("text", "observation of type <U1, expected float32, as its space says"),
        ("rewards", "rewards are float64(2,), expected numbers of shape (3,)"),
        ("no_finals", "no infos['final_obs'] where an episode ended"),
        ("few_finals", "environment 2: no observation in infos['final_obs'], where its episode ended"),
        ("nan_final", "environment 1: final observation is nan at [0], expected finite numbers"),
        ("raises", "failed in step 2 after the reset: ZeroDivisionError: the gadget"),
    ],
)
def test_vectors_of_other_packages_are_checked(fault: str, message: str) -> None:
    assert message in str(failure(NUMBERS, fault=fault))


def test_what_is_right_is_passed_on() -> None:
    env = make_vector_env(NUMBERS, 3, {"fault": "double"})
    env.reset(seed=0)
    assert env.step(np.zeros(3))[0].dtype == np.float32
    assert isinstance(env.unwrapped, Numbers)
    obs, _ = make_vector_env(FAILING, 2, {}).reset(seed=0)
    assert obs["place"].tolist() == [0, 0]
    for name in ("DynamicMaze-v0", "CueMaze-v0"):
        ours = make_vector_env(name, 2, {})
        assert ours is ours.unwrapped  # nothing is wrapped around it, so nothing is checked at every step


@pytest.mark.parametrize(("limit", "expected"), [(None, EPISODE_LIMIT), (70, EPISODE_LIMIT), (12_345, 12_345)])
def test_the_limit_of_an_evaluation_is_never_below_the_environments_own(limit: int | None, expected: int) -> None:
    options = {} if limit is None else {"max_episode_steps": limit}
    assert episode_limit(make_vector_env(FAILING, 2, options)) == expected
    assert episode_limit(make_vector_env("DynamicMaze-v0", 2, options)) == expected


def test_a_limit_inside_the_environment_counts() -> None:
    class Own(gym.Wrapper):
        max_steps = 3  # of the class; instances have their own

        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self._max_episode_steps = 20_000

    assert episode_limit(Guard(Own(Failing()), "Own-v0")) == 20_000
