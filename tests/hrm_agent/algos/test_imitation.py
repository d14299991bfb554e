"""Behaviour cloning and DAgger: labels, loss and gradient against slow references, who drives, and resuming."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from commands import run_command, tiny_run
from hrm_agent.agents.agent import Agent
from hrm_agent.algos.imitation import DAggerConfig, Imitation, ImitationConfig, sample_beta_mixture
from hrm_agent.environments.make import make_labelled_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.demonstrations import Demonstrations
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.distributions import build_distribution
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.learners import ImitationLearner
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from hrm_envs.cells import Cell
from runs import assert_equal_bits, everything
from tiny import MAZE, QUICK, make_trainer, tiny_policy

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # N, E, S, W
CUT_OFF_OFTEN = {"walls": 0, "doors": 4, "p_change": 0.5}


def make_imitation(
    policy_changes: dict[str, Any] | None = None, threads: int = 1, **changes: Any
) -> tuple[Imitation, Collector, Demonstrations]:
    """The algorithm, its collector and empty demonstrations on mazes whose goal is now and then cut off."""
    settings = {"num_envs": 6, "rollout_steps": 8, "window": 4, **changes}
    everything = settings["num_envs"] * settings["rollout_steps"] // settings["window"]
    config = ImitationConfig(**{"minibatch_windows": everything, **settings})
    env = make_labelled_vector_env("DynamicMaze-v0", config.num_envs, {**MAZE, **CUT_OFF_OFTEN})
    space = env.single_observation_space
    policy = tiny_policy(space, **{"core_options": QUICK, **(policy_changes or {})})
    pool = Threads(threads)
    collector = Collector(env, policy, 0, pool)
    demonstrations = Demonstrations(
        config.rollout_steps, config.num_envs, config.window, space, collector.state, "cpu", 4
    )
    return Imitation(policy, config, pool, 0), collector, demonstrations


def demonstrate(collector: Collector, demonstrations: Demonstrations, beta: float = 1.0, noise: float = 0.3) -> None:
    """Twice, so that the windows begin in the middle of episodes, from states with a past."""
    distribution = collector.policy.distribution
    for _ in range(2):
        collector.demonstrate(
            demonstrations,
            lambda labels, params: sample_beta_mixture(labels, params, distribution, beta, noise, collector.generator),
        )


def make_imitation_trainer(folder: Path, dagger: bool = False, **changes: Any) -> Trainer:
    """`make_trainer` with imitation."""
    algo = {"num_envs": 8, "rollout_steps": 4, "window": 4, "minibatch_windows": 4, **changes.pop("algo", {})}
    base = make_trainer(folder, **changes)
    kind = DAggerConfig if dagger else ImitationConfig
    return Trainer(base.config, base.policy.config, kind(**algo), folder)


def slow_optimal(grid: np.ndarray) -> list[bool]:
    """By a search from the goal over what the picture shows."""
    agent, goal = (tuple(np.argwhere(grid == cell)[0]) for cell in (Cell.AGENT, Cell.GOAL))
    distance, queue = {goal: 0}, deque([goal])
    while queue:
        row, col = queue.popleft()
        for dr, dc in MOVES:
            there = (row + dr, col + dc)
            if grid[there] not in (Cell.WALL, Cell.DOOR) and there not in distance:
                distance[there] = distance[row, col] + 1
                queue.append(there)
    here = distance.get(agent, 0)
    return [here > 0 and distance.get((agent[0] + dr, agent[1] + dc), here) == here - 1 for dr, dc in MOVES]


def test_labels_are_of_the_observations_they_lie_beside() -> None:
    _, collector, demonstrations = make_imitation()
    demonstrate(collector, demonstrations)
    assert demonstrations.episode_start[1:].any()
    counts = set()
    for t in range(demonstrations.steps):
        for i in range(demonstrations.num_envs):
            expected = slow_optimal(demonstrations.obs[t, i].numpy())
            assert demonstrations.labels[t, i].tolist() == expected
            counts.add(sum(expected))
    assert counts >= {0, 1, 2}  # cut off, one way, and several
    windows = demonstrations.labelled_windows()
    assert windows.labels.shape == (4, 12, 4)
    torch.testing.assert_close(windows.obs[1, 7], demonstrations.obs[5, 1])  # step 1 of window 1 of environment 1
    torch.testing.assert_close(windows.labels[1, 7], demonstrations.labels[5, 1])


def test_states_are_the_policys_own_whoever_drives() -> None:
    algo, collector, demonstrations = make_imitation({"segments": 2})
    demonstrate(collector, demonstrations)
    windows = demonstrations.labelled_windows()
    with torch.no_grad():
        state = algo.policy.unroll(windows.obs, windows.state, windows.episode_start).state
    assert float(windows.state[0].abs().max()) > 0
    for stored, mine in zip(windows.next_state, state, strict=True):
        torch.testing.assert_close(stored, mine, rtol=1e-5, atol=1e-5)


def slow_loss(algo: Imitation, demonstrations: Demonstrations, k: int) -> Tensor:
    """Decision by decision with `Policy.step`, each window from its stored state; what has no label does not count."""
    losses = []
    for start in range(0, demonstrations.steps, k):
        state = tuple(s[start // k] for s in demonstrations.states)
        for t in range(start, start + k):
            decision = algo.policy.step(demonstrations.obs[t], state, demonstrations.episode_start[t])
            state = decision.state
            for row, label in zip(decision.logits, demonstrations.labels[t], strict=True):
                if label.any():
                    losses.append(-torch.log(row.exp()[label].sum() / row.exp().sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("window", [1, 4, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_loss_and_gradient_equal_a_reference_step_by_step(window: int, threads: int) -> None:
    algo, collector, demonstrations = make_imitation({"segments": 2}, threads, window=window, max_grad_norm=1e9)
    demonstrate(collector, demonstrations)
    assert 0 < demonstrations.labelled_steps < demonstrations.episode_start.numel()
    reference = slow_loss(algo, demonstrations, window)
    expected = torch.autograd.grad(reference, algo.parameters, allow_unused=True)
    measured = algo.update(demonstrations, 0.0)
    assert measured["imitation_loss"] == pytest.approx(reference.item(), rel=1e-5)
    assert measured["state_drift_epoch0"] < 1e-6
    learned = 0
    for parameter, grad in zip(algo.parameters, expected, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if grad is not None and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
            learned += float(grad.abs().max()) > 1e-4
    assert learned > 5
    head = algo.policy.value_head
    assert head is not None
    assert head.weight.grad is None  # nobody teaches values


def test_the_gradient_crosses_steps_only_with_bptt() -> None:
    gradients = []
    for time_gradient in ("bptt", "detached"):
        algo, collector, demonstrations = make_imitation({"time_gradient": time_gradient}, max_grad_norm=1e9)
        demonstrate(collector, demonstrations)
        algo.update(demonstrations, 0.0)
        gradients.append(torch.cat([p.grad.flatten() for p in algo.policy.core.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) > 0.01


def test_agreement_is_the_share_of_labelled_steps_whose_best_action_is_optimal() -> None:
    algo, collector, demonstrations = make_imitation()
    demonstrate(collector, demonstrations)
    windows = demonstrations.labelled_windows()
    with torch.no_grad():
        best = algo.policy.unroll(windows.obs, windows.state, windows.episode_start).logits.argmax(-1)
    right = [
        bool(label[action])
        for label, action in zip(windows.labels.flatten(0, 1), best.flatten().tolist(), strict=True)
        if label.any()
    ]
    measured = algo.update(demonstrations, 0.25)
    assert measured["agreement"] == pytest.approx(sum(right) / len(right))
    assert measured["labelled_fraction"] == pytest.approx(len(right) / best.numel())
    assert measured["learning_rate"] == pytest.approx(0.75 * 3e-3)


def test_where_everybody_is_cut_off_nothing_is_learned() -> None:
    algo, collector, demonstrations = make_imitation(weight_decay=0.1)
    demonstrate(collector, demonstrations)
    demonstrations.labels.zero_()
    before = [p.detach().clone() for p in algo.parameters]
    measured = algo.update(demonstrations, 0.0)
    assert measured["labelled_fraction"] == 0
    assert "imitation_loss" not in measured
    assert all(torch.equal(a, b) for a, b in zip(before, algo.parameters, strict=True))


def test_a_loss_that_is_not_finite_leaves_the_weights_untouched() -> None:
    algo, collector, demonstrations = make_imitation()
    demonstrate(collector, demonstrations)
    demonstrations.states[0][1].fill_(float("nan"))
    demonstrations.episode_start.zero_()
    before = [p.detach().clone() for p in algo.parameters]
    with pytest.raises(NonFiniteNumbers):
        algo.update(demonstrations, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, algo.parameters, strict=True))


def test_who_drives() -> None:
    distribution = build_distribution(gym.spaces.Discrete(4))
    labels = torch.tensor([[True, False, False, True], [False, True, False, False], [False] * 4]).repeat(4000, 1)
    params = torch.tensor([0.0, -50.0, 0.0, -50.0]).expand(12000, 4)  # the policy goes north or south, evenly

    def shares(beta: float, noise: float) -> Tensor:
        """Of each action, `[3, 4]`, by kind of label."""
        actions = sample_beta_mixture(labels, params, distribution, beta, noise, torch.Generator().manual_seed(0))
        return torch.nn.functional.one_hot(actions.view(4000, 3), 4).float().mean(0)

    own, even = torch.tensor([0.5, 0.0, 0.5, 0.0]), torch.full((4,), 0.25)
    teacher = torch.stack([torch.tensor([0.5, 0.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.0, 0.0]), even])
    torch.testing.assert_close(shares(1.0, 0.0), teacher, rtol=0, atol=0.03)
    torch.testing.assert_close(shares(1.0, 0.4), 0.6 * teacher + 0.4 * even, rtol=0, atol=0.03)
    torch.testing.assert_close(shares(0.0, 0.0), own.expand(3, 4), rtol=0, atol=0.03)
    torch.testing.assert_close(shares(0.25, 0.0), 0.25 * teacher + 0.75 * own, rtol=0, atol=0.03)
    assert (shares(1.0, 0.0)[0, 1:3] == 0).all()  # never one that is not optimal
    assert (shares(0.0, 0.0)[:, 1::2] == 0).all()


def test_the_teacher_lets_go_linearly() -> None:
    config = DAggerConfig(beta_start=0.8, beta_fraction=0.5)
    assert [config.beta(x) for x in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.8, 0.4, 0.0, 0.0])
    assert DAggerConfig(beta_fraction=0.0).beta(0.0) == 0
    assert ImitationConfig().beta(0.9) == 1.0


def test_dagger_with_the_teacher_at_the_wheel_is_behaviour_cloning(tmp_path: Path) -> None:
    """Until the teacher lets go, and with the noise as well."""
    seen = []
    for dagger in (False, True):
        trainer = make_imitation_trainer(tmp_path / str(dagger), dagger, algo={"teacher_noise": 0.2})
        assert isinstance(trainer.learner, ImitationLearner)
        trainer.learner.collect(trainer.collector, 0.0)
        first = trainer.learner.demonstrations.obs.clone()
        trainer.learner.collect(trainer.collector, 0.5)  # by now DAgger's policy drives alone
        seen.append((first, trainer.learner.demonstrations.obs.clone()))
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


# Where the policy drives, the states are those that it does not master yet.
@pytest.mark.thorough
@pytest.mark.parametrize(("dagger", "expected"), [(False, 0.75), (True, 0.55)])
def test_it_learns_the_way_through_a_small_maze(dagger: bool, expected: float, tmp_path: Path) -> None:
    algo: dict[str, Any] = {
        "num_envs": 64,
        "rollout_steps": 8,
        "window": 4,
        "minibatch_windows": 32,
        "learning_rate": 1e-2,
    }
    if dagger:
        algo["beta_fraction"] = 0.9
    core = {**QUICK, "inner_size": 32}
    trainer = make_imitation_trainer(
        tmp_path, dagger, algo=algo, total_steps=12_288, policy={"hidden_size": 32, "core_options": core}
    )
    trainer.run(Console())
    assert isinstance(trainer.learner, ImitationLearner)
    labels = trainer.learner.demonstrations.labels
    chance = float(labels[labels.any(-1)].float().mean())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])
    assert chance < 0.35
    assert last["loss/agreement"] > expected


@pytest.mark.parametrize("dagger", [False, True])
def test_resumed_it_ends_as_if_it_had_not_been_stopped(dagger: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_every": 32, "algo": {"teacher_noise": 0.1, "epochs": 2}}
    whole = make_imitation_trainer(tmp_path / "whole", dagger, **changes)
    whole.run(Console())
    paths = whole.checkpoints.paths()
    assert [int(p.stem) for p in paths] == [64, 96, 128]
    (tmp_path / "halves" / "checkpoints").mkdir(parents=True)
    shutil.copy(paths[0], tmp_path / "halves" / "checkpoints")
    resumed = make_imitation_trainer(tmp_path / "halves", dagger, **changes)
    torch.manual_seed(99)  # the global stream must not matter
    resumed.resume()
    assert resumed.frames == 64
    assert resumed.learner.statistics()["labels"] > 0
    resumed.run(Console())
    one, other = everything(whole), everything(resumed)
    assert_equal_bits(one, other)
    assert "collector/optimal_actions" in one


def test_labels_are_counted_and_the_oracle_stays_in_training(tmp_path: Path) -> None:
    trainer = make_imitation_trainer(tmp_path, dagger=True, eval_every=64)
    trainer.run(Console())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss/imitation_loss" in line]
    labels = [line["train/labels"] for line in logged]
    steps = np.diff([0, *labels])
    assert [round(line["loss/labelled_fraction"] * 32) for line in logged] == steps.tolist()
    agent = Agent.load(tmp_path / "agents" / "last")
    assert agent.info["algo"] == "dagger"
    assert agent.info["labels"] == labels[-1]
    assert agent.info["env_options"] == MAZE
    assert trainer.config.env_options == MAZE
    assert agent.policy.config.heads == "actor_critic"


@pytest.mark.parametrize("env", ["DynamicMaze-v0", "CueMaze-v0", "Hanoi-v0", "ChessEndgame-v0", "hrm_envs:Hanoi-v0"])
def test_environments_of_this_package_label_without_being_asked(env: str) -> None:
    made = make_labelled_vector_env(env, 3, {"max_episode_steps": 7})
    _, infos = made.reset(seed=0)
    for _ in range(2):
        assert infos["optimal_actions"].shape == (3, made.single_action_space.n)
        assert infos["optimal_actions"].any()
        infos = made.step(infos["optimal_actions"].argmax(1))[-1]


def test_dagger_learns_endgames_and_its_agent_is_saved_without_their_labels(tmp_path: Path) -> None:
    options = {"max_episode_steps": 9}
    policy = {"readout": "mean"}
    trainer = make_imitation_trainer(tmp_path, dagger=True, env="ChessEndgame-v0", env_options=options, policy=policy)
    trainer.run(Console())
    assert trainer.learner.statistics()["labels"] > 0
    assert Agent.load(tmp_path / "agents" / "last").info["env_options"] == options


class Telling(gym.Env):
    """Not of ours: the best action is the observation, but where that is 2 nobody knows."""

    def __init__(self, mask: Any = None) -> None:
        self.observation_space, self.action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)
        self.mask = mask

    def _told(self) -> tuple[int, dict[str, Any]]:
        self.now = int(self.np_random.integers(3))
        best = np.arange(2) == self.now if self.mask is None else self.mask
        return self.now, {"optimal_actions": best} if self.now < 2 or self.mask is not None else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.now, self.steps = 0, 0
        return 0, {"optimal_actions": np.array([True, False]) if self.mask is None else self.mask}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.now)
        self.steps += 1
        obs, info = self._told()
        return obs, reward, self.steps >= 5, False, info


@pytest.fixture
def telling() -> Any:
    gym.register("Telling-v0", Telling)
    yield "Telling-v0"
    del gym.registry["Telling-v0"]


@pytest.mark.thorough
def test_any_environment_that_tells_will_do(telling: str, tmp_path: Path) -> None:
    trainer = make_imitation_trainer(
        tmp_path, env=telling, env_options={}, policy={"readout": "mean", "carry": "reset"}, total_steps=3200,
        algo={"learning_rate": 1e-2, "max_grad_norm": 10.0},
    )  # fmt: skip
    trainer.run(Console())
    learner = trainer.learner
    assert isinstance(learner, ImitationLearner)
    demonstrations = learner.demonstrations
    expected = torch.nn.functional.one_hot(demonstrations.obs.long(), 3)[..., :2].bool()
    assert torch.equal(demonstrations.labels, expected)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/agreement"] for line in lines if "loss/agreement" in line][-1] == 1.0


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (
            "CartPole-v1",
            {},
            r"env=CartPole-v1: it does not label .* needs infos\['optimal_actions'\], bool \[N, A\]",
        ),
        ("Telling-v0", {"mask": np.ones(3, bool)}, r"is bool\[1, 3\] for one environment; expected bool\[1, 2\]"),
        ("Telling-v0", {"mask": np.ones(2)}, r"is float64\[1, 2\]"),
        ("DynamicMaze-v0", {"rows": 0}, "rows=0"),
    ],
)
@pytest.mark.usefixtures("telling")
def test_an_environment_that_does_not_tell_is_refused(env: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_labelled_vector_env(env, 2, options)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ImitationConfig, {"epochs": 0}, "algo.epochs=0: expected an integer from 1"),
        (ImitationConfig, {"learning_rate": float("nan")}, "algo.learning_rate=nan"),
        (ImitationConfig, {"weight_decay": -1.0}, "algo.weight_decay=-1.0: expected a number, 0 or more"),
        (ImitationConfig, {"teacher_noise": 1.5}, "algo.teacher_noise=1.5: expected a number from 0 to 1"),
        (ImitationConfig, {"window": 5}, "does not divide into windows of algo.window=5"),
        (ImitationConfig, {"minibatch_windows": 60}, "does not divide the 256 windows"),
        (DAggerConfig, {"beta_start": -0.1}, "algo.beta_start=-0.1"),
        (DAggerConfig, {"beta_fraction": 2.0}, "algo.beta_fraction=2.0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
    assert replace(kind()) == kind()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=CartPole-v1", "algo=bc"], "infos['optimal_actions']"),
        (["algo=bc", "algo.beta_start=0.5"], "algo.beta_start: no such setting"),
        (["algo=dagger", "algo.beta_start=2"], "algo.beta_start=2: expected a number from 0 to 1"),
    ],
)
def test_what_cannot_be_ends_with_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_its_agent_is_evaluated_without_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(monkeypatch, "train", *tiny_run(tmp_path / "run"), "algo=bc", "test_episodes=8", "total_steps=64")
    description = json.loads((tmp_path / "run" / "agents" / "last" / "agent.json").read_text())
    assert "oracle" not in description["info"]["env_options"]
    assert "oracle" not in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["env_options"] == description["info"]["env_options"]


def test_math_of_the_loss_by_hand() -> None:
    """Two of four actions optimal, of probabilities 1/8 and 3/8: -log 1/2, whichever of them is preferred."""
    algo, _, _ = make_imitation()
    logits = torch.tensor([[[math.log(1 / 8), math.log(3 / 8), math.log(1 / 4), math.log(1 / 4)]]])
    batch = Demonstrations(1, 1, 1, algo_space(algo), (), "cpu", 4).labelled_windows()
    batch = batch._replace(labels=torch.tensor([[[True, True, False, False]]]))
    algo.policy.unroll = lambda *_: _Said(logits)  # type: ignore[method-assign, assignment]
    loss, measured = algo.loss(batch, 1)
    assert loss.item() == pytest.approx(math.log(2))
    assert measured["agreement"] == 1.0


class _Said:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.state = logits, ()


def algo_space(algo: Imitation) -> gym.Space:
    return gym.spaces.Box(0, 5, algo.policy.encoder.shape, np.uint8)  # type: ignore[attr-defined, arg-type]
