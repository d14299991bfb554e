"""Baselines of Stable-Baselines3: the same observations, rewards, levels and clock as ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from hrm_agent.baselines import __main__ as command
from hrm_agent.baselines.actor import SB3Actor, count_parameters, has_distribution, measure_cost
from hrm_agent.baselines.agents import BASELINES, CRITICS
from hrm_agent.baselines.observations import build_view
from hrm_agent.baselines.training import BaselineRun, Clock, RunConfig
from hrm_agent.baselines.vec_env import SB3VecEnv
from hrm_agent.cores.feedforward import FeedForward
from hrm_agent.environments.action_masks import has_mask
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import run_episodes
from hrm_envs import Cell

ENV = "DynamicMaze-v0"
SMALL = {"rows": 2, "cols": 2, "walls": 0, "doors": 1, "max_episode_steps": 6}
QUICK: dict[str, dict[str, Any]] = {
    "sb3_ppo_mlp": {"num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1, "width": 8, "layers": 1},
    "sb3_ppo_cnn": {"num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1, "channels": 4, "features": 8},
    "sb3_ppo_core": {"num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1, "hidden_size": 8, "segments": 2},
    "sb3_recurrent_ppo": {
        "num_envs": 4, "n_steps": 16, "batch_size": 64, "n_epochs": 1, "width": 8, "layers": 1, "lstm_size": 8,
    },
    "sb3_dqn": {"num_envs": 4, "buffer_size": 1000, "learning_starts": 32, "width": 8, "layers": 1},
}  # fmt: skip


def quick_run(name: str, **changed: Any) -> BaselineRun:
    options: dict[str, Any] = {
        "baseline": name,
        "settings": QUICK[name],
        "env": ENV,
        "env_options": SMALL,
        "seed": 0,
        "total_steps": 128,
        "max_seconds": 0.0,
        "clock": "wall",
        "log_every": 64,
        "eval_every": 0,
        "eval_episodes": 8,
        "test_episodes": 8,
    }
    return BaselineRun(RunConfig.parse({**options, **changed}))


def test_masks_of_legal_actions_are_left_out() -> None:
    """Its algorithms know none, and `flat` would make numbers of them."""
    taxi = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gym.registry)
    assert has_mask(make_vector_env(taxi, 1).single_observation_space)
    run = quick_run("sb3_ppo_mlp", env=taxi, env_options={"max_episode_steps": 5})
    assert run.venv.observation_space == gym.spaces.Discrete(500)
    assert run.evaluate()["env_options"] == {"max_episode_steps": 5, "action_masks": "ignore"}
    assert quick_run("sb3_ppo_mlp").env_options == SMALL


def test_one_hot_planes_say_what_the_ids_say() -> None:
    space = gym.spaces.Box(0, 5, (3, 4), np.uint8)
    ids = np.random.default_rng(0).integers(0, 6, (7, 3, 4)).astype(np.uint8)
    view = build_view(space, "planes")
    planes = view.show(ids)
    assert planes.shape == (7, *view.space.shape) == (7, 6, 3, 4)
    assert planes.dtype == view.space.dtype == np.uint8
    assert (planes.sum(1) == 1).all()
    assert (planes.argmax(1) == ids).all()
    flat = build_view(space, "flat")
    assert flat.space.shape == (72,)
    assert (flat.show(ids) == planes.reshape(7, -1)).all()


def test_channels_of_a_grid_come_one_after_another() -> None:
    ids = np.random.default_rng(0).integers(0, 4, (5, 2, 3, 2)).astype(np.uint8)
    planes = build_view(gym.spaces.Box(0, 3, (2, 3, 2), np.uint8), "planes").show(ids)
    assert planes.shape == (5, 8, 2, 3)
    assert (planes[:, :4].argmax(1) == ids[..., 0]).all()
    assert (planes[:, 4:].argmax(1) == ids[..., 1]).all()


def test_a_dictionary_is_its_entries_side_by_side() -> None:
    space = gym.spaces.Dict(
        words=gym.spaces.MultiDiscrete([2, 3], start=[0, 5]),
        map=gym.spaces.Box(0, 3, (2, 2), np.uint8),
        way=gym.spaces.Discrete(3, start=1),
    )
    view = build_view(space, "flat")
    assert view.space.shape == (4 * 4 + 3 + 5,)
    one = {"map": np.array([[0, 1], [2, 3]], np.uint8), "way": 2, "words": np.array([1, 7])}
    shown = view.show({key: np.stack([value, value]) for key, value in one.items()})
    assert (shown[0] == shown[1]).all()
    assert view.space.contains(shown[0])
    grid, way, words = np.split(shown[0], [16, 19])
    assert (grid.reshape(4, 4).argmax(0) == [0, 1, 2, 3]).all()
    assert way.tolist() == [0, 1, 0]
    assert words.tolist() == [0, 1, 0, 0, 1]
    assert shown[0].sum() == 4 + 1 + 2


def test_spaces_without_a_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected ids in 0\.\.31"):
        build_view(gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), "flat")
    with pytest.raises(ValueError, match="expected a grid of ids"):
        build_view(gym.spaces.Box(-1.0, 1.0, (4,)), "planes")
    with pytest.raises(ValueError, match="wrap the environment"):
        build_view(gym.spaces.Dict({"a": gym.spaces.Text(2)}), "flat")


def test_adapter_tells_of_episode_ends_what_a_single_environment_tells() -> None:
    """Environment i of N seeded s is a single environment seeded s * N + i, stepped by hand."""
    count, seed = 3, 5
    venv = SB3VecEnv(make_vector_env(ENV, count, SMALL))
    singles = [gym.make(ENV, **SMALL) for _ in range(count)]
    venv.seed(seed)
    obs = venv.reset()
    by_hand = [single.reset(seed=seed * count + i)[0] for i, single in enumerate(singles)]
    assert (obs == venv.view.show(np.stack(by_hand))).all()
    generator, ended = np.random.default_rng(0), {True: 0, False: 0}
    returns, lengths = np.zeros(count), np.zeros(count, int)
    for _ in range(60):
        actions = generator.integers(0, 4, count)
        obs, rewards, dones, infos = venv.step(actions)
        for i, single in enumerate(singles):
            seen, reward, terminated, truncated, _ = single.step(int(actions[i]))
            returns[i], lengths[i] = returns[i] + reward, lengths[i] + 1
            assert rewards[i] == pytest.approx(reward)
            assert dones[i] == (terminated or truncated)
            if dones[i]:
                ended[terminated] += 1
                assert (infos[i]["terminal_observation"] == venv.view.show(seen[None])[0]).all()
                assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[i]["episode"]["r"] == pytest.approx(returns[i])
                assert infos[i]["episode"]["l"] == lengths[i]
                assert infos[i]["is_success"] == terminated
                returns[i], lengths[i] = 0, 0
                seen, _ = single.reset()
            else:
                assert infos[i] == {}
            assert (obs[i] == venv.view.show(seen[None])[0]).all()
    assert min(ended.values()) > 0  # both kinds of end were seen


def test_adapter_takes_environments_stepped_one_by_one() -> None:
    venv = SB3VecEnv(make_vector_env("CartPole-v1", 2, {"max_episode_steps": 5}))
    venv.seed(0)
    venv.reset()
    for _ in range(5):
        _, _, dones, infos = venv.step(np.array([0, 1]))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert [info["episode"]["l"] for info in infos] == [5, 5]
    venv.close()


@pytest.mark.parametrize("name", BASELINES)
def test_evaluator_plays_what_predict_plays_by_hand(name: str) -> None:
    run = quick_run(name)
    levels = 6
    played = run_episodes(run.actor(), ENV, SMALL, levels, split="validation", oracle=False)
    for level in range(levels):
        env = gym.make(ENV, **SMALL, split="validation")
        obs, _ = env.reset(seed=level)
        state, start, ended, steps = None, np.ones(1, bool), False, 0
        while not ended:
            action, state = run.model.predict(run.venv.view.show(obs[None]), state, start, deterministic=True)
            obs, _, terminated, truncated, _ = env.step(int(action[0]))
            ended, start, steps = terminated or truncated, np.zeros(1, bool), steps + 1
        assert played.steps[level] == steps
        assert played.success[level] == terminated


def test_an_lstm_carries_within_an_episode_and_forgets_between() -> None:
    run = quick_run("sb3_recurrent_ppo")
    actor = run.actor()
    assert isinstance(actor, SB3Actor)
    obs = np.random.default_rng(0).integers(0, 6, (3, 5, 5)).astype(np.uint8)
    actor.reset(np.arange(3))
    actor.act(obs)
    first = [part.copy() for part in actor.state or ()]
    actor.act(obs)
    second = [part.copy() for part in actor.state or ()]
    assert not np.allclose(first[0], second[0])  # the state went in
    actor.keep(np.array([2, 0]))
    assert all((part == whole[:, [2, 0]]).all() for part, whole in zip(actor.state or (), second, strict=True))
    actor.reset(np.arange(3))
    actor.act(obs)
    assert all(np.allclose(part, whole) for part, whole in zip(actor.state or (), first, strict=True))
    actor.episode_start = np.array([False, True, False])  # an episode that begins beside others
    actor.act(obs)
    assert np.allclose((actor.state or ())[0][:, 1], first[0][:, 1])
    assert np.allclose((actor.state or ())[0][:, 0], second[0][:, 0])


@pytest.mark.parametrize("name", BASELINES)
def test_drawn_actions_have_the_policys_probabilities_and_depend_on_the_level_alone(name: str) -> None:
    run = quick_run(name)
    if not has_distribution(run.model):
        with pytest.raises(ValueError, match="DQN: has no distribution"):
            run.actor(deterministic=False)
        return
    actor, count = run.actor(deterministic=False), 1500
    obs = np.repeat(np.random.default_rng(0).integers(0, 6, (1, 5, 5)).astype(np.uint8), count, 0)
    actor.reset(np.arange(count))
    actions = actor.act(obs)
    actor.reset(np.array([7, 3]))
    assert (actor.act(obs[:2]) == actions[[7, 3]]).all()
    actor.keep(np.array([1]))
    after = actor.act(obs[:1])
    actor.reset(np.array([3]))
    assert (actor.act(obs[:1]) == actions[3]).all()
    assert (actor.act(obs[:1]) == after).all()  # the state and the random numbers of that level went on alone
    logits = run.model.policy.action_net.bias
    with torch.no_grad():
        logits.copy_(torch.tensor([2.0, 0.0, 1.0, -20.0]))
        run.model.policy.action_net.weight.zero_()
    actor.reset(np.arange(count))
    shares = np.bincount(actor.act(obs), minlength=4) / count
    assert np.allclose(shares, torch.softmax(logits, 0).detach().numpy(), atol=0.04)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_value_of_recurrent_ppo_reads_what_critic_says(critic: str) -> None:
    """Whether the value knows the past, and which weights its gradient reaches."""
    settings = {**QUICK["sb3_recurrent_ppo"], "critic": critic, "mlp_layers": 2, "features": 6, "lstm_layers": 2}
    model = quick_run("sb3_recurrent_ppo", settings=settings).model
    policy, states = model.policy, []
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 150)).astype(np.float32))
    for fill in (0.0, 1.0):
        state = (torch.full((2, 3, 8), fill), torch.full((2, 3, 8), fill))
        states.append((state, policy.predict_values(obs, state, torch.zeros(3))))
    assert torch.equal(states[0][1], states[1][1]) == (critic == "features")
    values, _, _ = policy.evaluate_actions(
        obs, torch.zeros(3), type(model._last_lstm_states)(states[1][0], states[1][0]), torch.zeros(3)
    )
    values.sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("lstm_critic") for name in reached) == (critic == "lstm")
    assert not any(name.startswith("lstm_actor") for name in reached)
    assert any("features_extractor" in name for name in reached) == (critic != "shared")


def test_hidden_layers_before_the_lstm_are_counted() -> None:
    inputs, features, units, width, actions = 150, 6, 8, 8, 4
    settings = {**QUICK["sb3_recurrent_ppo"], "critic": "features", "mlp_layers": 2, "features": features}
    run = quick_run("sb3_recurrent_ppo", settings=settings)
    macs = inputs * features + features * features + 4 * units * (features + units) + units * width + width * actions
    assert measure_cost(run.model, run.venv.view, 2)["macs_per_decision"] == macs


def test_a_core_of_ours_reads_the_ids_and_the_agents_own_cell() -> None:
    """Its features are what our core gives at the agent's token, from the initial state, at every decision."""
    run = quick_run("sb3_ppo_core")
    extractor = run.model.policy.features_extractor
    obs = run.venv.reset()
    assert obs.shape == (4, 5, 5)
    assert isinstance(extractor.core, FeedForward)
    with torch.no_grad():
        features = run.model.policy.extract_features(run.model.policy.obs_to_tensor(obs)[0])
        tokens, state = extractor.encoder(torch.as_tensor(obs)), extractor.core.initial_state(4)
        for _ in range(2):
            output, state = extractor.core(tokens, state)
    rows, cols = (obs == Cell.AGENT).reshape(4, -1).argmax(1) // 5, (obs == Cell.AGENT).reshape(4, -1).argmax(1) % 5
    patch = (rows - 1) // 2 * 2 + (cols - 1) // 2  # crop 1, then patches of 2 x 2 cells in a grid of 2 x 2
    assert torch.allclose(features, output[torch.arange(4), torch.as_tensor(patch)], atol=1e-6)


