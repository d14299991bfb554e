"""Recurrent DQN: targets against a table, the loss against its definition, gradients that stop where they should."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.algos.dqn import DQN, DQNConfig, n_step_targets
from hrm_agent.experience.replay import Sequences
from hrm_agent.policies.policy import Policy
from tiny import grids
from tiny_dqn import PAPER, SEGMENTS, SMALL, close, equal, fill, make, perturb, sample, weights

VARIANTS: list[tuple[str, str]] = [
    ("full", "bptt"), ("full", "detached"), ("last_token", "bptt"), ("gate", "bptt"), ("output", "bptt"),
    ("reset", "bptt"),
]  # fmt: skip


# Targets


def test_n_step_targets_equal_a_table_made_by_hand() -> None:
    """gamma = 0.5, n = 3; columns: an episode that goes on, one terminated at step 1, one cut off there."""
    rewards = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 99.0, 99.0], [8.0, 99.0, 99.0]])
    ended = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    terminated = ended & torch.tensor([False, True, False])
    values = torch.tensor([[77.0] * 3, [77.0] * 3, [77.0, 77.0, 40.0], [80.0, 55.0, 55.0], [16.0, 55.0, 55.0]])
    table = torch.tensor(
        [
            [1 + 1 + 1 + 80 / 8, 1 + 1, 1 + 1 + 40 / 4],  # at step 0: three rewards, or the two that are left
            [2 + 2 + 2 + 16 / 8, 2, 2 + 40 / 2],  # at step 1
        ]
    )
    targets = n_step_targets(rewards, terminated, ended, values, gamma=0.5, n=3)
    assert torch.equal(targets, table)
    one = n_step_targets(rewards[:2], terminated[:2], ended[:2], values[:3], gamma=0.5, n=1)
    assert torch.equal(one, torch.tensor([[1 + 77 / 2] * 3, [2 + 77 / 2, 2, 2 + 40 / 2]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
def test_n_step_targets_equal_a_walk_along_the_rewards(seed: int, n: int, count: int) -> None:
    random = torch.Generator().manual_seed(seed)
    length, gamma = count + n - 1, 0.9
    rewards, values = (torch.randn(k, 5, generator=random) for k in (length, length + 1))
    ended = torch.rand(length, 5, generator=random) < 0.3
    terminated = ended & (torch.rand(length, 5, generator=random) < 0.5)
    targets = n_step_targets(rewards, terminated, ended, values, gamma, n)
    assert targets.shape == (count, 5)
    for t in range(count):
        for b in range(5):
            total, k = 0.0, 0
            while True:
                total += gamma**k * float(rewards[t + k, b])
                k += 1
                if ended[t + k - 1, b] or k == n:
                    break
            if not terminated[t + k - 1, b]:
                total += gamma**k * float(values[t + k, b])
            assert float(targets[t, b]) == pytest.approx(total, abs=1e-5)


# What the learner sees


@pytest.mark.parametrize(("carry", "time_gradient"), VARIANTS)
@torch.no_grad()
def test_with_unchanged_weights_the_learner_has_the_q_values_of_collection(carry: str, time_gradient: str) -> None:
    filled = fill(make({"carry": carry, "time_gradient": time_gradient}))
    c, batch = filled.algo.config, sample(filled, 48)
    burnt = filled.algo._burn_in(filled.algo.policy, batch)
    q = filled.algo._bootstrap_q(filled.algo.target, burnt, batch)
    begins = 0
    for column, number in enumerate(batch.drawn.tolist()):
        t, n = divmod(number, c.num_envs)
        for i in range(c.train_steps):
            if not batch.mask[i, column]:
                break
            torch.testing.assert_close(q[i, column], filled.q[t + i, n], rtol=1e-4, atol=1e-5)
            begins += int(batch.episode_start[c.burn_in + i, column])
            if batch.ended[c.burn_in + i, column]:  # the next slot: the final observation, from the state before it
                final = filled.final_q[t + i, n]
                torch.testing.assert_close(q[i + 1, column], final, rtol=1e-4, atol=1e-5)
    assert begins > 0
    assert not batch.mask.all()
    assert drift(filled.algo, batch) < 1e-3
    perturb(filled.algo.policy)
    assert drift(filled.algo, batch) > 1e-2 or carry == "reset"


def drift(algo: DQN, batch: Sequences) -> float:
    """||stored - recomputed|| / ||recomputed|| of the states after the trained steps."""
    measured = {name: value.item() for name, value in algo.loss(batch, 1)[1].items()}
    return (measured["drift_error"] / max(measured["drift_norm"], 1e-9)) ** 0.5


def slow_loss(algo: DQN, batch: Sequences) -> float:
    """The definition, one step of one sequence at a time."""
    c = algo.config
    total, count = 0.0, int(batch.mask.sum())

    def follow(network: Policy, column: int) -> list[list[float]]:
        one = batch.columns(slice(column, column + 1))
        state, q = one.state, []
        for obs, start in zip(one.obs, one.episode_start, strict=True):
            decision = network.step(obs, state, start)
            state = decision.state
            q.append(decision.logits[0].tolist())
        return q

    for column in range(batch.mask.shape[1]):
        online, target = follow(algo.policy, column), follow(algo.target, column)
        for i in range(c.train_steps):
            if not batch.mask[i, column]:
                continue
            at = c.burn_in + i
            goal, k = 0.0, 0
            while True:
                goal += c.gamma**k * float(batch.rewards[at + k, column])
                k += 1
                if batch.ended[at + k - 1, column] or k == c.n_step:
                    break
            if not batch.terminated[at + k - 1, column]:
                chooser = online[at + k] if c.double_q else target[at + k]
                goal += c.gamma**k * target[at + k][chooser.index(max(chooser))]
            error = online[at][int(batch.actions[at, column])] - goal
            huber = 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
            total += float(batch.weights[column]) * (huber if c.loss == "huber" else error**2) / count
    return total


@pytest.mark.parametrize(
    "changes",
    [{}, {"double_q": False}, {"loss": "mse", "n_step": 1}, {"train_steps": 1, "n_step": 3}, {"burn_in": 0}],
)
@torch.no_grad()
def test_the_loss_equals_its_definition_step_by_step(changes: dict[str, Any]) -> None:
    filled = fill(make(**changes))
    perturb(filled.algo.policy)
    perturb(filled.algo.target, 0.3, seed=4)
    batch = sample(filled, 10)
    batch = batch._replace(weights=torch.linspace(0.1, 1, 10))
    loss, measured, errors = filled.algo.loss(batch, int(batch.mask.sum()))
    assert loss.item() == pytest.approx(slow_loss(filled.algo, batch), rel=1e-4)
    assert measured["td_error"].item() == pytest.approx(float(errors.abs()[batch.mask].mean()), rel=1e-5)
    assert errors.abs()[batch.mask].max() > 1  # both branches of Huber's


@torch.no_grad()
def test_double_q_takes_the_target_value_of_the_policys_choice() -> None:
    filled = fill(make(train_steps=1, n_step=1, burn_in=0, stride=1))
    perturb(filled.algo.target, 0.5)
    batch = sample(filled)
    going_on = batch.mask[0] & ~batch.terminated[0]
    online, target = (
        filled.algo._bootstrap_q(net, batch.state, batch) for net in (filled.algo.policy, filled.algo.target)
    )
    double, plain = (filled.algo.targets(batch, chooser)[0] for chooser in (online, None))
    value = target[1].gather(-1, online[1].argmax(-1, keepdim=True)).squeeze(-1)
    gamma = filled.algo.config.gamma
    torch.testing.assert_close(double[going_on], (batch.rewards[0] + gamma * value)[going_on])
    torch.testing.assert_close(plain[going_on], (batch.rewards[0] + gamma * target[1].amax(-1))[going_on])
    assert (plain > double)[going_on].any()
    assert (plain >= double).all()


# Gradients


@pytest.mark.parametrize(("carry", "time_gradient"), VARIANTS[:5])
def test_the_burn_in_leaves_no_gradient(carry: str, time_gradient: str) -> None:
    """The gradient is that of the same loss with the burnt-in states given as constants."""
    filled = fill(make({"carry": carry, "time_gradient": time_gradient}))
    algo, batch = filled.algo, sample(filled)
    perturb(algo.policy)
    state = tuple(s.requires_grad_() for s in batch.state)
    batch = batch._replace(state=state)
    rows = int(batch.mask.sum())
    loss = algo.loss(batch, rows)[0]
    gradient = torch.autograd.grad(loss, [*algo.parameters, *state], allow_unused=True)
    assert all(g is None for g in gradient[len(algo.parameters) :])

    burn_in = algo.config.burn_in
    with torch.no_grad():
        constants = {
            net: net.unroll(batch.obs[:burn_in], state, batch.episode_start[:burn_in]).state
            for net in (algo.policy, algo.target)
        }
    trimmed = Sequences(*(t[burn_in:] for t in batch[:6]), *batch[6:])  # type: ignore[arg-type]
    short = copy.copy(algo)
    short.config = DQNConfig(**{**SMALL, "burn_in": 0})
    short._burn_in = lambda network, _: constants[network]  # type: ignore[method-assign]
    expected = short.loss(trimmed, rows)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    given_states = torch.autograd.grad(expected, algo.parameters, allow_unused=True)
    for mine, theirs in zip(gradient[: len(algo.parameters)], given_states, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)

    obs = batch.obs.clone()
    obs[:burn_in] = grids(burn_in, batch.mask.shape[1], seed=77)
    with torch.no_grad():
        assert abs(algo.loss(batch._replace(obs=obs), rows)[0].item() - loss.item()) > 1e-5


@pytest.mark.parametrize("detached", [False, True])
def test_the_gradient_crosses_the_trained_steps_only_with_bptt(detached: bool) -> None:
    """A loss on the last trained step alone reaches the first step's encoding with bptt."""
    algo = make({"time_gradient": "detached" if detached else "bptt"}, n_step=1)
    filled = fill(algo)
    batch = sample(filled, 48)
    calm = batch.mask.all(0) & ~batch.episode_start[5:].any(0)
    assert calm.any()
    only_last = torch.zeros_like(batch.mask)
    only_last[-1] = calm
    batch = batch._replace(mask=only_last)
    seen: list[Tensor] = []
    encoder = algo.policy.encoder.forward

    def remember(obs: Tensor) -> Tensor:
        seen.append(encoder(obs))
        return seen[-1]

    algo.policy.encoder.forward = remember  # type: ignore[method-assign]
    loss = algo.loss(batch, 1)[0]
    tokens = next(t for t in seen if t.requires_grad)
    reach = torch.autograd.grad(loss, tokens)[0].abs().flatten(1).sum(1)
    assert reach[-1] > 0
    assert bool(reach[0] > 0) != detached
    assert sum(t.requires_grad for t in seen) == 1


