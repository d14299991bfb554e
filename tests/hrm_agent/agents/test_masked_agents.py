"""Agents whose observations hold a mask of legal actions: predict, Stable-Baselines3, ONNX, videos and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import masked_envs
from commands import run_command
from hrm_agent.agents import onnx
from hrm_agent.agents.agent import Agent
from hrm_agent.agents.registry import make, register
from hrm_agent.environments.action_masks import MASK
from hrm_agent.environments.checked import closing
from hrm_agent.environments.make import make_env, make_vector_env
from hrm_agent.environments.wrappers import MaskInObservation
from hrm_agent.evaluation.cost import measure_cost
from hrm_agent.evaluation.episodes import PolicyActor
from hrm_agent.evaluation.thinking import ThinkingActor, batch_of_one
from hrm_agent.evaluation.video import record_episodes
from hrm_agent.playground.commands import Move, Seats, Step
from hrm_agent.playground.game import Game
from hrm_agent.playground.world import Refused, make_world
from tiny import QUICK, tiny_policy

TAXI = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gym.registry)


def make_agent(options: dict[str, Any] | None = None, env_id: str = "Masked-v0", **changes: Any) -> Agent:
    env = make_env(env_id, options)
    changes = {"readout": "mean", "core_options": QUICK, **changes}
    policy = tiny_policy(env.observation_space, actions=env.action_space, **changes)
    return Agent(policy, env.observation_space, env.action_space, {"env": env_id, "env_options": options or {}})


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("options", [{}, {"where": "observation", "shows": "parts"}, {"pairs": True}, {"start": 3}])
def test_predict_takes_legal_actions_of_one_observation_and_of_many(
    options: dict[str, Any], deterministic: bool
) -> None:
    agent, env = make_agent(options), make_env("Masked-v0", options)
    many = make_vector_env("Masked-v0", 3, options)
    (obs, _), (several, _) = env.reset(seed=0), many.reset(seed=0)
    state = states = None
    start, starts = np.ones(1, bool), np.ones(3, bool)
    for _ in range(12):
        action, state = agent.predict(obs, state, start, deterministic)
        actions, states = agent.predict(several, states, starts, deterministic)
        obs, _, terminated, truncated, _ = env.step(action)  # raises where it is not legal
        start = np.array([terminated or truncated])
        if start[0]:
            obs = env.reset()[0]
        several, _, ended, cut, _ = many.step(actions)
        starts = ended | cut


def test_an_observation_without_its_mask_or_with_an_empty_one_is_refused() -> None:
    agent, env = make_agent(), make_env("Masked-v0")
    obs, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expects a dictionary with action_mask, observation; agent.make_env\(\)"):
        agent.predict(obs["observation"])
    with pytest.raises(ValueError, match=r"observation\['action_mask'\]: row 0 allows no action"):
        agent.predict({**obs, MASK: np.zeros(masked_envs.ACTIONS, np.int8)})
    with pytest.raises(ValueError, match=r"observation\['action_mask'\]: values from 0 to 3"):
        agent.predict({**obs, MASK: 3 * obs[MASK]})
    with pytest.raises(ValueError, match=r"observation\['action_mask'\] of shape \(4,\): this agent expects \(5,\)"):
        agent.predict({**obs, MASK: obs[MASK][1:]})
    for kind in (bool, np.float32, np.int64):
        assert np.array_equal(agent.predict({**obs, MASK: obs[MASK].astype(kind)})[0], agent.predict(obs)[0])


@pytest.mark.parametrize("options", [{"where": "info"}, {"where": "observation"}])
def test_evaluate_policy_of_stable_baselines3_plays_legal_actions(options: dict[str, Any]) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    agent = make_agent(options)
    raw = gym.make("Masked-v0", **options)
    for env in (agent.make_env(), MaskInObservation(raw)):
        returns, lengths = evaluation.evaluate_policy(
            agent, env, n_eval_episodes=4, return_episode_rewards=True, warn=False
        )
        assert lengths == [5] * 4
        assert len(returns) == 4


def test_saved_and_loaded_it_acts_alike(tmp_path: Path) -> None:
    agent = make_agent({"shows": "grid"}, readout="agent")
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    assert loaded.observation_space == agent.observation_space
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["observation_space"]["spaces"][MASK] == {"type": "MultiBinary", "n": masked_envs.ACTIONS}
    obs = make_vector_env("Masked-v0", 4, {"shows": "grid"}).reset(seed=0)[0]
    for carry in (None, "reset"):
        one, other = (a if carry is None else Agent.load(tmp_path, carry=carry) for a in (agent, loaded))
        found = [a.predict(obs) for a in (one, other)]
        if carry is None:
            assert np.array_equal(found[0][0], found[1][0])
        assert (np.take_along_axis(obs[MASK], found[1][0][:, None], 1) == 1).all()


def test_an_agent_without_masks_says_how_it_is_played_where_there_are_some(tmp_path: Path) -> None:
    """As one that was trained before there were masks."""
    before = make_agent({"action_masks": "ignore"})
    assert isinstance(before.observation_space, gym.spaces.Discrete)
    with_masks = make_env("Masked-v0")
    hint = re.escape("it was trained without the action masks that this environment gives: env_options.action_masks=ig")
    for check in (
        lambda: before.fit_environment("Masked-v0", {}),
        lambda: before.check_fits(with_masks.observation_space, with_masks.action_space),
    ):
        with pytest.raises(ValueError, match=hint):
            check()
    before.fit_environment("Masked-v0", {"action_masks": "ignore"})
    register("Unmasked-Test-v0", lambda: before)
    with pytest.raises(ValueError, match=hint):
        make("Unmasked-Test-v0", env=with_masks)
    after = make_agent()
    with pytest.raises(ValueError, match="needs action masks in the observation, where hrm_agent"):
        after.fit_environment("Masked-v0", {"action_masks": "ignore"})


@pytest.mark.parametrize("changes", [{}, pytest.param({"heads": "q", "carry": "output"}, marks=pytest.mark.thorough)])
def test_the_mask_is_an_input_of_the_graph(changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    agent = make_agent({"shows": "grid"}, readout="agent", **changes)
    made = onnx.export_onnx(agent, tmp_path / "agent.onnx")
    assert made["inputs"][:3] == [f"obs.{MASK}", "obs.observation", "episode_start"]
    session = runtime.InferenceSession((tmp_path / "agent.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    env = make_vector_env("Masked-v0", 4, {"shows": "grid"})
    obs, start, state = env.reset(seed=0)[0], np.ones(4, bool), None
    for _ in range(7):
        action, logits, *rest = session.run(None, onnx.to_feed(agent, obs, start, state))
        state = rest if agent.policy.value_head is None else rest[1:]
        assert np.array_equal(logits > -1e8, obs[MASK] == 1)
        obs, _, terminated, truncated, _ = env.step(action)  # raises where one is not legal
        start = terminated | truncated


def test_thoughts_and_videos_are_of_legal_actions() -> None:
    agent, env = make_agent({"shows": "grid"}, readout="agent", segments=3), make_env("Masked-v0", {"shows": "grid"})
    thinking, acting = ThinkingActor(agent.policy), PolicyActor(agent.policy)
    acting.reset(np.array([0]))
    obs, _ = env.reset(seed=0)
    ended = False
    while not ended:
        thought = thinking.act(obs)
        assert (thought.probabilities[:, obs[MASK] == 0] == 0).all()
        assert thought.probabilities.sum(-1) == pytest.approx(1, abs=1e-5)
        assert acting.act(batch_of_one(obs))[0] == thought.action
        obs, _, terminated, truncated, _ = env.step(thought.action)
        ended = terminated or truncated
    assert record_episodes(agent.policy, "Masked-v0", {"shows": "grid"}, 2)
    assert measure_cost(agent.policy, agent.observation_space, 4)["macs_per_decision"] > 0


def test_the_page_lets_a_person_take_legal_actions_alone() -> None:
    agent = make_agent()
    game = Game(agent, lambda: make_world("Masked-v0", {}, "test", 0))
    game.do(Seats(other=True, you=True))
    world = game.seats["you"].world
    legal = world.obs[MASK]
    with pytest.raises(Refused, match=r"action \d: not legal now"):
        game.do(Move(action=int(legal.argmin())))
    game.do(Move(action=int(legal.argmax())))
    for _ in range(5):
        game.do(Step())
    game.close()


TINY = (
    "core=trm", "core.hidden_size=8", "core.inner_size=8", "algo.num_envs=4", "algo.rollout_steps=8", "algo.window=8",
    "algo.minibatch_windows=2", "total_steps=64", "eval_every=0", "eval_episodes=2", "test_episodes=2", "threads=1",
)  # fmt: skip


@pytest.mark.usefixtures("videos")
def test_taxi_is_found_to_have_masks_trained_evaluated_and_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = [f"env={TAXI}", *TINY, "env.options.max_episode_steps=6"]
    run_command(monkeypatch, "train", *train, "hydra.run.dir=run")
    assert "action masks: the environment gives them" in capsys.readouterr().err
    agent = Agent.load("run")
    assert agent.policy.masked
    env = agent.make_env()
    with closing(env):
        obs, _ = env.reset(seed=1)
        for _ in range(5):
            action, _ = agent.predict(obs, deterministic=False)
            assert obs[MASK][int(action)] == 1
            obs, *_ = env.step(action)
    run_command(monkeypatch, "train", "resume=run", "total_steps=128")
    run_command(monkeypatch, "evaluate", "run=run", "episodes=2", "out=eval.json")
    assert json.loads(Path("eval.json").read_text())["episodes"] == 2
    for think in ("false", "true"):
        run_command(monkeypatch, "watch", "run=run", "episodes=1", f"think={think}", f"out={think}.gif")
        assert Path(f"{think}.gif").is_file()


def test_masks_that_are_ignored_stay_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the run, in the agent, and where the run is one from before there was the setting."""
    monkeypatch.chdir(tmp_path)
    train = [f"env={TAXI}", *TINY, "env.options.max_episode_steps=6", "action_masks=ignore", "hydra.run.dir=run"]
    run_command(monkeypatch, "train", *train)
    assert "action masks" not in capsys.readouterr().err
    assert not Agent.load("run").policy.masked
    config = Path("run/config.yaml")
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "action_masks" not in line))
    run_command(monkeypatch, "train", "resume=run", "total_steps=128")
    run_command(monkeypatch, "evaluate", "run=run", "episodes=2", "out=eval.json")
    report = json.loads(Path("eval.json").read_text())
    assert report["env_options"] == {"max_episode_steps": 6, "action_masks": "ignore"}
    with pytest.raises(SystemExit):
        run_command(monkeypatch, "train", "resume=run", "action_masks=auto")
    assert "cannot change in a run that is resumed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(monkeypatch, "train", f"env={TAXI}", "action_masks=of")
    assert capsys.readouterr().err == "error: action_masks='of': expected auto or ignore\n"