def test_multiply_adds_and_parameters_are_those_of_the_layers() -> None:
    inputs, width, units, actions = 150, 8, 8, 4
    run = quick_run("sb3_recurrent_ppo")
    macs = 4 * units * (inputs + units) + units * width + width * actions
    assert measure_cost(run.model, run.venv.view, 2)["macs_per_decision"] == macs
    run = quick_run("sb3_dqn")
    assert measure_cost(run.model, run.venv.view, 2)["macs_per_decision"] == inputs * width + width * actions
    assert count_parameters(run.model) == (inputs + 1) * width + (width + 1) * actions  # without the target network


@pytest.mark.parametrize("name", BASELINES)
def test_one_command_trains_measures_and_keeps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [f"baseline={name}", f"out={folder}", "total_steps=128", "log_every=64", "eval_every=64"]
    arguments += [f"env_options.{k}={v}" for k, v in SMALL.items()] + ["eval_episodes=8", "test_episodes=8"]
    arguments += [f"settings.{k}={v}" for k, v in QUICK[name].items()]
    monkeypatch.setattr(sys, "argv", ["hrm_agent.baselines", *arguments])
    command.main()
    assert "test levels: success" in capsys.readouterr().out
    report = json.loads((folder / "eval.json").read_text())
    assert report["episodes"] == len(report["levels"]["success"]) == 8
    assert report["frames"] >= 128
    sampled = report["sampled"]
    assert (sampled is None) == (name == "sb3_dqn")
    assert sampled is None or len(sampled["levels"]["success"]) == 8
    assert (report["validation_sampled"] is None) == (name == "sb3_dqn")
    assert report["changes"]["levels_played"] == 8
    assert json.loads((folder / "run.json").read_text())["settings"]["width"] == report["settings"]["width"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert next(line["frames"] for line in lines if "validation/success" in line) == 64
    assert all(line["train/seconds"] > 0 for line in lines if "train/success" in line)
    assert (folder / "model.zip").stat().st_size > 0


@pytest.mark.parametrize(("name", "clock"), [("sb3_ppo_mlp", "wall"), ("sb3_dqn", "cpu")])
def test_time_ends_a_run_and_its_schedules(name: str, clock: str, tmp_path: Path) -> None:
    run = quick_run(name, total_steps=10**9, max_seconds=0.5, clock=clock, settings={**QUICK[name], "anneal": True})
    run.train(tmp_path)
    assert 0.5 <= run.seconds < 5
    assert run.model._current_progress_remaining < 0.5  # by frames alone it would still be 1
    assert run.model.lr_schedule(run.model._current_progress_remaining) < run.config.settings.learning_rate / 2


def test_evaluation_draws_no_random_numbers_of_the_training(tmp_path: Path) -> None:
    weights = []
    for every in (0, 16):
        run = quick_run("sb3_ppo_mlp", eval_every=every, eval_episodes=64)
        run.train(tmp_path / str(every))
        weights.append([p.detach().numpy().copy() for p in run.model.policy.parameters()])
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_a_paused_clock_stands_still() -> None:
    clock = Clock("wall")
    with clock.paused():
        before = clock._began
        time.sleep(0.05)
    assert clock._began - before >= 0.05
    assert clock.seconds < 0.05


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["baseline=sb3_pp_mlp"], "did you mean sb3_ppo_mlp?"),
        (["baseline=sb3_dqn", "env=DynamicMaz-v0"], "did you mean DynamicMaze-v0?"),
        (["baseline=sb3_dqn", "settings.gama=0.9"], "settings.gama=0.9: no such setting"),
        (["baseline=sb3_dqn", "settings.width=wide"], "settings.width='wide': expected an integer from 1 to 8,192"),
        (["baseline=sb3_dqn", "settings.gamma=2"], "settings.gamma=2: expected a number from 0 to 1"),
        (["baseline=sb3_ppo_mlp", "settings.batch_size=60"], "expected a divisor of num_envs * n_steps = 16384"),
        (
            ["baseline=sb3_recurrent_ppo", "settings.critic=lstms"],
            "expected one of lstm, shared, features; did you mean lstm?",
        ),
        (
            ["baseline=sb3_recurrent_ppo", "settings.channels=4", "settings.mlp_layers=1"],
            "settings.mlp_layers=1: expected 0 with settings.channels=4",
        ),
        (["baseline=sb3_ppo_cnn", "env=CartPole-v1"], "expected a grid of ids"),
        (["baseline=sb3_ppo_core", "settings.core=feedforwards"], "did you mean feedforward?"),
        (["baseline=sb3_ppo_core", "env=CartPole-v1"], "readout=agent needs a grid observation"),
        (["baseline=sb3_ppo_mlp", "total_steps=0"], "total_steps=0: expected an integer from 1"),
        (["baseline=sb3_ppo_mlp", "clock=sun"], "clock='sun': expected wall or cpu"),
        (["baseline=sb3_ppo_mlp", "max_second=1"], "did you mean max_seconds?"),
        ([], "baseline=... is required"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hrm_agent.baselines", f"out={tmp_path / 'run'}", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert says in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["hrm_agent.baselines", f"out={tmp_path}", "baseline=sb3_ppo_mlp"])
    with pytest.raises(SystemExit):
        command.main()
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == "{}"
