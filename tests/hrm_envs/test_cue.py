"""The memory test: solvable with one bit of memory, and not without."""

import numpy as np
import pytest

from hrm_envs import Cell, CueMazeEnv, CueMazeVectorEnv


def play(env: CueMazeVectorEnv, remember: bool) -> np.ndarray:
    observations, _ = env.reset(seed=0)
    height, width = observations.shape[1:]
    arms = np.where(observations[:, 1, width - 2] == Cell.GOAL, 0, 2)
    guess = arms if remember else np.random.default_rng(0).choice([0, 2], env.num_envs)
    for step in range(env.config.length + 1):
        actions = np.full(env.num_envs, 1) if step < env.config.length else guess
        observations, _, terminated, _, infos = env.step(actions)
        if step < env.config.length:
            assert not (observations == Cell.GOAL).any()
    assert height == 5
    assert terminated.all()
    return infos["episode"]["success"]


def test_memory_solves_it_and_guessing_succeeds_by_chance() -> None:
    assert play(CueMazeVectorEnv(2000), remember=True).all()
    assert 0.46 < play(CueMazeVectorEnv(2000), remember=False).mean() < 0.54


def test_wrong_arm_ends_without_reward() -> None:
    env = CueMazeEnv(length=1, oracle=True)
    for seed in range(6):
        obs, info = env.reset(seed=seed)
        north = obs[1, 2] == Cell.GOAL
        assert env.clairvoyant() == info["distance"] == 2
        _, _, _, _, info = env.step(1)
        assert info["optimal_actions"].tolist() == [north, False, not north, False]
        _, reward, terminated, truncated, info = env.step(2 if north else 0)
        assert (reward, terminated, truncated) == (-0.01, True, False)
        assert info["is_success"] is False
        assert env.clairvoyant() == -1


def test_the_bound_respects_the_time_limit() -> None:
    env = CueMazeEnv(length=4, max_episode_steps=5)
    env.reset(seed=0)
    assert env.clairvoyant() == 5
    env.step(3)
    assert env.clairvoyant() == -1


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match="length=0"):
        CueMazeEnv(length=0)
    with pytest.raises(ValueError, match="did you mean 'length'"):
        CueMazeVectorEnv(2, lenght=3)
