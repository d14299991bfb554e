"""Recurrent DQN on replayed sequences that begin from a stored state.

Q-learning with a target network: Mnih et al. 2015. Stored state and burn-in: Kapturowski et al. 2019 (R2D2). Double
Q-learning: van Hasselt et al. 2016, arXiv 1509.06461. Prioritised replay: Schaul et al. 2016, arXiv 1511.05952.

The HRM-Agent paper (Dang and Rawlinson 2025, arXiv 2510.22832) specifies only r + gamma * max Q of the target network
and MSE; the rest follows its code, github.com/LongDangHoang/HRM_RL_Agent at commit f12e204 (`rl/dqn_train_loop.py`,
`rl/agent.py`, `rl/dataset.py`). Its choices, and the settings that reproduce them here:

- One target for each transition, computed once with the target network before the first segment and kept for all of
  them; the network runs all its segments. Plain maximum, one step: `double_q=false`, `n_step=1`.
- Both states come from the replay, as collected: the carried state before the step for the observation, the one after
  it for the next observation: `burn_in=0`, `stride=1`, `stored_bootstrap=true`. They are never recomputed.
- Every segment is an optimizer step with its own loss, from the detached state of the segment before, and a step of
  the target average, of the warm-up and of epsilon: `each_segment=true`. Eight batches are drawn between collections
  but seven are dropped, while the segments of the first are still being trained: `updates=1`.
- No gradient clipping (`max_grad_norm=0`), no decay of the learning rate (`anneal=false`), no weight decay.
- Only `terminated` stops the bootstrap; a time limit does not.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from hrm_agent.algos.optim import (
    OptimizerName,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from hrm_agent.algos.update import Part, drift_sums, gradient_step, part_of
from hrm_agent.experience.replay import Replay, Sequences
from hrm_agent.names.values import (
    BelowOne,
    Count,
    CountOrNone,
    Many,
    ManyOrNone,
    NonNegative,
    Positive,
    Share,
    StepsOrNone,
    check_fields,
    one_of,
)
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import check_generator, check_moments, check_tensors, check_total
from hrm_agent.tensors.trees import flatten, unflatten

LOSSES: dict[str, Callable[..., Tensor]] = {"huber": nn.functional.huber_loss, "mse": nn.functional.mse_loss}
LossName = Annotated[str, one_of(LOSSES)]


@dataclass(frozen=True)
class DQNConfig:
    """DQN's settings; every one can be changed on the command line as `algo.NAME=VALUE`."""

    num_envs: Count = 128  # environments stepped in parallel
    collect_steps: Count = 8  # steps of each environment between updates
    capacity: Many = 100_000  # frames in the replay; the state of every stride-th is kept: 8 kB each by default
    learning_starts: ManyOrNone = 10_000  # frames collected before the first update
    updates: Count = 4  # batches drawn after every collection
    batch_sequences: Count = 64  # sequences in a batch
    burn_in: CountOrNone = 4  # steps that rebuild the state, without gradient; a multiple of the stride
    train_steps: Count = 8  # steps of a sequence to train on
    n_step: Count = 3  # rewards summed before the bootstrap
    stride: Count = 4  # steps between stored states, where sequences may begin
    learning_rate: Positive = 1e-3  # of the optimizer
    optimizer: OptimizerName = "adamw"  # adamw | adam_atan2, which the authors of HRM and TRM trained with
    beta1: BelowOne = 0.9  # of the optimizer: decay of the mean of gradients
    beta2: BelowOne = 0.999  # of the optimizer: decay of the mean of their squares
    eps: Positive = 1e-5  # of adamw, added to the root of the mean square
    weight_decay: NonNegative = 0.0  # of the optimizer
    warmup: StepsOrNone = 0  # optimizer steps over which the learning rate rises from 0
    anneal: bool = True  # learning rate goes linearly to 0 over the run
    gamma: Share = 0.97  # discount of a step
    double_q: bool = True  # the online network chooses the next action, the target network values it
    target_ema: Share = 0.99  # of the target network's weights, at every optimizer step
    loss: LossName = "huber"  # huber | mse
    max_grad_norm: NonNegative = 10.0  # gradients with a larger norm are scaled down to it; 0: none are
    epsilon_start: Share = 1.0  # share of random actions at the beginning
    epsilon_end: Share = 0.05  # share of random actions at the end
    epsilon_fraction: Share = 0.3  # of the run, over which epsilon goes linearly from start to end
    epsilon_updates: StepsOrNone = 0  # the same in optimizer steps, in place of the fraction; 0: the fraction counts
    prioritised: bool = False  # draw sequences by their TD error
    priority_alpha: Share = 0.9  # exponent of the priorities (R2D2)
    priority_beta: Share = 0.6  # exponent of the importance weights (R2D2)
    each_segment: bool = False  # train every batch at each segment in turn, one optimizer step each (HRM-Agent)
    stored_bootstrap: bool = False  # value the next observation with the state stored after the step (HRM-Agent)

    def __post_init__(self) -> None:
        check_fields(self, "algo")
        if self.burn_in % self.stride:
            raise ValueError(
                f"algo.burn_in={self.burn_in} is no multiple of algo.stride={self.stride}: a sequence begins where a "
                "state is stored; change one of them"
            )
        if self.each_segment and self.train_steps != 1:
            raise ValueError(f"algo.each_segment=true with algo.train_steps={self.train_steps}: expected 1 step")
        if self.stored_bootstrap and not self.train_steps == self.n_step == self.stride == 1:
            raise ValueError(
                "algo.stored_bootstrap=true needs the state stored after every step: set algo.train_steps=1, "
                "algo.n_step=1 and algo.stride=1"
            )
        length = self.burn_in + self.train_steps + self.n_step + self.stride - 1
        held = self.capacity // self.num_envs // self.stride * self.stride
        if held < length:
            raise ValueError(
                f"algo.capacity={self.capacity} frames hold {held} steps of algo.num_envs="
                f"{self.num_envs} environments: expected {length} or more, for a sequence of burn_in + train_steps + "
                "n_step; raise it"
            )
        if self.learning_starts > held * self.num_envs:
            raise ValueError(
                f"algo.learning_starts={self.learning_starts}: expected at most the {held * self.num_envs} frames that "
                f"algo.capacity={self.capacity} holds"
            )


