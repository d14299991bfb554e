"""Rollouts: advantages against a slow reference, and windows that hold what was written."""

from __future__ import annotations

import math
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.experience.rollout import Rollout, draw_minibatches
from runs import Part

SPACE = gym.spaces.Box(0, 5, (2, 2), np.uint8)


def slow_advantages(rollout: Rollout, env: int, gamma: float, lam: float) -> list[float]:
    """Every episode on its own: the sum of (gamma lam)^l delta up to its end, from the definition."""
    values = rollout.values[:, env].tolist()
    rewards = rollout.rewards[:, env].tolist()
    result: list[float] = []
    begin = 0
    for t in range(rollout.steps):
        terminated, truncated = bool(rollout.terminated[t, env]), bool(rollout.truncated[t, env])
        if not (terminated or truncated or t == rollout.steps - 1):
            continue
        if terminated:
            after = 0.0
        elif truncated:
            after = float(rollout.final_values[t, env])
        else:
            after = float(rollout.last_values[env])
        own = [*values[begin : t + 1], after]
        deltas = [rewards[begin + i] + gamma * own[i + 1] - own[i] for i in range(len(own) - 1)]
        result += [sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]
        begin = t + 1
    return result


@given(
    steps=st.integers(1, 12),
    ends=st.lists(st.sampled_from(["", "", "terminated", "truncated", "both"]), min_size=24, max_size=24),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=80)
