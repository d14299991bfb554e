"""A window of a policy against its steps, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hrm_agent.policies.policy import Policy


@torch.no_grad()
def assert_window_equals_steps(policy: Policy, obs: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> None:
    """Args: obs `[k, B, ...]`, start bool `[k, B]`, the state before the first step."""
    window = policy.unroll(obs, state, start)
    for t in range(len(obs)):
        step = policy.step(obs[t], state, start[t])
        state = step.state
        torch.testing.assert_close(window.logits[t], step.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(window.value[t], step.value, rtol=1e-5, atol=1e-5)
        assert torch.equal(window.segments[t], step.segments)
    assert len(window.state) == len(state)
    for mine, theirs in zip(window.state, state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
