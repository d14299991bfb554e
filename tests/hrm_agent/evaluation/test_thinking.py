"""A decision segment by segment: the same actions as everywhere else, and what is shown of it."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.environments.make import make_env
from hrm_agent.evaluation.episodes import PolicyActor
from hrm_agent.evaluation.thinking import ThinkingActor, batch_of_one, cells_of_tokens
from hrm_agent.policies.carry import CARRY_RULES
from hrm_agent.policies.encoders import EncoderConfig, find_grid
from hrm_agent.policies.policy import Policy
from tiny import MAZE, QUICK, grids, tiny_policy

GTRXL = {"layers": 1, "num_heads": 1, "memory_steps": 3, "width": 8}


class FirstNumber:
    """Reads the first latent of a token, plus 100 a segment."""

    def read(self, latents: Tensor, segment: int) -> Tensor:
        return latents[..., 0] + 100 * segment


@cache
def maze() -> gym.Env:
    return make_env("DynamicMaze-v0", MAZE)


def both(
    policy: Policy, env_id: str = "DynamicMaze-v0", options: dict[str, Any] | None = None, level: int = 3, **how: Any
) -> list[int]:
    """Play an episode with `PolicyActor`, and check that `ThinkingActor` decides alike; segments of each decision."""
    env = maze() if options is None else make_env(env_id, options)
    one, other = ThinkingActor(policy, **how), PolicyActor(policy, **how)
    obs, _ = env.reset(seed=level)
    one.reset(level)
    other.reset(np.array([level]))
    lengths, ended = [], False
    while not ended:
        taken, action = one.act(obs), other.act(batch_of_one(obs))[0]
        np.testing.assert_array_equal(taken.action, action)
        for a, b in zip(one.state, other.state, strict=True):
            torch.testing.assert_close(a, b)
        assert len(taken.values) == len(taken.latent_change) == len(taken.change) == other.segments[0]
        if other.probabilities is not None:
            np.testing.assert_allclose(taken.probabilities[-1], other.probabilities[0], atol=1e-6)
        lengths.append(len(taken.values))
        obs, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated or len(lengths) == 5
    return lengths


@pytest.mark.parametrize("carry", sorted(CARRY_RULES))
@settings(max_examples=4)
@given(
    segments=st.integers(1, 4),
    first=st.none() | st.integers(1, 4),
    stop=st.sampled_from([("fixed", 0.0), ("latent_change", 0.0), ("latent_change", 0.4), ("policy_kl", 0.05)]),
    deterministic=st.booleans(),
    seed=st.integers(0, 3),
)
def test_actions_are_those_of_the_policy_actor(
    carry: str, segments: int, first: int | None, stop: tuple[str, float], deterministic: bool, seed: int
) -> None:
    rules = {"segments": segments, "first_segments": first, "stop": stop[0], "stop_threshold": stop[1]}
    lengths = both(tiny_policy(carry=carry, core_options=QUICK, **rules), deterministic=deterministic, seed=seed)
    if stop[1] == 0:
        assert lengths == [first or segments] + [segments] * (len(lengths) - 1)


def test_adaptive_stops_stop_at_different_segments() -> None:
    """Or the property above tests too little."""
    for rule, threshold in (("latent_change", 0.4), ("policy_kl", 0.05)):
        policy = tiny_policy(core_options=QUICK, segments=6, stop=rule, stop_threshold=threshold)
        assert len(set(both(policy))) > 1, rule


@pytest.mark.parametrize(
    ("env_id", "options", "changes"),
    [
        ("CartPole-v1", {}, {"core": "feedforward", "readout": "mean"}),
        ("CartPole-v1", {}, {"core": "gru", "readout": "mean", "heads": "q"}),
        ("Pendulum-v1", {}, {"core": "trm", "core_options": QUICK, "readout": "mean"}),
        (
            "DynamicMaze-v0",
            MAZE,
            {"core": "gtrxl", "core_options": {"layers": 1, "num_heads": 1, "memory_steps": 3, "width": 8}},
        ),
        ("DynamicMaze-v0", MAZE, {"core": "convlstm"}),
        ("DynamicMaze-v0", MAZE, {"core": "vin", "core_options": {"iterations": 2}}),
        ("DynamicMaze-v0", MAZE, {"core": "feedforward", "encoder": EncoderConfig(0, 2, frames=2)}),
    ],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_core_and_kind_of_action(
    env_id: str, options: dict[str, Any], changes: dict[str, Any], deterministic: bool
) -> None:
    env = make_env(env_id, options)
    policy = tiny_policy(env.observation_space, crop=0, actions=env.action_space, segments=2, **changes)
    both(policy, env_id, options, deterministic=deterministic)
    shown = ThinkingActor(policy, FirstNumber()).think(env.reset(seed=0)[0])
    per_token = changes["core"] in ("trm", "convlstm", "vin")
    assert shown.latent_change.shape == (2, policy.encoder.length if per_token else 0)
    assert (shown.distance is not None) == per_token
    assert (shown.change > 0).all() == (changes["core"] != "feedforward")
    count = getattr(env.action_space, "n", 0)
    assert shown.probabilities.shape == (2, count)
    np.testing.assert_allclose(shown.probabilities.sum(-1), 1 if count else 0, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 2])
def test_changes_and_distances_are_those_of_the_grids_tokens(prefix: int) -> None:
    policy = tiny_policy(core="hrm", segments=3, encoder=EncoderConfig(1, 2, prefix=prefix))
    obs = grids(seed=4).numpy()
    shown = ThinkingActor(policy, FirstNumber()).think(obs)
    start, batch = torch.ones(1, dtype=torch.bool), torch.as_tensor(obs)[None]
    with torch.no_grad():
        tokens = policy.encoder(batch)
        states = [policy.core.initial_state(1)]
        for _ in range(3):
            states.append(policy.core(tokens, states[-1])[1])
    vectors = [torch.cat(tuple(state), -1)[0, prefix:] for state in states]  # [L, 2 D]
    assert shown.distance is not None
    for i in range(3):
        moved = (vectors[i + 1] - vectors[i]).norm(dim=-1) / vectors[i + 1].norm(dim=-1)
        np.testing.assert_allclose(shown.latent_change[i], moved.numpy(), rtol=1e-5)
        np.testing.assert_allclose(
            shown.distance[i], (vectors[i + 1][:, 0] + 100 * (i + 1)).clamp_min(0).numpy(), rtol=1e-5
        )
    whole = [torch.cat([s.flatten() for s in state]) for state in states]
    expected = [float((b - a).norm() / b.norm()) for a, b in itertools.pairwise(whole)]
    np.testing.assert_allclose(shown.change, expected, rtol=1e-5)
    assert shown.distance.min() >= 0
    decision = policy.step(batch, policy.initial_state(1), start)
    assert decision.logits.argmax().item() == shown.action


@given(crop=st.integers(0, 2), patch=st.integers(1, 3))
def test_cells_of_tokens_are_the_positions_that_change_them(crop: int, patch: int) -> None:
    policy = tiny_policy(crop=crop, patch=patch, core_options=QUICK)
    cells = cells_of_tokens(policy)
    assert cells is not None
    grid = grids(seed=1)
    grid[grid == 3] = 0
    with torch.no_grad():
        before = policy.encoder(grid)
        for row, col in np.ndindex(*grid.shape):
            other = grid.clone()
            other[row, col] = 5 - other[row, col]
            changed = (policy.encoder(other) != before).any(-1).nonzero().flatten().tolist()
            assert changed == [i for i, own in enumerate(cells) if (row, col) in own]


def test_a_policy_without_a_grid_has_no_cells() -> None:
    env = make_env("CartPole-v1", {})
    policy = tiny_policy(env.observation_space, actions=env.action_space, core="gru", readout="mean")
    assert find_grid(policy.encoder) is None
    assert cells_of_tokens(policy) is None


def test_thinking_computes_and_changes_nothing() -> None:
    policy = tiny_policy(core_options=QUICK, segments=2)
    actor = ThinkingActor(policy, deterministic=False)
    first, second = grids(2, seed=2).numpy()
    shown = [actor.think(first) for _ in range(5)]
    before = actor.think(second)
    assert {thought.action for thought in shown} == {actor.act(first).action}  # the same draw
    after = actor.think(second)
    assert not np.array_equal(before.probabilities, after.probabilities)  # it carries the first now
    actor.reset()
    np.testing.assert_array_equal(actor.think(second).probabilities, before.probabilities)
    assert policy.segments == 2