def segment_reference(algo: DQN, batch: Sequences, steps: int) -> Iterator[list[Tensor]]:
    """Training at each segment with one-segment policies and no generator: what `each_segment` should do."""
    policy = copy.deepcopy(algo.policy)
    policy.segments = 1
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    with torch.no_grad():
        after = algo.target.step(batch.obs[0], batch.state, batch.episode_start[0]).state
        q = algo.target.step(batch.obs[1], after, batch.episode_start[1]).logits.amax(-1)
        goal = batch.rewards[0] + algo.config.gamma * torch.where(batch.terminated[0], 0.0, q)
    state, start = batch.state, batch.episode_start[0]
    for _ in range(steps):
        decision = policy.step(batch.obs[0], tuple(s.detach() for s in state), start)
        state, start = decision.state, torch.zeros_like(start)
        chosen = decision.logits.gather(-1, batch.actions[0].unsqueeze(-1)).squeeze(-1)
        loss = ((chosen - goal).square() * batch.mask[0]).sum() / batch.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield [p.detach().clone() for p in policy.parameters()]


def test_each_segment_is_one_optimizer_step_and_passes_no_gradient_on() -> None:
    algo = make({"segments": 3}, **SEGMENTS, double_q=False, loss="mse", max_grad_norm=0.0)
    algo.optimizer = torch.optim.SGD(algo.parameters, 0.1)
    algo._learning_rate = lambda progress: 0.1  # type: ignore[method-assign]
    filled = fill(algo)
    perturb(algo.target)
    batch = sample(filled)
    after: list[list[Tensor]] = []
    average = algo._average
    algo._average = lambda: (after.append(weights(algo)), average())[1]  # type: ignore[func-returns-value, method-assign]
    expected = list(segment_reference(algo, batch, 3))
    algo._train_segments(batch, 0.0)
    assert algo.steps == len(after) == 3
    for mine, theirs in zip(after, expected, strict=True):
        close(mine, theirs, 1e-5)
    assert not equal(after[0], after[1])


