"""Recurrent DQN: targets against a table, the loss against its definition, gradients that stop where they should."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ACTIONS, GRID, QUICK, grids, tiny_policy
from torch import Tensor

from hrm_agent.algos import dqn
from hrm_agent.algos.dqn import DQN, DQNConfig, n_step_targets
from hrm_agent.algos.ppo import NonFiniteLoss
from hrm_agent.parallel import Shards
from hrm_agent.policy import Policy
from hrm_agent.replay import Replay, Sequences

SMALL = {
    "num_envs": 3, "capacity": 96, "learning_starts": 0, "updates": 1, "batch_sequences": 16, "burn_in": 4,
    "train_steps": 4, "n_step": 2, "stride": 4, "learning_rate": 1e-2, "anneal": False,
}  # fmt: skip
SEGMENTS = {"burn_in": 0, "train_steps": 1, "n_step": 1, "stride": 1, "each_segment": True}
PAPER = {
    **SEGMENTS, "double_q": False, "loss": "mse", "optimizer": "adam_atan2", "max_grad_norm": 0.0,
    "stored_bootstrap": True,
}  # fmt: skip
VARIANTS: list[tuple[str, str]] = [
    ("full", "bptt"), ("full", "detached"), ("last_token", "bptt"), ("gate", "bptt"), ("output", "bptt"),
    ("reset", "bptt"),
]  # fmt: skip


class Filled(NamedTuple):
    """An algorithm and a replay of what its policy did, with the Q-values that it had then."""

    algo: DQN
    replay: Replay
    q: Tensor  # [T, N, A]
    final_q: dict[tuple[int, int], Tensor]  # (step, environment) -> [A], of the final observation


def make(policy: dict[str, Any] | None = None, shards: int = 1, seed: int = 0, **changes: Any) -> DQN:
    config = DQNConfig(**{**SMALL, **changes})
    options = {"core_options": QUICK, "segments": 2, **(policy or {})}
    return DQN(tiny_policy(heads="q", **options), config, Shards(shards), seed)


@torch.no_grad()
def fill(algo: DQN, steps: int = 28, seed: int = 0) -> Filled:
    """Random observations, actions, rewards and ends of episodes; the states are the policy's own."""
    count, policy = algo.config.num_envs, algo.policy
    state = policy.initial_state(count)
    replay = Replay(algo.config.capacity, count, GRID, state, algo.config.stride)
    random = torch.Generator().manual_seed(seed)
    obs, final = grids(steps, count, seed=seed), grids(steps, count, seed=seed + 1)
    start, qs, final_q = torch.ones(count, dtype=torch.bool), [], {}
    for t in range(steps):
        decision = policy.step(obs[t], state, start)
        draws = torch.rand(2, count, generator=random)
        terminated, truncated = draws[0] < 0.1, draws[1] < 0.1
        ended = terminated | truncated
        actions = torch.randint(int(ACTIONS.n), (count,), generator=random)
        rewards = torch.randn(count, generator=random)
        last = final[t][ended] if ended.any() else None
        replay.add(obs[t], state, start, actions, rewards, terminated, truncated, ended, last)
        after = policy.step(final[t], decision.state, torch.zeros_like(start)).logits
        final_q.update({(t, n): after[n] for n in range(count)})
        qs.append(decision.logits)
        state, start = decision.state, ended
    return Filled(algo, replay, torch.stack(qs), final_q)


def sample(filled: Filled, batch: int = 24, seed: int = 1) -> Sequences:
    c = filled.algo.config
    return filled.replay.sample(batch, c.burn_in, c.train_steps, c.n_step, torch.Generator().manual_seed(seed))


def perturb(policy: Policy, scale: float = 0.1, seed: int = 9) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn_like(p))


def weights(algo: DQN) -> list[Tensor]:
    return [p.detach().clone() for p in algo.parameters]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


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
    measured = algo.loss(batch, 1)[1]
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
    assert measured["td_error"] == pytest.approx(float(errors.abs()[batch.mask].mean()), rel=1e-5)
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


