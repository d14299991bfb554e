"""One optimizer step per segment: the training of HRM (arXiv 2506.21734) and TRM (arXiv 2510.04871).

A batch of puzzles is processed one segment at a time. After every segment the loss of the answers gives one optimizer
step, and the latents are passed, without gradient, to the next segment. A puzzle that has halted, by the halting head
or after `max_segments`, is replaced by a new one with a fresh latent, so a batch holds puzzles at different segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.algos.optim import (
    Optimizer,
    OptimizerName,
    SignSGD,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from hrm_agent.algos.update import Part, gradient_step, part_of
from hrm_agent.cores import State
from hrm_agent.names.values import (
    BelowOne,
    Count,
    CountOrNone,
    Depth,
    DepthOrNone,
    NonNegative,
    Positive,
    Share,
    StepsOrNone,
    check_fields,
    one_of,
)
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised.halting import Halting
from hrm_agent.supervised.losses import CROSS_ENTROPIES, choice_loss, puzzle_loss
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.saved import LearnerMetadata, check_bits
from hrm_agent.supervised.tasks.base import Examples
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import check_moments, check_range, check_tensors, converted
from hrm_agent.tensors.trees import flatten, unflatten

PRECISIONS = ("float32", "bfloat16")
Precision = Annotated[str, one_of(PRECISIONS)]

Model = TypeVar("Model", bound=nn.Module)

Draw = Callable[[np.random.Generator, int], Examples]
"""Training puzzles, see `hrm_agent.supervised.tasks.base.Task.draw`."""


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of training; every one can be changed on the command line as `training.NAME=VALUE`."""

    batch_size: Count = 768  # puzzles in a batch
    max_segments: Depth = 16  # after which a puzzle is always replaced
    halting: Halting = "halt_only"  # halt_only (TRM) | q_learning (HRM: one more forward pass); auto: by the core
    exploration: Share = 0.1  # share of puzzles that run for at least a random number of segments
    halt_patience: DepthOrNone = 0  # segments for which an answer must have stood before its puzzle halts; 0: published
    cross_entropy: Annotated[str, one_of(CROSS_ENTROPIES)] = "stablemax"  # stablemax | softmax
    optimizer: OptimizerName = "adam_atan2"  # adam_atan2 | adamw
    learning_rate: Positive = 1e-4  # of the optimizer
    warmup: StepsOrNone = 2000  # steps over which learning rates rise from 0
    anneal: bool = False  # learning rates go linearly to 0 over the run, after the warm-up; published: constant
    beta1: BelowOne = 0.9  # of the optimizer: decay of the mean of gradients
    beta2: BelowOne = 0.95  # of the optimizer: decay of the mean of their squares
    weight_decay: NonNegative = 1.0  # of the optimizer
    max_grad_norm: NonNegative = 0.0  # gradients with a larger norm are scaled down to it; 0: none are, as published
    puzzle_learning_rate: NonNegative = 1e-4  # of the puzzle embeddings, by sign-SGD
    puzzle_weight_decay: NonNegative = 1.0  # of the puzzle embeddings
    ema: BelowOne = 0.999  # decay of the average of weights that is evaluated, less in the first steps; 0: none (HRM)
    precision: Precision = "float32"  # float32 | bfloat16: of the matrix products; weights and sums stay float32
    chunk_size: CountOrNone = 0  # puzzles of a batch computed at once; 0: what fits the cache of a CPU, all on a GPU

    def __post_init__(self) -> None:
        check_fields(self, "training")


