"""Learners: an algorithm with its buffer, as the training loop uses them (`collect`, `update`).

The loop, checkpoints and logs are the same for PPO and imitation, which train on the rollout just collected, and for
DQN, which trains on a replay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.algos.dqn import DQN, DQNConfig
from hrm_agent.algos.imitation import DAggerConfig, Imitation, ImitationConfig, sample_beta_mixture
from hrm_agent.algos.optim import load_optimizer_tensors, optimizer_tensors
from hrm_agent.algos.ppo import PPO, PPOConfig
from hrm_agent.environments.make import make_labelled_vector_env, make_vector_env
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.demonstrations import Demonstrations
from hrm_agent.experience.replay import Replay, replay_size
from hrm_agent.experience.rollout import ReturnScaler, Rollout
from hrm_agent.parallel.memory import available_memory
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, local_world_size
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import check_generator, check_moments, check_range, check_total, converted
from hrm_agent.tensors.trees import flatten, unflatten

BUDGETS = "generator/segments"
BUDGETS_STREAM = 1  # of a run's seed, apart from the minibatches' and the collector's
AlgoConfig = PPOConfig | DQNConfig | ImitationConfig


class Learner(ABC):
    """One iteration is `collect`, then `update`; `progress` is the fraction of the run that is done."""

    name: str
    algo: Any

    @abstractmethod
    def collect(self, collector: Collector, progress: float) -> None:
        """Step the environments and fill the buffer."""

    @abstractmethod
    def update(self, progress: float) -> dict[str, float]:
        """Train on the buffer; returns measurements, empty while there is not enough data."""

    def networks(self) -> list[nn.Module]:
        """The policy, and the copies that the algorithm uses, such as a target network."""
        return [self.algo.policy]

    def statistics(self) -> dict[str, float]:
        """Logged numbers about the data, besides the episodes."""
        return {}

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, without the policy's weights."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        Raises:
            ValueError: they belong to other settings, or are none that a run can have saved; then nothing has changed.
        """

    @abstractmethod
    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Whether `restore` would accept them; changes nothing. Raises: ValueError; see there."""


def _minibatch_tensors(algo: PPO | Imitation) -> dict[str, Tensor]:
    """The tensors of a checkpoint for training by minibatches of a rollout."""
    return {
        **flatten("optimizer", optimizer_tensors(algo.optimizer)),
        "generator/minibatches": algo.generator.get_state(),
    }


def _check_minibatches(algo: PPO | Imitation, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in algo.optimizer.param_groups for p in group["params"]]
    check_moments(parameters, unflatten("optimizer", tensors))
    check_generator("generator/minibatches", tensors.get("generator/minibatches"))


def _restore_minibatches(algo: PPO | Imitation, tensors: dict[str, Tensor]) -> None:
    load_optimizer_tensors(algo.optimizer, unflatten("optimizer", tensors))
    algo.generator.set_state(tensors["generator/minibatches"])


class Budgets:
    """Draws K of every rollout uniformly: the steps of a rollout and the update on it run the same number of segments.

    Args:
        least: the smallest K; the largest is the policy's own, which it has again after the update.
        seed: of the draws, the same in all processes.
    """

    def __init__(self, least: int, policy: Policy, seed: int) -> None:
        self.least, self.most, self.policy = least, policy.config.segments, policy
        own = np.random.SeedSequence([seed, BUDGETS_STREAM]).generate_state(1)[0]
        self.generator = torch.Generator().manual_seed(int(own))

    def draw(self) -> None:
        self.policy.segments = int(torch.randint(self.least, self.most + 1, (), generator=self.generator))

    def end(self) -> int:
        """The K that was drawn."""
        drawn, self.policy.segments = self.policy.segments, self.most
        return drawn


class PPOLearner(Learner):
    """PPO on the last rollout."""

    name = "ppo"

    def __init__(
        self, policy: Policy, config: PPOConfig, space: gym.Space, collector: Collector, threads: Threads, seed: int
    ) -> None:
        self.policy, self.processes = policy, collector.processes
        self.same_episodes = hasattr(collector.env, "set_state")  # a resumed run continues them
        self.algo = PPO(policy, config, threads, seed, self.processes, collector.wrap)
        own_envs = collector.env.num_envs
        self.rollout = Rollout(
            config.rollout_steps,
            own_envs,
            config.window,
            space,
            collector.state,
            policy.device,
            policy.distribution.shape,
            policy.distribution.dtype,
        )
        self.scaler = ReturnScaler(own_envs, config.gamma, self.processes) if config.scale_rewards else None
        check_segments(config, policy.config.segments)
        self.budgets = Budgets(config.min_segments, policy, seed) if config.min_segments else None

    def collect(self, collector: Collector, progress: float) -> None:
        if self.budgets is not None:
            self.budgets.draw()
        collector.collect(self.rollout)
        if self.scaler is not None:
            self.scaler.scale(self.rollout)

    def update(self, progress: float) -> dict[str, float]:
        measured = self.algo.update(self.rollout, progress)
        if self.budgets is not None:
            measured["segments"] = self.budgets.end()
        # After the update: actions must be evaluated with the statistics they were chosen with.
        self.policy.encoder.observe(self.policy.seen(self.rollout.obs), self.processes)
        return measured

    def tensors(self) -> dict[str, Tensor]:
        return {
            **_minibatch_tensors(self.algo),
            **({} if self.scaler is None else flatten("scaler", self.scaler.tensors())),
            **({} if self.budgets is None else {BUDGETS: self.budgets.generator.get_state()}),
        }

    def metadata(self) -> dict[str, Any]:
        return {}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.check(tensors, metadata)
        _restore_minibatches(self.algo, tensors)
        if self.scaler is not None:
            self.scaler.restore(unflatten("scaler", tensors), self.same_episodes)
        if self.budgets is not None:
            self.budgets.generator.set_state(tensors[BUDGETS])

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        _check_minibatches(self.algo, tensors)
        if self.scaler is not None:
            self.scaler.check(unflatten("scaler", tensors))
        if self.budgets is not None:
            check_generator(BUDGETS, tensors.get(BUDGETS))


class _DQNMetadata(msgspec.Struct):
    algo: dict[str, Any]
    replay: dict[str, Any]


class DQNLearner(Learner):
    """DQN on a replay of the last steps."""

    name = "dqn"

    def __init__(
        self, policy: Policy, config: DQNConfig, space: gym.Space, collector: Collector, threads: Threads, seed: int
    ) -> None:
        self.algo = DQN(policy, config, threads, seed)
        self.replay = Replay(config.capacity, config.num_envs, space, collector.state, config.stride, policy.device)

    def networks(self) -> list[nn.Module]:
        return [self.algo.policy, self.algo.target]

    def collect(self, collector: Collector, progress: float) -> None:
        collector.explore(self.replay, self.algo.config.collect_steps, self.algo.epsilon(progress))

    def update(self, progress: float) -> dict[str, float]:
        return self.algo.update(self.replay, progress)

    def tensors(self) -> dict[str, Tensor]:
        return {**flatten("algo", self.algo.tensors()), **flatten("replay", self.replay.tensors())}

    def metadata(self) -> dict[str, Any]:
        return {"algo": self.algo.metadata(), "replay": self.replay.metadata()}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.check(tensors, metadata)
        self.algo.restore(unflatten("algo", tensors), metadata["algo"])
        self.replay.restore(unflatten("replay", tensors), metadata["replay"])

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        saved, replay = converted("learner", metadata, _DQNMetadata), unflatten("replay", tensors)
        self.algo.check(unflatten("algo", tensors), saved.algo)
        self.replay.check(replay, saved.replay)
        check_range("replay actions", replay["actions"], 0, self.algo.policy.distribution.outputs - 1)


class ImitationLearner(Learner):
    """Behaviour cloning or DAgger on the last rollout.

    Earlier rollouts are discarded: levels are unlimited, and new labels cost no more than old ones (DAgger as published
    aggregates all data; Ross et al. 2011, arXiv 1011.0686).
    """

    def __init__(
        self,
        policy: Policy,
        config: ImitationConfig,
        space: gym.Space,
        collector: Collector,
        threads: Threads,
        seed: int,
    ) -> None:
        self.name = "dagger" if isinstance(config, DAggerConfig) else "bc"
        self.policy, self.processes = policy, collector.processes
        self.algo = Imitation(policy, config, threads, seed, self.processes)
        self.demonstrations = Demonstrations(
            config.rollout_steps,
            collector.env.num_envs,
            config.window,
            space,
            collector.state,
            policy.device,
            policy.distribution.outputs,
        )
        self.labels = 0  # steps with a label, over the run

    def collect(self, collector: Collector, progress: float) -> None:
        config, distribution = self.algo.config, self.policy.distribution
        beta = config.beta(progress)

        def choose(labels: Tensor, params: Tensor) -> Tensor:
            return sample_beta_mixture(labels, params, distribution, beta, config.teacher_noise, collector.generator)

        collector.demonstrate(self.demonstrations, choose)
        self.labels += int(self.processes.all_reduce(torch.tensor(self.demonstrations.labelled_steps)))

    def update(self, progress: float) -> dict[str, float]:
        measured = self.algo.update(self.demonstrations, progress)
        # After the update, as in PPO: the states belong to the old statistics.
        self.policy.encoder.observe(self.policy.seen(self.demonstrations.obs), self.processes)
        return measured

    def statistics(self) -> dict[str, float]:
        return {"labels": self.labels}

    def tensors(self) -> dict[str, Tensor]:
        return _minibatch_tensors(self.algo)

    def metadata(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.check(tensors, metadata)
        _restore_minibatches(self.algo, tensors)
        self.labels = metadata["labels"]

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        _check_minibatches(self.algo, tensors)
        check_total("labels", metadata.get("labels"))


def build_env(
    config: AlgoConfig, env_id: str, num_envs: int, options: dict[str, Any], workers: int = 0
) -> gym.vector.VectorEnv:
    """The vector environment that an algorithm collects from.

    For imitation the oracle is switched on, here alone; `options` are not changed.

    Raises:
        ValueError: see `make_vector_env` and `make_labelled_vector_env`.
    """
    make = make_labelled_vector_env if isinstance(config, ImitationConfig) else make_vector_env
    return make(env_id, num_envs, options, workers)


def build_learner(
    policy: Policy, config: AlgoConfig, space: gym.Space, collector: Collector, threads: Threads, seed: int
) -> Learner:
    """The learner of an algorithm's settings."""
    if isinstance(config, ImitationConfig):
        return ImitationLearner(policy, config, space, collector, threads, seed)
    if isinstance(config, DQNConfig):
        return DQNLearner(policy, config, space, collector, threads, seed)
    return PPOLearner(policy, config, space, collector, threads, seed)


