"""A policy that reads a text one token an environment step and carries its latent; trained on windows, as agents are.

Each row of a batch is a reader at a place of its own in the text. An optimizer step unrolls every row over the next
window from the state that it has reached; the state is passed on without gradient. So states are never older than one
optimizer step, and no observation is computed twice: a rollout of an environment would be read once to collect the
states and a second time to train.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.algos.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from hrm_agent.algos.update import Part, gradient_step, part_of
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.recurrence import without_compile
from hrm_agent.supervised.deep_supervision import Averaged, SupervisedConfig, autocast, rate_factor, update_averages
from hrm_agent.supervised.losses import token_losses
from hrm_agent.supervised.tasks.base import Answers, Examples
from hrm_agent.supervised.tasks.corpus import Stream
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import Total, check_moments, check_range, check_tensors, converted
from hrm_agent.tensors.trees import flatten, unflatten

LANES = 32
"""Places of a text that are read side by side in evaluations during training."""
WARM_UP = 256
"""Tokens that each of them reads before the first that is scored."""
AT_ONCE = 256
"""Steps of a window of an evaluation."""


def build_stream_policy(config: PolicyConfig, ids: int) -> Policy:
    """A policy whose observation is a token, and whose action is the one that follows.

    Raises:
        ValueError: settings that do not fit each other.
    """
    return Policy(config, gym.spaces.Discrete(ids), gym.spaces.Discrete(ids))


class _Metadata(msgspec.Struct):
    steps: Total
    seen: Total


class StreamLearner:
    """A policy, its readers in a text, and one training step on their next windows.

    Args:
        model: trained in place; its value head is not.
        config: of these settings those of batch size, cross-entropy, optimizer, averages and precision.
        stream: the text.
        window: k, steps unrolled together.
        seed: of the readers' places.
        threads: over which a batch is divided.
        processes: of which there must be one.

    Attributes:
        steps: optimizer steps taken.
        seen: windows read.

    Raises:
        ValueError: several processes.
    """

    def __init__(
        self,
        model: Policy,
        config: SupervisedConfig,
        stream: Stream,
        window: int,
        seed: int,
        threads: Threads,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        check_single(processes)
        self.model, self.config, self.window, self.threads = model, config, window, threads
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        betas = (config.beta1, config.beta2)
        self.optimizer = build_optimizer(
            config.optimizer, self.parameters, config.learning_rate, betas, config.weight_decay
        )
        self.averages = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.steps = self.seen = 0
        self.stream = [torch.from_numpy(array).to(model.device) for array in stream]
        total, rows = len(stream.inputs), config.batch_size
        first = int(np.random.default_rng(seed).integers(total))
        self.places = (first + torch.arange(rows) * total // rows) % total
        self.state = trees.map_tensors(Tensor.contiguous, model.initial_state(rows))

    def step(self, done: float) -> dict[str, float]:
        """Read a window in every row and take an optimizer step. `done`: fraction of the run that is over.

        Returns means over the batch: `loss` in nats, `bits`, `cells` (the most probable token is the one that follows);
        `gradient_norm`, `learning_rate`.

        Raises:
            NonFiniteNumbers: before any weight is touched.
        """
        inputs, labels, begins = self._windows()
        slices = self.model.slices(self.threads, self.config.batch_size)
        parts, states = zip(*self.threads.map(lambda r: self._read(inputs, labels, begins, r), slices), strict=True)
        self.state = trees.cat(list(states))
        scale = rate_factor(self.config, self.steps, done)
        set_learning_rate(self.optimizer, self.config.learning_rate * scale)
        measured = gradient_step(self.parameters, [self.optimizer], parts, self.config.max_grad_norm)
        update_averages(self.averages, self.parameters, self.config.ema, self.steps)
        self.places = (self.places + self.window) % len(self.stream[0])
        self.steps += 1
        self.seen += self.config.batch_size
        cells = measured.pop("right") / labels.numel()
        return {**measured, "cells": cells, "learning_rate": self.config.learning_rate * scale}

    def _windows(self) -> list[Tensor]:
        """Inputs and labels int32, and where works begin bool, each `[k, B]`."""
        index = (self.places + torch.arange(self.window)[:, None]) % len(self.stream[0])
        inputs, labels, begins = (tokens[index] for tokens in self.stream)
        if not self.steps:
            begins[0] = True
        return [inputs, labels, begins]

    def _read(self, inputs: Tensor, labels: Tensor, begins: Tensor, rows: slice) -> tuple[Part, tuple[Tensor, ...]]:
        """Some rows' share of the gradient, and their state after the window."""
        state = trees.rows(self.state, rows)
        with torch.enable_grad(), autocast(self.config.precision, self.model.device):  # grad mode is per thread
            decision = self.model.unroll(inputs[:, rows], state, begins[:, rows])
        following = labels[:, rows].long()
        loss = token_losses(decision.logits, following, self.config.cross_entropy).sum() / labels.numel()
        right = (decision.logits.detach().argmax(-1) == following).sum()
        measured = {"loss": loss.detach(), "bits": loss.detach() / np.log(2), "right": right}
        # Back to the dtype of the weights, which cores without norms leave in bfloat16.
        after = tuple(new.detach().to(old.dtype) for new, old in zip(decision.state, state, strict=True))
        return part_of(loss, measured, self.parameters), after

    def averaged(self) -> Averaged[Policy]:
        """The model with the averaged weights inside a `with` block."""
        return Averaged(self.model, self.parameters, self.averages)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; see also `metadata`."""
        return {
            **flatten("model", dict(self.model.state_dict())),
            **flatten("optimizer", optimizer_tensors(self.optimizer)),
            **self._own(),
        }

    def _own(self) -> dict[str, Tensor]:
        return {**flatten("average", self.averages), **flatten("state", self.state), "places": self.places}

    def metadata(self) -> dict[str, Any]:
        return {"steps": self.steps, "seen": self.seen}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        Raises:
            ValueError: they belong to other settings or another text, or are none that a run can have saved; then
                nothing has changed.
        """
        self.check(tensors, metadata)
        self.model.load_state_dict(unflatten("model", tensors))
        load_optimizer_tensors(self.optimizer, unflatten("optimizer", tensors))
        for name, kept in flatten("average", self.averages).items():
            kept.copy_(tensors[name])
        self.state = tuple(tensors[name].to(self.model.device, copy=True) for name in flatten("state", self.state))
        self.places = tensors["places"].clone()
        self.steps, self.seen = metadata["steps"], metadata["seen"]

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Whether `restore` would accept them; changes nothing. Raises: ValueError; see there."""
        converted("learner", metadata, _Metadata)
        check_tensors("model", unflatten("model", tensors), self.model.state_dict())
        check_moments(self.parameters, unflatten("optimizer", tensors))
        rest = {name: t for name, t in tensors.items() if name.split("/")[0] not in ("model", "optimizer")}
        check_tensors("", rest, self._own())
        check_range("places", tensors["places"], 0, len(self.stream[0]) - 1)


def check_single(processes: Processes) -> None:
    """Raises: ValueError for several processes."""
    if processes.world_size > 1:
        raise ValueError(
            f"model.carry trains in one process, not in {processes.world_size} of torchrun; start it without"
        )


class StreamSolver:
    """Reads a text with a policy and says at every token what it gives the next: `solver(examples) -> Answers`.

    The windows of the examples are read one after the other as they stand in the text, and the state is carried through
    all of them, from one work's beginning to its end. Answers after "segment" s are those of a policy that runs s of
    them at every token, and carries its own state.

    Args:
        model: never changed here.
        segments: S, at most, of a token.
        begins: bool `[N]`, which of the windows begin a work.
        cross_entropy: of which `Answers.nats` are, see `SupervisedConfig`.
        lanes: places of the text that are read side by side, which is faster. Each but the first is read from
            `WARM_UP` tokens before its own on, from an initial state; 1: the state is carried through the whole text.
        threads, precision, check_stop: see `hrm_agent.supervised.evaluation.Solver`.
    """

    def __init__(
        self,
        model: Policy,
        segments: int,
        begins: NDArray[np.bool_],
        cross_entropy: str,
        lanes: int = 1,
        threads: Threads | None = None,
        precision: str = "float32",
        check_stop: CheckStop = never,
    ) -> None:
        self.model, self.segments, self.begins = model, segments, begins
        self.cross_entropy, self.lanes, self.precision = cross_entropy, lanes, precision
        self.check_stop, self.threads = check_stop, threads or Threads(1)

    def __call__(self, examples: Examples) -> Answers:
        count, length = examples.inputs.shape
        begins = np.zeros((count, length), np.bool_)
        begins[: len(self.begins), 0] = self.begins[:count]
        begins[0, 0] = True
        text = Stream(examples.inputs.ravel(), examples.labels.ravel(), begins.ravel())
        read = []
        before = self.model.segments
        try:
            for segments in range(1, self.segments + 1):
                self.model.segments = segments
                with without_compile(self.model):
                    read.append(self._read(text))
        finally:
            self.model.segments = before
        tokens, nats = (np.stack(column).reshape(self.segments, count, length) for column in zip(*read, strict=True))
        return Answers(
            tokens.astype(np.int16),
            np.zeros((self.segments, count), np.float32),
            np.full(count, self.segments),
            nats=nats.astype(np.float32),
        )

    def _read(self, text: Stream) -> tuple[NDArray, NDArray]:
        """The most probable token, and nats of the label, each `[T]`."""
        total = len(text.inputs)
        lanes = max(1, min(self.lanes, total // WARM_UP))
        each = -(-total // lanes)
        warm = WARM_UP if lanes > 1 else 0
        # Lane 0 waits at the first token, where the state begins anew at every step, until it is its turn.
        index = (np.arange(lanes) * each + np.arange(-warm, each)[:, None]).clip(0, total - 1)
        inputs, labels, begins = (torch.from_numpy(array[index]).to(self.model.device) for array in text)
        slices = self.model.slices(self.threads, lanes)
        parts = self.threads.map(lambda rows: self._unroll(inputs[:, rows], labels[:, rows], begins[:, rows]), slices)
        best, nats = (np.concatenate(column, 1)[warm:].T.ravel()[:total] for column in zip(*parts, strict=True))
        return best, nats

    @torch.no_grad()
    def _unroll(self, inputs: Tensor, labels: Tensor, begins: Tensor) -> tuple[NDArray, NDArray]:
        """The same of some lanes, each `[k, lanes]`."""
        state, best, nats = self.model.initial_state(inputs.shape[1]), [], []
        begins[0] = True
        for window in zip(*(tokens.split(AT_ONCE) for tokens in (inputs, labels, begins)), strict=True):
            self.check_stop()
            with autocast(self.precision, self.model.device):
                decision = self.model.unroll(window[0], state, window[2])
            state = decision.state
            best.append(decision.logits.argmax(-1).cpu().numpy())
            nats.append(token_losses(decision.logits, window[1].long(), self.cross_entropy).cpu().numpy())
        return np.concatenate(best), np.concatenate(nats)
