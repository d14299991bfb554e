"""Supervised training: run a segment, update, evaluate, log, checkpoint."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent import __version__
from hrm_agent.files.writing import write_atomically
from hrm_agent.names.values import DepthOrNone, Episodes, Steps, StepsOrNone
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.stopping import Stopped
from hrm_agent.parallel.threads import instruction_set
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import use
from hrm_agent.recurrence.kernel_timing import Choice
from hrm_agent.supervised.deep_supervision import DeepSupervision, SupervisedConfig
from hrm_agent.supervised.evaluation import evaluate_model, solver_of
from hrm_agent.supervised.files import INFO_FILE, ModelConfig, build_model, halting_rule_of, save_model
from hrm_agent.supervised.halting import HaltingRule
from hrm_agent.supervised.kernel_work import measure_model
from hrm_agent.supervised.saved import RunMetadata, check_batch
from hrm_agent.supervised.streams import LANES, StreamLearner
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.base import Say, say_nothing
from hrm_agent.supervised.tasks.text import TextTask
from hrm_agent.tensors.saved import converted
from hrm_agent.tensors.trees import unflatten
from hrm_agent.training.kernel_work import Passes, measure_policy
from hrm_agent.training.loop import LoopConfig, RunLoop
from hrm_agent.training.tracking import Console, RunLog


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """A run's own settings, beside the model's and the training's. Units are optimizer steps."""

    task: str  # name of the task (`hrm_agent.supervised.tasks.TASKS`)
    task_options: dict[str, Any] = field(default_factory=dict)  # its keyword arguments
    total_steps: Steps = 20_000  # optimizer steps: one for each segment of a batch
    checkpoint_every: StepsOrNone = 1000  # steps between checkpoints; 0: only at the beginning and at the end
    keep_checkpoints: Steps = 2  # checkpoints that are kept
    eval_every: StepsOrNone = 1000  # steps between evaluations on validation puzzles; 0: only at the end
    eval_puzzles: Episodes = 256  # validation puzzles of an evaluation
    eval_segments: DepthOrNone = 0  # segments of an evaluation; 0: as many as in training
    log_every: Steps = 100  # steps between lines of the log


