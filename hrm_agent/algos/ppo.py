"""PPO on windows of consecutive steps that start from their stored state.

Clipped surrogate: Schulman et al. 2017, arXiv 1707.06347. Stored states for recurrent replay: Kapturowski et al.
2019 (R2D2). All windows have one shape: resets inside a window are applied by the policy where `episode_start` is
true, so there is no padding and no splitting at the ends of episodes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from hrm_agent.algos.optim import adamw, set_learning_rate
from hrm_agent.algos.update import Part, drift_sums, gradient_step, window_gradient
from hrm_agent.experience.rollout import Rollout, Windows
from hrm_agent.names.values import Count, CountOrNone, Many, NonNegative, Positive, Share, check_fields
from hrm_agent.parallel.graphs import Wrap
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, moments
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors import trees


@dataclass(frozen=True)
class PPOConfig:
    """PPO's settings; every one can be changed on the command line as `algo.NAME=VALUE`."""

    num_envs: Count = 128  # environments stepped in parallel
    rollout_steps: Count = 16  # steps of each environment between updates
    window: Count = 16  # consecutive steps unrolled in training; 1 with time_gradient=detached is the papers' way
    minibatch_windows: Many = 32  # windows in a minibatch
    epochs: Count = 1  # passes over a rollout
    learning_rate: Positive = 3e-3  # of AdamW
    anneal: bool = True  # learning rate and entropy bonus go linearly to 0 over the run
    gamma: Share = 0.97  # discount of a step
    gae_lambda: Share = 0.95  # of generalised advantage estimation (arXiv 1506.02438)
    clip_range: Positive = 0.2  # of the probability ratio
    value_coef: NonNegative = 4.0  # weight of the value's loss
    entropy_coef: NonNegative = 0.01  # weight of the entropy bonus
    max_grad_norm: Positive = 0.5  # gradients with a larger norm are scaled down to it
    weight_decay: NonNegative = 0.0  # of AdamW
    refresh_states: bool = False  # recompute stored states with the current weights before every epoch but the first
    min_segments: CountOrNone = 0  # K of every rollout is drawn from this to `segments`; 0: always `segments`
    scale_rewards: bool = False  # divide rewards by the running deviation of the return, for returns far from 1

    def __post_init__(self) -> None:
        check_fields(self, "algo")
        if self.rollout_steps % self.window:
            raise ValueError(
                f"algo.rollout_steps={self.rollout_steps} does not divide into windows of algo.window={self.window} "
                "steps: make it a multiple"
            )
        if self.minibatch_windows * self.window < 2:
            raise ValueError(
                "algo.minibatch_windows=1 with algo.window=1: a minibatch of one step has no spread of advantages; "
                "make one of them larger"
            )
        windows = self.num_envs * self.rollout_steps // self.window
        if windows % self.minibatch_windows:
            raise ValueError(
                f"algo.minibatch_windows={self.minibatch_windows} does not divide the {windows} windows of a "
                f"rollout (num_envs={self.num_envs} x rollout_steps={self.rollout_steps} / window={self.window})"
            )


