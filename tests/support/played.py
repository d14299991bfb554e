"""Untrained agents that play episodes, and the comparison of what they played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrm_agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import Episodes
from hrm_agent.policies.policy import Policy, PolicyConfig

MAZE = "DynamicMaze-v0"
BUSY = {"p_change": 0.3, "goal_process": "walk", "p_goal": 0.1, "max_episode_steps": 30}
CORE = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 16}
TIMINGS = ("ms_per_decision", "ms_per_decision_batched")


def make_policy(env_id: str = MAZE, options: dict[str, Any] | None = None, **config: Any) -> Policy:
    """An untrained policy with weights large enough to be opinionated."""
    torch.manual_seed(3)
    env = make_vector_env(env_id, 1, options)
    given = {"core_options": CORE, "hidden_size": 8, **config}
    policy = Policy(PolicyConfig(**given), env.single_observation_space, env.single_action_space)
    torch.nn.init.normal_(policy.policy_head.weight)
    return policy


def save_agent(folder: Path, options: dict[str, Any] | None = None, env_id: str = MAZE, **config: Any) -> str:
    env = make_vector_env(env_id, 1, options)
    info = {"env": env_id, "env_options": options or {}, "frames": 64, "seed": 0}
    policy = make_policy(env_id, options, **config)
    Agent(policy, env.single_observation_space, env.single_action_space, info).save(folder)
    return str(folder)


def assert_same(one: Episodes, other: Episodes) -> None:
    for name in ("seeds", "success", "steps", "returns", "clairvoyant", "segments", "replaced"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.totals is not None
    for name in one.totals._fields:
        np.testing.assert_array_equal(getattr(one.totals, name), getattr(other.totals, name), err_msg=name)
