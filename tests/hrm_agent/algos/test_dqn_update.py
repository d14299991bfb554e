"""Recurrent DQN: updates, schedules, checkpoints, what is learned, and settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hrm_agent.algos import dqn
from hrm_agent.algos.dqn import DQN, DQNConfig
from hrm_agent.experience.replay import Replay
from hrm_agent.parallel.threads import Threads
from hrm_agent.tensors.gradients import NonFiniteNumbers
from tiny import GRID, grids, tiny_policy
from tiny_dqn import PAPER, SEGMENTS, SMALL, close, equal, fill, make, perturb, weights


@pytest.mark.parametrize("changes", [{"prioritised": True}, PAPER], ids=["sequences", "paper"])
def test_the_update_does_not_depend_on_the_shards(changes: dict[str, Any]) -> None:
    ends, measured = [], []
    for threads in (1, 2, 5):
        # Bias-corrected steps turn rounding in tiny gradients into noise: eps keeps them small.
        algo = make(threads=threads, eps=1.0, **{**changes, "optimizer": "adamw"})
        filled = fill(algo)
        measured.append([algo.update(filled.replay, 0.0) for _ in range(2)][-1])
        ends.append(weights(algo))
    for other, numbers in zip(ends[1:], measured[1:], strict=True):
        close(ends[0], other)
        assert numbers == pytest.approx(measured[0], rel=1e-3, abs=1e-5)
    assert not equal(ends[0], weights(make(**changes)))


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


@pytest.mark.thorough
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
    with pytest.raises(NonFiniteNumbers):
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


@pytest.mark.parametrize(("changes", "steps"), [({}, 3), (PAPER, 6)], ids=["sequences", "paper"])
def test_an_update_measures_what_it_did(changes: dict[str, Any], steps: int) -> None:
    filled = fill(make(updates=3, **changes))
    measured = filled.algo.update(filled.replay, 0.0)
    names = {"loss", "q_mean", "target_q", "td_error", "gradient_norm", "learning_rate"}
    # Only after the last segment is the state the one that was stored.
    assert set(measured) == (names if changes else names | {"state_drift"})
    assert filled.algo.steps == steps


@pytest.mark.thorough
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
        DQN(tiny_policy(), DQNConfig(**SMALL), Threads(1), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "algo.num_envs=0: expected an integer from 1 to 65,536"),
        ({"n_step": 0}, "algo.n_step=0: expected an integer from 1"),
        ({"warmup": -1}, "algo.warmup=-1: expected an integer from 0"),
        ({"gamma": 1.5}, "algo.gamma=1.5: expected a number from 0 to 1"),
        ({"beta2": 1.0}, "algo.beta2=1.0: expected a number from 0 to below 1"),
        ({"learning_rate": float("nan")}, "algo.learning_rate=nan: expected a number above 0"),
        ({"optimizer": "sgd"}, "algo.optimizer='sgd': expected adamw or adam_atan2"),
        ({"loss": "l1"}, "algo.loss='l1': expected huber or mse"),
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