class DQN:
    """Loss and update of one policy with Q-values, and its target network.

    Args:
        policy: trained in place; `PolicyConfig.heads` must be `q`.
        config: see `DQNConfig`.
        threads: over which a batch is divided.
        seed: of the sampled sequences.

    Raises:
        ValueError: the policy has no Q-values.
    """

    def __init__(self, policy: Policy, config: DQNConfig, threads: Threads, seed: int) -> None:
        if policy.config.heads != "q":
            raise ValueError(f"heads={policy.config.heads}: DQN trains Q-values; set heads=q")
        self.policy, self.config, self.threads = policy, config, threads
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        betas, lr = (config.beta1, config.beta2), config.learning_rate
        self.optimizer = build_optimizer(config.optimizer, self.parameters, lr, betas, config.weight_decay, config.eps)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0  # optimizer steps taken

    def epsilon(self, progress: float) -> float:
        """Share of random actions when the fraction `progress` of the run is done."""
        c = self.config
        span, done = (c.epsilon_updates, self.steps) if c.epsilon_updates else (c.epsilon_fraction, progress)
        share = min(1.0, done / span) if span else 1.0
        return c.epsilon_start + share * (c.epsilon_end - c.epsilon_start)

    def ready(self, replay: Replay) -> bool:
        """Whether there are enough frames to begin, and at least one sequence."""
        c = self.config
        return replay.frames >= c.learning_starts and bool(replay.starts(c.burn_in, c.train_steps, c.n_step))

    def update(self, replay: Replay, progress: float) -> dict[str, float]:
        """Train on `config.updates` batches. `progress`: fraction of the run that is done, for annealing.

        Returns the means over optimizer steps of what was measured; nothing while the replay is not `ready`.

        Raises:
            NonFiniteNumbers: before any weight is changed by the offending loss.
        """
        c = self.config
        if not self.ready(replay):
            return {}
        sums: dict[str, float] = defaultdict(float)
        alpha, beta = (c.priority_alpha, c.priority_beta) if c.prioritised else (0.0, 0.0)
        before = self.steps
        for _ in range(c.updates):
            batch = replay.sample(
                c.batch_sequences, c.burn_in, c.train_steps, c.n_step, self.generator, alpha, beta
            ).to(self.policy.device)
            measured, errors = (self._train_segments if c.each_segment else self._train)(batch, progress)
            if c.prioritised:
                replay.update_priorities(batch.drawn, errors, batch.mask)
            for name, value in measured.items():
                sums[name] += value
        return {name: total / (self.steps - before) for name, total in sums.items()}

    def _train(self, batch: Sequences, progress: float) -> tuple[dict[str, float], Tensor]:
        """One optimizer step on a batch. Returns what was measured and the TD errors `[train, B]`."""
        rows = max(1, int(batch.mask.sum()))

        def part(columns: slice) -> tuple[Part, Tensor]:
            return self._differentiate(*self.loss(batch.columns(columns), rows))

        return self._step(self.threads.map(part, self._slices(batch)), progress)

    def _train_segments(self, batch: Sequences, progress: float) -> tuple[dict[str, float], Tensor]:
        """One optimizer step after each segment. Returns sums over them and the last one's TD errors."""
        rows = max(1, int(batch.mask.sum()))
        losses = self.threads.map(lambda part: self._segment_losses(batch.columns(part), rows), self._slices(batch))
        sums: dict[str, float] = defaultdict(float)
        errors = torch.zeros(0)
        for _ in range(self.policy.segments):
            parts = self.threads.map(lambda each_loss: self._differentiate(*next(each_loss)), losses)
            measured, errors = self._step(parts, progress)
            for name, value in measured.items():
                sums[name] += value
        return sums, errors

    def _slices(self, batch: Sequences) -> list[slice]:
        return self.policy.slices(self.threads, batch.mask.shape[1], divisible=False)

    def _differentiate(self, loss: Tensor, measured: dict[str, Tensor], errors: Tensor) -> tuple[Part, Tensor]:
        return part_of(loss, measured, self.parameters), errors

    def _step(self, parts: list[tuple[Part, Tensor]], progress: float) -> tuple[dict[str, float], Tensor]:
        """One step of the optimizer and of the target network. Returns what was measured and the TD errors."""
        gradients, errors = zip(*parts, strict=True)
        learning_rate = self._learning_rate(progress)
        set_learning_rate(self.optimizer, learning_rate)
        measured = gradient_step(self.parameters, [self.optimizer], gradients, self.config.max_grad_norm)
        self.steps += 1
        self._average()
        return {**measured, "learning_rate": learning_rate}, torch.cat(errors, 1)

    def _learning_rate(self, progress: float) -> float:
        c = self.config
        warm = min(1.0, (self.steps + 1) / c.warmup) if c.warmup else 1.0
        return c.learning_rate * warm * (1.0 - progress if c.anneal else 1.0)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the target network towards the policy."""
        target: list[Tensor] = list(self.target.parameters())
        online: list[Tensor] = list(self.policy.parameters())
        torch._foreach_lerp_(target, online, 1 - self.config.target_ema)

    def loss(self, batch: Sequences, rows: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Sum over the batch's masked steps, divided by `rows`, so that the losses of a batch's parts add up.

        Returns the loss (scalar with a graph), its parts, each divided by `rows` likewise, and the TD errors
        `[train, B]`.
        """
        c = self.config
        state = self._burn_in(self.policy, batch)
        span = slice(c.burn_in, c.burn_in + c.train_steps)
        decision = self.policy.unroll(trees.rows(batch.obs, span), state, batch.episode_start[span])
        online = None
        if c.double_q:
            online = self._continue(decision.logits, decision.state, batch)
        return self._error(decision.logits, decision.state, self.targets(batch, online), batch, rows)

    def _segment_losses(self, batch: Sequences, rows: int) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
        """The losses of a batch of single steps, one per segment; all share the target computed before the first."""
        at = self.config.burn_in
        state = self._burn_in(self.policy, batch)
        online = self._bootstrap_q(self.policy, state, batch) if self.config.double_q else None
        targets = self.targets(batch, online)
        obs = trees.rows(batch.obs, at)
        for segment in self.policy.segment_by_segment(obs, state, batch.episode_start[at]):
            q = segment.decision.logits.unsqueeze(0)
            yield self._error(q, segment.decision.state, targets, batch, rows)

    def _error(
        self, q: Tensor, state: PolicyState, targets: Tensor, batch: Sequences, rows: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, measurements and TD errors of Q-values `[train, B, A]` and the state `[B, ...]` after them."""
        span = slice(self.config.burn_in, self.config.burn_in + self.config.train_steps)
        chosen = q.gather(-1, batch.actions[span].unsqueeze(-1)).squeeze(-1)
        loss = LOSSES[self.config.loss](chosen, targets, reduction="none")
        loss = (loss * batch.mask * batch.weights).sum() / rows
        with torch.no_grad():
            errors = chosen - targets
            measured = {
                "loss": loss.detach(),
                "q_mean": (chosen * batch.mask).sum().double() / rows,
                "target_q": (targets * batch.mask).sum().double() / rows,
                "td_error": (errors.abs() * batch.mask).sum().double() / rows,
            }
            # Only after the last segment is the state comparable with the stored one.
            if batch.next_state is not None and not self.config.each_segment:
                whole = batch.mask.all(0)  # elsewhere the stored state is another episode's
                stored, recomputed = trees.rows((batch.next_state, state), whole)
                measured |= drift_sums(stored, recomputed, loss.device)
        return loss, measured, errors

    @torch.no_grad()
    def targets(self, batch: Sequences, online: Tensor | None) -> Tensor:
        """n-step targets float `[train, B]`.

        Args:
            online: the policy's Q-values `[train + n_step, B, A]` from slot burn_in on, which choose the next
                action; None: the target network's choose.
        """
        c = self.config
        q = self._bootstrap_q(self.target, self._burn_in(self.target, batch), batch)
        best = (q if online is None else online).argmax(-1, keepdim=True)
        steps = slice(c.burn_in, c.burn_in + c.train_steps + c.n_step - 1)
        return n_step_targets(
            batch.rewards[steps],
            batch.terminated[steps],
            batch.ended[steps],
            q.gather(-1, best).squeeze(-1),
            c.gamma,
            c.n_step,
        )

    @torch.no_grad()
    def _burn_in(self, network: Policy, batch: Sequences) -> PolicyState:
        """The network's own state before the first trained step, rebuilt from the stored one."""
        burn_in = self.config.burn_in
        if burn_in == 0:
            return batch.state
        return network.unroll(trees.rows(batch.obs, slice(burn_in)), batch.state, batch.episode_start[:burn_in]).state

    @torch.no_grad()
    def _bootstrap_q(self, network: Policy, state: PolicyState, batch: Sequences) -> Tensor:
        """Q-values `[train + n_step, B, A]` from slot burn_in on; `state` is the network's own before that slot."""
        first = self.config.burn_in
        if not self.config.stored_bootstrap:
            return network.unroll(trees.rows(batch.obs, slice(first, None)), state, batch.episode_start[first:]).logits
        # The first slot's Q-values are not bootstrapped from: n_step is 1.
        assert batch.next_state is not None
        following = slice(first + 1, None)
        q = network.unroll(trees.rows(batch.obs, following), batch.next_state, batch.episode_start[following]).logits
        return torch.cat([torch.zeros_like(q), q])

    @torch.no_grad()
    def _continue(self, q: Tensor, state: PolicyState, batch: Sequences) -> Tensor:
        """The policy's Q-values `[train, B, A]` of the trained steps, and of the n_step slots behind them."""
        if self.config.stored_bootstrap:
            return self._bootstrap_q(self.policy, (), batch)
        last = slice(self.config.burn_in + self.config.train_steps, None)
        state = trees.map_tensors(Tensor.detach, state)
        tail = self.policy.unroll(trees.rows(batch.obs, last), state, batch.episode_start[last])
        return torch.cat([q.detach(), tail.logits])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, without the policy's weights; see also `metadata`."""
        return {
            **flatten("target", self.target.state_dict()),
            **flatten("optimizer", optimizer_tensors(self.optimizer)),
            "generator": self.generator.get_state(),
        }

    def metadata(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        Raises:
            ValueError: they belong to another policy or optimizer, or are none that a run can have saved; then nothing
                has changed.
        """
        self.check(tensors, metadata)
        self.target.load_state_dict(unflatten("target", tensors))
        load_optimizer_tensors(self.optimizer, unflatten("optimizer", tensors))
        self.generator.set_state(tensors["generator"])
        self.steps = metadata["steps"]

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Whether `restore` would accept them; changes nothing. Raises: ValueError; see there."""
        check_tensors("target", unflatten("target", tensors), self.target.state_dict())
        check_moments(self.parameters, unflatten("optimizer", tensors))
        check_generator("generator", tensors.get("generator"))
        check_total("steps", metadata.get("steps"))


def n_step_targets(rewards: Tensor, terminated: Tensor, ended: Tensor, values: Tensor, gamma: float, n: int) -> Tensor:
    """Targets of n-step Q-learning (Sutton 1988; Watkins 1989), `[T - n + 1, B]`.

    `r_t + ... + gamma^(m-1) r_(t+m-1) + gamma^m V_(t+m)` with m = n, or the remaining steps of the episode where these
    are fewer. V is 0 where the episode terminated, and that of the final observation where it was truncated.

    Args:
        rewards: float `[T, B]`.
        terminated: bool `[T, B]`, the episode terminated with this step.
        ended: bool `[T, B]`, the last step of the episode; true where terminated.
        values: float `[T + 1, B]`, V of the observation before each step; after an end, of the final observation.
        gamma: discount.
        n: 1 or more.
    """
    count = rewards.shape[0] - n + 1
    targets = torch.zeros_like(rewards[:count])
    going_on = torch.ones_like(ended[:count])
    for k in range(n):
        span = slice(k, k + count)
        targets = targets + gamma**k * torch.where(going_on, rewards[span], 0.0)
        last = going_on & ended[span]
        following = values[k + 1 : k + 1 + count]
        targets = targets + gamma ** (k + 1) * torch.where(last & ~terminated[span], following, 0.0)
        going_on = going_on & ~ended[span]
    return targets + gamma**n * torch.where(going_on, values[n : n + count], 0.0)
