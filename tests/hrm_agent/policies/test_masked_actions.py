"""An action that is not legal is never drawn, has no gradient, and changes nothing that is computed of the others."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.environments.action_masks import MASK
from hrm_agent.policies.distributions import MASKED, Distribution, build_distribution, may_be_taken
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Decision, Policy
from hrm_agent.tensors import trees
from tiny import ACTIONS, AGENT, CORES, GRID, grids, tiny_policy

BATCH, K, COUNT = 4, 3, int(ACTIONS.n)
MASKED_GRID = gym.spaces.Dict({"observation": GRID, MASK: gym.spaces.MultiBinary(COUNT)})
NEARLY_ONE = float(np.nextafter(1.0, 0.0))


def bits(*lead: int, seed: int = 0) -> Tensor:
    """Random masks int8 `[*lead, A]`, each with a legal action and most with one that is not."""
    random = np.random.default_rng(seed)
    legal = random.random((*lead, COUNT)) < 0.5
    np.put_along_axis(legal, random.integers(COUNT, size=(*lead, 1)), True, -1)
    return torch.from_numpy(legal.astype(np.int8))


def observations(*lead: int, seed: int = 0) -> dict[str, Tensor]:
    return {"observation": grids(*lead, seed=seed), MASK: bits(*lead, seed=seed)}


@st.composite
def masked_params(draw: Any) -> tuple[Distribution, Tensor, Tensor]:
    """A distribution, finite logits `[P]`, and a mask bool `[P]` with a legal action of each choice."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    space = gym.spaces.MultiDiscrete(sizes) if len(sizes) > 1 else gym.spaces.Discrete(sizes[0])
    logits = draw(st.lists(st.floats(-60, 60, width=32), min_size=sum(sizes), max_size=sum(sizes)))
    mask = np.concatenate([_with_one(draw, size) for size in sizes])
    return build_distribution(space), torch.tensor(logits), torch.from_numpy(mask)


def _with_one(draw: Any, size: int) -> np.ndarray:
    part = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    part[draw(st.integers(0, size - 1))] = True
    return part


def is_legal(distribution: Distribution, mask: Tensor, actions: Tensor) -> bool:
    """Whether all actions `[..., *shape]` are."""
    chosen = actions.unbind(-1) if distribution.shape else [actions]
    parts = mask.split(distribution.sizes, -1)
    return all(bool(part[choice].all()) for part, choice in zip(parts, chosen, strict=True))


@settings(max_examples=60)
@given(masked_params(), st.integers(0, 2**31))
def test_only_legal_actions_are_drawn(given_: tuple[Distribution, Tensor, Tensor], seed: int) -> None:
    distribution, logits, mask = given_
    params = logits.masked_fill(~mask, MASKED).expand(60, -1)
    random = torch.Generator().manual_seed(seed)
    drawn, log_probs = distribution.sample(params, random)
    uniforms = torch.rand(60, distribution.uniforms, generator=random, dtype=torch.float64)
    uniforms[:5] = torch.tensor([0.0, NEARLY_ONE, 1 - 2.0**-24, 1 - 2.0**-25, 0.5], dtype=torch.float64)[:, None]
    for actions in (
        drawn,
        distribution.icdf(params, uniforms),
        distribution.uniform(uniforms, mask.expand(60, -1)),
        distribution.best(params),
    ):
        assert is_legal(distribution, mask, actions)
    assert log_probs.isfinite().all()
    assert torch.equal(may_be_taken(params[0]), mask)


def test_what_is_drawn_above_the_rounded_sum_of_all_probabilities_is_legal() -> None:
    distribution = build_distribution(gym.spaces.Discrete(7))
    params = 3 * torch.randn(2000, 7, generator=torch.Generator().manual_seed(0))
    params[:, 5:] = MASKED
    assert (params.softmax(-1).sum(-1) < 1).any()
    uniforms = torch.full((2000, 1), NEARLY_ONE, dtype=torch.float64)
    assert (distribution.icdf(params, uniforms) < 5).all()


