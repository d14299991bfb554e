"""Training with masks of legal actions: the environments raise where another one is taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import masked_envs
from hrm_agent.agents.agent import Agent
from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.imitation import DAggerConfig, ImitationConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.environments.action_masks import MASK
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import Levels, evaluate_policy, play_references
from hrm_agent.tensors import trees
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from runs import assert_equal_bits, everything
from tiny import DQN_SETTINGS, QUICK, make_trainer

ALGORITHMS: dict[str, tuple[type, dict[str, Any]]] = {
    "ppo": (PPOConfig, {}),
    "dqn": (DQNConfig, {**DQN_SETTINGS, "epsilon_start": 0.5}),
    "dagger": (DAggerConfig, {"beta_fraction": 1.0, "teacher_noise": 0.3}),
    "bc": (ImitationConfig, {"teacher_noise": 0.3}),
}


def make_masked_trainer(folder: Path, name: str = "ppo", env: str = "Masked-v0", **changes: Any) -> Trainer:
    kind, settings = ALGORITHMS[name]
    options = {"labels": name in ("dagger", "bc"), **changes.pop("env_options", {})} if env == "Masked-v0" else {}
    policy = {"readout": "mean", "carry": "full", "core_options": QUICK, **changes.pop("policy", {})}
    base = make_trainer(
        folder, env=env, env_options=options, policy={**policy, "heads": "q" if name == "dqn" else "actor_critic"},
        **{key: value for key, value in changes.items() if key != "algo"},
    )  # fmt: skip
    own = {**settings, **changes.get("algo", {})}
    if name != "dqn":
        own = {"num_envs": 8, "rollout_steps": 4, "window": 4, "minibatch_windows": 4, **own}
    return Trainer(base.config, base.policy.config, kind(**own), folder)


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("ppo", {"where": "info", "shows": "memory"}),
        ("ppo", {"where": "observation", "shows": "parts"}),
        pytest.param("ppo", {"where": "info", "shows": "grid", "pairs": True}, marks=pytest.mark.thorough),
        ("dqn", {"where": "info", "shows": "memory", "start": 2}),
        pytest.param("dqn", {"where": "observation", "shows": "grid"}, marks=pytest.mark.thorough),
        ("dagger", {"where": "info"}),
        pytest.param("bc", {"where": "observation"}, marks=pytest.mark.thorough),
    ],
)
def test_a_run_takes_legal_actions_alone(algo: str, options: dict[str, Any], tmp_path: Path) -> None:
    """In collection, exploration, on validation levels, and where the episodes of others are already over."""
    trainer = make_masked_trainer(tmp_path, algo, env_options={**options, "spread": 4}, total_steps=128)
    before = trees.clone(dict(trainer.policy.state_dict()))
    trainer.run(Console(quiet=True))
    after = trainer.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(t.isfinite().all() for t in after.values())
    assert 5 < trainer.validation["episode_length"] < 9
    for deterministic in (True, False):
        env, given = trainer.config.env, trainer.config.made_with
        played = evaluate_policy(trainer.policy, env, given, 6, deterministic=deterministic, batch=3)
        assert 5 < played["episode_length"] < 9
    references = play_references(Levels(env, given, 40))
    assert references["random"] is not None
    assert 5 < references["random"]["episode_length"] < 9


def test_the_environment_of_these_tests_raises_where_masks_are_ignored(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="IllegalAction"):
        make_masked_trainer(tmp_path, total_steps=192, action_masks="ignore").run(Console(quiet=True))


@pytest.mark.parametrize(
    ("algo", "policy", "settings"),
    [
        ("ppo", {"carry": "full"}, {}),
        ("ppo", {"carry": "output", "segments": 2}, {"epochs": 2, "refresh_states": True}),
        pytest.param(
            "ppo", {"stop": "policy_kl", "stop_threshold": 0.01, "segments": 3}, {}, marks=pytest.mark.thorough
        ),
        pytest.param("dqn", {"carry": "full"}, {}, marks=pytest.mark.thorough),
        ("dqn", {"carry": "output"}, {"double_q": False, "prioritised": True}),
        (
            "dqn",
            {"segments": 2},
            {
                "each_segment": True, "stored_bootstrap": True, "train_steps": 1, "n_step": 1, "stride": 1,
                "burn_in": 0, "loss": "mse",
            },
        ),
        ("dagger", {}, {}),
    ],
)  # fmt: skip
def test_the_head_of_an_action_that_is_never_legal_does_not_matter(
    algo: str, policy: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Two runs whose heads say quite different things of it are the same in everything else, bit for bit.

    So nothing bootstraps from it, neither at a time limit nor elsewhere; nothing explores it, no entropy, gradient norm
    or carried output has a part of it; and it is not trained.
    """
    never = 1
    runs: list[dict[str, Tensor]] = []
    rows: list[Tensor] = []
    for number in range(2):
        trainer = make_masked_trainer(
            tmp_path / str(number), algo, policy=policy, algo=settings, total_steps=160, env_options={"never": never}
        )
        networks = trainer.learner.networks()
        with torch.no_grad():
            for network in networks:
                network.policy_head.weight[never] = -50.0 + 99 * number
                network.policy_head.bias[never] = 1e4 * number
        row = networks[0].policy_head.weight[never].clone()
        for _ in range(4):
            trainer.learner.collect(trainer.collector, trainer.done)
            trainer.learner.update(trainer.done)
        assert torch.equal(row, networks[0].policy_head.weight[never])
        found = everything(trainer)
        rows.append(row)
        runs.append({name: _without_row(name, tensor, never) for name, tensor in found.items() if name != "metadata"})
    assert not torch.equal(*rows)
    assert_equal_bits(*runs)


