"""Our cores inside Stable-Baselines3, and our agents under its `evaluate_policy`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tiny import ACTIONS, BLOCKS, CORES, GRID, MAZE, QUICK, grids, tiny_policy

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from hrm_agent import Agent
from hrm_agent.baselines.vec_env import SB3VecEnv
from hrm_agent.cores import core_options
from hrm_agent.environments.make import make_vector_env
from hrm_agent.policies.policy import Policy
from hrm_agent.sb3 import CoreExtractor

ENV = "DynamicMaze-v0"
SHAPE = {"crop": 1, "patch_size": 2}
SMALL = {"core": "trm", "hidden_size": 8, "core_options": QUICK}
TRM = {**core_options("trm"), **CORES["trm"]}
BYTES = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)


def policy_of(space: gym.Space, **options: Any) -> ActorCriticPolicy:
    """The library's policy as its algorithms build it, with a tiny core."""
    torch.manual_seed(0)
    kind = MultiInputActorCriticPolicy if isinstance(space, gym.spaces.Dict) else ActorCriticPolicy
    chosen = {**SMALL, **options}
    return kind(
        space, ACTIONS, lambda _: 1e-3, features_extractor_class=CoreExtractor, features_extractor_kwargs=chosen
    )


def features(policy: ActorCriticPolicy, obs: Any) -> torch.Tensor:
    """What the heads of the library's policy are given for a batch of the environment's observations."""
    policy.set_training_mode(False)
    with torch.no_grad():
        return policy.extract_features(policy.obs_to_tensor(obs)[0])


def copy_into(extractor: CoreExtractor, policy: Policy) -> None:
    extractor.encoder.load_state_dict(policy.encoder.state_dict())
    extractor.core.load_state_dict(policy.core.state_dict())


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("readout", ["agent", "mean"])
def test_features_are_what_our_policy_reads_when_it_carries_nothing(core: str, readout: str) -> None:
    ours = tiny_policy(core=core, readout=readout, carry="reset", segments=2)
    everything = {**core_options(core), **CORES[core]}  # what is not named would be as shipped, not the class's default
    options = {"core": core, "core_options": everything, "readout": readout, "segments": 2, "encoder": SHAPE}
    theirs = policy_of(GRID, **options)
    copy_into(theirs.features_extractor, ours)
    obs = grids(5)
    with torch.no_grad():
        logits = ours.step(obs, ours.initial_state(5), torch.ones(5, dtype=torch.bool)).logits
        assert torch.allclose(ours.policy_head(features(theirs, obs.numpy())), logits, atol=1e-6)
    assert logits.std(0).min() > 1e-3  # rows differ, so the observations came through


def test_a_grid_of_bytes_is_read_as_ids_in_whatever_order_the_library_gives_it() -> None:
    """The library divides such a grid by 255, and its wrapper moves the channels to the front."""
    ours = tiny_policy(BYTES, readout="mean", carry="reset", crop=0, patch=1)
    ids = np.random.default_rng(0).integers(0, 256, (4, *BYTES.shape)).astype(np.uint8)
    with torch.no_grad():
        start = torch.ones(4, dtype=torch.bool)
        logits = ours.step(torch.from_numpy(ids), ours.initial_state(4), start).logits
    front = VecTransposeImage.transpose_space(BYTES)
    for space, obs in ((BYTES, ids), (front, ids.transpose(0, 3, 1, 2))):
        theirs = policy_of(space, core_options=TRM)
        copy_into(theirs.features_extractor, ours)
        with torch.no_grad():
            assert torch.allclose(ours.policy_head(features(theirs, obs)), logits, atol=1e-6)
            as_it_is = CoreExtractor(space, **{**SMALL, "core_options": TRM}, normalize_images=False)
            copy_into(as_it_is, ours)
            assert torch.allclose(ours.policy_head(as_it_is(torch.from_numpy(obs).float())), logits, atol=1e-6)


def test_dictionaries_and_numbers_come_back_from_their_codes() -> None:
    space = gym.spaces.Dict(
        map=GRID,
        speed=gym.spaces.Box(-1, 1, (2,), np.float32),
        kind=gym.spaces.Discrete(3),
        pair=gym.spaces.MultiDiscrete([2, 4]),
    )
    policy = policy_of(space, readout="agent", encoder=SHAPE)
    assert isinstance(policy.features_extractor, CoreExtractor)
    obs = {
        "map": grids(3).numpy(),
        "speed": np.array([[0.5, -0.5], [0, 0], [1, 1]], np.float32),
        "kind": np.array([0, 2, 1]),
        "pair": np.array([[0, 3], [1, 0], [1, 2]]),
    }
    seen: dict[str, torch.Tensor] = {}
    policy.features_extractor.encoder.register_forward_pre_hook(lambda _, given: seen.update(given[0]))
    assert features(policy, obs).shape == (3, 8)
    assert set(seen) == set(obs)
    assert all(np.array_equal(seen[key].numpy(), obs[key]) for key in obs)