@pytest.mark.parametrize("changes", [{"prioritised": True}, PAPER], ids=["sequences", "paper"])
def test_the_update_does_not_depend_on_the_shards(changes: dict[str, Any]) -> None:
    ends, measured = [], []
    for shards in (1, 2, 5):
        # Bias-corrected steps turn rounding in tiny gradients into noise: eps keeps them small.
        algo = make(shards=shards, eps=1.0, **{**changes, "optimizer": "adamw"})
        filled = fill(algo)
        measured.append([algo.update(filled.replay, 0.0) for _ in range(2)][-1])
        ends.append(weights(algo))
    for other, numbers in zip(ends[1:], measured[1:], strict=True):
        close(ends[0], other)
        assert numbers == pytest.approx(measured[0], rel=1e-3, abs=1e-5)
    assert not equal(ends[0], weights(make(**changes)))


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


# The update


def test_the_target_network_follows_by_moving_average() -> None:
    filled = fill(make(target_ema=0.75))
    algo = filled.algo
    perturb(algo.target)
    before = [p.clone() for p in algo.target.parameters()]
    algo.update(filled.replay, 0.0)
    for old, target, online in zip(before, algo.target.parameters(), algo.policy.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * online)
        assert not target.requires_grad
    assert not equal(before, list(algo.target.parameters()))


def test_prioritised_updates_change_the_priorities_of_what_was_drawn() -> None:
    filled = fill(make(prioritised=True))
    before = filled.replay.priorities.clone()
    filled.algo.update(filled.replay, 0.0)
    changed = filled.replay.priorities != before
    assert 0 < changed.sum() <= filled.algo.config.batch_sequences
    plain = fill(make())
    plain.algo.update(plain.replay, 0.0)
    assert torch.equal(plain.replay.priorities, before)


@pytest.mark.parametrize("changes", [{"prioritised": True}, PAPER], ids=["sequences", "paper"])
def test_going_on_from_a_checkpoint_changes_nothing(changes: dict[str, Any]) -> None:
    whole = fill(make(warmup=9, updates=2, **changes))
    for _ in range(4):
        whole.algo.update(whole.replay, 0.0)
    first = fill(make(warmup=9, updates=2, **changes))
    for _ in range(2):
        first.algo.update(first.replay, 0.0)
    second = make(warmup=9, updates=2, seed=99, **changes)
    perturb(second.target)
    second.policy.load_state_dict(first.algo.policy.state_dict())
    second.restore({k: t.clone() for k, t in first.algo.tensors().items()}, first.algo.metadata())
    for _ in range(2):
        second.update(first.replay, 0.0)
    assert equal(weights(second), weights(whole.algo))
    assert equal(list(second.target.parameters()), list(whole.algo.target.parameters()))
    assert second.metadata() == whole.algo.metadata()


