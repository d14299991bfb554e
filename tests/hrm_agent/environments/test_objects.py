"""Environments given as objects and callables are made again by an id."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit, TransformReward

import hrm_envs
from hrm_agent.environments.make import make_env, make_vector_env
from hrm_agent.environments.objects import identify
from hrm_agent.environments.sources import StoredId
from worlds import Recall


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def test_an_id_stays_and_so_does_what_gymnasium_made_by_one() -> None:
    hrm_envs.register_envs()
    assert identify("CartPole-v1", {}) == ("CartPole-v1", {})
    made = gym.make("CartPole-v1", sutton_barto_reward=True, render_mode="rgb_array")
    assert identify(made, {}) == ("CartPole-v1", {"sutton_barto_reward": True})
    assert identify(gym.make("CartPole-v1", max_episode_steps=20), {}) == ("CartPole-v1", {"max_episode_steps": 20})
    assert identify(gym.make("DynamicMaze-v0", rows=3), {}) == ("DynamicMaze-v0", {"rows": 3})


def test_wrappers_and_arguments_hold_for_every_copy() -> None:
    env = TransformReward(gym.make("CartPole-v1", max_episode_steps=7), lambda reward: 3 * reward)
    env_id, options = identify(env, {})
    assert (env_id, options) == ("python/CartPole", {})
    vector = make_vector_env(env_id, 2)
    vector.reset(seed=0)
    ended = np.zeros(2, bool)
    for _ in range(7):
        assert not ended.any()
        _, rewards, _, ended, _ = vector.step(np.array([0, 1]))
        np.testing.assert_array_equal(rewards, 3.0)
    assert ended.all()
    assert make_env(env_id).spec.reward_threshold == 475  # type: ignore[union-attr]


@pytest.mark.parametrize("given", [Recall(delay=2), TimeLimit(Recall(delay=5), 2)], ids=["bare", "wrapped"])
def test_an_object_is_copied_as_it_is(given: gym.Env) -> None:
    env_id, _ = identify(given, {})
    assert env_id == "python/Recall"
    given.reset(seed=0)
    steps = given.unwrapped.steps  # type: ignore[attr-defined]
    one, other = make_env(env_id), make_env(env_id, {"render_mode": "rgb_array"})
    for env in (one, other):
        env.reset(seed=3)
        env.step(0)
    assert other.render().shape == (8, 8, 3)  # type: ignore[union-attr]
    assert one.unwrapped.sign == other.unwrapped.sign  # type: ignore[attr-defined]
    _, _, terminated, truncated, _ = one.step(0)
    assert terminated == truncated == False or truncated  # noqa: E712
    assert given.unwrapped.steps == steps  # type: ignore[attr-defined]
    assert identify(given, {})[0] == "python/Recall-2"  # it may have been changed since


def test_a_callable_takes_options_and_draws() -> None:
    def make(delay: int = 3) -> gym.Env:
        return Recall(delay)

    for given, name in (
        (make, "make"),
        (partial(make, delay=4), "make-2"),
        (Recall, "Recall"),
        (lambda: make(), "env"),
    ):
        assert identify(given, {}) == (f"python/{name}", {})
        assert identify(given, {}) == (f"python/{name}", {})  # the same again
    assert make_env("python/make", {"delay": 9}).unwrapped.delay == 9  # type: ignore[attr-defined]
    drawn = make_env("python/make", {"render_mode": "rgb_array"})
    drawn.reset(seed=0)
    assert drawn.render().shape == (8, 8, 3)  # type: ignore[union-attr]


class Locked(Recall):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def broken() -> gym.Env:
    raise TypeError("no such\nboard")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            Locked(),
            r"^env=<.*Locked.*>: cannot be copied, .*\(TypeError: cannot pickle '_thread.lock' object\); give a ",
        ),
        (lambda: gym.make_vec("CartPole-v1", num_envs=2), "returns a vector environment; expected a single one"),
        (lambda: 3, r"<lambda>: it returns 3; expected a gymnasium.Env"),
        (lambda size: Recall(size), r"<lambda>: .*missing 1 required positional argument: 'size'"),
        (broken, "env=broken: no such board"),
        (7, "env=7: expected an id, a gymnasium.Env, or a callable that returns one"),
        (None, "env=None: expected an id"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(given: Any, said: str) -> None:
    before = dict(gym.registry)
    with pytest.raises(ValueError, match=said) as error:
        identify(given, {})
    assert "\n" not in str(error.value)
    assert dict(gym.registry) == before


def test_a_vector_environment_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"a vector environment; expected a single one.*algo\.num_envs"):
        identify(gym.make_vec("CartPole-v1", num_envs=2), {})


def test_a_run_that_is_resumed_is_given_its_environment_again() -> None:
    assert identify(Recall, {}, "python/Recall-7") == ("python/Recall-7", {})
    assert identify(Recall(delay=6), {}, "python/Recall-7") == ("python/Recall-7", {})
    assert make_env("python/Recall-7").unwrapped.delay == 6  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the run is one of env=python/Board; the environment cannot change"):
        identify(Recall, {}, "python/Board")


@pytest.mark.parametrize("kind", [str, StoredId])
def test_an_id_of_another_process_says_what_to_do(kind: type[str]) -> None:
    with pytest.raises(ValueError, match=r"env=python/Gone: .*as an object.*hrm_agent\.learn\(env, folder=FOLDER"):
        make_env(kind("python/Gone"))
