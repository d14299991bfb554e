"""The networks that are measured: those of the default run and of the HRM-Agent paper, and stacks of their blocks."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.cores.blocks import BlockConfig, BlockStack, RotaryPositions
from hrm_agent.environments.make import make_vector_env
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.policies.policy import Policy
from hrm_agent.training.learners import AlgoConfig
from hrm_agent.training.trainer import TrainerConfig

RUNS = {"default": [], "paper": ["+experiment=hrm_agent_maze"]}
"""Overrides of `python -m hrm_agent.train` by the name of the run."""


@dataclass(frozen=True)
class StackShape:
    """A run's stack of blocks, and the `batch` of rows that it is applied to.

    Attributes:
        layers, length, grid, inner_size: see `BlockStack`.
        batch: rows.
    """

    layers: int
    length: int
    grid: tuple[int, int]
    inner_size: int | None
    batch: int

    def build(self, mixing: str) -> BlockStack:
        """The stack of width 64 with two heads, its weights drawn from torch's generator."""
        block = BlockConfig(num_heads=HEADS, mixing=mixing, inner_size=self.inner_size)
        return BlockStack(self.layers, WIDTH, self.length, self.grid, block)

    def angles(self, mixing: str) -> tuple[Tensor, Tensor] | None:
        """Rotary positions of `positions=rope`, None where the mixing has none."""
        return RotaryPositions("rope", mixing, WIDTH, HEADS, self.length, self.grid)()


WIDTH, HEADS = 64, 2
SHAPES = {
    "default": StackShape(layers=1, length=16, grid=(4, 4), inner_size=128, batch=64),
    "paper": StackShape(layers=4, length=144, grid=(11, 13), inner_size=None, batch=8),
}
"""DynamicMaze-v0's tokens and TRM's block; PaperMaze-v0's cells behind a prefix and the published HRM's four blocks."""


@dataclass(frozen=True)
class RunParts:
    """The parts that a training run is built of."""

    trainer: TrainerConfig
    algo: AlgoConfig
    policy: Policy
    env: gym.vector.VectorEnv

    @property
    def ppo(self) -> PPOConfig:
        assert isinstance(self.algo, PPOConfig)
        return self.algo

    @property
    def dqn(self) -> DQNConfig:
        assert isinstance(self.algo, DQNConfig)
        return self.algo


def build_run(name: str, overrides: list[str] | None = None) -> RunParts:
    """The policy of a run, its weights drawn from seed 0, and its environments.

    Args:
        name: of `RUNS`.
        overrides: further ones of `python -m hrm_agent.train`.
    """
    config = compose_config(["threads=1", *RUNS[name], *(overrides or [])], "train")
    trainer, policy_config, algo = settings(resolve(config))
    env = make_vector_env(trainer.env, algo.num_envs, trainer.made_with)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(policy_config, env.single_observation_space, env.single_action_space)
    return RunParts(trainer, algo, policy, env)
