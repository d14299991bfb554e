"""The collector: the carry crosses steps and rollouts, and only there; cut-off episodes are bootstrapped."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from hrm_agent.experience.collector import Collector
from hrm_agent.experience.replay import Replay
from hrm_agent.experience.rollout import Rollout
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from tiny import make_ppo, tiny_policy

CARRIES = ["full", "last_token", "reset"]
# Tiny open mazes: of the 48 episodes' ends in a few rollouts some are at the goal and some at the time limit.
SHORT = {"rows": 2, "cols": 2, "walls": 0, "doors": 0, "max_episode_steps": 4}


@torch.no_grad()
def replay(policy: Policy, rollout: Rollout, state: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """States after each step, by single calls of the policy on what the rollout stored."""
    states = []
    for t in range(rollout.steps):
        decision = policy.step(rollout.obs[t], state, rollout.episode_start[t])
        torch.testing.assert_close(decision.value, rollout.values[t], rtol=1e-5, atol=1e-5)
        state = decision.state
        states.append(state)
    return states


def record_steps(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = []
    step = collector.env.step

    def recorded(actions: np.ndarray) -> tuple[Any, ...]:
        result = step(actions)
        steps.append((*map(np.copy, result[:4]), np.copy(result[4].get("final_obs", 0))))
        return result

    monkeypatch.setattr(collector.env, "step", recorded)
    return steps


@pytest.mark.parametrize("carry", CARRIES)
def test_the_carry_crosses_rollouts_and_the_bootstrap_call_leaves_it_alone(carry: str) -> None:
    algo, collector, rollout = make_ppo({"carry": carry}, env_options=SHORT)
    state = collector.state
    for _ in range(3):
        collector.collect(rollout)
        assert all(torch.equal(s[0], mine) for s, mine in zip(rollout.states, state, strict=True))
        states = replay(algo.policy, rollout, state)
        for row in range(1, rollout.steps // rollout.window + 1):
            for store, mine in zip(rollout.states, states[row * rollout.window - 1], strict=True):
                torch.testing.assert_close(store[row], mine, rtol=1e-5, atol=1e-5)
        state = collector.state
        for kept, mine in zip(state, states[-1], strict=True):
            torch.testing.assert_close(kept, mine, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            after = algo.policy.step(collector.obs, state, collector.episode_start)
        torch.testing.assert_close(rollout.last_values, after.value, rtol=1e-5, atol=1e-5)
        if carry != "reset":
            assert not all(torch.allclose(a, b) for a, b in zip(after.state, state, strict=True))


@pytest.mark.parametrize("carry", ["full", "last_token"])
def test_cut_off_episodes_are_bootstrapped_from_their_last_observation_and_the_state_before_the_reset(
    carry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo, collector, rollout = make_ppo({"carry": carry}, env_options=SHORT)
    rollout.final_values[:] = 7.0  # of a rollout before, in the same memory
    steps = record_steps(collector, monkeypatch)
    collector.collect(rollout)
    state = tuple(s[0] for s in rollout.states)
    states = replay(algo.policy, rollout, state)
    no_start = torch.zeros(1, dtype=torch.bool)
    cut = ended = 0
    for t in range(rollout.steps):
        _, _, terminated, truncated, final_obs = steps[t]
        for i in range(rollout.num_envs):
            if not truncated[i] or terminated[i]:
                assert rollout.final_values[t, i] == 0
                ended += int(terminated[i])
                continue
            cut += 1
            final = torch.from_numpy(np.asarray(final_obs[i : i + 1]))
            with torch.no_grad():
                kept = tuple(s[i : i + 1] for s in states[t])
                expected = algo.policy.step(final, kept, no_start).value
                fresh = algo.policy.step(final, kept, ~no_start).value
            torch.testing.assert_close(rollout.final_values[t, i], expected[0], rtol=1e-5, atol=1e-5)
            assert abs(float(fresh - expected)) > 1e-4
    assert cut > 2
    assert ended > 1


def test_an_episode_starts_exactly_after_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _, collector, rollout = make_ppo(env_options=SHORT)
    steps = record_steps(collector, monkeypatch)
    expected = np.ones(rollout.num_envs, bool)
    for _ in range(3):
        steps.clear()
        collector.collect(rollout)
        for t, (obs, rewards, terminated, truncated, _) in enumerate(steps):
            assert rollout.episode_start[t].tolist() == expected.tolist()
            assert rollout.terminated[t].tolist() == terminated.tolist()
            assert rollout.truncated[t].tolist() == truncated.tolist()
            assert rollout.rewards[t].tolist() == pytest.approx(rewards.tolist())
            if t + 1 < rollout.steps:
                assert np.array_equal(rollout.obs[t + 1].numpy(), obs)
            expected = terminated | truncated
        assert collector.episode_start.tolist() == expected.tolist()


@torch.no_grad()
def test_log_probabilities_are_those_of_the_policy_that_acted() -> None:
    algo, collector, rollout = make_ppo()
    collector.collect(rollout)
    state = tuple(s[0] for s in rollout.states)
    for t in range(rollout.steps):
        decision = algo.policy.step(rollout.obs[t], state, rollout.episode_start[t])
        state = decision.state
        expected = decision.logits.log_softmax(-1)[torch.arange(rollout.num_envs), rollout.actions[t]]
        torch.testing.assert_close(rollout.log_probs[t], expected, rtol=1e-5, atol=1e-5)


def test_shards_change_no_decision() -> None:
    rollouts = []
    for threads in (1, 4):
        _, collector, rollout = make_ppo(threads=threads)
        collector.collect(rollout)
        rollouts.append(rollout)
    one, split = rollouts
    assert torch.equal(one.actions, split.actions)
    assert torch.equal(one.obs, split.obs)
    torch.testing.assert_close(one.values, split.values, rtol=1e-5, atol=1e-6)


class Corridor(gym.Env):
    """Six steps east end it; the observation is a dictionary, so that it comes through a SyncVectorEnv."""

    observation_space = gym.spaces.Dict(place=gym.spaces.Discrete(7), speed=gym.spaces.Box(-1, 1, (2,), np.float32))
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place = 0
        return self._see(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.place += 1
        return self._see(), 0.5, self.place == 6, False, {}

    def _see(self) -> dict[str, Any]:
        return {"place": self.place, "speed": np.full(2, self.place / 10, np.float32)}


def corridors(limit: int, autoreset: AutoresetMode = AutoresetMode.SAME_STEP) -> SyncVectorEnv:
    def make() -> gym.Env:
        return gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(Corridor(), limit))

    return SyncVectorEnv([make] * 2, autoreset_mode=autoreset)


def test_environments_stepped_one_by_one_give_final_observations_and_statistics() -> None:
    env = corridors(limit=4)
    policy = tiny_policy(env.single_observation_space, core="gru", readout="mean")
    collector = Collector(env, policy, 0, Threads(1))
    rollout = Rollout(8, 2, 4, env.single_observation_space, collector.state)
    collector.collect(rollout)
    assert rollout.obs["place"][:, 0].tolist() == [0, 1, 2, 3] * 2
    assert rollout.truncated[:, 0].tolist() == [False, False, False, True] * 2
    state = tuple(s[1] for s in rollout.states)  # kept after step 3, where the time limit is
    final = {"place": torch.tensor([4, 4]), "speed": torch.full((2, 2), 0.4)}
    with torch.no_grad():
        expected = policy.step(final, state, torch.zeros(2, dtype=torch.bool)).value
    torch.testing.assert_close(rollout.final_values[3], expected)
    assert collector.statistics() == {"return": 2.0, "length": 4.0, "success": 1.0, "segments": 1.0}


def test_statistics_are_of_the_episodes_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _, collector, rollout = make_ppo(env_options=SHORT)
    assert collector.statistics() == {}
    steps = record_steps(collector, monkeypatch)
    collector.collect(rollout)
    ended, reached, waiting = 0, 0, set(range(6))
    for _, _, terminated, truncated, _ in steps:
        counts = [i for i in range(6) if (terminated | truncated)[i] and (not waiting or i in waiting)]
        ended, reached = ended + len(counts), reached + int(terminated[counts].sum())
        waiting -= set(counts)
    assert not waiting
    assert len(collector.episodes) == ended
    assert collector.statistics()["success"] == pytest.approx(reached / ended)
    assert 0 < reached < ended


def test_the_first_success_rate_is_not_that_of_the_episodes_that_end_first() -> None:
    """Successes end after 3 steps, failures after 9: of half of each, the first twelve to end are successes."""
    _, collector, _ = make_ppo()
    early, late = (0, 1, 2), (3, 4, 5)

    def end(frame: int, environments: tuple[int, ...], success: bool) -> None:
        collector._ended += [(frame, env, float(success), frame // 6, success) for env in environments]
        with collector._stepping():
            pass

    for frame in (18, 36):
        end(frame, early, True)
        assert collector.statistics() == {}
    _, other, _ = make_ppo()
    other.restore(collector.tensors(), collector.metadata())
    for frame in (54,):
        end(frame, early, True)
        end(frame, late, False)
    assert collector.statistics()["success"] == 0.5
    end(72, early, True)  # from now on all episodes count
    assert collector.statistics()["success"] == pytest.approx(6 / 9)
    assert other._in_first_episode == set(late)


def test_environments_whose_first_episode_never_ends_do_not_silence_the_others() -> None:
    _, collector, _ = make_ppo()
    for frames in (60, 60_006):
        collector.frames = frames
        collector._ended = [(frames, env, 1.0, 3, True) for env in (0, 1, 2)] * 2
        with collector._stepping():
            pass
        assert collector.statistics() == {}
    collector._ended = [(frames, 0, 1.0, 3, True)] * 3
    with collector._stepping():
        pass
    assert collector.statistics()["success"] == 1.0


def test_a_restored_collector_goes_on_as_if_nothing_had_happened() -> None:
    _, collector, rollout = make_ppo()
    collector.collect(rollout)
    tensors = {name: t.clone() for name, t in collector.tensors().items()}
    metadata = collector.metadata()
    collector.collect(rollout)
    _, other, again = make_ppo()
    other.restore(tensors, metadata)
    assert other.metadata() == metadata
    other.collect(again)
    assert torch.equal(rollout.obs, again.obs)
    assert torch.equal(rollout.actions, again.actions)
    assert torch.equal(rollout.values, again.values)
    assert torch.equal(rollout.last_values, again.last_values)


def test_an_environment_that_cannot_be_put_back_begins_new_episodes() -> None:
    env = corridors(limit=9)
    policy = tiny_policy(env.single_observation_space, core="gru", readout="mean")
    collector = Collector(env, policy, 0, Threads(1))
    rollout = Rollout(4, 2, 4, env.single_observation_space, collector.state)
    collector.collect(rollout)
    collector.restore(collector.tensors(), collector.metadata())
    assert collector.episode_start.all()
    assert collector.frames == 8
    collector.collect(rollout)
    assert rollout.obs["place"][:, 0].tolist() == [0, 1, 2, 3]


def test_a_replay_keeps_what_was_seen_where_the_environment_reuses_its_memory() -> None:
    kept = []
    for copy in (True, False):
        _, collector, _ = make_ppo(env_options={**SHORT, "copy": copy})
        replay = Replay(96, 6, collector.env.single_observation_space, collector.state, 1)
        collector.explore(replay, 12, epsilon=0.5)
        kept.append(replay)
    assert torch.equal(kept[0].actions, kept[1].actions)
    assert torch.equal(kept[0].obs, kept[1].obs)
    assert kept[0].obs[:12].flatten(1).unique(dim=0).shape[0] > 6


def test_another_autoreset_mode_is_refused() -> None:
    env = corridors(limit=4, autoreset=AutoresetMode.NEXT_STEP)
    policy = tiny_policy(env.single_observation_space, core="gru", readout="mean")
    with pytest.raises(ValueError, match="expected SAME_STEP"):
        Collector(env, policy, 0, Threads(1))
