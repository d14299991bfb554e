"""Distributions over actions: against torch.distributions, against frequencies, and in the environment's units."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.policies.distributions import Categorical, Distribution, Gaussian, build_distribution

SPACES: dict[str, gym.Space] = {
    "discrete": gym.spaces.Discrete(4, start=2),
    "multi": gym.spaces.MultiDiscrete([2, 3, 4], start=[0, 1, -1]),
    "bounded": gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)),
    "unbounded": gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "half": gym.spaces.Box(np.array([-np.inf, 1.0], np.float32), np.array([np.inf, 3.0], np.float32)),
}
each_space = pytest.mark.parametrize("name", SPACES)


def params_of(distribution: Distribution, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, distribution.outputs + distribution.free, generator=generator)


def reference(distribution: Distribution, params: Tensor) -> list[torch.distributions.Distribution]:
    """torch's own, one for each independent part."""
    if isinstance(distribution, Gaussian):
        mean, log_std = params.chunk(2, -1)
        each = zip(mean.unbind(-1), log_std.exp().unbind(-1), strict=True)
        return [torch.distributions.Normal(m, s) for m, s in each]
    sizes = getattr(distribution, "sizes", [distribution.outputs])
    return [torch.distributions.Categorical(logits=part) for part in params.split(sizes, -1)]


@each_space
def test_log_probability_entropy_and_divergence_are_those_of_torch(name: str) -> None:
    distribution = build_distribution(SPACES[name])
    params, other = params_of(distribution, 64), params_of(distribution, 64, seed=1)
    actions, log_probs = distribution.sample(params, torch.Generator().manual_seed(0))
    assert actions.shape == (64, *distribution.shape)
    assert actions.dtype == distribution.dtype
    parts, others = reference(distribution, params), reference(distribution, other)
    split = actions.unbind(-1) if distribution.shape else [actions]
    expected = torch.stack([d.log_prob(a) for d, a in zip(parts, split, strict=True)]).sum(0)
    evaluated, entropy = distribution.evaluate(params, actions)
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(evaluated, expected)
    torch.testing.assert_close(entropy, torch.stack([d.entropy() for d in parts]).sum(0))
    each = zip(parts, others, strict=True)
    divergence = torch.stack([torch.distributions.kl_divergence(d, o) for d, o in each]).sum(0)
    torch.testing.assert_close(distribution.divergence(params, other), divergence, rtol=1e-4, atol=1e-5)
    assert (distribution.divergence(params, params) == 0).all()


@each_space
def test_leading_dimensions_pass_through(name: str) -> None:
    distribution = build_distribution(SPACES[name])
    params = params_of(distribution, 12)
    actions, log_probs = distribution.sample(params, torch.Generator().manual_seed(0))
    folded, _ = distribution.evaluate(params.unflatten(0, (3, 4)), actions.unflatten(0, (3, 4)))
    torch.testing.assert_close(folded.flatten(), log_probs)
    assert distribution.summary(params.unflatten(0, (3, 4))).shape == (3, 4, distribution.summary_size)
    assert torch.equal(distribution.best(params.unflatten(0, (3, 4))).flatten(0, 1), distribution.best(params))


@each_space
def test_the_environment_can_take_every_action(name: str) -> None:
    distribution = build_distribution(SPACES[name])
    params = 3 * params_of(distribution, 200)
    uniforms = torch.rand(200, distribution.uniforms, generator=torch.Generator().manual_seed(0))
    drawn, _ = distribution.sample(params, torch.Generator().manual_seed(0))
    uniform, icdf = distribution.uniform(uniforms), distribution.icdf(params, uniforms)
    for actions in (drawn, uniform, icdf, distribution.best(params)):
        for action in distribution.to_env(actions):
            assert SPACES[name].contains(action), action


@each_space
def test_no_action_is_likelier_than_the_best(name: str) -> None:
    distribution = build_distribution(SPACES[name])
    params = params_of(distribution, 100)
    best, _ = distribution.evaluate(params, distribution.best(params))
    _, drawn = distribution.sample(params, torch.Generator().manual_seed(0))
    assert (best >= drawn).all()


@pytest.mark.parametrize("name", ["discrete", "multi"])
def test_drawn_and_inverted_actions_come_in_proportion_to_their_probability(name: str) -> None:
    distribution = build_distribution(SPACES[name])
    params = params_of(distribution, 1).expand(40_000, -1)
    uniforms = torch.rand(40_000, distribution.uniforms, generator=torch.Generator().manual_seed(1))
    expected = distribution.summary(params[0])
    for actions in (
        distribution.sample(params, torch.Generator().manual_seed(0))[0],
        distribution.icdf(params, uniforms),
    ):
        split = actions.unbind(-1) if distribution.shape else [actions]
        sizes = getattr(distribution, "sizes", [4])
        counts = torch.cat([torch.bincount(a, minlength=n) for a, n in zip(split, sizes, strict=True)])
        torch.testing.assert_close(counts / 40_000, expected, rtol=0, atol=0.012)


def test_gaussian_quantiles_are_those_of_torch() -> None:
    """Entry by entry and rising with the number, so that common numbers couple actions of different policies."""
    distribution = build_distribution(gym.spaces.Box(-1.0, 1.0, (2,)))
    params = params_of(distribution, 50)
    uniforms = torch.rand(50, distribution.uniforms, generator=torch.Generator().manual_seed(2))
    mean, log_std = params.chunk(2, -1)
    expected = torch.distributions.Normal(mean, log_std.exp()).icdf(uniforms)
    torch.testing.assert_close(distribution.icdf(params, uniforms), expected, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(distribution.icdf(params, torch.zeros_like(uniforms))).all()


@given(low=st.floats(-10, 10), width=st.floats(0.1, 10), at=st.floats(-1, 1))
@settings(max_examples=50)
def test_the_bounds_of_a_box_are_minus_one_and_one(low: float, width: float, at: float) -> None:
    space = gym.spaces.Box(np.float32(low), np.float32(low + width), (1,), np.float32)
    taken = build_distribution(space).to_env(torch.tensor([[at], [1.5], [-7.0]]))
    np.testing.assert_allclose(taken[0, 0], low + (at + 1) / 2 * width, rtol=1e-4, atol=1e-4)
    assert taken[1, 0] == space.high[0]
    assert taken[2, 0] == space.low[0]


def test_a_uniform_draw_covers_a_bounded_box_evenly() -> None:
    distribution = build_distribution(SPACES["bounded"])
    uniforms = torch.linspace(0, 1, 1001)[:, None].expand(-1, 2)
    taken = distribution.to_env(distribution.uniform(uniforms))
    np.testing.assert_allclose(taken, np.linspace([-2.0, 0.0], [2.0, 5.0], 1001), atol=1e-5)


@pytest.mark.parametrize("space", [gym.spaces.Text(3), gym.spaces.Box(0, 9, (2,), np.int64), gym.spaces.MultiBinary(2)])
def test_other_spaces_are_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"action space .*: expected Discrete, MultiDiscrete"):
        build_distribution(space)


def test_discrete_logits_are_what_probabilities_are_made_of() -> None:
    space = gym.spaces.Discrete(3)
    probabilities = Categorical(space).summary(torch.tensor([0.1, 0.2, 0.7]).log())
    torch.testing.assert_close(probabilities, torch.tensor([0.1, 0.2, 0.7]))
