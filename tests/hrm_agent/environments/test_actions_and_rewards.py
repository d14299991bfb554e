"""PPO where actions are not one of a few, observations are numbers, and returns are large."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from hrm_agent.agents.agent import Agent
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.environments.make import episode_success, make_vector_env
from hrm_agent.evaluation import video
from hrm_agent.evaluation.episodes import PolicyActor, RandomActor, run_episodes
from hrm_agent.evaluation.video import record_episodes
from hrm_agent.experience.collector import Collector, _seed_after
from hrm_agent.experience.rollout import ReturnScaler, Rollout
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.encoders import VectorEncoder
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.training.learners import PPOLearner
from tiny import CORES

TARGET = "Target-v0"
BOX = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 8.0], np.float32))
SETTINGS = {"num_envs": 8, "rollout_steps": 8, "window": 4, "minibatch_windows": 8}


class Target(gym.Env):
    """The reward is minus the distance between the action and what the observation says, times `scale`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, actions: str = "box", scale: float = 100.0, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = {"box": BOX, "multi": gym.spaces.MultiDiscrete([3, 5])}[actions]
        self.scale = scale

    def _obs(self) -> np.ndarray:
        self.wanted = self.np_random.random(2)
        return (1000 * self.wanted).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        SEEDS.append(seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if isinstance(self.action_space, gym.spaces.Box):
            at = (action - BOX.low) / (BOX.high - BOX.low)
        else:
            at = np.asarray(action) / np.array([2, 4])
        reward = -self.scale * float(np.abs(at - self.wanted).sum())
        self.steps += 1
        return self._obs(), reward, False, self.steps >= 5, {}

    def render(self) -> np.ndarray:
        return np.zeros((20, 30, 3), np.uint8)


SEEDS: list[int | None] = []


@pytest.fixture(autouse=True)
def registered() -> Any:
    gym.register(TARGET, Target, reward_threshold=-250.0)
    yield
    del gym.registry[TARGET]


def make_learner(actions: str = "box", carry: str = "full", **algo: Any) -> tuple[PPOLearner, Collector]:
    config = PPOConfig(**{**SETTINGS, "scale_rewards": True, "gamma": 0.5, **algo})
    env = make_vector_env(TARGET, config.num_envs, {"actions": actions})
    torch.manual_seed(0)
    space = env.single_observation_space
    policy = Policy(
        PolicyConfig(core="gru", core_options=CORES["gru"], hidden_size=16, carry=carry, readout="mean"),
        space,
        env.single_action_space,
    )
    collector = Collector(env, policy, 0, Threads(1))
    return PPOLearner(policy, config, space, collector, Threads(1), 0), collector


@pytest.mark.parametrize("actions", ["box", "multi"])
@torch.no_grad()
def test_on_fresh_data_the_ratio_is_one(actions: str) -> None:
    learner, collector = make_learner(actions)
    for _ in range(2):  # from the second on, observations are normalised
        learner.collect(collector, 0.0)
        rollout = learner.rollout
        windows = rollout.windows(*rollout.advantages(0.97, 0.9))
        decision = learner.policy.unroll(windows.obs, windows.state, windows.episode_start)
        log_probs, _ = learner.policy.distribution.evaluate(decision.logits, windows.actions)
        torch.testing.assert_close(log_probs, windows.log_probs, rtol=1e-4, atol=1e-5)
        learner.policy.encoder.observe(rollout.obs)


@pytest.mark.thorough
@pytest.mark.parametrize("actions", ["box", "multi"])
def test_it_learns_to_answer_what_it_sees(actions: str) -> None:
    learner, collector = make_learner(actions, num_envs=64, rollout_steps=8, window=4, minibatch_windows=32)
    random = run_episodes(RandomActor(collector.env.single_action_space), TARGET, {"actions": actions}, 40)
    updates = 40
    for i in range(updates):
        learner.collect(collector, i / updates)
        learner.update(i / updates)
    played = run_episodes(PolicyActor(learner.policy), TARGET, {"actions": actions}, 40)
    assert played.returns.mean() > 0.5 * random.returns.mean()
    assert played.success.mean() > random.success.mean() + 0.3


@pytest.mark.parametrize("actions", ["box", "multi"])
def test_videos_are_of_the_levels_that_are_evaluated_and_say_the_return(
    actions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[Any] = []
    monkeypatch.setattr(video, "_compose", lambda picture, moment, *_: moments.append(moment) or picture)
    learner, _ = make_learner(actions)
    SEEDS.clear()
    played = run_episodes(PolicyActor(learner.policy), TARGET, {"actions": actions}, 2, split="validation")
    evaluated = [s for s in SEEDS if s is not None]
    SEEDS.clear()
    frames = record_episodes(learner.policy, TARGET, {"actions": actions}, 2, split="validation")
    assert len(frames) >= 10
    recorded = [s for s in SEEDS if s is not None]
    assert recorded == evaluated == played.seeds.tolist()
    assert min(recorded) > 2**27  # no level of training
    ends = [moment for moment in moments if moment.outcome is not None]
    assert [moment.note for moment in ends] == [f"return {reached:.2f}" for reached in played.returns]
    assert [moment.episode for moment in ends] == ["episode 1 of 2, greedy", "episode 2 of 2, greedy"]


def test_a_vector_that_nobody_has_observed_is_taken_as_it_comes() -> None:
    learner, _ = make_learner()
    encoder = learner.policy.encoder
    near, far = encoder(torch.tensor([[50.0, 20.0]])), encoder(torch.tensor([[5000.0, 11.0]]))
    assert isinstance(encoder, VectorEncoder)
    torch.testing.assert_close(far - near, torch.tensor([[4950.0, -9.0]]) @ encoder.linear.weight.T[None])


def test_resumed_streams_of_levels_are_not_those_of_other_seeds_or_times() -> None:
    starts = {_seed_after(seed, frames) for seed in range(20) for frames in range(0, 2048 * 20, 2048)}
    assert len(starts) == 400
    apart = np.diff(sorted(starts))
    assert (apart > 128).mean() > 0.99
    assert max(starts) + 4096 < 2**28


def test_returns_of_abandoned_episodes_do_not_reach_into_new_ones() -> None:
    scaler = ReturnScaler(2, 0.9)
    saved = {"returns": torch.tensor([5.0, 6.0]).double(), "moments": torch.ones(3).double()}
    scaler.restore(saved, same_episodes=False)
    assert scaler.returns.tolist() == [0.0, 0.0]
    assert scaler.moments.tolist() == [1.0, 1.0, 1.0]


def test_an_agent_for_a_box_is_the_same_after_a_round_through_its_folder(tmp_path: Path) -> None:
    learner, collector = make_learner()
    for _ in range(3):
        learner.collect(collector, 0.0)
        learner.update(0.0)
    env = collector.env
    agent = Agent(learner.policy, env.single_observation_space, env.single_action_space)
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    obs, _ = env.reset(seed=0)
    actions, state = agent.predict(obs)
    again, loaded_state = loaded.predict(obs)
    np.testing.assert_array_equal(actions, again)
    np.testing.assert_array_equal(state[0], loaded_state[0])
    assert all(BOX.contains(a) for a in actions)
    assert BOX.contains(agent.predict(obs[0], deterministic=False)[0])


def test_what_a_run_learned_of_scales_is_in_its_checkpoint() -> None:
    learner, collector = make_learner()
    for _ in range(2):
        learner.collect(collector, 0.0)
        learner.update(0.0)
    other, _ = make_learner()
    other.same_episodes = True  # as with an environment that can be put back
    other.restore(learner.tensors(), learner.metadata())
    other.policy.load_state_dict(learner.policy.state_dict())
    assert other.scaler is not None
    assert learner.scaler is not None
    assert torch.equal(other.scaler.moments, learner.scaler.moments)
    for it in (learner, other):
        torch.manual_seed(1)
        rewards = torch.randn(it.rollout.rewards.shape)
        it.rollout.rewards.copy_(rewards)
        it.rollout.truncated.zero_()
        it.scaler.scale(it.rollout)  # type: ignore[union-attr]
    assert torch.equal(learner.rollout.rewards, other.rollout.rewards)


def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns_so_far() -> None:
    random = np.random.default_rng(0)
    gamma, steps, envs = 0.9, 7, 3
    scaler = ReturnScaler(envs, gamma)
    running, seen = np.zeros(envs), []
    for _ in range(4):
        rollout = Rollout(steps, envs, 1, gym.spaces.Discrete(2), ())
        rewards, ended = random.normal(5, 3, (steps, envs)), random.random((steps, envs)) < 0.3
        rollout.rewards.copy_(torch.from_numpy(rewards))
        cut = random.random((steps, envs)) < 0.5
        rollout.terminated.copy_(torch.from_numpy(ended & cut))
        rollout.truncated.copy_(torch.from_numpy(ended & ~cut))
        scaler.scale(rollout)
        for t in range(steps):
            running = gamma * running + rewards[t]
            seen.append(running)
            running = np.where(ended[t], 0, running)
        np.testing.assert_allclose(rollout.rewards.numpy(), rewards / np.std(seen), rtol=1e-5)


@pytest.mark.parametrize(("threshold", "expected"), [(None, [True, False]), (3.0, [False, False])])
def test_without_a_word_of_success_the_return_decides(threshold: float | None, expected: list[bool]) -> None:
    class Paid(gym.Env):
        observation_space = action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            return 0, 2.0 * float(action), True, False, {}

    gym.register("Paid-v0", Paid, reward_threshold=threshold)
    try:
        env = make_vector_env("Paid-v0", 2)
        collector = Collector(
            env,
            Policy(
                PolicyConfig(core="gru", core_options=CORES["gru"], hidden_size=8, readout="mean"),
                env.single_observation_space,
                env.single_action_space,
            ),
            0,
            Threads(1),
        )
        _, _, _, _, infos = env.step(np.array([1, 0]))
        with collector._stepping():
            collector._note_episodes(infos)
        assert [success for _, _, success in collector.episodes] == expected
    finally:
        del gym.registry["Paid-v0"]


def test_a_success_that_the_last_info_tells_is_believed() -> None:
    class Told(gym.Env):
        observation_space = action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            return 0, 1.0, True, False, {"is_success": bool(action)}

    gym.register("Told-v0", Told)
    try:

        class Alternate(RandomActor):
            def act(self, obs: Any) -> np.ndarray:
                return np.arange(len(obs)) % 2

        assert run_episodes(Alternate(gym.spaces.Discrete(2)), "Told-v0", {}, 4).success.tolist() == [False, True] * 2
    finally:
        del gym.registry["Told-v0"]


@pytest.mark.parametrize(
    ("infos", "threshold", "expected"),
    [
        ({"episode": {"success": [0, 1, 0]}, "final_info": {"is_success": [1, 0, 1]}}, 0.0, [False, True, False]),
        ({"final_info": {"episode": {"success": [0, 0, 1]}, "success": [1, 1, 0]}}, 0.0, [False, False, True]),
        ({"final_info": {"is_success": [1, 0, 1], "success": [0, 1, 0]}}, 9.0, [True, False, True]),
        ({"final_info": {"success": [1, 0, 0]}}, 9.0, [True, False, False]),
        ({"final_info": {}}, 2.0, [False, True, True]),
        ({}, -1.0, [True, True, True]),
        ({}, None, [False, True, True]),
    ],
)
def test_what_a_success_is_in_order(infos: dict[str, Any], threshold: float | None, expected: list[bool]) -> None:
    """The statistics' word, the last info's, a return that reaches the threshold, a return above 0."""
    single = SimpleNamespace(spec=SimpleNamespace(reward_threshold=threshold))
    success = episode_success(SimpleNamespace(envs=[single]), infos, np.array([0.0, 2.0, 3.0]))  # type: ignore[arg-type]
    assert success.dtype == bool
    assert success.tolist() == expected
