"""`predict` takes what is in its spaces and what it returned itself, and refuses the rest by a ValueError."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import hrm_agent
from hrm_agent import Agent
from hrm_agent.recurrence import use
from tiny import ACTIONS, GRID, grids, tiny_policy

B = 3
PARTS = gym.spaces.Dict(
    grid=GRID,
    speed=gym.spaces.Box(-1, 1, (2,), np.float32),
    turn=gym.spaces.Discrete(4, start=-1),
    keys=gym.spaces.MultiDiscrete([2, 5], start=[0, 3]),
)


def agent_for(space: gym.Space, **changes: Any) -> Agent:
    return Agent(tiny_policy(space, crop=0, readout="mean", **changes), space, ACTIONS)


def refused(agent: Agent, *given: Any) -> str:
    with pytest.raises(ValueError, match=r"observation|state|episode_start") as caught:
        agent.predict(*given)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_ids_outside_the_space_are_refused_by_every_kernel() -> None:
    """An id is a row of a table, and compiled code does not look where a table ends."""
    for kernel in ("plain", "fused"):
        agent = agent_for(GRID)
        use(agent.policy, kernel)
        inside = grids(B).numpy()
        for outside in (6, 255, -1, 2**40):
            obs = inside.astype(np.int64)
            obs[1, 2, 3] = outside
            said = refused(agent, obs)
            assert f"values from {obs.min()} to {obs.max()}; this agent expects integers from 0 to 5" in said
        assert refused(agent, inside + 0.5)
        assert refused(agent, np.where(inside == 5, np.nan, inside))
        assert np.array_equal(agent.predict(inside.astype(np.float32))[0], agent.predict(inside)[0])
        assert np.array_equal(agent.predict(torch.from_numpy(inside))[0], agent.predict(inside)[0])


@pytest.mark.parametrize("dtype", ["longdouble", ">f4", ">f8", ">i4"])
def test_numbers_of_types_that_torch_does_not_have_are_converted(dtype: str) -> None:
    agent, inside = agent_for(GRID), grids(B).numpy()
    assert np.array_equal(agent.predict(inside.astype(dtype))[0], agent.predict(inside)[0])


def test_an_observation_without_the_wrappers_of_training_says_how_to_add_them() -> None:
    pytest.importorskip("minigrid")
    name = "MiniGrid-DoorKey-5x5-v0"
    env = hrm_agent.make_env(name)
    policy = tiny_policy(env.observation_space, core="gru", readout="mean", crop=0, actions=env.action_space)
    agent = Agent(policy, env.observation_space, env.action_space, {"env": name})
    raw = gym.make(name).reset(seed=0)[0]
    for observation in (raw, raw["image"]):
        assert refused(agent, observation).endswith(
            "; agent.make_env() makes its environment in the wrappers of training"
        )
    wrapped = agent.make_env(size=6)
    assert wrapped.unwrapped.width == 6  # type: ignore[attr-defined]
    assert agent.predict(wrapped.reset(seed=0)[0])[0].shape == ()


@pytest.mark.parametrize(
    ("space", "good", "bad"),
    [
        (gym.spaces.Discrete(5, start=-2), (-2, 0, 2), (-3, 3, 0.5, float("nan"), "two")),
        (gym.spaces.MultiDiscrete([2, 5], start=[0, 3]), ([0, 3], [1, 7]), ([2, 3], [0, 2], [0, 8], [0], [[[0, 3]]])),
        (gym.spaces.Box(np.array([0, 10]), np.array([3, 12]), dtype=np.int64), ([0, 10], [3, 12]), ([4, 10], [0, 9])),
        (
            gym.spaces.Box(-1, 1, (2,), np.float32),
            ([-1, 1], [-3.0, 9.5]),
            ([np.nan, 0], [None, 0], ["a", "b"], [1j, 0]),
        ),
    ],
    ids=str,
)
def test_numbers_are_checked_against_every_kind_of_space(space: gym.Space, good: Any, bad: Any) -> None:
    """Of real numbers NaN alone: environments leave their bounds now and then."""
    agent = agent_for(space)
    for value in good:
        assert agent.predict(np.array(value))[0].shape == ()
        assert agent.predict(np.array([value, value]))[0].shape == (2,)
    for value in bad:
        refused(agent, value)
        refused(agent, [value, value])


def test_entries_of_a_dictionary_are_named_where_they_are_wrong() -> None:
    agent = agent_for(PARTS)
    PARTS.seed(0)
    single = PARTS.sample()
    batch = {key: np.stack([np.asarray(value)] * B) for key, value in single.items()}
    one, _ = agent.predict(single)
    many, _ = agent.predict(batch)
    assert one.shape == ()
    assert many.tolist() == [one.item()] * B
    assert "observation['turn']: values from -2 to" in refused(agent, {**single, "turn": -2})
    assert "observation['keys'] of shape (3,)" in refused(agent, {**single, "keys": [1, 2, 3]})
    assert "expects a dictionary with" in refused(agent, {k: v for k, v in single.items() if k != "turn"})
    assert "expects a dictionary with" in refused(agent, single["grid"])
    assert "not all single, nor batches of one size" in refused(agent, {**batch, "turn": single["turn"]})
    assert "not all single, nor batches of one size" in refused(agent, {**batch, "turn": batch["turn"][:2]})


@pytest.mark.parametrize("carry", ["full", "last_token", "output", "reset"])
def test_a_state_of_another_batch_shape_or_type_is_refused(carry: str) -> None:
    agent = agent_for(GRID, carry=carry)
    obs = grids(B).numpy()
    _, state = agent.predict(obs)
    agent.predict(obs, state)
    more = np.zeros((B, 1), np.float32)
    others: list[Any] = [(*state, more), [more], "state", 5, (None,), ("a",), {"a": more}]
    if state:
        others += [
            (),
            tuple(s[:2] for s in state),
            tuple(np.concatenate([s, s]) for s in state),
            tuple(s[..., :-1] for s in state),
            tuple(s[:, None] for s in state),
            tuple(s.astype(np.float64) for s in state),
            tuple(s.astype(np.int32) for s in state),
            tuple(s > 0 for s in state),
        ]
    for other in others:
        assert "state" in refused(agent, obs, other)
    if state:
        assert "state" in refused(agent, obs[0], state)


def test_the_state_follows_a_policy_that_is_cast() -> None:
    agent = agent_for(GRID)
    obs = grids(B).numpy()
    _, state = agent.predict(obs)
    agent.policy.double()
    assert "expects float64" in refused(agent, obs, state)
    _, state = agent.predict(obs)
    assert agent.predict(obs, state)[1][0].dtype == np.float64


@pytest.mark.parametrize("start", [[True, False], np.zeros((B, 1), bool), np.zeros((2, B), bool), "yes", [[True], []]])
def test_an_episode_start_for_other_rows_is_refused(start: Any) -> None:
    agent = agent_for(GRID)
    obs = grids(B).numpy()
    _, state = agent.predict(obs)
    assert f"one for each of {B} rows" in refused(agent, obs, state, start)


def test_an_episode_start_may_be_one_for_all() -> None:
    agent = agent_for(GRID)
    obs = grids(B).numpy()
    fresh, _ = agent.predict(obs)
    _, state = agent.predict(grids(B, seed=1).numpy())
    for start in (True, [True], np.ones(B, bool), np.ones(B)):
        assert np.array_equal(agent.predict(obs, state, start)[0], fresh)