@settings(max_examples=60)
@given(masked_params())
def test_numbers_stay_finite_and_gradients_of_the_others_are_zero(given_: tuple[Distribution, Tensor, Tensor]) -> None:
    distribution, logits, mask = given_
    logits = logits.clone().requires_grad_()
    params = logits.masked_fill(~mask, MASKED)
    before = torch.linspace(-3, 3, len(logits)).masked_fill(~mask, MASKED)
    log_prob, entropy = distribution.evaluate(params, distribution.best(params))
    kl = distribution.divergence(params, before)
    summary = distribution.summary(params)
    assert torch.isfinite(torch.stack([log_prob, entropy, kl])).all()
    assert torch.equal(summary[~mask], torch.zeros(int((~mask).sum())))
    gradient = torch.autograd.grad(log_prob + entropy + kl + summary.square().sum(), logits)[0]
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


@settings(max_examples=30)
@given(masked_params())
def test_a_masked_distribution_is_that_of_fewer_actions(
    given_: tuple[Distribution, Tensor, Tensor],
) -> None:
    """Entropy, divergence and log-probability are those of a space that has the legal actions alone."""
    distribution, logits, mask = given_
    kept = [int(part.sum()) for part in mask.split(distribution.sizes, -1)]
    small = build_distribution(gym.spaces.MultiDiscrete(kept) if distribution.shape else gym.spaces.Discrete(kept[0]))
    params, fewer = logits.masked_fill(~mask, MASKED), logits[mask]
    before = logits.flip(0)
    for mine, theirs in (
        (distribution.evaluate(params, distribution.best(params)), small.evaluate(fewer, small.best(fewer))),
        (
            (distribution.divergence(params, before.masked_fill(~mask, MASKED)),),
            (small.divergence(fewer, before[mask]),),
        ),
        ((distribution.summary(params)[mask],), (small.summary(fewer),)),
    ):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_uniform_actions_are_uniform_over_the_legal_ones() -> None:
    distribution = build_distribution(gym.spaces.Discrete(5))
    uniforms = (torch.arange(3000, dtype=torch.float64) / 3000)[:, None]
    legal = torch.tensor([False, True, False, True, True])
    counts = torch.bincount(distribution.uniform(uniforms, legal.expand(3000, -1)), minlength=5)
    assert counts.tolist() == [0, 1000, 0, 1000, 1000]
    everything = torch.ones(3000, 5, dtype=torch.bool)
    assert torch.equal(distribution.uniform(uniforms, everything), distribution.uniform(uniforms))


def pair(**changes: Any) -> tuple[Policy, Policy]:
    """A policy of masked observations, and the same one of plain ones."""
    return tiny_policy(MASKED_GRID, **changes), tiny_policy(GRID, **changes)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("heads", ["actor_critic", "q"])
@torch.no_grad()
def test_a_mask_changes_the_logits_of_actions_that_are_not_legal_alone(core: str, heads: str) -> None:
    masked, plain = pair(core=core, heads=heads)
    assert masked.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), plain.parameters(), strict=True))
    obs, start = observations(K, BATCH), torch.zeros(K, BATCH, dtype=torch.bool)
    mine = masked.unroll(obs, masked.initial_state(BATCH), start)
    theirs = plain.unroll(obs["observation"], plain.initial_state(BATCH), start)
    legal = obs[MASK] != 0
    assert not legal.all()
    assert torch.equal(mine.logits[legal], theirs.logits[legal])
    assert (mine.logits[~legal] == MASKED).all()
    assert all(torch.equal(a, b) for a, b in zip(mine.state, theirs.state, strict=True))
    if heads == "q":
        assert torch.equal(mine.value, torch.where(legal, theirs.logits, -torch.inf).amax(-1))
    else:
        assert torch.equal(mine.value, theirs.value)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"carry": "output"},
    {"carry": "output", "heads": "q"},
    {"stop": "policy_kl", "stop_threshold": 0.05, "segments": 4},
    {"stop": "policy_kl", "stop_threshold": 0.05, "segments": 4, "carry": "output"},
    {"first_segments": 3, "carry": "output"},
    {"first_segments": 3, "stop": "policy_kl", "stop_threshold": 0.05, "segments": 2},
    {"readout": "mean"},
]


