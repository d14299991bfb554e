"""PPO: what it computes on fresh data, against slow references, and what it does when numbers go wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.algos.update import state_drift
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.rollout import Rollout, Windows
from hrm_agent.tensors.gradients import NonFiniteNumbers
from tiny import make_ppo

VARIANTS: list[tuple[str, str, int]] = [
    ("full", "bptt", 4),
    ("full", "bptt", 8),
    ("last_token", "bptt", 4),
    ("reset", "bptt", 4),
    ("full", "detached", 1),
    ("last_token", "detached", 2),
]


def windows_of(rollout: Rollout) -> Windows:
    return rollout.windows(*rollout.advantages(0.97, 0.9))


def collect_twice(collector: Collector, rollout: Rollout) -> None:
    """So that the rollout begins in the middle of episodes, from states with a past."""
    collector.collect(rollout)
    collector.collect(rollout)


@pytest.mark.parametrize(("carry", "time_gradient", "window"), VARIANTS)
@torch.no_grad()
def test_on_fresh_data_the_ratio_is_one_and_no_state_has_drifted(carry: str, time_gradient: str, window: int) -> None:
    changes = {"carry": carry, "time_gradient": time_gradient, "segments": 2}
    algo, collector, rollout = make_ppo(changes, window=window)
    collect_twice(collector, rollout)
    assert rollout.episode_start[1:].any()
    windows = windows_of(rollout)
    decision = algo.policy.unroll(windows.obs, windows.state, windows.episode_start)
    log_prob = decision.logits.log_softmax(-1).gather(-1, windows.actions.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close((log_prob - windows.log_probs).exp(), torch.ones_like(log_prob), rtol=0, atol=1e-5)
    torch.testing.assert_close(decision.value, windows.values, rtol=1e-5, atol=1e-5)
    assert state_drift(windows.next_state, decision.state) < 1e-6


def test_the_first_minibatch_measures_no_change_and_later_ones_do() -> None:
    algo, collector, rollout = make_ppo()
    collect_twice(collector, rollout)
    first = algo.update(rollout, 0.0)
    assert abs(first["approx_kl"]) < 1e-9
    assert first["clip_fraction"] == 0
    assert first["state_drift_epoch0"] < 1e-6
    again = algo.update(rollout, 0.0)
    assert again["approx_kl"] > 1e-7
    assert again["state_drift_epoch0"] > 1e-5


def slow_loss(algo: Any, batch: Windows, entropy_coef: float) -> dict[str, float]:
    """The definition, one decision at a time, in Python floats."""
    config = algo.config
    with torch.no_grad():
        decision = algo.policy.unroll(batch.obs, batch.state, batch.episode_start)
    policy = value = entropy = 0.0
    count = batch.actions.numel()
    for t in range(batch.actions.shape[0]):
        for b in range(batch.actions.shape[1]):
            scores = [math.exp(x) for x in decision.logits[t, b].tolist()]
            probabilities = [x / sum(scores) for x in scores]
            advantage = float(batch.advantages[t, b])
            ratio = probabilities[int(batch.actions[t, b])] / math.exp(float(batch.log_probs[t, b]))
            clipped = min(max(ratio, 1 - config.clip_range), 1 + config.clip_range)
            policy -= min(ratio * advantage, clipped * advantage) / count
            value += 0.5 * (float(decision.value[t, b]) - float(batch.returns[t, b])) ** 2 / count
            entropy -= sum(p * math.log(p) for p in probabilities) / count
    total = policy + config.value_coef * value - entropy_coef * entropy
    return {"loss": total, "policy_loss": policy, "value_loss": value, "entropy": entropy}


def test_the_loss_equals_its_definition_decision_by_decision() -> None:
    algo, collector, rollout = make_ppo(clip_range=0.1, value_coef=0.7)
    collector.collect(rollout)
    # As if an older policy had drawn the actions: many ratios are outside the clip range, on both sides.
    rollout.log_probs += 0.5 * torch.randn(rollout.log_probs.shape, generator=torch.Generator().manual_seed(0))
    batch = windows_of(rollout)
    with torch.no_grad():
        loss, measured = algo.loss(batch, 0.03, batch.actions.numel())
    assert 0.2 < measured["clip_fraction"] < 0.95
    expected = slow_loss(algo, batch, 0.03)
    assert loss.item() == pytest.approx(expected.pop("loss"), abs=1e-5)
    assert {name: measured[name].item() for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_gradient_does_not_depend_on_the_threads(threads: int) -> None:
    gradients: list[list[Tensor]] = []
    for count in (1, threads):
        algo, collector, rollout = make_ppo(threads=count, max_grad_norm=1e9)
        collector.threads = make_ppo()[1].threads  # the same data for both: only the update is split
        collect_twice(collector, rollout)
        algo.update(rollout, 0.0)
        gradients.append([p.grad for p in algo.parameters if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 5
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-2
    for one, split in zip(*gradients, strict=True):
        torch.testing.assert_close(one, split, rtol=1e-5, atol=1e-6)


def test_a_batch_too_large_for_the_cache_is_thought_about_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the actions and of the update; nothing depends on it but rounding."""
    results: list[list[Tensor]] = []
    for cache in (2**30, 1):
        monkeypatch.setattr("hrm_agent.parallel.threads.CACHE_BYTES", cache)
        algo, collector, rollout = make_ppo(max_grad_norm=1e9)
        assert algo.policy.chunk_size == (1 if cache == 1 else algo.policy.chunk_size)
        sizes: list[int] = []
        algo.policy.encoder.register_forward_hook(lambda module, args, out, sizes=sizes: sizes.append(out.shape[-3]))
        collect_twice(collector, rollout)
        algo.update(rollout, 0.0)
        assert (max(sizes) == 1) == (cache == 1)
        gradients = [p.grad for p in algo.parameters if p.grad is not None]
        results.append([rollout.values, rollout.log_probs, *gradients])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_refreshed_states_equal_a_replay_with_the_new_weights() -> None:
    algo, collector, rollout = make_ppo({"segments": 2}, refresh_states=True)
    collect_twice(collector, rollout)
    with torch.no_grad():
        for parameter in algo.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    stale = [s.clone() for s in rollout.states]
    algo._refresh(rollout)
    state = tuple(s[0] for s in stale)
    for t in range(rollout.steps):
        if t % rollout.window == 0:
            for store, mine, old in zip(rollout.states, state, stale, strict=True):
                row = t // rollout.window
                torch.testing.assert_close(store[row], mine, rtol=1e-5, atol=1e-5)
                assert torch.allclose(old[row], mine, atol=1e-3) == (t == 0)
        with torch.no_grad():
            state = algo.policy.step(rollout.obs[t], state, rollout.episode_start[t]).state
    for store, mine in zip(rollout.states, state, strict=True):
        torch.testing.assert_close(store[-1], mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("refresh", [False, True])
def test_refreshing_keeps_the_drift_of_later_epochs_small(refresh: bool) -> None:
    algo, collector, rollout = make_ppo(epochs=2, refresh_states=refresh, learning_rate=1e-2)
    collect_twice(collector, rollout)
    measured = algo.update(rollout, 0.0)
    assert (measured["state_drift_epoch1"] < 1e-6) == refresh


def test_learning_rate_and_entropy_bonus_are_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    for anneal, remaining in ((True, 0.25), (False, 1.0)):
        algo, collector, rollout = make_ppo(anneal=anneal, learning_rate=1e-3, entropy_coef=0.02)
        collector.collect(rollout)
        coefficients: list[float] = []
        loss = algo.loss
        monkeypatch.setattr(
            algo, "loss", lambda b, c, rows, f=loss, seen=coefficients: (seen.append(c.item()), f(b, c, rows))[1]
        )
        measured = algo.update(rollout, 0.75)
        assert measured["learning_rate"] == pytest.approx(1e-3 * remaining)
        assert [g["lr"] for g in algo.optimizer.param_groups] == [pytest.approx(1e-3 * remaining)]
        assert coefficients == [pytest.approx(0.02 * remaining)]


@pytest.mark.parametrize("what", ["rewards", "last_values", "log_probs"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights_untouched(what: str, bad: float) -> None:
    algo, collector, rollout = make_ppo()
    collector.collect(rollout)
    getattr(rollout, what)[..., 0] = -bad if what == "log_probs" else bad
    before = [p.detach().clone() for p in algo.parameters]
    with pytest.raises(NonFiniteNumbers):
        algo.update(rollout, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, algo.parameters, strict=True))
    assert algo.optimizer.state_dict()["state"] == {}


def test_an_update_raises_the_probability_of_what_was_better() -> None:
    algo, collector, rollout = make_ppo(entropy_coef=0.0, gamma=0.0, value_coef=0.0)
    collector.collect(rollout)
    better = int(rollout.actions.flatten().bincount(minlength=4).argsort()[-2])  # tried often, but not most often
    rollout.rewards[:] = (rollout.actions == better).float()
    rollout.values.zero_()

    @torch.no_grad()
    def probability() -> float:
        windows = windows_of(rollout)
        logits = algo.policy.unroll(windows.obs, windows.state, windows.episode_start).logits
        return float(logits.softmax(-1)[..., better].mean())

    before = probability()
    for _ in range(5):
        algo.update(rollout, 0.0)
    assert probability() > before + 0.01


def test_state_drift_is_the_relative_error() -> None:
    new = (torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    old = (torch.tensor([[3.0, 0.5]]), torch.tensor([[0.0, 4.0]]))
    assert state_drift(old, new) == pytest.approx(0.1)
    assert state_drift((), ()) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "algo.num_envs=0: expected an integer from 1 to 65,536"),
        ({"epochs": -1}, "algo.epochs=-1"),
        ({"gamma": 1.5}, "algo.gamma=1.5: expected a number from 0 to 1"),
        ({"learning_rate": 0.0}, "algo.learning_rate=0.0: expected a number above 0"),
        ({"learning_rate": float("nan")}, "algo.learning_rate=nan"),
        ({"entropy_coef": -0.1}, "algo.entropy_coef=-0.1: expected a number, 0 or more"),
        ({"rollout_steps": 10, "window": 4}, "does not divide into windows of algo.window=4"),
        ({"num_envs": 6, "minibatch_windows": 4, "window": 16}, "does not divide the 6 windows"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)