@pytest.mark.parametrize("changes", [{}, {**SEGMENTS}], ids=["sequences", "segments"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights_untouched(bad: float, changes: dict[str, Any]) -> None:
    filled = fill(make(**changes, loss="mse"))
    algo = filled.algo
    filled.replay.rewards[:] = bad
    before, target = weights(algo), [p.clone() for p in algo.target.parameters()]
    with pytest.raises(NonFiniteLoss):
        algo.update(filled.replay, 0.0)
    assert equal(before, weights(algo))
    assert equal(target, list(algo.target.parameters()))
    assert algo.optimizer.state_dict()["state"] == {}


def test_the_learning_rate_warms_up_and_is_annealed() -> None:
    filled = fill(make(warmup=4, anneal=True, learning_rate=0.01))
    rates = [filled.algo.update(filled.replay, 0.5)["learning_rate"] for _ in range(6)]
    assert rates == pytest.approx([0.005 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])
    assert filled.algo.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_epsilon_falls_with_the_run_or_with_the_optimizer_steps() -> None:
    algo = make(epsilon_start=1.0, epsilon_end=0.2, epsilon_fraction=0.5)
    assert [algo.epsilon(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    paper = make(**PAPER, epsilon_end=0.33, epsilon_updates=10)
    assert paper.epsilon(0.9) == 1.0
    filled = fill(paper)
    paper.update(filled.replay, 0.0)  # two segments
    assert paper.epsilon(0.0) == pytest.approx(1 - 0.2 * 0.67)
    assert make(epsilon_fraction=0.0).epsilon(0.0) == pytest.approx(0.05)


def test_nothing_is_learned_before_there_is_enough() -> None:
    algo = make(learning_starts=60)
    assert algo.update(fill(algo, 19).replay, 0.0) == {}
    assert algo.update(fill(algo, 20).replay, 0.0)["loss"] > 0
    early = make()
    assert early.update(fill(early, 5).replay, 0.0) == {}
    assert early.update(fill(early, 6).replay, 0.0)["gradient_norm"] > 0
    assert early.steps == algo.steps == 1


def test_an_update_measures_what_it_did() -> None:
    filled = fill(make(updates=3))
    measured = filled.algo.update(filled.replay, 0.0)
    names = {"loss", "q_mean", "target_q", "td_error", "state_drift", "gradient_norm", "learning_rate"}
    assert set(measured) == names
    assert filled.algo.steps == 3


@pytest.mark.parametrize("changes", [{"train_steps": 1, "stride": 1, "burn_in": 0, "n_step": 1}, PAPER])
def test_a_bandit_is_learned_by_the_loss_alone(changes: dict[str, Any]) -> None:
    """Every episode is one step; only action 2 is rewarded. The Q-values become the rewards."""
    algo = make(updates=60, learning_rate=1e-2, **changes)
    torch.nn.init.normal_(algo.policy.policy_head.weight, std=0.01)  # as policies begin
    state = algo.policy.initial_state(3)
    replay = Replay(96, 3, GRID, state, 1)
    obs, yes = grids(32, 3), torch.ones(3, dtype=torch.bool)
    actions = torch.randint(4, (32, 3), generator=torch.Generator().manual_seed(0))
    for t in range(32):
        replay.add(obs[t], state, yes, actions[t], (actions[t] == 2).float(), yes, ~yes, yes, obs[t])
    algo.update(replay, 0.0)
    with torch.no_grad():
        q = algo.policy.step(obs.flatten(0, 1), algo.policy.initial_state(96), torch.ones(96, dtype=torch.bool)).logits
    assert (q.argmax(-1) == 2).float().mean() > 0.95
    assert q[:, 2].mean() == pytest.approx(1.0, abs=0.25)
    assert q[:, [0, 1, 3]].mean() == pytest.approx(0.0, abs=0.25)


def test_a_policy_without_q_values_is_refused() -> None:
    with pytest.raises(ValueError, match="heads=actor_critic: DQN trains Q-values; set heads=q"):
        DQN(tiny_policy(), DQNConfig(**SMALL), Shards(1), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "algo.num_envs=0: expected 1 or more"),
        ({"n_step": 0}, "algo.n_step=0: expected 1 or more"),
        ({"warmup": -1}, "algo.warmup=-1: expected 0 or more"),
        ({"gamma": 1.5}, "algo.gamma=1.5: expected a number from 0 to 1"),
        ({"beta2": 1.0}, "algo.beta2=1.0: expected a number from 0 to below 1"),
        ({"learning_rate": float("nan")}, "algo.learning_rate=nan: expected a number above 0"),
        ({"optimizer": "sgd"}, "algo.optimizer=sgd: expected one of adamw, adam_atan2"),
        ({"loss": "l1"}, "algo.loss=l1: expected one of huber, mse"),
        ({"burn_in": 6}, "algo.burn_in=6 is no multiple of algo.stride=4"),
        ({"each_segment": True}, "algo.each_segment=true with algo.train_steps=4: expected 1 step"),
        ({"stored_bootstrap": True}, "algo.stored_bootstrap=true needs .*algo.stride=1"),
        ({"capacity": 36}, "algo.capacity=36 frames hold 12 steps .*expected 13 or more"),
        ({"learning_starts": 97}, "algo.learning_starts=97: expected at most the 96 frames"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQNConfig(**{**SMALL, **changes})


def test_the_defaults_and_the_paper_mode_are_allowed() -> None:
    DQNConfig()
    DQNConfig(**{**PAPER, "num_envs": 256, "collect_steps": 1, "capacity": 2**20, "batch_sequences": 256})
    assert set(dqn.LOSSES) == {"huber", "mse"}