def test_advantages_equal_the_definition_episode_by_episode(
    steps: int, ends: list[str], gamma: float, lam: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rollout = Rollout(steps, 2, 1, SPACE, ())
    for tensor in (rollout.rewards, rollout.values, rollout.last_values):
        tensor.normal_(generator=generator)
    for index, end in enumerate(ends[: 2 * steps]):
        t, env = divmod(index, 2)
        rollout.terminated[t, env] = end in ("terminated", "both")
        rollout.truncated[t, env] = end in ("truncated", "both")
        if end == "truncated":
            rollout.final_values[t, env] = float(torch.randn((), generator=generator))
    advantages, returns = rollout.advantages(gamma, lam)
    for env in range(2):
        expected = torch.tensor(slow_advantages(rollout, env, gamma, lam))
        torch.testing.assert_close(advantages[:, env], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(returns, advantages + rollout.values)


def numbered(steps: int = 6, num_envs: int = 3, window: int = 2) -> Rollout:
    """Every entry says where it belongs: 100 t + environment; kept states 1000 t + environment."""
    rollout = Rollout(steps, num_envs, window, SPACE, (torch.zeros(num_envs, 4),))
    envs = torch.arange(num_envs)
    for t in range(steps):
        rollout.write_obs(t, (10 * t + envs).view(-1, 1, 1).expand(-1, 2, 2).to(torch.uint8))
        rollout.actions[t] = 100 * t + envs
        rollout.episode_start[t] = envs == t % num_envs
        for store in (rollout.log_probs, rollout.values):
            store[t] = 100.0 * t + envs
    for row in range(steps // window + 1):
        rollout.write_state(row, ((1000.0 * row * window + envs).view(-1, 1).expand(-1, 4),))
    return rollout


def test_a_window_is_consecutive_steps_of_one_environment_from_its_stored_state() -> None:
    rollout = numbered()
    advantages = rollout.values + 0.5
    windows = rollout.windows(advantages, -rollout.values)
    seen = set()
    for b in range(windows.actions.shape[1]):
        t, env = divmod(int(windows.actions[0, b]), 100)
        seen.add((t, env))
        for step in range(2):
            number = 100 * (t + step) + env
            assert windows.actions[step, b] == number
            assert windows.values[step, b] == windows.log_probs[step, b] == number
            assert windows.advantages[step, b] == number + 0.5
            assert windows.returns[step, b] == -number
            assert windows.episode_start[step, b] == (env == (t + step) % 3)
            assert isinstance(windows.obs, Tensor)
            assert (windows.obs[step, b] == 10 * (t + step) + env).all()
        assert (windows.state[0][b] == 1000 * t + env).all()
        assert (windows.next_state[0][b] == 1000 * (t + 2) + env).all()
    assert seen == {(t, env) for t in (0, 2, 4) for env in range(3)}


def windows_by_number(num_envs: int, per_env: int, size: int, seed: int, parts: int) -> list[list[set[int]]]:
    """What each of so many processes holds of each minibatch: numbers `window * num_envs + environment`."""
    own_envs = num_envs // parts
    drawn = []
    for rank in range(parts):
        generator = torch.Generator().manual_seed(seed)
        columns = draw_minibatches(num_envs, per_env, size, generator, Part(rank, parts))
        number = columns // own_envs * num_envs + columns % own_envs + rank * own_envs
        assert columns.shape == (num_envs * per_env // size, size // parts)
        drawn.append([set(row) for row in number.tolist()])
    return drawn


@given(
    blocks=st.integers(1, 6),
    envs_each=st.integers(1, 4),
    per_env=st.integers(1, 4),
    seed=st.integers(0, 999),
    data=st.data(),
)
@settings(max_examples=60)
def test_minibatches_hold_every_window_once_in_equal_shares(
    blocks: int, envs_each: int, per_env: int, seed: int, data: st.DataObject
) -> None:
    num_envs = blocks * envs_each
    windows = num_envs * per_env
    sizes = [n for n in range(1, windows + 1) if windows % n == 0]
    size = data.draw(st.sampled_from(sizes))
    strata = math.gcd(num_envs, size)
    parts = data.draw(st.sampled_from([n for n in range(1, strata + 1) if strata % n == 0]))
    (whole,) = windows_by_number(num_envs, per_env, size, seed, 1)
    assert all(len(batch) == size for batch in whole)
    assert set().union(*whole) == set(range(windows))
    each = num_envs // strata
    for batch in whole:
        counts = Counter(number % num_envs // each for number in batch)
        assert counts == dict.fromkeys(range(strata), size // strata)
    # Processes hold the same minibatches between them, each the windows of its own environments.
    shared = windows_by_number(num_envs, per_env, size, seed, parts)
    assert [set().union(*batch) for batch in zip(*shared, strict=True)] == whole
    own = num_envs // parts
    for rank, batches in enumerate(shared):
        assert {number % num_envs // own for batch in batches for number in batch} == {rank}


def test_minibatches_are_drawn_by_the_generator() -> None:
    def drawn(seed: int) -> list[list[int]]:
        return draw_minibatches(4, 6, 8, torch.Generator().manual_seed(seed)).tolist()

    assert drawn(0) == drawn(0) != drawn(1)
    generator = torch.Generator().manual_seed(0)
    assert draw_minibatches(4, 6, 8, generator).tolist() != draw_minibatches(4, 6, 8, generator).tolist()
    # Two windows of one environment are together as often as chance has it: 1 of the other 5 in each of 2000.
    together = sum(
        any({0, 4} <= set(batch) for batch in draw_minibatches(4, 6, 8, generator).tolist()) for _ in range(2000)
    )
    assert 300 < together < 500


def test_dictionary_observations_are_folded_entry_by_entry() -> None:
    space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,), np.float32), b=gym.spaces.Discrete(9))
    rollout = Rollout(4, 2, 2, space, ())
    for t in range(4):
        rollout.write_obs(t, {"a": torch.full((2, 2), t / 4), "b": torch.tensor([2 * t, 2 * t + 1])})
    windows = rollout.windows(torch.zeros(4, 2), torch.zeros(4, 2)).columns(torch.tensor([3, 0]))
    assert isinstance(windows.obs, dict)
    assert windows.obs["b"].tolist() == [[5, 0], [7, 2]]
    assert windows.obs["b"].dtype == torch.int64
    assert windows.obs["a"][:, 1, 0].tolist() == [0.0, 0.25]


def test_windows_that_do_not_tile_the_rollout_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout_steps=6 is not a multiple of algo.window=4"):
        Rollout(6, 2, 4, SPACE, ())