def _without_row(name: str, tensor: Tensor, row: int) -> Tensor:
    return torch.cat([tensor[:row], tensor[row + 1 :]]) if "policy_head" in name else tensor


def test_the_same_head_matters_where_the_action_is_legal(tmp_path: Path) -> None:
    """So the test above can fail."""
    weights = []
    for number in range(2):
        trainer = make_masked_trainer(tmp_path / str(number), total_steps=160, env_options={"never": 2})
        with torch.no_grad():
            trainer.policy.policy_head.bias[1] = 3.0 * number
        trainer.learner.collect(trainer.collector, 0.0)
        weights.append(trainer.learner.rollout.actions.clone())  # type: ignore[attr-defined]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_masks_travel_in_the_buffers(algo: str, tmp_path: Path) -> None:
    trainer = make_masked_trainer(tmp_path, algo)
    for _ in range(4):
        trainer.learner.collect(trainer.collector, 0.0)
    buffer: Any = getattr(trainer.learner, "rollout", None) or trainer.learner.replay  # type: ignore[attr-defined]
    masks = buffer.obs[MASK]
    assert masks.dtype == torch.int8
    filled = masks.flatten(0, 1)
    assert filled.any(-1).all()
    assert not filled.all()
    assert filled.gather(1, buffer.actions.flatten()[:, None]).all()  # every action that was taken is legal
    if algo == "dqn":
        final = buffer.final
        kept = final.store[MASK][final.oldest : final.following]
        assert {bool(row.any()) for row in kept} == {True, False}  # terminated episodes end without a legal action


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_resumed_run_ends_as_if_it_had_not_been_stopped(algo: str, tmp_path: Path) -> None:
    whole = make_masked_trainer(tmp_path / "whole", algo, "MaskedVector-v0", total_steps=192, checkpoint_every=64)
    assert isinstance(whole.env.unwrapped, masked_envs.MaskedVector)
    whole.run(Console(quiet=True))
    paths = whole.checkpoints.paths()
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    shutil.copy(paths[0], tmp_path / "half" / "checkpoints")
    half = make_masked_trainer(tmp_path / "half", algo, "MaskedVector-v0", total_steps=192, checkpoint_every=64)
    torch.manual_seed(99)  # the global stream must not matter
    half.resume()
    assert 0 < half.frames < whole.frames
    half.run(Console(quiet=True))
    assert_equal_bits(everything(whole), everything(half))
    assert any(name.startswith("collector/obs/action_mask") for name in everything(whole))


def test_a_mask_of_a_checkpoint_is_checked(tmp_path: Path) -> None:
    trainer = make_masked_trainer(tmp_path, env="MaskedVector-v0")
    tensors = trainer.collector.tensors()
    tensors[f"obs/{MASK}"] = tensors[f"obs/{MASK}"] + 5
    with pytest.raises(ValueError, match="is not from 0 to 1"):
        trainer.collector.check(tensors, trainer.collector.metadata())


def test_labels_of_actions_that_are_not_legal_are_left_out(tmp_path: Path) -> None:
    trainer = make_masked_trainer(tmp_path, "dagger")
    trainer.learner.collect(trainer.collector, 0.0)
    demonstrations = trainer.learner.demonstrations  # type: ignore[attr-defined]
    legal = demonstrations.obs[MASK] != 0
    optimal = torch.arange(masked_envs.ACTIONS) % 2 == (demonstrations.obs["observation"] % 2).unsqueeze(-1)
    assert torch.equal(demonstrations.labels, optimal & legal)
    assert (optimal & ~legal).any()
    assert demonstrations.labels.any(-1).all()


def test_a_saved_agent_plays_where_it_was_trained(tmp_path: Path) -> None:
    """With masks, and without where they were ignored: the run's setting is stored in the agent."""
    for chosen in ("auto", "ignore"):
        trainer = make_masked_trainer(tmp_path / chosen, env_options={"ends": "truncated"}, action_masks=chosen)
        trainer._save_agent("best")
        agent = Agent.load(tmp_path / chosen)
        assert agent.policy.masked == (chosen == "auto")
        env = agent.make_env()
        assert env.observation_space == agent.observation_space
    report = evaluate(str(tmp_path / "auto"), 6, env="Masked-v0", kernel="plain")
    assert report["episode_length"] == report["random"]["episode_length"] == report["sampled"]["episode_length"] == 5
    with pytest.raises(EnvironmentFailed, match="IllegalAction"):
        evaluate(str(tmp_path / "ignore"), 30, env="Masked-v0", kernel="plain")


@pytest.mark.thorough
def test_it_learns_which_of_the_legal_actions_is_right(tmp_path: Path) -> None:
    algo = {"num_envs": 32, "rollout_steps": 10, "window": 10, "minibatch_windows": 8, "learning_rate": 2e-2}
    policy = {"hidden_size": 16, "core": "gru", "core_options": {"memory_size": 16}}
    trainer = make_masked_trainer(tmp_path, algo=algo, policy=policy, eval_episodes=50, total_steps=4800)
    trainer.run(Console(quiet=True))
    assert trainer.validation["return"] > 4.5  # of five; a random legal action has less than three
