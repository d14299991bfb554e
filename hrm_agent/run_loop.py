"""What every training run does, whatever is trained: go on until it is done, stop when asked, keep checkpoints."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from hrm_agent.checkpoint import CheckpointError, CheckpointFolder, load_tensors
from hrm_agent.policy import NonFiniteNumbers
from hrm_agent.tracking import Console, RunLog


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint has been written."""


class NonFiniteRun(NonFiniteNumbers):
    """Numbers are NaN or infinite; the message says which checkpoint is good."""


class RunLoop(ABC):
    """Iterates until `done` is 1, and can be interrupted and resumed between iterations.

    Args:
        folder: of the run; checkpoints and logs go there.
        keep_checkpoints: how many are kept.
        total: what `position` counts to.
        max_seconds: of iterations, after which the run is done although `position` is below `total`; 0: no limit.
        now: the clock.

    Attributes:
        seconds: of iterations, resumed parts included; evaluation and checkpoints are not counted.
    """

    unit = "frames"
    """What `position` counts, in messages and in `metrics.jsonl`."""

    def __init__(
        self, folder: Path, keep_checkpoints: int, total: int, max_seconds: float, now: Callable[[], float]
    ) -> None:
        self.folder, self.total, self.max_seconds, self.now = folder, total, max_seconds, now
        self.checkpoints = CheckpointFolder(folder / "checkpoints", keep_checkpoints)
        self.seconds = 0.0
        self._stop = False

    @property
    @abstractmethod
    def position(self) -> int:
        """How far the run is."""

    @abstractmethod
    def iterate(self, log: RunLog, console: Console) -> None:
        """One iteration; adds to `seconds`."""

    @abstractmethod
    def finish(self, log: RunLog, console: Console) -> None:
        """What comes after the last iteration."""

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
        """How much of the run is over, 0 to 1."""
        return min(1.0, max(self.position / self.total, self.seconds / self.max_seconds if self.max_seconds else 0.0))

    def run(self, console: Console) -> None:
        """Train to the end.

        Raises:
            NonFiniteRun: with the checkpoint to go back to in its message.
            Interrupted: after Ctrl-C or SIGTERM.
        """
        log = RunLog(self.folder, self.position, self.unit)
        previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.checkpoints.latest() is None:
                self.save_checkpoint()  # so that there is always one to go back to, and a full disk shows at once
            with console.training(self.total, self.position):
                while self.done < 1.0:
                    self.iterate(log, console)
                    if self._stop:
                        path = self.save_checkpoint()
                        raise Interrupted(f"stopped at {self.position:,} {self.unit}; checkpoint {path}")
            self.finish(log, console)
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)
            log.close()

    @contextmanager
    def naming_checkpoint(self) -> Iterator[None]:
        """Say where to go back to, should the numbers stop being numbers."""
        try:
            yield
        except NonFiniteNumbers as error:
            last = self.checkpoints.latest()
            where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
            message = f"{error} at {self.position:,} {self.unit}; {where}; try a lower learning rate"
            raise NonFiniteRun(message) from None

    def due(self, every: int, before: int) -> bool:
        """True once in every `every`, of an iteration that began at `before`; never where `every` is 0."""
        return every > 0 and self.position // every > before // every

    def save_checkpoint(self) -> Path:
        """Write everything needed to go on as if nothing had happened."""
        metadata = {"kind": "checkpoint", "seconds": self.seconds, **self.metadata()}
        return self.checkpoints.save(self.position, self.tensors(), metadata)

    def load_checkpoint(self, path: Path) -> None:
        """Go back to where `save_checkpoint` was called.

        Raises:
            CheckpointError: the file is damaged or belongs to other settings.
        """
        tensors, metadata = load_tensors(path)
        try:
            self.restore(tensors, metadata)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: does not fit this run's settings ({reason})") from None
        self.seconds = metadata["seconds"]

    def resume(self) -> Path:
        """Load the newest checkpoint of the run's folder that is whole.

        Raises:
            CheckpointError: there is none.
        """
        problems, refused = [], []
        for path in reversed(self.checkpoints.paths()):
            try:
                self.load_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                refused.append(path)
                continue
            for damaged in refused:  # out of the way, or it would be taken for the newest
                damaged.rename(damaged.with_name(damaged.name + ".damaged"))
            return path
        raise CheckpointError("; ".join(problems) or f"{self.checkpoints.folder}: no checkpoint in it")

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True
