"""Puts the pieces into a training run: the only module of this package that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch

from hrm_agent.algos.ppo import PPO
from hrm_agent.cuda.collector import CudaCollector
from hrm_agent.cuda.core import install
from hrm_agent.cuda.ppo import CudaPPO
from hrm_agent.cuda.settings import CudaConfig
from hrm_agent.environments.double_buffer import in_halves
from hrm_agent.parallel.graphs import Again, Capture, CudaGraph, Say
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.encoders import Encoder
from hrm_agent.policies.policy import Policy


class Accelerator:
    """Args:
    config: what is switched on.
    policy: on its device; its core is hooked.
    say: is told, a line each, what does not work here.
    """

    def __init__(self, config: CudaConfig, policy: Policy, say: Say) -> None:
        self.policy, self.say = policy, say
        self.forward = install(policy.core, config.bf16, config.triton, say)
        self.capture = self._capture() if config.graphs else None
        for encoder in (m for m in policy.modules() if isinstance(m, Encoder)):
            encoder.graphable = self.capture is not None

    def _capture(self) -> Capture | None:
        if self.policy.config.stop != "fixed":
            self.say(f"cuda.graphs: not used with stop={self.policy.config.stop}, whose batches change their size")
            return None
        device = self.policy.device
        return CudaGraph(device) if device.type == "cuda" else Again()

    def collector(self, env: gym.vector.VectorEnv, seed: int, shards: Threads) -> CudaCollector:
        return CudaCollector(env, self.policy, seed, shards, self.forward, self.capture, self.say)

    def algorithm(self, algo: Any) -> Any:
        """PPO with a replayed step; any other algorithm as it is, with the core's precision and replayed decisions."""
        if isinstance(algo, PPO):
            return CudaPPO(algo, self.forward, self.capture, self.say)
        if self.capture is not None:
            self.say(f"cuda.graphs: of algo={type(algo).__name__.lower()} the decisions alone, not the update")
        return algo


def build(config: CudaConfig, device: str, make: Callable[[int], gym.vector.VectorEnv], num_envs: int) -> Any:
    """The environments of a run: in halves on a CUDA device, where that is switched on."""
    on_gpu = torch.device(device).type == "cuda"
    return in_halves(make, num_envs) if on_gpu and config.halves else make(num_envs)
