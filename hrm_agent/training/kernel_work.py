"""What a policy's run computes, at its own shapes: the work that `hrm_agent.recurrence.kernel_timing` measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.imitation import ImitationConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.parallel.threads import Threads, instruction_set
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Decision, Policy
from hrm_agent.recurrence import candidates, use
from hrm_agent.recurrence.agreement import Outputs
from hrm_agent.recurrence.kernel_timing import Choice, Job, Size, measure
from hrm_agent.tensors import trees

CHECKED_ROWS = 2
STARTING = 0.125
"""Share of observations that begin an episode."""


@dataclass(frozen=True)
class Passes:
    """Passes of a policy over windows of observations.

    Attributes:
        times: of an iteration of training.
        steps: k, of a window; 0: a single decision, without windows.
        rows: B, of all processes.
        gradient: with the gradient of all weights.
        each_segment: a single step, whose segments are trained one at a time.
        divisible: see `Policy.slices`.
    """

    times: float
    steps: int
    rows: int
    gradient: bool = False
    each_segment: bool = False
    divisible: bool = True


def passes_of(config: PPOConfig | DQNConfig | ImitationConfig) -> list[Passes]:
    """The passes of an iteration of an algorithm, without bootstraps of truncated episodes."""
    if isinstance(config, DQNConfig):
        rows, replayed = config.batch_sequences, config.burn_in + config.train_steps + config.n_step
        return [
            Passes(config.collect_steps, 0, config.num_envs),
            Passes(
                config.updates,
                config.train_steps,
                rows,
                gradient=True,
                each_segment=config.each_segment,
                divisible=False,
            ),
            # The target network, and the policy's own burn-in and bootstrap.
            Passes((1 + config.double_q) * config.updates, replayed, rows, divisible=False),
        ]
    windows = config.num_envs * config.rollout_steps // config.window
    passes = [
        Passes(config.rollout_steps + 1, 0, config.num_envs),
        Passes(
            config.epochs * windows / config.minibatch_windows, config.window, config.minibatch_windows, gradient=True
        ),
    ]
    if isinstance(config, PPOConfig) and config.refresh_states:
        passes.append(
            Passes((config.epochs - 1) * config.rollout_steps / config.window, config.window, config.num_envs)
        )
    return passes


def measure_policy(
    policy: Policy,
    paths: Sequence[str],
    passes: Sequence[Passes],
    obs: Observation,
    threads: Threads,
    processes: int = 1,
    now: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest path for these passes; the policy is not changed.

    Args:
        paths: see `hrm_agent.recurrence.candidates`.
        obs: of some environments, `[n, ...]`; repeated where more are needed.
        threads: threads that a batch is split over, as in collection and training.
        processes: that share the rows.
        now: the clock, in seconds.
    """
    work = PolicyWork(obs, threads)
    with_gradient = any(p.gradient for p in passes)

    def outputs(judged: Policy, precision: str) -> Outputs:
        return work.outputs(judged, precision, max(p.steps for p in passes), with_gradient)

    jobs = [work.job(policy, p, processes) for p in passes]
    return measure(policy, paths, jobs, outputs, now)


def choose_for_playing(
    policy: Policy, kernel: str, obs: Observation, rows: int, threads: Threads, info: Mapping[str, Any]
) -> str:
    """Set the path of a policy that is only evaluated; float32, unless `kernel` names a bfloat16 path.

    Args:
        kernel: of `hrm_agent.recurrence.CHOICES`. `auto` takes the path of training where the instruction set is the
            same, and otherwise measures decisions.
        obs: of some environments, `[n, ...]`.
        rows: of a decision.
        info: `hrm_agent.agents.agent.Agent.info`.

    Returns:
        The path in use.
    """
    if kernel != "auto":
        return use(policy, kernel)
    paths = candidates(policy, policy.device)
    trained_with = path_of_training(info)
    if trained_with in paths:
        return use(policy, trained_with)
    return use(policy, measure_policy(policy, paths, [Passes(1, 0, rows)], obs, threads).path)


def path_of_training(info: Mapping[str, Any]) -> str:
    """The float32 path of training, from an agent's or model's metadata, for the same instruction set; else nothing."""
    if info.get("instruction_set") != instruction_set():
        return ""
    path = str(info.get("kernel"))
    return "fused" if path == "fused_bf16" else path


