"""A window of environment steps by the C++ kernels is the policy's own, step by step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent import kernels
from hrm_agent.encoders import EncoderConfig
from hrm_agent.evaluation.report import measure_cost
from hrm_agent.kernels.memory import Pool
from hrm_agent.policy import Decision, Policy, PolicyConfig

pytestmark = pytest.mark.skipif(not kernels.available("fused"), reason="no C++ compiler")

SPACE = gym.spaces.Box(0, 5, (5, 7), np.uint8)


def make(core: str, size: int = 16, **options: Any) -> Policy:
    own = {"num_heads": 1, "inner_size": 32, "cycle_gradient": "all", "branch_gain": 0.1}
    layers = {"layers": 2} if core == "trm" else {"H_layers": 1, "L_layers": 2}
    config = {name: options.pop(name) for name in list(options) if name not in PolicyConfig.__dataclass_fields__}
    settings = {
        "core": core,
        "core_options": {**own, **layers, **config},
        "hidden_size": size,
        "encoder": EncoderConfig(patch_size=2),
        **options,
    }
    policy = Policy(PolicyConfig(**settings), SPACE, gym.spaces.Discrete(4))
    with torch.no_grad():  # so that logits depend on what is read
        policy.policy_head.weight.normal_()
    return policy


def window(policy: Policy, steps: int, batch: int, seed: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randint(0, 3, (steps, batch, 5, 7), generator=generator, dtype=torch.uint8)
    cells = torch.randint(0, 35, (steps, batch), generator=generator)
    obs.flatten(2).scatter_(2, cells[..., None], 3)  # the agent
    state = tuple(torch.randn(s.shape, generator=generator) for s in policy.initial_state(batch))
    starts = torch.rand(steps, batch, generator=generator) < 0.3
    return obs, state, starts


def results(policy: Policy, path: str, given: tuple[Any, ...]) -> tuple[Decision, tuple[Tensor, ...]]:
    """The decisions of a window; and gradients of the weights, and of the state before where one reaches it."""
    assert kernels.use(policy, path) == path
    obs, state, starts = given
    state = tuple(s.clone().requires_grad_() for s in state)
    decision = policy.unroll(obs, state, starts)
    down = torch.arange(decision.logits.numel()).view_as(decision.logits).sin()
    loss = (decision.logits * down).sum() + decision.value.square().sum() + decision.state[1].cos().sum()
    grads = torch.autograd.grad(loss, [*policy.parameters(), *state], allow_unused=True)
    return decision, tuple(torch.zeros(()) if g is None else g for g in grads)


@given(
    core=st.sampled_from(["trm", "hrm"]),
    mixing=st.sampled_from(["conv", "attention", "mlp"]),
    cycles=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    segments=st.integers(1, 2),
    steps=st.integers(1, 4),
    batch=st.integers(1, 20),
    readout=st.sampled_from(["agent", "first", "last"]),
    time_gradient=st.sampled_from(["bptt", "detached"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_a_window_is_the_plain_one(
    core: str, mixing: str, cycles: tuple[int, int], segments: int, steps: int, batch: int, seed: int, **options: Any
) -> None:
    torch.manual_seed(seed)
    policy = make(core, mixing=mixing, H_cycles=cycles[0], L_cycles=cycles[1], segments=segments, **options)
    given = window(policy, steps, batch, seed)
    plain, plain_gradients = results(policy, "plain", given)
    fused, fused_gradients = results(policy, "fused", given)
    assert torch.equal(fused.segments, plain.segments)
    for ours, theirs in zip((*fused[:2], *fused.state), (*plain[:2], *plain.state), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    largest = max(float(g.abs().max()) for g in plain_gradients)
    for ours, theirs in zip(fused_gradients, plain_gradients, strict=True):
        if theirs.dim():
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4 * largest)
        else:  # no gradient reaches it
            assert not ours.any()


@pytest.mark.parametrize("core", ["trm", "hrm"])
def test_steps_are_the_windows_own(core: str) -> None:
    """What collection stores is what training recomputes: the state bit for bit."""
    torch.manual_seed(0)
    policy = make(core, mixing="conv")
    kernels.use(policy, "fused")
    obs, state, starts = window(policy, 5, 11, 0)
    with torch.no_grad():
        whole = policy.unroll(obs, state, starts)
        for t in range(5):
            decision = policy.step(obs[t], state, starts[t])
            torch.testing.assert_close(decision.logits, whole.logits[t])
            torch.testing.assert_close(decision.value, whole.value[t])
            state = decision.state
    assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))


def test_what_came_before_an_episode_is_not_heard() -> None:
    policy = make("trm", mixing="attention")
    kernels.use(policy, "fused")
    obs, state, starts = window(policy, 2, 6, 1)
    starts[1] = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        one = policy.unroll(obs, state, starts)
        other = policy.unroll(obs, tuple(s + 1 for s in state), starts)
    assert torch.equal(one.logits[1][starts[1]], other.logits[1][starts[1]])
    assert not torch.equal(one.logits[1][~starts[1]], other.logits[1][~starts[1]])


@pytest.mark.parametrize(
    "options",
    [
        {"carry": "gate"},
        {"carry": "last_token"},
        {"readout": "mean"},
        {"stop": "settled", "stop_threshold": 0.1},
        {"cycle_gradient": "last", "H_cycles": 2, "time_gradient": "detached"},
    ],
)
def test_what_windows_do_not_know_goes_stack_by_stack(options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    policy = make("trm", mixing="conv", **options)
    given = window(policy, 3, 4, 2)
    if options.get("carry") == "last_token":
        given = (given[0], policy.initial_state(4), given[2])
    plain, plain_gradients = results(policy, "plain", given)
    fused, fused_gradients = results(policy, "fused", given)
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-4, atol=1e-4)
    largest = max(float(g.abs().max()) for g in plain_gradients)
    for ours, theirs in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


def test_what_does_not_fit_is_refused_or_goes_the_plain_way() -> None:
    """The kernels see memory, not shapes."""
    policy = make("trm", mixing="attention")
    obs, state, starts = window(policy, 1, 8, 4)
    kernels.use(policy, "fused")
    with torch.no_grad():
        whole = policy.step(obs[0], state, starts[0])
        with pytest.raises(ValueError, match=r"z_H is torch.float32 \[4, 12, 16\] on cpu: expected"):
            policy.step(obs[0], tuple(s[:4] for s in state), starts[0])
        half = policy.step(obs[0], tuple(s.bfloat16() for s in state), starts[0])  # torch promotes it
        torch.testing.assert_close(half.logits, whole.logits, rtol=0.1, atol=0.2)
        counted = policy.step(obs[0], state, starts[0].long())
        assert torch.equal(counted.logits, whole.logits)
        one = policy.step(obs[0], state, torch.tensor([True]))
        everybody = policy.step(obs[0], state, torch.ones(8, dtype=torch.bool))
        assert torch.equal(one.logits, everybody.logits)
        stack = policy.core.net
        shorter = torch.randn(4, 9, 16)
        assert torch.equal(stack(shorter), stack.plain(shorter))


def test_a_step_alone_passes_the_gradient_to_its_state() -> None:
    policy = make("trm", mixing="conv", time_gradient="detached")
    obs, state, starts = window(policy, 1, 4, 5)
    found = []
    for path in ("plain", "fused"):
        kernels.use(policy, path)
        given = tuple(s.clone().requires_grad_() for s in state)
        found.append(torch.autograd.grad(policy.step(obs[0], given, starts[0]).logits.sum(), given))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("carry", ["full", "reset"])
def test_a_decision_costs_the_same_multiply_adds(carry: str) -> None:
    """They are counted in eager torch, whatever computes the policy."""
    policy = make("trm", mixing="conv", carry=carry)
    counted = []
    for path in ("plain", "fused"):
        kernels.use(policy, path)
        counted.append(measure_cost(policy, SPACE, batch=2)["macs_per_decision"])
    assert counted[0] == counted[1] > 10_000
    assert policy.core.net.path == "fused"


def test_a_gradient_is_taken_once() -> None:
    policy = make("trm", mixing="conv")
    kernels.use(policy, "fused")
    loss = policy.unroll(*window(policy, 2, 3, 3)).logits.sum()
    torch.autograd.grad(loss, policy.policy_head.weight, retain_graph=True)
    weight = next(policy.core.parameters())
    torch.autograd.grad(loss, weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, weight)


def test_buffers_are_used_again_and_not_hoarded() -> None:
    pool = Pool(most=100)
    first = pool.take(40)
    pool.give(first)
    assert pool.take(10).numel() == 10  # a buffer four times too large stays where it is
    assert pool.take(30) is first
    for floats in (60, 50, 40):
        pool.give(torch.empty(floats))
    assert pool.take(60).numel() == 60
    assert sum(b.numel() for b in pool._buffers) == 90