class SupervisedTrainer(RunLoop):
    """Args:
    config, model_config, training: see their classes.
    folder: of the run; checkpoints, models and logs go there.
    processes: processes that train the model together, each on its share of every batch.

    Raises:
        ValueError: settings that do not fit each other or the task. Nothing has been written then.
        ModuleNotFoundError: the task needs a package that is not installed.
    """

    unit = "steps"
    duties = ("validate", "checkpoint")
    config: RunConfig

    def __init__(
        self,
        config: RunConfig,
        model_config: ModelConfig,
        training: SupervisedConfig,
        folder: Path,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(config, folder, processes)
        self.model_config = model_config
        self.task = build_task(config.task, config.task_options, config.seed)
        torch.manual_seed(config.seed)
        self.model = build_model(model_config, self.task.spec).to(processes.device(config.device))
        processes.broadcast(self.model.state_dict().values())
        if config.kernel != "auto":
            self.kernel = use(self.model, config.kernel)
        self.learner = self._build_learner(training)
        self.best = -1.0
        self.validation: dict[str, Any] = {}
        self._sums: dict[str, list[float]] = defaultdict(list)

    def _build_learner(self, training: SupervisedConfig) -> DeepSupervision | StreamLearner:
        task, seed = self.task, self.config.seed
        if not isinstance(self.model, Policy):
            return DeepSupervision(self.model, training, task.draw, seed, self.threads, self.processes)
        assert isinstance(task, TextTask)
        stream = task.stream("train")
        return StreamLearner(self.model, training, stream, task.context, seed, self.threads, self.processes)

    @property
    def position(self) -> int:
        return self.learner.steps

    def networks(self) -> Sequence[nn.Module]:
        return [self.model]

    def measure_kernel(self, paths: Sequence[str]) -> Choice:
        training = self.learner.config
        rows = training.batch_size // self.processes.world_size
        if isinstance(self.model, Policy):
            window = self.task.spec.sequence_length
            tokens = torch.arange(rows) % self.task.spec.input_ids
            return measure_policy(self.model, paths, [Passes(1, window, rows, gradient=True)], tokens, self.threads)
        return measure_model(self.model, paths, rows, self.threads, training.precision)

    def iterate(self, log: RunLog, console: Console) -> None:
        before, done, began = self.position, self.done, self.now()
        with self.naming_checkpoint():
            measured = self.learner.step(done)
        self.seconds += self.now() - began
        for name, value in measured.items():
            self._sums[name].append(value)
        if self.due(self.config.log_every, before):
            self._log(log, console)
        every = {"validate": self.config.eval_every, "checkpoint": self.config.checkpoint_every}
        self.attend([duty for duty in self.duties if self.due(every[duty], before)], log, console)

    def perform(self, duty: str, log: RunLog, console: Console) -> None:
        if duty == "validate":
            self.validate(log)
        else:
            self.save_checkpoint()

    def _log(self, log: RunLog, console: Console) -> None:
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        speed = self.position * self.learner.config.batch_size / self.seconds
        train = {**means, "puzzles": self.learner.seen, "samples_per_second": speed, "seconds": self.seconds}
        log.scalars(self.position, train=train)
        parts = [f"{self.position:,} steps", f"loss {means['loss']:.3f}", f"cells {means['cells']:.3f}"]
        if "exact_at_halt" in means and not self.task.by_probability:
            parts.append(f"exact {means['exact_at_halt']:.3f} when halted")
        if self.validation:
            shown = "bits" if "bits" in self.validation else self.score
            parts.append(f"{self.validation[shown]:.3f} {shown} on validation {self.task.things}")
        console.status(self.position, "  ".join([*parts, f"{speed:,.0f} samples/s"]))

    @property
    def max_segments(self) -> int:
        """Segments in training: of a puzzle at most, or of every token of a text that is read step by step."""
        return self.model.segments if isinstance(self.model, Policy) else self.learner.config.max_segments

    @property
    def score(self) -> str:
        """The score by which models are compared, the higher the better: `valid` or `likelihood` where the task has
        one of them, else `exact`."""
        return next((name for name in ("valid", "likelihood") if name in self.validation), "exact")

    @property
    def halting_rule(self) -> HaltingRule:
        """That of the last validation; before it, the published one."""
        halted = self.validation.get("halted")
        stored = halted.get("rule") if isinstance(halted, dict) else None  # runs from before had none
        return halting_rule_of({"halting": self.learner.config.halting, "halting_rule": stored})

    def evaluate(
        self, split: str, puzzles: int, own: bool = True, choose: bool = False, say: Say = say_nothing
    ) -> dict[str, Any]:
        """`evaluate_model` with the averaged weights.

        Args:
            own: with the task's own evaluation, and without lanes.
            choose: choose the rule of halting on these puzzles; else it is that of the last validation.
            say: see `evaluate_model`.
        """
        training = self.learner.config
        with self.learner.averaged() as model:
            segments = self.config.eval_segments or self.max_segments
            own_lanes = 1 if own else LANES
            solver = solver_of(model, self.task, split, segments, training.cross_entropy, own_lanes)
            solver.threads, solver.precision, solver.check_stop = self.threads, training.precision, self.check_stop
            how: Any = {"own": own, "choose": choose, "say": say}
            return evaluate_model(solver, self.task, split, puzzles, self.halting_rule, **how)

    def validate(self, log: RunLog) -> None:
        """Measure the model on validation puzzles, choose the rule of halting on them, and keep the best.

        Raises:
            Stopped: by a signal, in all processes; nothing has been changed.
        """
        measured: dict[str, Any] | None = None
        with suppress(Stopped):
            measured = self.evaluate("validation", self.config.eval_puzzles, own=False, choose=True)
        if self.processes.agree(0.0, measured is None)[1] or measured is None:
            raise Stopped
        self.validation = measured
        log.scalars(self.position, validation=self.validation)
        if self.validation[self.score] >= self.best:  # the later of equals, which was trained longer
            self.best = self.validation[self.score]
            self.save("best")

    def save(self, name: str) -> None:
        """Save the averaged weights as `models/NAME`."""
        if not self.processes.is_rank_zero:
            return
        folder = self.folder / "models" / name
        with self.learner.averaged() as model:
            save_model(folder, model, self.model_config, self.task.spec)
        write_atomically(folder / INFO_FILE, (json.dumps(self.info(), indent=2) + "\n").encode())

    def info(self) -> dict[str, Any]:
        """Metadata of a model."""
        c, m = self.config, self.model_config
        return {
            "task": c.task,
            "task_options": c.task_options,
            "core": m.core,
            "seed": c.seed,
            "steps": self.position,
            "puzzles": self.learner.seen,
            "samples": self.position * self.learner.config.batch_size,
            "seconds": round(self.seconds, 1),
            "clock": c.clock,
            "kernel": self.kernel,
            "instruction_set": instruction_set(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "max_segments": self.max_segments,
            "halting": self.learner.config.halting,
            "halting_rule": asdict(self.halting_rule),
            "precision": self.learner.config.precision,
            "cross_entropy": self.learner.config.cross_entropy,
            "validation": self.validation,
            "hrm_agent_version": __version__,
        }

    def finish(self, log: RunLog, console: Console) -> None:
        self.save("last")
        self.save_checkpoint()  # before the validation: whatever that meets, the training is kept
        with self.interruptible():
            self.validate(log)
        self.save("last")
        self.save_checkpoint()

    def save_checkpoint(self) -> Path:
        self.processes.check_equal(self.model.state_dict().values(), f"after {self.position:,} steps: the weights")
        return super().save_checkpoint()

    def tensors(self) -> dict[str, Tensor]:
        return self.learner.tensors()

    def metadata(self) -> dict[str, Any]:
        own = {"best": self.best, "validation": self.validation, "sums": dict(self._sums)}
        if isinstance(self.task, TextTask):
            own["text"] = self.task.fingerprint
        return {**own, "learner": self.learner.metadata()}

    def restore(self, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
        saved = converted("checkpoint", dict(metadata), RunMetadata)
        if isinstance(self.task, TextTask) and saved.text != self.task.fingerprint:
            raise ValueError("the text is not the one that the run began with; put that back, or begin a new run")
        if isinstance(self.learner, DeepSupervision):
            check_batch(unflatten("batch", tensors), self.task.spec, self.learner.config.batch_size)
        self.learner.restore(tensors, saved.learner)
        self.best, self.validation = saved.best, saved.validation
        self._sums.clear()
        self._sums.update(saved.sums)