def check_segments(config: AlgoConfig, most: int) -> None:
    """Raises: ValueError if the smallest number of segments that is drawn is above `most`, the policy's own."""
    if isinstance(config, PPOConfig) and config.min_segments > most:
        raise ValueError(
            f"algo.min_segments={config.min_segments}: expected at most segments={most}, the largest K that is drawn"
        )


def check_processes(config: AlgoConfig, processes: Processes) -> None:
    """Check that the processes can share the work evenly.

    Raises:
        ValueError: the algorithm trains in one process only, or its environments or minibatches do not divide.
    """
    if processes.world_size == 1:
        return
    among = f"{processes.world_size} processes of torchrun"
    if isinstance(config, DQNConfig):
        raise ValueError(
            f"algo=dqn trains in one process, not in {among}; start it without, or use algo=ppo, bc, dagger"
        )
    for name, each in (("num_envs", 2), ("minibatch_windows", 1)):
        count = getattr(config, name)
        if count % processes.world_size or count < each * processes.world_size:
            least = f", {each} or more for each" if each > 1 else ""
            raise ValueError(f"algo.{name}={count} for {among}: expected a multiple of {processes.world_size}{least}")


def check_memory(policy: Policy, config: AlgoConfig, space: gym.Space, processes: Processes = SINGLE_PROCESS) -> None:
    """Check that training fits into the free memory of the policy's device.

    Counted are the buffer of experience, with the carried states, and gradients and moments of the weights; not the
    activations of a minibatch, which depend on the kernel.

    Args:
        processes: over which the environments are divided; those on this machine share its memory.

    Raises:
        ValueError: it does not fit. A replay fills gradually, so the run would fail only after hours.
    """
    has = available_memory(policy.device)
    if has is None:
        return
    sharing = local_world_size() if policy.device.type == "cpu" else 1
    weights = sum(p.nbytes for p in policy.parameters()) * (4 if isinstance(config, DQNConfig) else 3) * sharing
    what, buffer, advice = _buffer_size(policy, config, space, config.num_envs // processes.world_size * sharing)
    there = f"and {policy.device} has {has / 1e9:.1f} GB"
    if weights > has:
        raise ValueError(
            f"core.hidden_size={policy.config.hidden_size}: gradients and moments of the weights need "
            f"{weights / 1e9:.1f} GB, {there}; lower it, or the number of layers"
        )
    if buffer + weights > has:
        raise ValueError(f"{what} needs {buffer / 1e9:.1f} GB, {there}; {advice}, or carry less (carry=last_token)")


def _buffer_size(policy: Policy, config: AlgoConfig, space: gym.Space, num_envs: int) -> tuple[str, int, str]:
    """The buffer of so many environments: settings and name, bytes, and how to lower them. Nothing is allocated."""
    state = trees.map_tensors(
        lambda t: torch.empty((num_envs, *t.shape[1:]), dtype=t.dtype, device="meta"), policy.initial_state(1)
    )
    if isinstance(config, DQNConfig):
        size = replay_size(config.capacity, num_envs, space, state, config.stride)
        return f"algo.capacity={config.capacity}: the replay", size, "lower algo.capacity, raise algo.stride"
    arguments = (config.rollout_steps, num_envs, config.window, space, state, "meta")
    distribution = policy.distribution
    rollout: Rollout = (
        Demonstrations(*arguments, distribution.outputs)
        if isinstance(config, ImitationConfig)
        else Rollout(*arguments, distribution.shape, distribution.dtype)
    )
    what = f"algo.num_envs={config.num_envs}, algo.rollout_steps={config.rollout_steps}: the rollout"
    return what, 2 * rollout.size, "lower one of them"  # twice: an update rearranges it by windows