def test_all_segments_have_the_target_of_before_the_first() -> None:
    algo = make({"segments": 3}, **SEGMENTS, learning_rate=0.1, target_ema=0.0)
    batch = sample(fill(algo))
    expected = algo.targets(batch, algo._bootstrap_q(algo.policy, batch.state, batch))
    seen: list[Tensor] = []
    error = algo._error
    algo._error = lambda q, state, targets, *rest: (seen.append(targets), error(q, state, targets, *rest))[1]  # type: ignore[method-assign]
    algo._train_segments(batch, 0.0)
    assert len(seen) == 3
    assert all(torch.equal(t, expected) for t in seen)
    changed = algo.targets(batch, algo._bootstrap_q(algo.policy, batch.state, batch))
    assert not torch.allclose(changed, expected, atol=1e-3)


@torch.no_grad()
def test_a_stored_bootstrap_judges_from_the_state_kept_after_the_step() -> None:
    algo = make({"carry": "last_token"}, **PAPER)
    filled = fill(algo)
    perturb(algo.target)
    batch = sample(filled, 48)
    assert batch.next_state is not None
    no_start = torch.zeros(48, dtype=torch.bool)
    value = algo.target.step(batch.obs[1], batch.next_state, no_start).value
    expected = batch.rewards[0] + algo.config.gamma * torch.where(batch.terminated[0], 0.0, value)
    targets = algo.targets(batch, None)
    torch.testing.assert_close(targets[0], expected)
    own = algo.target.step(batch.obs[0], batch.state, batch.episode_start[0]).state
    recomputed = algo.target.step(batch.obs[1], own, no_start).value
    assert not torch.allclose(recomputed, value, atol=1e-4)


def test_the_gate_learns_from_the_first_segment_alone() -> None:
    """It mixes what is thought from; behind the first segment the state is detached."""
    algo = make({"carry": "gate", "segments": 3}, **SEGMENTS)
    batch = sample(fill(algo))
    assert not batch.episode_start[0].all()
    gate = list(algo.policy.carry.parameters())
    reached = []
    for loss, _, _ in algo._segment_losses(batch, int(batch.mask.sum())):
        gradient = torch.autograd.grad(loss, gate, allow_unused=True)
        reached.append([g is not None and bool(g.abs().sum() > 0) for g in gradient])
    assert len(gate) == 2  # weight and bias
    assert reached == [[True, True], [False, False], [False, False]]
