"""The loop of every training run: iterate until done, stop on a signal, write checkpoints."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from torch import Tensor, nn

from hrm_agent import __version__
from hrm_agent.files.reading import CheckpointError
from hrm_agent.names.values import NonNegative, Seed, Steps, StepsOrNone, ThreadCount, check_fields, one_of
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.stopping import Stopped
from hrm_agent.parallel.threads import Threads, check_device
from hrm_agent.recurrence import PATHS, candidates, check_kernel, use
from hrm_agent.recurrence.kernel_timing import Choice
from hrm_agent.tensors.files import load_tensors
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.loggers import Logger
from hrm_agent.training.signals import handling_stops
from hrm_agent.training.tracking import CLOCKS, Console, NoLog, RunLog

DIVERGED = "try a lower learning rate"
"""Ends the message of a run whose numbers are not finite any more."""
CHECKPOINTS = "checkpoints"
FORMER_DUTIES = {"film": "video"}
"""Former names in earlier checkpoints."""
Clock = Annotated[str, one_of(CLOCKS)]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of every training run. Its unit is environment frames or optimizer steps.

    A run that `max_seconds` ends depends on the speed of the machine and cannot be repeated exactly; what is annealed
    reaches its end with whichever limit is nearer. `kernel=auto` is what it was before a run was interrupted; of a run
    that begins, the fastest, which is measured.

    Raises:
        ValueError: a setting out of range, or a device that is not there.
    """

    seed: Seed = 0  # of weights, levels or puzzles, actions and minibatches
    total_steps: Steps  # units that the run ends after
    max_seconds: NonNegative = 0.0  # of training, without evaluations: a limit that ends it before total_steps; 0: none
    clock: Clock = "wall"  # wall | cpu: how seconds of training are counted; cpu on a machine with other work
    checkpoint_every: StepsOrNone  # units between checkpoints; 0: only at the beginning and at the end
    keep_checkpoints: Steps  # how many are kept
    eval_every: StepsOrNone  # units between evaluations; 0: only at the end
    log_every: Steps  # units between lines of the log
    threads: ThreadCount  # over which a batch is divided; auto: one per core, shared by torchrun's processes
    device: str = "cpu"  # cpu, or a CUDA device: cuda, cuda:1
    kernel: str = "plain"  # plain | fused | fused_bf16 | compiled: what computes the core; auto: the fastest, measured

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        check_kernel(self.kernel)


class Interrupted(Exception):
    """The run received a signal to stop; a checkpoint has been written."""


