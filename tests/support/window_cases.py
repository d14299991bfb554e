"""Policies and windows of environment steps, and how near the kernels are to eager torch on them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from hypothesis import assume
from torch import Tensor

from hrm_agent import recurrence
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Decision, Policy, PolicyConfig

SPACE = gym.spaces.Box(0, 5, (5, 7), np.uint8)


def make(core: str, size: int = 16, prefix: int = 0, **options: Any) -> Policy:
    own = {"num_heads": 1, "inner_size": 32, "cycle_gradient": "all", "branch_gain": 0.1}
    layers = {"layers": 2} if core == "trm" else {"H_layers": 1, "L_layers": 2}
    config = {name: options.pop(name) for name in list(options) if name not in PolicyConfig.__dataclass_fields__}
    settings = {
        "core": core,
        "core_options": {**own, **layers, **config},
        "hidden_size": size,
        "encoder": EncoderConfig(patch_size=2, prefix=prefix),
        **options,
    }
    policy = Policy(PolicyConfig(**settings), SPACE, gym.spaces.Discrete(4))
    with torch.no_grad():  # so that logits depend on what is read
        policy.policy_head.weight.normal_()
        for weight in policy.carry.parameters():  # and gates on what they see
            weight.normal_(std=0.3)
    return policy


def window(policy: Policy, steps: int, batch: int, seed: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randint(0, 3, (steps, batch, 5, 7), generator=generator, dtype=torch.uint8)
    cells = torch.randint(0, 35, (steps, batch), generator=generator)
    obs.flatten(2).scatter_(2, cells[..., None], 3)  # the agent
    state = tuple(torch.randn(s.shape, generator=generator) for s in policy.initial_state(batch))
    starts = torch.rand(steps, batch, generator=generator) < 0.3
    return obs, state, starts


def results(
    policy: Policy, path: str, given: tuple[Any, ...], dtype: torch.dtype = torch.float32
) -> tuple[Decision, tuple[Tensor, ...]]:
    """The decisions of a window; and gradients of the weights, and of the state before where one reaches it."""
    assert recurrence.use(policy.to(dtype), path) == path
    obs, state, starts = given
    state = tuple(s.to(dtype).clone().requires_grad_() for s in state)
    decision = policy.unroll(obs, state, starts)
    down = torch.arange(decision.logits.numel()).view_as(decision.logits).sin()
    loss = (decision.logits * down).sum() + decision.value.square().sum()
    loss = loss + sum((kept + i).cos().sum() for i, kept in enumerate(decision.state))
    grads = torch.autograd.grad(loss, [*policy.parameters(), *state], allow_unused=True)
    return decision, tuple(torch.zeros(()) if g is None else g for g in grads)


def assert_near(policy: Policy, given: tuple[Any, ...]) -> None:
    """Decisions, states and gradients are as near the exact ones as those of eager torch in float32."""
    exact, exact_gradients = results(policy, "plain", given, torch.float64)
    plain, plain_gradients = results(policy, "plain", given)
    fused, fused_gradients = results(policy, "fused", given)
    if policy.config.stop != "fixed":
        assume(torch.equal(exact.segments, plain.segments))  # none settles by a last bit
    assert torch.equal(fused.segments, plain.segments)
    largest = max(float(g.abs().max()) for g in exact_gradients)
    outputs = ((*decision[:2], *decision.state) for decision in (exact, plain, fused))
    for right, theirs, ours in zip(*outputs, strict=True):
        assert (ours - right).abs().max() <= 8 * (theirs - right).abs().max() + 1e-4 * right.abs().max()
    for right, theirs, ours in zip(exact_gradients, plain_gradients, fused_gradients, strict=True):
        allowed = 8 * (theirs - right).abs().max() + 1e-4 * right.abs().max() + 1e-5 * largest
        assert (ours - right).abs().max() <= allowed
        assert ours.shape == theirs.shape or not ours.any()  # no gradient reaches it


def make_gru(memory: int | None = None, size: int = 16, prefix: int = 0, **options: Any) -> Policy:
    encoder = EncoderConfig(patch_size=2, prefix=prefix)
    config = PolicyConfig(
        core="gru", core_options={"memory_size": memory}, hidden_size=size, encoder=encoder, **options
    )
    policy = Policy(config, SPACE, gym.spaces.Discrete(4))
    with torch.no_grad():  # so that logits depend on what is read
        policy.policy_head.weight.normal_()
    return policy