@pytest.mark.parametrize("changes", SETTINGS)
@torch.no_grad()
def test_a_window_of_masked_observations_is_that_many_steps(changes: dict[str, Any]) -> None:
    policy = tiny_policy(MASKED_GRID, **changes)
    obs = observations(K, BATCH)
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    start[0, :2] = start[1, 2] = True
    state = policy.initial_state(BATCH)
    window = policy.unroll(obs, state, start)
    for t in range(K):
        step = policy.step(trees.rows(obs, t), state, start[t])
        _close(Decision(window.logits[t], window.value[t], (), window.segments[t]), step._replace(state=()))
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = policy.step(trees.rows(trees.rows(obs, t), one), trees.rows(state, one), start[t, one])
            _close(trees.rows(step, one), alone)
        state = step.state
    _close(window._replace(state=window.state), Decision(window.logits, window.value, state, window.segments))


def _close(mine: Decision, theirs: Decision) -> None:
    for a, b in zip(trees.leaves(mine), trees.leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def other_heads(policy: Policy, action: int) -> Policy:
    """A copy in which one action's logit or Q-value is larger than all others."""
    changed = tiny_policy(MASKED_GRID, **_changes_of(policy))
    changed.load_state_dict(policy.state_dict())
    with torch.no_grad():
        changed.policy_head.weight[action] *= -5
        changed.policy_head.bias[action] = 1e4
    return changed


def _changes_of(policy: Policy) -> dict[str, Any]:
    c = policy.config
    names = ("carry", "heads", "stop", "stop_threshold", "segments", "first_segments", "readout")
    return {name: getattr(c, name) for name in names}


@pytest.mark.parametrize("changes", SETTINGS)
@torch.no_grad()
def test_the_head_of_an_action_that_is_never_legal_has_no_effect(changes: dict[str, Any]) -> None:
    """On logits, values, when to stop, and what is carried, whatever the head says of it."""
    policy = tiny_policy(MASKED_GRID, **changes)
    obs, start = observations(K, BATCH), torch.zeros(K, BATCH, dtype=torch.bool)
    obs[MASK][..., 0], obs[MASK][..., 1] = 0, 1
    start[0] = True
    one = policy.unroll(obs, policy.initial_state(BATCH), start)
    two = other_heads(policy, 0).unroll(obs, policy.initial_state(BATCH), start)
    for a, b in zip(trees.leaves(one), trees.leaves(two), strict=True):
        assert torch.equal(a, b)
    for one_segment, other in zip(
        policy.segment_by_segment(trees.rows(obs, 0), policy.initial_state(BATCH), start[0]),
        other_heads(policy, 0).segment_by_segment(trees.rows(obs, 0), policy.initial_state(BATCH), start[0]),
        strict=True,
    ):
        for a, b in zip(trees.leaves(one_segment), trees.leaves(other), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("changes", [{}, {"carry": "output"}, {"carry": "gate"}, {"heads": "q"}])
def test_no_gradient_reaches_the_head_of_an_action_that_is_not_legal(changes: dict[str, Any]) -> None:
    policy = tiny_policy(MASKED_GRID, **changes)
    obs, start = observations(K, BATCH), torch.zeros(K, BATCH, dtype=torch.bool)
    obs[MASK][..., 2], obs[MASK][..., 1] = 0, 1
    decision = policy.unroll(obs, policy.initial_state(BATCH), start)
    loss = decision.value.square().sum() + sum(s.square().sum() for s in decision.state)
    if policy.config.heads == "q":
        loss = loss + decision.logits.gather(-1, decision.logits.argmax(-1, keepdim=True)).square().sum()
    else:
        actions = policy.distribution.best(decision.logits)
        loss = loss + sum(x.sum() for x in policy.distribution.evaluate(decision.logits, actions))
    loss.backward()
    gradient = policy.policy_head.weight.grad
    assert gradient is not None
    assert policy.policy_head.bias.grad is not None
    assert not gradient[2].any()
    assert not policy.policy_head.bias.grad[2].any()
    assert gradient[1].any()


@torch.no_grad()
def test_an_observation_that_allows_nothing_is_decided_as_if_it_allowed_all() -> None:
    """As after an episode's end; the row is of no use, and must not spoil those that are."""
    for heads in ("actor_critic", "q"):
        masked, plain = pair(heads=heads, carry="output")
        obs, start = observations(BATCH), torch.zeros(BATCH, dtype=torch.bool)
        obs[MASK][1] = 0
        decision = masked.step(obs, masked.initial_state(BATCH), start)
        free = plain.step(obs["observation"], plain.initial_state(BATCH), start)
        assert torch.equal(decision.logits[1], free.logits[1])
        assert torch.equal(decision.value[1], free.value[1])
        assert all(t.isfinite().all() for t in trees.leaves(decision))


@torch.no_grad()
def test_the_grid_is_found_beside_a_mask_and_other_entries() -> None:
    """readout=agent, and frames, whose earlier observations have no masks."""
    policy, plain = pair(core="feedforward", carry="reset")
    obs = observations(BATCH)
    index = policy._readout_index(policy.seen(obs))
    assert index is not None
    assert torch.equal(index, plain._readout_index(obs["observation"]))  # type: ignore[arg-type]
    wide = gym.spaces.Dict({**MASKED_GRID.spaces, "speed": gym.spaces.Box(-1, 1, (2,))})
    several = tiny_policy(wide, core="feedforward", carry="reset")
    narrow = gym.spaces.Dict({key: wide[key] for key in ("observation", "speed")})
    fewer = tiny_policy(narrow, core="feedforward", carry="reset")
    assert several.encoder.length == fewer.encoder.length
    rest = {**obs, "speed": torch.rand(BATCH, 2)}
    start = torch.ones(BATCH, dtype=torch.bool)
    mine = several.step(rest, (), start)
    rest.pop(MASK)
    theirs = fewer.step(rest, (), start)
    assert torch.equal(mine.value, theirs.value)
    assert AGENT in obs["observation"]


@torch.no_grad()
def test_frames_are_stacked_without_masks() -> None:
    changes: dict[str, Any] = {"core": "feedforward", "carry": "reset", "encoder": EncoderConfig(1, 2, frames=3)}
    policy, plain = (tiny_policy(space, **changes) for space in (MASKED_GRID, GRID))
    obs, start = observations(K, BATCH), torch.zeros(K, BATCH, dtype=torch.bool)
    start[0] = True
    mine = policy.unroll(obs, policy.initial_state(BATCH), start)
    theirs = plain.unroll(obs["observation"], plain.initial_state(BATCH), start)
    assert torch.equal(mine.value, theirs.value)
    legal = obs[MASK] != 0
    assert torch.equal(mine.logits[legal], theirs.logits[legal])


def test_a_mask_that_does_not_fit_is_refused() -> None:
    short = gym.spaces.Dict({"observation": GRID, MASK: gym.spaces.MultiBinary(COUNT + 1)})
    with pytest.raises(ValueError, match="action_mask does not fit 4 actions"):
        tiny_policy(short)
    with pytest.raises(ValueError, match="does not fit no finite number of actions"):
        tiny_policy(MASKED_GRID, actions=gym.spaces.Box(-1, 1, (COUNT,)))
