"""Suite `update`: loss, gradient and optimizer step of a training run."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.algos.dqn import DQN
from hrm_agent.algos.ppo import PPO
from hrm_agent.benchmarks import inputs
from hrm_agent.benchmarks.cases import CHECKED_ROWS, Case, Competitor, Options, Outputs
from hrm_agent.benchmarks.networks import RunParts, build_run
from hrm_agent.benchmarks.paths import DOUBLE, PLAIN, put_on
from hrm_agent.evaluation.cost import count_operations
from hrm_agent.experience.collector import Collector
from hrm_agent.experience.replay import Replay
from hrm_agent.experience.rollout import Rollout
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.policy import Policy


def update(options: Options) -> Iterator[Case]:
    """A PPO minibatch of the default run, and a training segment of the paper's run for 64 of its 256 rows."""
    yield minibatch_case(options)
    yield training_segment_case(8 if options.quick else 64, options)


def minibatch_case(options: Options) -> Case:
    """One minibatch of the default run: loss, gradient, clipping, optimizer."""
    rows = 8 if options.quick else 32
    # A rollout that is one minibatch: a window of each environment.
    parts = build_run("default", [f"algo.num_envs={rows}", f"algo.minibatch_windows={rows}", "algo.epochs=1"])
    collector = Collector(parts.env, policy_on(parts, PLAIN), 0, Threads(1))
    shape = (parts.ppo.rollout_steps, parts.ppo.num_envs, parts.ppo.window)
    rollout = Rollout(*shape, parts.env.single_observation_space, collector.state)
    collector.collect(rollout)

    def make(path: str) -> Competitor:
        policy = policy_on(parts, path)
        algo = PPO(policy, parts.ppo, Threads(options.cores), 0)

        def outputs(seed: int) -> Outputs:
            batch = inputs.windows(parts, CHECKED_ROWS, seed, inputs.dtype_of(policy))
            loss, _ = algo.loss(batch, parts.ppo.entropy_coef, batch.returns.numel())
            return {"loss": loss, **gradients(loss, policy)}

        # At the end of a run learning rates are 0: the same work, but the weights stay.
        return Competitor(lambda: algo.update(rollout, 1.0), outputs)

    batch = inputs.windows(parts, rows, 0, torch.float32)
    plain = PPO(parts.policy, parts.ppo, Threads(1), 0)
    operations = count_operations(lambda: gradients(plain.loss(batch, 0.0, rows)[0], parts.policy))
    name = f"default PPO minibatch, {rows} windows of {parts.ppo.window}"
    return Case("update", name, make, options.paths, operations, 1, "minibatches", cores=options.cores)


def training_segment_case(rows: int, options: Options) -> Case:
    """A training segment of the paper's run, targets given: forward, gradient, optimizer, average of the weights."""
    parts = paper_segment(rows)

    def make(path: str) -> Competitor:
        return segment_trainer(parts, path, options.cores)

    name, operations = f"paper training segment, batch {rows}", segment_operations(parts) * rows
    return Case("update", name, make, options.paths, operations, 1, "segments", cores=options.cores)


def paper_segment(rows: int) -> RunParts:
    """The paper's run on `rows` environments, with one segment a decision."""
    small = [f"algo.{name}={rows}" for name in ("num_envs", "batch_sequences", "learning_starts")]
    return build_run("paper", [*small, f"algo.capacity={4 * rows}", "segments=1"])


def segment_operations(parts: RunParts) -> int:
    """Operations of a training segment for one row."""
    return count_operations(lambda: first_segment(parts.policy, *segment_inputs(parts, 1, 0, torch.float32)))


def segment_inputs(
    parts: RunParts, rows: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, PolicyState, Tensor, Tensor, Tensor]:
    """Observations, carried states, episode starts, actions and targets of a batch of the paper's training."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(4, (rows,), generator=generator)
    targets = torch.randn(rows, generator=generator).to(dtype)
    kept = inputs.state(parts, rows, seed, dtype)
    return inputs.observations(parts, 1, rows, seed)[0], kept, inputs.starts(rows, seed=seed), actions, targets


def first_segment(
    policy: Policy, obs: Tensor, state: PolicyState, start: Tensor, actions: Tensor, targets: Tensor
) -> Outputs:
    """Q-values after one segment, the loss of HRM-Agent's training and its gradient."""
    segment = next(policy.segment_by_segment(obs, state, start))
    q = segment.decision.logits
    loss = F.mse_loss(q.gather(1, actions[:, None]).squeeze(1), targets)
    return {"q": q, "loss": loss, **gradients(loss, policy)}


def segment_trainer(parts: RunParts, path: str, cores: int) -> Competitor:
    """DQN that trains one segment on a batch of its replay, with the rewards as targets, which cost nothing."""
    policy = policy_on(parts, path)
    collector, config = Collector(parts.env, policy, 0, Threads(cores)), parts.dqn
    space = parts.env.single_observation_space
    replay = Replay(config.capacity, config.num_envs, space, collector.state, config.stride)
    if path != DOUBLE:
        collector.explore(replay, 3, 1.0)
    algo = DQN(policy, config, Threads(cores), 0)
    algo.targets = lambda batch, online: batch.rewards[:1]  # type: ignore[method-assign]

    def outputs(seed: int) -> Outputs:
        return first_segment(policy, *segment_inputs(parts, CHECKED_ROWS, seed, inputs.dtype_of(policy)))

    return Competitor(lambda: algo.update(replay, 0.0), outputs)


def gradients(loss: Tensor, module: nn.Module) -> Outputs:
    """Of all parameters, by their names; zeros where the loss does not depend on one."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def policy_on(parts: RunParts, path: str) -> Policy:
    """A copy of a run's policy, computed by a path."""
    policy = copy.deepcopy(parts.policy)
    put_on(policy, path)
    return policy
