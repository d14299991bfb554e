"""A window of the GRU core by the kernels is the core's own, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_agent import recurrence
from hrm_agent.kernels.cpu.gru import pool_tokens, run_gru
from window_cases import assert_near, make_gru, results, window

pytestmark = pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")


@given(
    memory=st.integers(1, 70),
    size=st.integers(1, 40),
    prefix=st.integers(0, 2),
    segments=st.integers(1, 3),
    steps=st.integers(1, 5),
    batch=st.integers(1, 20),
    carry=st.sampled_from(["full", "reset"]),
    readout=st.sampled_from(["agent", "first", "last", "mean"]),
    time_gradient=st.sampled_from(["bptt", "detached"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_a_window_is_as_near_the_exact_one_as_torch_s(steps: int, batch: int, seed: int, **options: Any) -> None:
    torch.manual_seed(seed)
    policy = make_gru(**options)
    assert_near(policy, window(policy, steps, batch, seed))


@pytest.mark.parametrize("carry", ["full", "reset"])
def test_steps_are_the_windows_own(carry: str) -> None:
    torch.manual_seed(0)
    policy = make_gru(memory=21, carry=carry, segments=2)
    assert recurrence.use(policy, "fused") == "fused"
    obs, state, starts = window(policy, 5, 11, 0)
    with torch.no_grad():
        whole = policy.unroll(obs, state, starts)
        for t in range(5):
            decision = policy.step(obs[t], state, starts[t])
            torch.testing.assert_close(decision.logits, whole.logits[t])
            state = decision.state
    for own, kept in zip(state, whole.state, strict=True):
        torch.testing.assert_close(own, kept)


def test_rows_do_not_hear_what_came_before_their_episode_or_each_other() -> None:
    policy = make_gru()
    recurrence.use(policy, "fused")
    obs, (h,), starts = window(policy, 2, 6, 1)
    starts[1] = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        one = policy.unroll(obs, (h,), starts)
        other = policy.unroll(obs, (h + 1,), starts)
    assert torch.equal(one.logits[1][starts[1]], other.logits[1][starts[1]])
    assert not torch.isclose(one.logits[1][~starts[1]], other.logits[1][~starts[1]]).all()


@pytest.mark.parametrize(("stop", "threshold"), [("policy_kl", 1e-9), ("latent_change", 0.2)])
def test_rows_that_stop_by_themselves_go_step_by_step(stop: str, threshold: float) -> None:
    policy = make_gru(segments=3, stop=stop, stop_threshold=threshold)
    given = window(policy, 3, 4, 2)
    plain, fused = (results(policy, path, given)[0] for path in ("plain", "fused"))
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(fused.segments, plain.segments)


@pytest.mark.parametrize("size", [5, 16, 40])
def test_equal_tokens_share_the_gradient_of_their_maximum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tokens = torch.randint(0, 3, (2, 4, 6, size), generator=generator).float().requires_grad_()
    read = torch.randint(0, 6, (2, 4), generator=generator)
    pooled, token = pool_tokens(tokens, read)
    right = torch.cat([tokens.mean(2), tokens.amax(2)], -1), tokens.take_along_dim(read[..., None, None], 2).squeeze(2)
    assert token is not None
    found = []
    for outcome in ((pooled, token), right):
        down = [torch.arange(o.numel()).view_as(o).sin() for o in outcome]
        found.append(torch.autograd.grad(outcome, tokens, down)[0])
    torch.testing.assert_close(pooled, right[0])
    assert torch.equal(token, right[1])
    torch.testing.assert_close(*found)


def test_what_does_not_fit_is_refused() -> None:
    policy = make_gru(memory=8)
    recurrence.use(policy, "fused")
    obs, (h,), starts = window(policy, 1, 8, 4)
    with pytest.raises(ValueError, match=r"the memory is torch.float32 \[4, 8\] on cpu: expected"):
        policy.step(obs[0], (h[:4],), starts[0])
    with pytest.raises(ValueError, match="the input is"):
        run_gru(
            torch.zeros(1, 2, 5),
            h[:2],
            starts[:, :2],
            h[0],
            torch.zeros(24, 8),
            torch.zeros(24),
            segments=1,
            detach=False,
        )


def test_numbers_that_are_not_finite_stay_so() -> None:
    """Training ends where logits are not finite; gates that swallow a NaN would hide it."""
    torch.manual_seed(1)
    policy = make_gru(memory=21)
    recurrence.use(policy, "fused")
    with torch.no_grad():
        next(p for name, p in policy.core.named_parameters() if "hh" in name).fill_(torch.nan)
        assert policy.unroll(*window(policy, 2, 3, 0)).logits.isnan().all()