class RunLoop(ABC):
    """Iterates until `done` is 1, and can be interrupted and resumed between iterations.

    Args:
        config: see `LoopConfig`.
        folder: of the run; checkpoints and logs go there, at the first of them.
        processes: the processes that run it together. The first writes; all stop at the same iteration.

    Attributes:
        now: the clock of `seconds`.
        kernel: the path of the core, known once `run` has begun; a subclass sets one that is not `auto`.
        seconds: of iterations, resumed parts included; evaluation and checkpoints are not counted. Rank 0's count for
            all.
    """

    unit = "frames"
    """What `position` counts, in messages and in `metrics.jsonl`."""
    duties: tuple[str, ...] = ()
    """What may be due after an iteration, besides the log."""
    allow_bf16 = False
    """Whether `kernel=auto` may take matrix products in bfloat16."""

    config: LoopConfig

    def __init__(self, config: LoopConfig, folder: Path, processes: Processes = SINGLE_PROCESS) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.now = CLOCKS[config.clock]
        self.threads = Threads(config.threads)
        self.checkpoints = CheckpointFolder(folder / CHECKPOINTS, config.keep_checkpoints)
        self.kernel = "plain"
        self.seconds = 0.0
        self._kernel_before: str | None = None
        self._stop, self._ended = False, False
        self._left: list[str] = []  # duties due at this position, in their order

    @property
    @abstractmethod
    def position(self) -> int:
        """Progress of the run, in units."""

    @property
    def step_size(self) -> int:
        """Units of an iteration."""
        return 1

    @abstractmethod
    def iterate(self, log: RunLog, console: Console) -> None:
        """One iteration; adds to `seconds`."""

    @abstractmethod
    def perform(self, duty: str, log: RunLog, console: Console) -> None:
        """One of `duties`, due at this position."""

    @abstractmethod
    def finish(self, log: RunLog, console: Console) -> None:
        """What comes after the last iteration; done again where a run is resumed after it."""

    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The modules that `kernel` applies to, the trained one first."""

    @abstractmethod
    def measure_kernel(self, paths: Sequence[str]) -> Choice:
        """The fastest of the paths for this run's work; changes nothing."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next iteration depends on."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """The part of it that is JSON."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        Raises:
            KeyError, RuntimeError, ValueError: they belong to other settings.
        """

    @property
    def done(self) -> float:
        """Fraction of the run that is done, 0 to 1."""
        limit = self.config.max_seconds
        return min(1.0, max(self.position / self.config.total_steps, self.seconds / limit if limit else 0.0))

    def stop(self) -> None:
        """End training with the iteration that is under way, as if it were the last one of the run."""
        self._ended = True

    def open_loggers(self) -> Sequence[Logger] | None:
        """Where the log goes besides `metrics.jsonl`; None: TensorBoard."""
        return None

    def run(self, console: Console) -> None:
        """Train to the end.

        Raises:
            NonFiniteNumbers: its message names the last good checkpoint.
            Interrupted: after Ctrl-C, SIGTERM or SIGHUP, sent to any of the processes.
            ProcessesDiverged, ProcessLost: something is wrong with the other processes.
        """
        self.settle_kernel(console)
        with handling_stops(self._ask_to_stop):
            log = self._open_log(console)
            try:
                self._run(log, console)
            finally:
                log.close()

    def _open_log(self, console: Console) -> RunLog:
        if not self.processes.is_rank_zero:
            return NoLog()
        return RunLog(self.folder, self.position, self.unit, console.say, self.open_loggers())

    def _run(self, log: RunLog, console: Console) -> None:
        if self.processes.broadcast_object(self.checkpoints.latest() is None):
            self.save_checkpoint()  # so that there is always one to return to, and a full disk is noticed at once
        with console.training(self.config.total_steps, self.position):
            self.attend(self._left, log, console)
            while self.done < 1.0 and not self._ended:
                self.iterate(log, console)
                self.seconds, stop = self.processes.agree(self.seconds, self._stop)
                self._interrupt_if(stop)
        self.finish(log, console)
        self._interrupt_if(self.processes.agree(0.0, self._stop)[1])

    def attend(self, duties: Sequence[str], log: RunLog, console: Console) -> None:
        """Perform duties in their order. Where a signal stops one, a resumed run begins with those that are left.

        Raises:
            Interrupted: a signal stopped one of them, in this process or another.
        """
        self._left = list(duties)
        while self._left:
            duty = self._left.pop(0)
            with self.interruptible(duty):
                self.perform(duty, log, console)

    @contextmanager
    def interruptible(self, duty: str | None = None) -> Iterator[None]:
        """Let `check_stop` end the body, in all processes.

        Args:
            duty: that the body performs, which a resumed run repeats.

        Raises:
            Interrupted: it has; a checkpoint is written before.
        """
        stopped = False
        try:
            yield
        except Stopped:
            stopped = True
        stopped = self.processes.agree(0.0, stopped)[1]
        if stopped and duty is not None:
            self._left.insert(0, duty)
        self._interrupt_if(stopped)

    def check_stop(self) -> None:
        """Called between the steps of an evaluation or a video. Raises: Stopped, after a signal."""
        if self._stop:
            raise Stopped

    def _interrupt_if(self, stop: bool) -> None:
        if stop:
            path = self.save_checkpoint()
            raise Interrupted(f"interrupted at {self.position:,} {self.unit}; checkpoint {path}")

    def settle_kernel(self, console: Console) -> None:
        """With `kernel=auto`, take the path that the run had before, or measure; the same in all processes."""
        if self.config.kernel != "auto":
            return
        own = candidates(self.networks()[0], self.config.device, self.allow_bf16)
        paths = [path for path in PATHS if not self.processes.agree(0.0, path not in own)[1]]
        before = self._kernel_before
        if before in paths:
            path, line = before, f"kernel: {before}, as before"
        else:
            choice = self.measure_kernel(paths) if self.processes.is_rank_zero else Choice("plain")
            path, line = self.processes.broadcast_object([choice.path, str(choice)])
            if before is not None:
                line += f"; measured again, because {before}, which the run had before, is none of {', '.join(paths)}"
        if len(paths) > 1 or before not in (None, path):
            console.say(line)
        for network in self.networks():
            use(network, path)
        self.kernel = path

    @contextmanager
    def naming_checkpoint(self) -> Iterator[None]:
        """Name the last good checkpoint if values become non-finite."""
        try:
            yield
        except NonFiniteNumbers as error:
            last = self.checkpoints.latest()
            where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
            message = f"{error} at {self.position:,} {self.unit}; {where}; {DIVERGED}"
            raise NonFiniteNumbers(message) from None

    def due(self, every: int, before: int) -> bool:
        """True once in every `every`, of an iteration that began at `before`; never where `every` is 0."""
        return every > 0 and self.position // every > before // every

    def save_checkpoint(self) -> Path:
        """Write everything needed to resume exactly, from all processes."""
        own = {"kind": "checkpoint", "hrm_agent_version": __version__, "seconds": self.seconds, "kernel": self.kernel}
        if self._left:
            own["left"] = self._left
        tensors = self.tensors()
        if not self.processes.is_rank_zero:
            return self.checkpoints.path(self.position)
        return self.checkpoints.save(self.position, tensors, {**own, **self.metadata()})

    def load_checkpoint(self, path: Path) -> None:
        """Restore the state at which `save_checkpoint` was called.

        Raises:
            CheckpointError: the file is damaged or belongs to other settings.
        """
        tensors, metadata = load_tensors(path)
        try:
            self.restore(tensors, metadata)
            self.seconds = metadata["seconds"]
            self._kernel_before = metadata.get("kernel")  # missing in earlier checkpoints
            left = metadata.get("left", [])
            if isinstance(left, list):
                left = [FORMER_DUTIES.get(str(duty), duty) for duty in left]
            if not isinstance(left, list) or any(duty not in self.duties for duty in left):
                raise ValueError(f"left={left}: expected some of {', '.join(self.duties)}")
            self._left = left
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: does not fit this run's settings ({reason})") from None

    def resume(self) -> Path:
        """Load the newest checkpoint of the run's folder that is whole, the same one in all processes.

        Raises:
            CheckpointError: there is none.
        """
        if self.processes.is_rank_zero:
            path = self._resume_newest()
            self.processes.broadcast_object(path.name)
        else:
            path = self.checkpoints.folder / self.processes.broadcast_object(None)
            self.load_checkpoint(path)
        return path

    def _resume_newest(self) -> Path:
        problems, refused = [], []
        for path in reversed(self.checkpoints.paths()):
            try:
                self.load_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                refused.append(path)
                continue
            for damaged in refused:  # rename it, or it would be taken for the newest
                damaged.rename(damaged.with_name(damaged.name + ".damaged"))
            return path
        raise CheckpointError("; ".join(problems) or f"{self.checkpoints.folder}: no checkpoint in it")

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._stop and signum != signal.SIGHUP:  # a second Ctrl-C does not wait; shells repeat SIGHUP
            raise KeyboardInterrupt
        self._stop = True