class PPO:
    """Loss and update of one policy.

    Args:
        policy: trained in place.
        config: see `PPOConfig`.
        threads: over which a minibatch is divided.
        seed: of the minibatch order.
        processes: processes that train it together, each on its part of every minibatch.
        wrap: puts a CUDA graph around the gradient of a minibatch.
    """

    def __init__(
        self,
        policy: Policy,
        config: PPOConfig,
        threads: Threads,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
        wrap: Wrap | None = None,
    ) -> None:
        self.policy, self.config, self.threads, self.processes = policy, config, threads, processes
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, config.learning_rate, eps=1e-5, weight_decay=config.weight_decay)
        self.generator = torch.Generator().manual_seed(seed)
        self.wrapped = wrap is not None
        self.gradient = self._gradient if wrap is None else wrap("the gradient of a minibatch", self._gradient)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Train on one rollout. `progress`: fraction of the run that is done, for annealing.

        Returns the means over minibatches of what was measured, on all processes.

        Raises:
            NonFiniteNumbers: before any weight is changed by the offending minibatch.
        """
        config = self.config
        remaining = 1.0 - progress if config.anneal else 1.0
        set_learning_rate(self.optimizer, config.learning_rate * remaining)
        advantages, returns = rollout.advantages(config.gamma, config.gae_lambda)
        windows = rollout.windows(advantages, returns)
        entropy_coef = returns.new_tensor(config.entropy_coef * remaining)
        batches = [
            rollout.draw_minibatches(config.minibatch_windows, self.generator, self.processes)
            for _ in range(config.epochs)
        ]
        normalised = self._normalise(windows.advantages, torch.cat(batches)).split(len(batches[0]))
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for epoch in range(config.epochs):
            if epoch and config.refresh_states:
                self._refresh(rollout)
                windows = rollout.windows(advantages, returns)
            for number, (columns, advantage) in enumerate(zip(batches[epoch], normalised[epoch], strict=True)):
                last = number == len(batches[epoch]) - 1  # the drift is measured there alone, where it is the largest
                # All batches of a graph have the same tensors.
                batch = windows.columns(columns, next_state=last or self.wrapped)._replace(advantages=advantage)
                measured = self._train(batch, entropy_coef)
                drift_of_batch = measured.pop("state_drift")
                if last:
                    sums[f"state_drift_epoch{epoch}"] = drift_of_batch
                for name, value in measured.items():
                    sums[name] += value
            count += len(batches[epoch])
        drift = {name: sums.pop(name) for name in [n for n in sums if n.startswith("state_drift")]}
        spread = moments(torch.stack([returns, returns - rollout.values], -1).flatten(0, 1), self.processes)[2]
        variance, unexplained = spread.tolist()
        return {
            **{name: total / count for name, total in sums.items()},
            **drift,
            "explained_variance": 1 - unexplained / variance if variance > 0 else 0.0,
            "learning_rate": config.learning_rate * remaining,
        }

    def _normalise(self, advantages: Tensor, batches: Tensor) -> Tensor:
        """Advantages `[k, B]` as minibatches `[M, k, c]`, each with mean 0 and deviation 1 over all processes."""
        chosen = advantages[:, batches].transpose(0, 1)
        rows, mean, squares = moments(chosen.flatten(1).T, self.processes)
        deviation = (squares / (rows - 1)).sqrt()
        return (chosen - mean.float().view(-1, 1, 1)) / (deviation.float().view(-1, 1, 1) + 1e-8)

    def _train(self, batch: Windows, entropy_coef: Tensor) -> dict[str, float]:
        """One optimizer step on this process's part of a minibatch, advantages normalised."""
        part = self.gradient(batch, entropy_coef)
        return gradient_step(self.parameters, [self.optimizer], [part], self.config.max_grad_norm, self.processes)

    def _gradient(self, batch: Windows, entropy_coef: Tensor) -> Part:
        """The gradient of a minibatch: all of its tensors come in, and only tensors come out."""
        rows = batch.returns.numel() * self.processes.world_size
        return window_gradient(
            batch, lambda part: self.loss(part, entropy_coef, rows), self.policy, self.parameters, self.threads
        )

    def loss(self, batch: Windows, entropy_coef: float | Tensor, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the batch, divided by `rows`, so that the losses of a minibatch's parts add up.

        Returns the loss (scalar with a graph) and its parts, each divided by `rows` likewise, and `drift_sums`.
        """
        config = self.config
        decision = self.policy.unroll(batch.obs, batch.state, batch.episode_start)
        log_prob, entropies = self.policy.distribution.evaluate(decision.logits, batch.actions)
        log_ratio = log_prob - batch.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        policy_loss = -torch.minimum(ratio * batch.advantages, clipped * batch.advantages).sum() / rows
        value_loss = 0.5 * (decision.value - batch.returns).square().sum() / rows
        entropy = entropies.sum() / rows
        loss = policy_loss + config.value_coef * value_loss - entropy_coef * entropy
        with torch.no_grad():
            measured = {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy.detach(),
                # Low-variance estimator of the KL divergence: http://joschu.net/blog/kl-approx.html
                "approx_kl": ((ratio - 1) - log_ratio).sum().double() / rows,
                "clip_fraction": ((ratio - 1).abs() > config.clip_range).sum().double() / rows,
                **drift_sums(batch.next_state, decision.state[: len(batch.next_state)], loss.device),
            }
        return loss, measured

    @torch.no_grad()
    def _refresh(self, rollout: Rollout) -> None:
        """Rebuild the stored states from the rollout's first with the current weights."""
        k = rollout.window
        for row in range(rollout.steps // k):
            obs, episode_start = trees.rows((rollout.obs, rollout.episode_start), slice(row * k, (row + 1) * k))
            state = trees.rows(rollout.states, row)
            rollout.write_state(row + 1, self.policy.unroll(obs, state, episode_start).state)
