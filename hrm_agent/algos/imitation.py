"""Imitation of a teacher that marks the optimal actions: behaviour cloning and DAgger, on windows as PPO's.

Behaviour cloning trains on states that the teacher visits; DAgger (Ross et al. 2011, arXiv 1011.0686) increasingly on
states that the policy visits, labelled by the teacher. The teacher may be privileged (the oracle of our mazes knows the
whole map, in fog too), but does not know the future. In both cases the carried state is the policy's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm_agent.algos.optim import adamw, set_learning_rate
from hrm_agent.algos.update import drift_sums, gradient_step, window_gradient
from hrm_agent.experience.demonstrations import Demonstrations, LabelledWindows
from hrm_agent.names.values import Count, Many, NonNegative, Positive, Share, check_fields
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.distributions import Distribution, may_be_taken
from hrm_agent.policies.policy import Policy


@dataclass(frozen=True)
class ImitationConfig:
    """Settings of behaviour cloning: the teacher acts. Each can be changed as `algo.NAME=VALUE`."""

    num_envs: Count = 128  # environments stepped in parallel
    rollout_steps: Count = 16  # steps of each environment between updates
    window: Count = 8  # consecutive steps unrolled in training
    minibatch_windows: Many = 64  # windows in a minibatch
    epochs: Count = 1  # passes over a rollout
    learning_rate: Positive = 3e-3  # of AdamW
    anneal: bool = True  # learning rate goes linearly to 0 over the run
    max_grad_norm: Positive = 0.5  # gradients with a larger norm are scaled down to it
    weight_decay: NonNegative = 0.0  # of AdamW
    teacher_noise: Share = 0.0  # share of the teacher's actions that are uniformly random

    def __post_init__(self) -> None:
        check_fields(self, "algo")
        if self.rollout_steps % self.window:
            raise ValueError(
                f"algo.rollout_steps={self.rollout_steps} does not divide into windows of algo.window={self.window} "
                "steps: make it a multiple"
            )
        windows = self.num_envs * self.rollout_steps // self.window
        if windows % self.minibatch_windows:
            raise ValueError(
                f"algo.minibatch_windows={self.minibatch_windows} does not divide the {windows} windows of a "
                f"rollout (num_envs={self.num_envs} x rollout_steps={self.rollout_steps} / window={self.window})"
            )

    def beta(self, progress: float) -> float:
        """Probability that the teacher acts, `progress` (0 to 1) into the run."""
        return 1.0


@dataclass(frozen=True)
class DAggerConfig(ImitationConfig):
    """Settings of DAgger: those of behaviour cloning, and the schedule of beta."""

    beta_start: Share = 1.0  # probability, at every step, that the teacher acts rather than the policy
    beta_fraction: Share = 0.3  # of the run, over which it goes linearly to 0

    def beta(self, progress: float) -> float:
        if progress >= self.beta_fraction:
            return 0.0
        return self.beta_start * (1.0 - progress / self.beta_fraction)


class Imitation:
    """Loss and update of one policy; a value head is not trained.

    Args:
        policy: trained in place; over a finite number of actions.
        config: see `ImitationConfig`.
        threads: over which a minibatch is divided.
        seed: of the minibatch order.
        processes: processes that train it together, each on its part of every minibatch.
    """

    def __init__(
        self,
        policy: Policy,
        config: ImitationConfig,
        threads: Threads,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.policy, self.config, self.threads, self.processes = policy, config, threads, processes
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, config.learning_rate, eps=1e-5, weight_decay=config.weight_decay)
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, demonstrations: Demonstrations, progress: float) -> dict[str, float]:
        """Train on one rollout. `progress`: fraction of the run that is done, for annealing.

        Returns what was measured: loss and agreement as means over labelled steps, in nats and as a fraction.

        Raises:
            NonFiniteNumbers: before any weight is changed by the offending minibatch.
        """
        config = self.config
        learning_rate = config.learning_rate * (1.0 - progress if config.anneal else 1.0)
        set_learning_rate(self.optimizer, learning_rate)
        windows = demonstrations.labelled_windows()
        minibatches = [
            demonstrations.draw_minibatches(config.minibatch_windows, self.generator, self.processes)
            for _ in range(config.epochs)
        ]
        own_rows = windows.labels.any(-1).sum(0)[torch.stack(minibatches)].sum(-1)  # labelled steps [epoch, minibatch]
        all_rows = self.processes.all_reduce(own_rows).tolist()
        sums: dict[str, float] = defaultdict(float)
        drifts = {}
        labelled = steps = 0
        for epoch in range(config.epochs):
            drift, batches = 0.0, 0
            for columns, rows in zip(minibatches[epoch], all_rows[epoch], strict=True):
                if not rows:  # all goals are cut off
                    continue
                measured = self._train(windows.columns(columns), rows)
                drift += measured.pop("state_drift")
                sums["gradient_norm"] += measured.pop("gradient_norm")
                for name, value in measured.items():
                    sums[name] += value * rows
                labelled, batches = labelled + rows, batches + 1
            steps += batches
            if batches:
                drifts[f"state_drift_epoch{epoch}"] = drift / batches
        norm = sums.pop("gradient_norm", 0.0)
        return {
            **{name: total / labelled for name, total in sums.items()},
            **({"gradient_norm": norm / steps} if steps else {}),
            **drifts,
            "labelled_fraction": sum(all_rows[0]) / (demonstrations.episode_start.numel() * self.processes.world_size),
            "beta": config.beta(progress),
            "learning_rate": learning_rate,
        }

    def _train(self, batch: LabelledWindows, rows: int) -> dict[str, float]:
        """One optimizer step on this process's part of a minibatch, which has `rows` labelled steps in all."""
        part = window_gradient(batch, lambda part: self.loss(part, rows), self.policy, self.parameters, self.threads)
        return gradient_step(self.parameters, [self.optimizer], [part], self.config.max_grad_norm, self.processes)

    def loss(self, batch: LabelledWindows, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """`-log` of the probability of all optimal actions together, over the labelled steps of the batch.

        It is the cross-entropy where one action is optimal, and prefers none where several are. The sum
        is divided by `rows`, so that the losses of a minibatch's parts add up.

        Returns the loss (scalar with a graph) and its parts, and `drift_sums`.
        """
        decision = self.policy.unroll(batch.obs, batch.state, batch.episode_start)
        labelled = batch.labels.any(-1)
        log_probs = decision.logits.log_softmax(-1)
        # Without a label all actions are marked: probability 1, not the NaN of an empty sum.
        wanted = batch.labels | ~labelled.unsqueeze(-1)
        surprise = -log_probs.masked_fill(~wanted, -torch.inf).logsumexp(-1)
        loss = torch.where(labelled, surprise, 0.0).sum() / rows
        with torch.no_grad():
            best = self.policy.distribution.best(decision.logits)
            agrees = batch.labels.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            measured = {
                "imitation_loss": loss.detach(),
                "agreement": agrees.sum().double() / rows,
                **drift_sums(batch.next_state, decision.state, loss.device),
            }
        return loss, measured


def sample_beta_mixture(
    labels: Tensor,
    params: Tensor,
    distribution: Distribution,
    beta: float,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Actions int64 `[N]`: with probability `beta` the teacher's, else drawn from the policy; each step anew.

    The teacher draws uniformly from the optimal actions; where there are none, because the goal is cut off, from all
    legal actions. With probability `noise` it draws from these elsewhere too, so that recovery from mistakes is seen.

    Args:
        labels: bool `[N, A]`, the optimal actions.
        params: float `[N, A]`, the policy's logits, `MASKED` where an action is not legal.
        generator: on the CPU whatever the device, so that all devices use the same random numbers.
    """
    size = labels.shape[0]
    anything = (torch.rand(size, generator=generator) < noise) | ~labels.any(-1).cpu()
    weights = ((labels.cpu() | anything.unsqueeze(-1)) & may_be_taken(params).cpu()).float()
    teacher = torch.multinomial(weights, 1, generator=generator).squeeze(-1).to(labels.device)
    if beta >= 1.0:
        return teacher
    own, _ = distribution.sample(params, generator)
    taught = torch.rand(size, generator=generator) < beta
    return torch.where(taught.to(labels.device), teacher, own)