@pytest.mark.parametrize("space", [gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.MultiBinary(4)])
def test_observations_without_a_grid(space: gym.Space) -> None:
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(2)])
    out = features(policy_of(space), obs)
    assert out.shape == (2, 8)
    assert not torch.allclose(out[0], out[1])


def test_a_core_without_options_is_as_shipped() -> None:
    extractor = CoreExtractor(GRID, core="trm")
    assert extractor.features_dim == 64
    assert (extractor.core.H_cycles, extractor.core.L_cycles) == (1, 1)
    assert CoreExtractor(GRID, core="trm", core_options={"L_cycles": 2}).core.L_cycles == 2


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_the_library_trains_our_core(algorithm: Any) -> None:
    venv = SB3VecEnv(make_vector_env(ENV, 4, MAZE), layout="raw")
    kwargs = {
        "features_extractor_class": CoreExtractor,
        "features_extractor_kwargs": {**SMALL, "readout": "agent", "encoder": SHAPE},
    }
    settings = {"n_steps": 32, "batch_size": 64} if algorithm is PPO else {"learning_starts": 32, "buffer_size": 500}
    model = algorithm("MlpPolicy", venv, policy_kwargs=kwargs, seed=0, device="cpu", **settings)
    network = getattr(model.policy, "q_net", model.policy).features_extractor
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    model.learn(384)
    moved = {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(before)  # the gradient reaches the embedding and every weight of the core
    assert all(weight.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"core": "tmr"}, "core=tmr: no such core; did you mean trm?"),
        ({"core_options": {"layer": 1}}, "did you mean layers?"),
        ({"encoder": {"croop": 1}}, "encoder.croop=1: no such setting; did you mean crop? Known: crop"),
        ({"segments": 0}, "segments=0: expected 1 or more"),
        ({"readout": "middle"}, "readout='middle': expected one of agent"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        CoreExtractor(GRID, **{"core_options": {**BLOCKS}, **options})
    with pytest.raises(ValueError, match="readout=agent needs a grid"):
        CoreExtractor(gym.spaces.Box(-1, 1, (3,)), readout="agent")


class _Watched:
    """An agent that remembers what `evaluate_policy` gave it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.calls: list[tuple[Any, Any]] = []

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Any:
        actions, new = self.agent.predict(obs, state, episode_start, deterministic)
        self.calls.append((np.array(episode_start), state is None))
        return actions, new


@pytest.mark.parametrize("vector", ["ours", "theirs"])
def test_evaluate_policy_plays_an_agent_of_ours_as_by_hand(vector: str) -> None:
    """State goes from call to call and is reset where, and only where, an episode starts."""
    count, episodes = 2, 6
    env = make_vector_env(ENV, count, MAZE)
    agent = Agent(tiny_policy(env.single_observation_space, core_options=QUICK), env.single_observation_space, ACTIONS)
    venv: Any = SB3VecEnv(env, layout="raw")
    if vector == "theirs":
        venv = DummyVecEnv([lambda: gym.make(ENV, **MAZE)] * count)
    venv.seed(0)
    watched = _Watched(agent)
    with pytest.warns(UserWarning, match="Monitor"):
        returns, lengths = evaluate_policy(watched, venv, episodes, return_episode_rewards=True)
    expected = [play_by_hand(agent, seed, episodes // count) for seed in range(count)]
    assert sorted(lengths) == sorted(steps for one in expected for steps, _ in one)
    assert sorted(returns) == pytest.approx(sorted(value for one in expected for _, value in one), abs=1e-5)
    assert [first for _, first in watched.calls] == [True] + [False] * (len(watched.calls) - 1)
    assert watched.calls[0][0].all()
    assert sum(int(start.sum()) for start, _ in watched.calls) >= episodes  # episodes begin within the run too


def play_by_hand(agent: Agent, seed: int, episodes: int) -> list[tuple[int, float]]:
    """Steps and return of the first episodes of one environment, each from a fresh state."""
    env = gym.make(ENV, **MAZE)
    obs, _ = env.reset(seed=seed)
    played = []
    for _ in range(episodes):
        state, ended, steps, total = None, False, 0, 0.0
        while not ended:
            action, state = agent.predict(obs, state)
            obs, reward, terminated, truncated, _ = env.step(int(action))
            ended, steps, total = terminated or truncated, steps + 1, total + float(reward)
        played.append((steps, total))
        obs, _ = env.reset()
    return played
