"""A task that only an agent that carries its state can solve: the first observation alone shows where to turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrm_agent.evaluation.report import evaluate_policy
from hrm_agent.policies.encoders import EncoderConfig
from tiny import make_trainer

CORRIDOR = {"length": 3}
LEVELS = 400


def successes(carry: str, time_gradient: str, folder: Path) -> tuple[float, float]:
    """Success of the greedy and of the sampled policy on unseen levels, after 12,000 frames of training."""
    trainer = make_trainer(
        folder,
        env="CueMaze-v0",
        env_options=CORRIDOR,
        seed=0,
        total_steps=12_000,
        policy={"carry": carry, "time_gradient": time_gradient, "hidden_size": 16, "encoder": EncoderConfig(1)},
        algo={
            "num_envs": 64,
            "rollout_steps": 8,
            "window": 8,
            "minibatch_windows": 64,
            "epochs": 6,
            "learning_rate": 7e-3,
            "gae_lambda": 0.9,
            "value_coef": 0.5,
        },
    )
    while trainer.frames < trainer.config.total_steps:
        trainer.learner.collect(trainer.collector, 0.0)
        trainer.learner.update(trainer.frames / trainer.config.total_steps)
    greedy, sampled = (
        evaluate_policy(trainer.policy, "CueMaze-v0", CORRIDOR, LEVELS, deterministic=deterministic)["success"]
        for deterministic in (True, False)
    )
    return greedy, sampled


def test_an_agent_that_carries_its_state_remembers_the_cue(tmp_path: Path) -> None:
    greedy, _ = successes("full", "bptt", tmp_path)
    assert greedy >= 0.95


@pytest.mark.thorough
def test_an_agent_that_carries_nothing_stays_at_chance(tmp_path: Path) -> None:
    """Greedily it may also turn into the wall between two equal arms for ever, so only chance bounds that."""
    greedy, sampled = successes("reset", "bptt", tmp_path)
    assert 0.35 <= sampled <= 0.65
    assert greedy <= 0.65