class PolicyWork:
    """Input for a policy, and the ways in which a run computes it.

    Args:
        obs: of some environments, `[n, ...]`; repeated where more are needed.
        threads: threads that a batch is split over.
        seed: of carried states, which are numbers of unit variance, as norms leave them, and of episodes' beginnings.
    """

    def __init__(self, obs: Observation, threads: Threads, seed: int = 0) -> None:
        self.obs, self.threads, self.seed = obs, threads, seed
        self._drawn: dict[tuple[int, int], tuple[Observation, PolicyState, Tensor]] = {}

    def job(self, policy: Policy, passes: Passes, processes: int = 1) -> Job:
        """The passes of one process."""
        whole = Size(policy.config.segments, max(1, passes.steps), max(1, passes.rows // processes))
        return Job(lambda trial, size: self.run(trial, passes, size), whole, passes.times, self.threads.count)

    def run(self, policy: Policy, passes: Passes, size: Size) -> None:
        """One pass at a size, split over threads as `Collector` and the algorithms do it."""
        policy.segments = size.segments
        obs, state, start = self.draw(policy, size.steps, size.rows)
        parameters = [p for p in policy.parameters() if p.requires_grad]

        def part(rows: slice) -> None:
            given = trees.columns(obs, rows), trees.rows(state, rows), start[:, rows]
            if not passes.gradient:
                with torch.no_grad():  # grad mode is per thread
                    self._decide(policy, passes, *given)
            elif passes.each_segment:
                first = trees.rows(given[0], 0)
                for segment in policy.segment_by_segment(first, given[1], given[2][0]):
                    torch.autograd.grad(_sum(segment.decision), parameters, allow_unused=True)
            else:
                torch.autograd.grad(_sum(policy.unroll(*given)), parameters, allow_unused=True)

        self.threads.map(part, policy.slices(self.threads, size.rows, passes.divisible))

    def _decide(self, policy: Policy, passes: Passes, obs: Observation, state: PolicyState, start: Tensor) -> Decision:
        if passes.steps:
            return policy.unroll(obs, state, start)
        return policy.step(trees.rows(obs, 0), state, start[0])

    def draw(self, policy: Policy, steps: int, rows: int) -> tuple[Observation, PolicyState, Tensor]:
        """Observations `[k, B, ...]`, carried states `[B, ...]` and `episode_start` `[k, B]`; equal for equal sizes."""
        if (steps, rows) not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)

            def repeat(t: Tensor) -> Tensor:
                chosen = t[torch.arange(rows, device=t.device) % len(t)]
                return chosen.expand(steps, *chosen.shape).contiguous()

            kept = policy.initial_state(rows)
            state = tuple(torch.randn(s.shape, generator=generator).to(s) for s in kept)
            start = torch.rand(steps, rows, generator=generator) < STARTING
            # Without masks of legal actions: the constants in their place would hide errors of the other logits.
            obs = policy.with_all_actions(self.obs)
            self._drawn[steps, rows] = trees.map_tensors(repeat, obs), state, start.to(policy.device)
        return self._drawn[steps, rows]

    def outputs(self, policy: Policy, precision: str, steps: int, with_gradient: bool) -> Outputs:
        """A policy's outputs on a few observations, without and with a gradient, and the gradient, by name.

        Rounding of bfloat16 is compared after one segment: weights that were never trained scatter two nearby states
        within a few.

        Args:
            policy: a copy, whose settings are changed.
            precision: of the path that is compared.
            steps: k, of the windows of the run.
        """
        rounds = precision == "bfloat16"
        # When to stop is decided by a threshold, which rounding alone can cross.
        policy.config = replace(policy.config, stop="fixed")
        policy.segments = 1 if rounds else min(policy.config.segments, 2)
        obs, state, start = self.draw(policy, 1 if rounds else min(max(steps, 1), 2), CHECKED_ROWS)
        dtype = next(policy.parameters()).dtype
        given = obs, tuple(s.to(dtype) for s in state), start
        with torch.no_grad():
            found = _named("decision", policy.unroll(*given))
        if with_gradient:
            decision = policy.unroll(*given)
            found |= {**_named("training", decision), **_gradients(_sum(decision), policy)}
        return found


def _sum(decision: Decision) -> Tensor:
    """A scalar that depends on every output that a loss may use, each with its own weight."""
    weights = torch.arange(decision.logits.numel(), dtype=torch.float64).cos().view_as(decision.logits)
    return (decision.logits * weights.to(decision.logits)).sum() + decision.value.square().sum()


def _named(what: str, decision: Decision) -> Outputs:
    states = {f"{what}/state {i}": s for i, s in enumerate(decision.state)}
    return {f"{what}/logits": decision.logits, f"{what}/value": decision.value, **states}


def _gradients(loss: Tensor, module: nn.Module) -> Outputs:
    """Gradients of all trained weights by name; zeros where the loss does not depend on one."""
    names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}
