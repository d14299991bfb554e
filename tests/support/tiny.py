"""Tiny policies, observations and trainers, shared by the tests of the agent's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.ppo import PPO, PPOConfig
from hrm_agent.environments.make import make_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.rollout import Rollout
from hrm_agent.parallel.processes import SINGLE_PROCESS
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.training.trainer import Trainer, TrainerConfig

AGENT, IDS, SIDE = 3, 6, 7
GRID = gym.spaces.Box(0, IDS - 1, (SIDE, SIDE), np.uint8)
ACTIONS = gym.spaces.Discrete(4)
BLOCKS = {"inner_size": 8, "num_heads": 2}
CORES: dict[str, dict[str, Any]] = {
    "trm": {"layers": 1, "H_cycles": 2, "L_cycles": 2, "mixing": "conv", "cycle_gradient": "all", **BLOCKS},
    "hrm": {"H_layers": 1, "L_layers": 1, "cycle_gradient": "all", **BLOCKS},
    "gru": {"memory_size": 8},
    "convlstm": {"layers": 1, "ticks": 2},
    "feedforward": {"layers": 1, **BLOCKS},
}
QUICK = {**CORES["trm"], "H_cycles": 1, "L_cycles": 1}  # the cheapest core that carries
MAZE = {"rows": 3, "cols": 3, "walls": 1, "doors": 1, "max_episode_steps": 9}


def tiny_policy(space: gym.Space = GRID, seed: int = 0, crop: int = 1, patch: int = 2, **changes: Any) -> Policy:
    """A policy of width 8 whose heads are large enough for any difference in the latents to show."""
    core, actions = changes.pop("core", "trm"), changes.pop("actions", ACTIONS)
    settings: dict[str, Any] = {
        "core": core,
        "core_options": CORES.get(core, {}),
        "hidden_size": 8,
        "encoder": EncoderConfig(crop, patch, changes.pop("positions", "none")),
        **changes,
    }
    torch.manual_seed(seed)
    policy = Policy(PolicyConfig(**settings), space, actions)
    nn.init.normal_(policy.policy_head.weight)
    return policy


def grids(*lead: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Random ids uint8 `[*lead, side, side]`; exactly one agent, inside the outer ring."""
    random = np.random.default_rng(seed)
    cells = random.choice([0, 1, 2, 4, 5], size=(*lead, side, side)).astype(np.uint8)
    for index in np.ndindex(*lead):
        cells[index][tuple(random.integers(1, side - 1, size=2))] = AGENT
    return torch.from_numpy(cells)


def make_ppo(
    policy_changes: dict[str, Any] | None = None,
    threads: int = 1,
    env_options: dict[str, Any] | None = None,
    **ppo: Any,
) -> tuple[PPO, Collector, Rollout]:
    """An algorithm, its collector and an empty rollout on small mazes; equal arguments give equal weights."""
    settings = {"num_envs": 6, "rollout_steps": 8, "window": 4, "epochs": 1, **ppo}
    everything = settings["num_envs"] * settings["rollout_steps"] // settings["window"]
    config = PPOConfig(**{"minibatch_windows": everything, **settings})
    env = make_vector_env("DynamicMaze-v0", config.num_envs, {**MAZE, **(env_options or {})})
    changes = {"core_options": QUICK, **(policy_changes or {})}
    policy = tiny_policy(env.single_observation_space, **changes)
    pool = Threads(threads)
    collector = Collector(env, policy, 0, pool)
    space = env.single_observation_space
    rollout = Rollout(config.rollout_steps, config.num_envs, config.window, space, collector.state)
    return PPO(policy, config, pool, 0), collector, rollout


def make_trainer(folder: Path, **changes: Any) -> Trainer:
    """A run of 32 frames an update that ends after 4 of them, without evaluations on the way."""
    settings: dict[str, Any] = {
        "env": "DynamicMaze-v0",
        "env_options": MAZE,
        "seed": 3,
        "total_steps": 128,
        "checkpoint_every": 0,
        "keep_checkpoints": 3,
        "eval_every": 0,
        "eval_episodes": 4,
        "video_every": 0,
        "log_every": 32,
        "threads": 1,
        "device": "cpu",
    }
    algo = {"num_envs": 8, "rollout_steps": 4, "window": 4, "minibatch_windows": 4, **changes.pop("algo", {})}
    policy = {"core_options": QUICK, "hidden_size": 8, "encoder": EncoderConfig(1, 2), **changes.pop("policy", {})}
    processes, kind = changes.pop("processes", SINGLE_PROCESS), changes.pop("kind", PPOConfig)
    of_a_program = {name: changes.pop(name) for name in ("callbacks", "more_loggers") if name in changes}
    config = TrainerConfig(**{**settings, **changes})
    return Trainer(config, PolicyConfig(**policy), kind(**algo), folder, processes=processes, **of_a_program)


def fitting(changes: dict[str, Any] | None = None, mixing: str = "conv") -> dict[str, Any]:
    """Settings of a run whose policy is just large enough for the kernels, with `changes`."""
    options = {**QUICK, "inner_size": 16, "mixing": mixing}
    policy = {"hidden_size": 16, "core_options": options, **(changes or {}).get("policy", {})}
    return {**(changes or {}), "policy": policy}


DQN_SETTINGS: dict[str, Any] = {
    "num_envs": 8,
    "collect_steps": 4,
    "capacity": 96,  # less than a run of 128 frames: the ring goes round
    "learning_starts": 64,
    "updates": 2,
    "batch_sequences": 4,
    "burn_in": 2,
    "train_steps": 3,
    "n_step": 2,
    "stride": 2,
}


def make_dqn_trainer(folder: Path, **changes: Any) -> Trainer:
    """`make_trainer` with DQN; `algo` changes `DQN_SETTINGS`."""
    algo = DQNConfig(**{**DQN_SETTINGS, **changes.pop("algo", {})})
    base = make_trainer(folder, **{**changes, "policy": {**changes.pop("policy", {}), "heads": "q"}})
    return Trainer(base.config, base.policy.config, algo, folder)
