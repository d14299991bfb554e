"""Agents as other projects use them: saved, loaded, and played by the convention of Stable-Baselines3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import hrm_envs  # noqa: F401 - registers the environments
from failing_envs import Blind
from hrm_agent import Agent
from hrm_agent.files.reading import CheckpointError
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.files import save_tensors
from tiny import ACTIONS, CORES, GRID, MAZE, QUICK, grids, tiny_policy

K, BATCH = 5, 3


def make_agent(space: gym.Space = GRID, **changes: Any) -> Agent:
    policy = tiny_policy(space, **changes)
    return Agent(policy, space, ACTIONS, {"env": "DynamicMaze-v0", "env_options": MAZE, "frames": 7})


@torch.no_grad()
def greedy(policy: Policy, obs: torch.Tensor, start: torch.Tensor) -> list[list[int]]:
    state, actions = policy.initial_state(obs.shape[1]), []
    for t in range(len(obs)):
        decision = policy.step(obs[t], state, start[t])
        state = decision.state
        actions.append(decision.logits.argmax(-1).tolist())
    return actions


@pytest.mark.parametrize("carry", ["full", "last_token", "reset"])
def test_predicting_is_the_policys_greedy_step(carry: str) -> None:
    agent = make_agent(carry=carry)
    obs = grids(K, BATCH)
    start = torch.zeros(K, BATCH, dtype=torch.bool)
    start[0] = start[2, 1] = True
    state, actions = None, []
    for t in range(K):
        action, state = agent.predict(obs[t].numpy(), state, None if t == 0 else start[t].numpy())
        assert action.dtype == np.int64
        actions.append(action.tolist())
    assert actions == greedy(agent.policy, obs, start)
    assert len({tuple(a) for a in actions}) > 1


def test_no_state_begins_an_episode_and_no_episode_start_goes_on() -> None:
    agent = make_agent()
    obs = grids(2, BATCH).numpy()
    _, state = agent.predict(obs[0])
    everywhere = np.ones(BATCH, bool)

    def same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    anew = agent.predict(obs[1])[1]
    on = agent.predict(obs[1], state)[1]
    assert not same(anew, on)
    assert same(anew, agent.predict(obs[1], state, everywhere)[1])
    assert same(anew, agent.predict(obs[1], state, True)[1])
    assert same(anew, agent.predict(obs[1], None, ~everywhere)[1])
    assert same(on, agent.predict(obs[1], state, ~everywhere)[1])


def test_a_single_observation_is_a_batch_of_one() -> None:
    agent = make_agent()
    obs = grids(3, 1).numpy()
    alone, batched = None, None
    for t in range(3):
        one, alone = agent.predict(obs[t, 0], alone, False)
        many, batched = agent.predict(obs[t], batched, np.zeros(1, bool))
        assert np.shape(one) == ()
        assert many.shape == (1,)
        assert ACTIONS.contains(one)
        assert one == many[0]


def test_drawn_actions_follow_the_policy_and_the_seed() -> None:
    agent = make_agent()
    obs = grids(1).expand(4000, -1, -1).numpy()
    drawn = agent.predict(obs, deterministic=False)[0]
    again = Agent(agent.policy, GRID, ACTIONS).predict(obs, deterministic=False)[0]
    assert np.array_equal(drawn, again)
    with torch.no_grad():
        start = torch.ones(1, dtype=torch.bool)
        logits = agent.policy.step(torch.from_numpy(obs[:1]), agent.policy.initial_state(1), start).logits
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    assert frequencies == pytest.approx(logits.softmax(-1)[0].numpy(), abs=0.03)


def test_actions_count_from_the_spaces_start() -> None:
    policy = tiny_policy()
    obs = grids(BATCH).numpy()
    plain = Agent(policy, GRID, ACTIONS).predict(obs)[0]
    shifted = Agent(policy, GRID, gym.spaces.Discrete(4, start=2)).predict(obs)[0]
    assert (shifted == plain + 2).all()


def test_dictionary_observations(tmp_path: Path) -> None:
    space = gym.spaces.Dict(map=GRID, speed=gym.spaces.Box(-1, 1, (2,), np.float32))
    agent = make_agent(space)
    obs = {"map": grids(BATCH).numpy(), "speed": np.zeros((BATCH, 2), np.float32)}
    batched, _ = agent.predict(obs)
    singles = [int(agent.predict({k: v[i] for k, v in obs.items()})[0]) for i in range(BATCH)]
    assert batched.tolist() == singles
    agent.save(tmp_path)
    assert Agent.load(tmp_path).predict(obs)[0].tolist() == singles


@pytest.mark.parametrize("carry", ["full", "last_token", "reset"])
def test_a_loaded_agent_is_the_one_that_was_saved(carry: str, tmp_path: Path) -> None:
    agent = make_agent(carry=carry, positions="learned", segments=2)
    agent.save(tmp_path / "agent")
    loaded = Agent.load(tmp_path / "agent")
    assert loaded.info == agent.info
    assert loaded.policy.config == agent.policy.config
    assert (loaded.observation_space, loaded.action_space) == (GRID, ACTIONS)
    state: Any = None
    other: Any = None
    for obs in grids(K, BATCH).numpy():
        mine, state = agent.predict(obs, state)
        theirs, other = loaded.predict(obs, other)
        assert np.array_equal(mine, theirs)
        assert all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))


def test_loading_with_another_carry_or_budget_keeps_the_weights(tmp_path: Path) -> None:
    agent = make_agent()
    agent.save(tmp_path)
    lesioned = Agent.load(tmp_path, carry="reset", segments=3)
    assert (lesioned.policy.config.carry, lesioned.policy.segments) == ("reset", 3)
    weights = lesioned.policy.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in agent.policy.state_dict().items())
    with pytest.raises(ValueError, match="segments=0: expected an integer from 1"):
        Agent.load(tmp_path, segments=0)
    patient = Agent.load(tmp_path, first_segments=6)
    assert (patient.policy.config.first_segments, patient.policy.rules.first_segments) == (6, 6)
    patient.save(tmp_path / "patient")
    assert Agent.load(tmp_path / "patient").policy.config == patient.policy.config
    assert "first_segments" not in agent.policy.config.to_dict()
    with pytest.raises(ValueError, match="expected auto or one of reset"):
        Agent.load(tmp_path, carry="all")


def test_a_carry_rule_takes_its_weights_with_it_and_lends_none(tmp_path: Path) -> None:
    gated = make_agent(carry="gate")
    gated.save(tmp_path / "gate")
    whole = gated.policy.state_dict()
    for carry in ("reset", "full", "last_token", "leak"):
        weights = Agent.load(tmp_path / "gate", carry=carry).policy.state_dict()
        assert weights.keys() == {name for name in whole if not name.startswith("carry.")}
        assert all(torch.equal(whole[name], t) for name, t in weights.items())
    for carry in ("gate", "auto"):
        same = Agent.load(tmp_path / "gate", carry=carry).policy.state_dict()
        assert same.keys() == whole.keys()
        assert all(torch.equal(whole[name], t) for name, t in same.items())
    make_agent().save(tmp_path / "full")
    for trained, carry in (("full", "gate"), ("full", "output"), ("gate", "output")):
        with pytest.raises(ValueError, match=f"carry={carry}: it has weights of its own .* carry={trained} lacks"):
            Agent.load(tmp_path / trained, carry=carry)


def test_weights_of_no_carry_rule_are_never_dropped(tmp_path: Path) -> None:
    agent = make_agent(carry="gate")
    agent.save(tmp_path)
    tensors = agent.policy.state_dict()
    for name in ("extra.weight", "carry.extra"):
        save_tensors(tmp_path / "agent.safetensors", {**tensors, name: torch.ones(2)}, {"kind": "agent"})
        with pytest.raises(CheckpointError, match="weights do not fit"):
            Agent.load(tmp_path)
    save_tensors(tmp_path / "agent.safetensors", {**tensors, "extra.weight": torch.ones(2)}, {"kind": "agent"})
    with pytest.raises(CheckpointError, match="weights do not fit"):
        Agent.load(tmp_path, carry="reset")


def test_loading_with_another_rule_to_stop(tmp_path: Path) -> None:
    make_agent(segments=4).save(tmp_path)
    obs = torch.from_numpy(grids(20).numpy())
    start = torch.ones(20, dtype=torch.bool)

    def segments(**changes: Any) -> list[int]:
        policy = Agent.load(tmp_path, **changes).policy
        with torch.no_grad():
            return policy.step(obs, policy.initial_state(20), start).segments.tolist()

    assert segments() == [4] * 20
    assert segments(stop="latent_change", stop_threshold=1e9) == [1] * 20
    assert segments(stop="latent_change", stop_threshold=1e9, segments=1) == [1] * 20
    assert segments(stop="latent_change", stop_threshold=0.0) == [4] * 20
    for changes, message in (({"stop": "soon"}, "stop='soon'"), ({"stop_threshold": -1}, "stop_threshold=-1")):
        with pytest.raises(ValueError, match=message):
            Agent.load(tmp_path, **changes)


LARGER = gym.spaces.Box(0, 5, (15, 21), np.uint8)
SIZELESS = {
    "conv": {},
    "attention": {"core_options": {**CORES["trm"], "mixing": "attention", "positions": "rope2d"}},
    "convlstm": {"core": "convlstm"},
    "gru": {"core": "gru"},
}


@pytest.mark.parametrize("kind", SIZELESS)
def test_an_agent_without_a_size_fits_others_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    agent = make_agent(**SIZELESS[kind])
    larger = agent.fit(LARGER)
    assert larger.observation_space == LARGER
    assert larger.info == agent.info
    weights = larger.policy.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in agent.policy.state_dict().items())
    assert larger.predict(np.pad(grids(4).numpy(), ((0, 0), (0, 8), (0, 14))))[0].shape == (4,)
    obs = grids(K, BATCH).numpy()
    back, state, other = larger.fit(GRID), None, None
    for step in obs:
        mine, state = agent.predict(step, state)
        theirs, other = back.predict(step, other)
        assert np.array_equal(mine, theirs)
        assert all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))
    assert agent.fit(GRID) is agent
    agent.save(tmp_path)
    assert Agent.load(tmp_path, observation_space=LARGER).observation_space == LARGER


def test_an_agent_sees_the_same_neighbourhood_alike_in_grids_of_any_size() -> None:
    """Far from the rim, two updates of a convolution cannot tell how large the grid is."""
    agent = make_agent(core_options=QUICK).fit(gym.spaces.Box(0, 5, (21, 21), np.uint8))
    large = grids(20, side=21)
    large[large == 3] = 0
    large[:, 11, 11] = 3
    inside = large[:, 4:19, 4:19].contiguous()  # an even offset: the same cells share a token
    fitted = agent.fit(gym.spaces.Box(0, 5, (15, 15), np.uint8))
    start = torch.ones(20, dtype=torch.bool)
    with torch.no_grad():
        whole = agent.policy.step(large, agent.policy.initial_state(20), start).logits
        part = fitted.policy.step(inside, fitted.policy.initial_state(20), start).logits
    torch.testing.assert_close(whole, part)
    assert whole.std(0).min() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "learned"}, r"weights encoder\.positions belong to observations .*\(7, 7\)"),
        ({"core": "trm", "core_options": {**CORES["trm"], "mixing": "mlp"}}, r"weights core\.\S+ .* belong to"),
    ],
)
def test_an_agent_tied_to_its_size_says_by_what(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_agent(**changes).fit(LARGER)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 6, (9, 9), np.uint8),
        gym.spaces.Box(0, 5, (9, 9), np.int64),
        gym.spaces.Box(0, 5, (9, 9, 1), np.uint8),
        gym.spaces.Box(0, 5, (9,), np.uint8),
        gym.spaces.Discrete(6),
        gym.spaces.Dict(map=GRID),
    ],
    ids=str,
)
def test_only_the_size_of_a_grid_may_differ(space: gym.Space) -> None:
    with pytest.raises(ValueError, match="do not fit, and differ in more than the size of a grid"):
        make_agent().fit(space)
    with pytest.raises(ValueError, match=r"encoder\.crop=1: nothing is left of a 2x2 grid"):
        make_agent().fit(gym.spaces.Box(0, 5, (2, 2), np.uint8))


def test_a_grid_in_a_dictionary_may_have_another_size_too() -> None:
    def space(side: int, numbers: int = 2) -> gym.spaces.Dict:
        return gym.spaces.Dict(
            map=gym.spaces.Box(0, 5, (side, side), np.uint8), speed=gym.spaces.Box(-1, 1, (numbers,), np.float32)
        )

    agent = make_agent(space(7))
    assert agent.fit(space(11)).observation_space == space(11)
    with pytest.raises(ValueError, match="do not fit"):
        agent.fit(space(11, numbers=3))


def test_the_environment_is_the_one_trained_on_unless_another_is_given() -> None:
    agent = make_agent()
    assert agent.environment() == ("DynamicMaze-v0", MAZE)
    assert agent.environment("DynamicMaze-v0", {"rows": 6}) == ("DynamicMaze-v0", {**MAZE, "rows": 6})
    assert agent.environment("PaperMaze-v0", {"doors": 2}) == ("PaperMaze-v0", {"doors": 2})
    with pytest.raises(ValueError, match="give one with env="):
        Agent(agent.policy, GRID, ACTIONS).environment()


def test_a_run_folder_gives_its_best_agent_or_its_last(tmp_path: Path) -> None:
    for seed, name in enumerate(("best", "last")):
        Agent(tiny_policy(seed=seed), GRID, ACTIONS, {"name": name}).save(tmp_path / "agents" / name)
    assert Agent.load(tmp_path).info["name"] == "best"
    assert Agent.load(tmp_path, best=False).info["name"] == "last"
    assert Agent.load(tmp_path / "agents" / "last").info["name"] == "last"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("weights cut", "truncated or altered"),
        ("weights flipped", r"agent\.safetensors"),
        ("weights gone", "no such file"),
        ("json cut", "not valid JSON"),
        ("json emptied", "agent version None"),
        ("json a list", "agent version None"),
        ("json incomplete", "not an agent's description"),
        ("other version", "agent version 99, expected 1"),
        ("other width", "weights do not fit"),
        ("folder gone", "no such folder"),
        ("folder empty", "no agent in it"),
    ],
)
def test_damaged_agents_are_refused_in_one_line(damage: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    make_agent().save(folder)
    weights, text = folder / "agent.safetensors", folder / "agent.json"
    described = json.loads(text.read_text())
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "weights cut":
            weights.write_bytes(data[: len(data) // 2])
        case "weights flipped":
            weights.write_bytes(data)
        case "weights gone":
            weights.unlink()
        case "json cut":
            text.write_text(text.read_text()[:-20])
        case "json emptied":
            text.write_text("{}")
        case "json a list":
            text.write_text("[]")
        case "json incomplete":
            text.write_text(json.dumps({k: v for k, v in described.items() if k != "policy"}))
        case "other version":
            text.write_text(json.dumps({**described, "agent_version": 99}))
        case "other width":
            text.write_text(json.dumps({**described, "policy": {**described["policy"], "hidden_size": 16}}))
        case "folder gone":
            folder = tmp_path / "absent"
        case "folder empty":
            folder = tmp_path
    with pytest.raises(CheckpointError, match=message) as caught:
        Agent.load(folder)
    assert "\n" not in str(caught.value)


def test_an_environment_with_other_spaces_does_not_fit() -> None:
    agent = make_agent()
    agent.check_fits(gym.spaces.Box(0, 5, (7, 7), np.uint8), gym.spaces.Discrete(4))
    with pytest.raises(ValueError, match=r"observation space is .*\(7, 7\).* do not fit"):
        agent.check_fits(gym.spaces.Box(0, 5, (9, 9), np.uint8), ACTIONS)
    with pytest.raises(ValueError, match="observation space"):
        agent.check_fits(gym.spaces.Box(0, 6, (7, 7), np.uint8), ACTIONS)
    with pytest.raises(ValueError, match=r"action space is Discrete\(4\), the environment's is Discrete\(5\)"):
        agent.check_fits(GRID, gym.spaces.Discrete(5))
    with pytest.raises(ValueError, match=r"shape \(9, 9\): this agent expects \(7, 7\)"):
        agent.predict(np.zeros((9, 9), np.uint8))


class OtherActions(Blind):
    action_space = gym.spaces.Discrete(3)


def test_an_agent_is_fitted_to_an_environment_with_its_actions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    for kind in (Blind, OtherActions):
        gym.register(f"{kind.__name__}-v0", entry_point=kind)
    policy = tiny_policy(Blind.observation_space, core="gru", readout="mean", actions=Blind.action_space)
    agent = Agent(policy, Blind.observation_space, Blind.action_space)
    assert agent.fit_environment("Blind-v0", {}) is agent
    with pytest.raises(ValueError, match=r"action space is Discrete\(2\), the environment's is Discrete\(3\)"):
        agent.fit_environment("OtherActions-v0", {})


def test_stable_baselines_evaluates_an_agent() -> None:
    """Their loop against ours, episode by episode: the carry is reset where their episodes begin."""
    env = gym.make("DynamicMaze-v0", **MAZE)
    policy = tiny_policy(env.observation_space, core_options=QUICK, encoder=EncoderConfig(1, 2))
    agent = Agent(policy, env.observation_space, env.action_space)

    venv = DummyVecEnv([lambda: gym.make("DynamicMaze-v0", **MAZE)])
    venv.seed(5)
    rewards, lengths = evaluate_policy(agent, venv, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    expected = []
    obs, _ = env.reset(seed=5)
    for _ in range(6):
        total, state, done = 0.0, None, False
        while not done:
            action, state = agent.predict(obs, state)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        expected.append(total)
        obs, _ = env.reset()
    assert rewards == pytest.approx(expected)
    assert len(lengths) == 6
    mean, _ = evaluate_policy(agent, gym.make("DynamicMaze-v0", **MAZE), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)