class DeepSupervision:
    """A model, its current batch of puzzles, and one training step on them.

    Args:
        model: trained in place.
        config: see `SupervisedConfig`.
        draw: draws new puzzles.
        seed: of the puzzles drawn and of exploration.
        threads: over which a batch is divided.
        processes: processes that train it together. Each holds the whole batch and computes its share of the rows;
            only these rows of `state` are updated.

    Raises:
        ValueError: several processes, and a batch that does not divide, or puzzle embeddings.
    """

    def __init__(
        self,
        model: PuzzleModel,
        config: SupervisedConfig,
        draw: Draw,
        seed: int,
        threads: Threads,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        check_processes(model, config, processes)
        self.model, self.config, self.draw, self.threads, self.processes = model, config, draw, threads, processes
        self.device = model.lm_head.weight.device
        self.generator = np.random.default_rng(seed)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        own = []
        if model.puzzles is not None:
            model.puzzles.sparse = True  # a gradient as large as the batch, not as the number of puzzles
            own = [model.puzzles.weight]
        self.weights = [p for p in self.parameters if all(p is not x for x in own)]
        betas, lr = (config.beta1, config.beta2), config.learning_rate
        # Not fused: earlier runs were not, and their numbers would differ by rounding.
        self.optimizer = build_optimizer(config.optimizer, self.weights, lr, betas, config.weight_decay, fused=False)
        self.puzzle_optimizer = SignSGD(own, config.puzzle_learning_rate, config.puzzle_weight_decay) if own else None
        self.averages = [p.detach().clone() for p in self.weights] if config.ema else []
        self.steps = 0
        self.seen = 0  # puzzles begun
        count = config.batch_size
        self.halted = torch.ones(count, dtype=torch.bool)
        self.segments = torch.zeros(count, dtype=torch.int64)  # used by each puzzle so far
        self.state: State = trees.map_tensors(Tensor.contiguous, model.initial_state(count))
        self.batch: dict[str, Tensor] = {}
        self.stood = torch.zeros(count, dtype=torch.int64)  # segments since each puzzle's answer last changed
        self.answers: Tensor | None = None  # after the last segment; where `halt_patience` asks for it
        if config.halt_patience:
            self.answers = torch.zeros(count, 1 if model.one_choice else model.answer_length, device=self.device).long()

    def step(self, done: float) -> dict[str, float]:
        """Run one segment and take an optimizer step. `done`: fraction of the run that is over, for annealing.

        Returns means over the batch: `loss`, `answers_loss`, `q_halt_loss`, `q_continue_loss`; `cells` and `exact` of
        the answers after this segment; of the puzzles that halted, `exact_at_halt`, `q_halt_accuracy` and `segments`
        (left out where none did); `gradient_norm`, `learning_rate`.

        Raises:
            NonFiniteNumbers: before any weight is touched.
        """
        self._replace_halted()
        count = self.config.batch_size
        own = self.processes.local_slice(count)
        parts_of_own = self.threads.slices(own.stop - own.start, self.config.chunk_size or self.model.chunk_size)
        slices = [slice(own.start + part.start, own.start + part.stop) for part in parts_of_own]
        # Each worker computes its own rows; their state is overwritten only after their gradient.
        parts, answers = zip(*self.threads.map(self._think, slices), strict=True)
        scale = rate_factor(self.config, self.steps, done)
        totals = self._take_step(parts, scale)
        norm = totals.pop("gradient_norm")
        says = torch.cat([torch.stack(answer, 1) for answer in answers]).cpu()
        q_halt, q_continue, exact, same = self.processes.all_gather_rows(says).unbind(1)
        exact = exact.bool()
        self.stood = torch.where(same.bool() & (self.segments > 0), self.stood + 1, 0)
        self.segments += 1
        self._decide_halts(q_halt, q_continue)
        self.steps += 1
        measured = {name: total / count for name, total in totals.items() if name not in ("right", "labelled")}
        measured |= {"cells": totals["right"] / max(totals["labelled"], 1), "exact": exact.double().mean().item()}
        if self.halted.any():
            over = self.halted
            measured["exact_at_halt"] = exact[over].double().mean().item()
            measured["q_halt_accuracy"] = ((q_halt >= 0) == exact)[over].double().mean().item()
            measured["segments"] = self.segments[over].double().mean().item()
        return {**measured, "gradient_norm": norm, "learning_rate": self.config.learning_rate * scale}

    def _replace_halted(self) -> None:
        rows = self.halted.nonzero()[:, 0]
        if not len(rows):
            return
        fresh = self.draw(self.generator, len(rows))
        new = to_batch(fresh, self.device)
        rows = rows.to(self.device)
        if not self.batch:
            self.batch = {name: value.clone() for name, value in new.items()}
        trees.set_rows(self.batch, rows, new)
        trees.set_rows(self.state, rows, trees.rows(self.model.initial_state(1), 0))
        self.segments[self.halted] = 0
        self.seen += len(rows)

    def _think(self, rows: slice) -> tuple[Part, tuple[Tensor, ...]]:
        """One segment of some rows: their share of the gradient, and float halting and continuing logits, whether the
        answers are exact, and whether they are those of the last segment, each `[B]`; writes their new state."""
        config = self.config
        batch = trees.rows(self.batch, rows)
        # A copy: autograd counts writes per tensor, not per row, and other threads may write theirs before this one's
        # gradient is known.
        state = trees.clone(trees.rows(self.state, rows))
        with torch.enable_grad():  # grad mode is per thread
            with self._precision():
                new, logits, q_halt, q_continue = self.model(state, batch)
            target = self._continue_target(new, batch, rows) if config.halting == "q_learning" else None
            halting = (None if target is None else q_continue, target, config.cross_entropy)
            if "weights" in batch:
                loss = choice_loss(logits, q_halt, batch["labels"], batch["weights"], *halting)
            else:
                loss = puzzle_loss(logits, q_halt, batch["labels"], *halting)
            measured = {
                "loss": loss.total.detach(),
                "answers_loss": loss.answers.detach(),
                "q_halt_loss": loss.q_halt.detach(),
                "q_continue_loss": loss.q_continue.detach(),
                "right": loss.right.sum(),
                "labelled": loss.labelled.sum(),
            }
            part = part_of(loss.total / config.batch_size, measured, self.parameters)
        trees.set_rows(self.state, rows, trees.map_tensors(Tensor.detach, new))
        same = torch.zeros_like(loss.exact)
        if self.answers is not None:
            answers = logits.flatten(1).argmax(1, keepdim=True) if self.model.one_choice else logits.argmax(-1)
            same = (answers == self.answers[rows]).all(1)
            self.answers[rows] = answers
        return part, (q_halt.detach().float(), q_continue.detach().float(), loss.exact.float(), same.float())

    @torch.no_grad()
    def _continue_target(self, state: State, batch: dict[str, Tensor], rows: slice) -> Tensor:
        """HRM's target: the value of the better choice after one more segment; after the last, of halting."""
        with self._precision():
            _, _, q_halt, q_continue = self.model(trees.map_tensors(Tensor.detach, state), batch)
        last = (self.segments[rows] + 1 >= self.config.max_segments).to(q_halt.device)
        return torch.where(last, q_halt, torch.maximum(q_halt, q_continue)).float().sigmoid()

    def _decide_halts(self, q_halt: Tensor, q_continue: Tensor) -> None:
        """Which puzzles halt: after the last segment, or by the halting head once exploration permits it."""
        most = self.config.max_segments
        over = self.segments >= most
        if most > 1:
            says_so = q_halt > (q_continue if self.config.halting == "q_learning" else 0)
            says_so &= self.stood >= self.config.halt_patience
            count = len(over)
            explores = self.generator.random(count) < self.config.exploration
            least = np.where(explores, self.generator.integers(2, most + 1, count), 0)
            over = over | (says_so & (self.segments >= torch.from_numpy(least)))
        self.halted = over

    def _precision(self) -> AbstractContextManager:
        return autocast(self.config.precision, self.device)

    def _take_step(self, parts: Sequence[Part], scale: float) -> dict[str, float]:
        optimizers: list[Optimizer] = [self.optimizer]
        set_learning_rate(self.optimizer, self.config.learning_rate * scale)
        if self.puzzle_optimizer is not None:
            optimizers.append(self.puzzle_optimizer)
            set_learning_rate(self.puzzle_optimizer, self.config.puzzle_learning_rate * scale)
        measured = gradient_step(self.parameters, optimizers, parts, self.config.max_grad_norm, self.processes)
        update_averages(self.averages, self.weights, self.config.ema, self.steps)
        return measured

    def averaged(self) -> AbstractContextManager[PuzzleModel]:
        """The model with the averaged weights inside a `with` block."""
        return Averaged(self.model, self.weights, self.averages)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; see also `metadata`."""
        saved = {
            **flatten("model", dict(self.model.state_dict())),
            **flatten("optimizer", optimizer_tensors(self.optimizer)),
            **flatten("average", self.averages),
            **flatten("state", trees.map_tensors(self._gather_rows, self.state)),
            "halted": self.halted,
            "segments": self.segments,
            **self._standing(),
        }
        return {**saved, **flatten("batch", self.batch)}

    def _standing(self) -> dict[str, Tensor]:
        """What `halt_patience` needs of the answers so far."""
        if self.answers is None:
            return {}
        return {"answers": self._gather_rows(self.answers), "stood": self.stood}

    def _gather_rows(self, values: Tensor) -> Tensor:
        return self.processes.gather_rows(self.processes.local_rows(values))

    def metadata(self) -> dict[str, Any]:
        return {"steps": self.steps, "seen": self.seen, "generator": self.generator.bit_generator.state}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        Raises:
            ValueError: they belong to other settings, or are none that a run can have saved; then nothing has changed.
        """
        self.check(tensors, metadata)
        self.model.load_state_dict(unflatten("model", tensors))
        load_optimizer_tensors(self.optimizer, unflatten("optimizer", tensors))
        for name, kept in {**flatten("average", self.averages), **flatten("state", self.state)}.items():
            kept.copy_(tensors[name])
        self.halted, self.segments = tensors["halted"].clone(), tensors["segments"].clone()
        if self.answers is not None:
            self.answers.copy_(tensors["answers"])
            self.stood = tensors["stood"].clone()
        self.batch = trees.to(unflatten("batch", tensors), self.device)
        self.generator.bit_generator.state = metadata["generator"]
        self.steps, self.seen = metadata["steps"], metadata["seen"]

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Whether `restore` would accept them; changes nothing. Raises: ValueError; see there.

        The ids of the puzzles are not looked at, whose ranges the task knows: see `hrm_agent.supervised.saved`.
        """
        halted = tensors.get("halted", self.halted)
        if halted.shape != self.halted.shape:
            raise ValueError(f"a batch of {halted.numel()} puzzles, expected {len(self.halted)}")
        saved = converted("learner", metadata, LearnerMetadata)
        check_bits(self.generator, saved.generator)
        check_tensors("model", unflatten("model", tensors), self.model.state_dict())
        check_moments(self.weights, unflatten("optimizer", tensors))
        own = {"halted": self.halted, "segments": self.segments}
        if self.answers is not None:
            own |= {"answers": self.answers, "stood": self.stood}
        own |= {**flatten("average", self.averages), **flatten("state", self.state)}
        rest = {name: t for name, t in tensors.items() if name.split("/")[0] not in ("model", "optimizer", "batch")}
        check_tensors("", rest, own)
        for name in ("segments", *(["stood"] if self.answers is not None else [])):
            check_range(name, tensors[name], 0, self.config.max_segments)
        if not unflatten("batch", tensors) and not halted.all():
            raise ValueError("batch is missing, and not all puzzles have halted")


def check_processes(model: PuzzleModel, config: SupervisedConfig, processes: Processes) -> None:
    """Check that the processes can train the model together.

    Raises:
        ValueError: the batch does not divide, or the model has puzzle embeddings, whose gradient is sparse.
    """
    among = f"{processes.world_size} processes of torchrun"
    if config.batch_size % processes.world_size:
        raise ValueError(
            f"training.batch_size={config.batch_size} for {among}: expected a multiple of {processes.world_size}"
        )
    if processes.world_size > 1 and model.puzzles is not None:
        raise ValueError(f"a model with puzzle embeddings trains in one process, not in {among}; start it without")


def rate_factor(config: SupervisedConfig, steps: int, done: float) -> float:
    """Factor on all learning rates: the warm-up, then the annealing.

    Args:
        steps: optimizer steps taken.
        done: fraction of the run that is over.
    """
    warm = min(1.0, (steps + 1) / config.warmup) if config.warmup else 1.0
    return warm * (1.0 - done if config.anneal else 1.0)


@torch.no_grad()
def update_averages(averages: list[Tensor], weights: list[nn.Parameter], decay: float, steps: int) -> None:
    """Move averages of weights, in place, after optimizer step number `steps`, counted from 0; none where empty."""
    if averages:
        # At first the average would be mostly the random initial weights.
        torch._foreach_lerp_(averages, list(weights), 1 - min(decay, (1 + steps) / (10 + steps)))


class Averaged(Generic[Model]):
    """A model with averaged weights inside a `with` block; without averages with its own."""

    def __init__(self, model: Model, weights: list[nn.Parameter], averages: list[Tensor]) -> None:
        self.model, self.weights, self.averages = model, weights, averages

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.averages, strict=False):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    def __enter__(self) -> Model:
        self._swap()
        return self.model

    def __exit__(self, *_: object) -> None:
        self._swap()


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Matrix products in bfloat16 where `precision` says so.

    Without the cache of cast weights: where a gradient is needed, some versions of torch reuse weights that earlier
    cycles cast without one (https://github.com/pytorch/pytorch/issues/112583).
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def to_batch(examples: Examples, device: torch.device) -> dict[str, Tensor]:
    """`inputs`, `labels` and `puzzle_identifiers`, int32, as the model takes them; `weights`, float32, if any."""
    arrays = {
        "inputs": examples.inputs,
        "labels": examples.labels,
        "puzzle_identifiers": examples.puzzle_identifiers,
    }
    batch = {name: torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(device) for name, array in arrays.items()}
    if examples.weights is not None:
        batch["weights"] = torch.from_numpy(np.ascontiguousarray(examples.weights, np.float32)).to(device)
    return batch
