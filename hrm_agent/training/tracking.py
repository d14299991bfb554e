"""Logs of a run: a JSON-lines file, loggers such as TensorBoard, and a progress bar."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from hrm_agent.files.folders import check_own
from hrm_agent.files.reading import TEXT_LIMIT, open_regular
from hrm_agent.files.streams import forgiving
from hrm_agent.files.writing import open_log, replacing
from hrm_agent.training.loggers import TENSORBOARD, Logger, TensorBoardLogger
from hrm_agent.training.waiting import Waiting

METRICS_FILE = "metrics.jsonl"
PLAIN_LINES = 10
# What seconds of training are counted by: `cpu` is processor time of the whole process.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class RunLog:
    """Scalars, videos and hyperparameters of one run, in `metrics.jsonl` and for loggers.

    Where a run is resumed, `metrics.jsonl` is rewritten, whole or not at all, without what the interrupted run logged
    after `frames`. A last line that was cut is dropped; where other lines are damaged, the file as it was is kept as
    `metrics.jsonl.damaged`.

    Args:
        folder: of the run.
        frames: where the run (re)starts; what an interrupted run logged after it is dropped.
        unit: what `frames` counts, and the name of that number in `metrics.jsonl`.
        say: is called with a line where `metrics.jsonl` was damaged.
        loggers: closed with it; None: TensorBoard, in the folder `tensorboard`.

    Raises:
        CheckpointError: `metrics.jsonl` or `tensorboard` is a symbolic link or something else than it should be.
    """

    def __init__(
        self,
        folder: Path,
        frames: int,
        unit: str = "frames",
        say: Callable[[str], None] | None = None,
        loggers: Sequence[Logger] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        check_own(folder, (METRICS_FILE, TENSORBOARD))
        self.path, self.unit = folder / METRICS_FILE, unit
        if os.path.lexists(self.path):
            _rewrite(self.path, frames, unit, say)
        self.file = open_log(self.path)
        own: list[Logger] = [TensorBoardLogger(folder / TENSORBOARD, frames)]
        self.loggers = own if loggers is None else loggers

    def scalars(self, frames: int, **groups: dict[str, Any]) -> None:
        """Numbers by group, `scalars(frames, loss={"policy_loss": 0.1})`; what is not a number is left out.

        Raises:
            FileNotFoundError: `metrics.jsonl` was removed, as with the whole folder; nothing would be kept any more.
            OSError: it cannot be written.
        """
        if not os.path.lexists(self.path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        flat = {
            f"{group}/{name}": float(value)
            for group, values in groups.items()
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for logger in self.loggers:
            logger.scalars(frames, flat)
        self.file.write(json.dumps({self.unit: frames, **flat}) + "\n")
        self.file.flush()

    def video(self, frames: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """A GIF, for the loggers."""
        for logger in self.loggers:
            logger.video(frames, tag, gif, shape)

    def hyperparameters(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        """For the loggers: when the run begins, without results, and at its end with them."""
        for logger in self.loggers:
            logger.hyperparameters(settings, results)

    def close(self) -> None:
        try:
            for logger in self.loggers:
                logger.close()
        finally:
            self.file.close()


def read_metrics(path: Path, unit: str) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """The lines of a `metrics.jsonl` with their numbers; None where a line is damaged. A cut last line is left out.

    A line is an object of numbers, of which `unit` is a count.

    Raises:
        CheckpointError: the file is a symbolic link, no regular file, or cannot be read.
    """
    with open_regular(path, links=False) as file:
        while line := file.readline(TEXT_LIMIT):
            numbers = _parse(line, unit)
            if line.endswith(b"\n") or numbers is not None or len(line) == TEXT_LIMIT:
                yield line, numbers


def _parse(line: bytes, unit: str) -> dict[str, float] | None:
    try:
        # The standard library's reader knows NaN, which a log may hold and msgspec's does not.
        numbers: dict[str, float] = msgspec.convert(json.loads(line), dict[str, float])
    except (ValueError, RecursionError):  # of both libraries, and of text that is not UTF-8
        return None
    count = numbers.get(unit, -1)
    return numbers if 0 <= count < 2**63 and count == int(count) else None


def _rewrite(path: Path, frames: int, unit: str, say: Callable[[str], None] | None) -> None:
    """Drop what was logged after `frames`, and what is damaged; see `RunLog`."""
    damaged = 0
    with replacing(path) as file:
        for line, numbers in read_metrics(path, unit):
            if numbers is None:
                damaged += 1
            elif numbers[unit] <= frames:
                file.write(line if line.endswith(b"\n") else line + b"\n")
        kept = path.with_name(path.name + ".damaged")
        if damaged:
            with open_regular(path, links=False) as original, replacing(kept) as copy:
                shutil.copyfileobj(original, copy)
    if damaged and say is not None:
        say(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} left out; the file as it was is kept as {kept.name}")


class NoLog(RunLog):
    """The tracker of a process that does not log."""

    def __init__(self) -> None:
        pass

    def scalars(self, frames: int, **groups: dict[str, Any]) -> None:
        pass

    def video(self, frames: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        pass

    def hyperparameters(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Bar(Progress):
    """A bar with the time left, and the status below it, which is wrapped where it is long."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["status"]) for task in self.tasks)


class Console:
    """Terminal output: a progress bar on a terminal, a few plain lines elsewhere; silence where that has been closed.

    Args:
        quiet: print nothing; for processes other than rank 0.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.rich = RichConsole(file=forgiving(sys.stderr), quiet=quiet)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._next_line = 0.0
        self._total = 0

    @contextmanager
    def training(self, total: int, done: int) -> Iterator[None]:
        """Show progress from `done` to `total` frames while the body runs."""
        self._total = total
        self._next_line = done
        if not self.rich.is_terminal:
            yield
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}% "),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with _Bar(*columns, console=self.rich) as self._progress:
            self._task = self._progress.add_task("training", total=total, completed=done, status="")
            yield
        self._progress = None

    def progress(self, frames: int, numbers: dict[str, float | None], measures: Sequence[str] = ("success",)) -> None:
        """A line of a training run.

        Args:
            frames: so far.
            numbers: `frames_per_second`; each measure of sampled actions in training, and as `validation_MEASURE` of
                greedy ones on validation levels; None, or left out, where they are not known.
            measures: `success` and `return`.
        """
        parts = [f"{frames:,} frames"]
        for measure in measures:
            sampled, greedy = numbers.get(measure), numbers.get(f"validation_{measure}")
            known = [f"{sampled:.3f} sampled"] if sampled is not None else []
            known += [f"{greedy:.3f} greedy (validation)"] if greedy is not None else []
            if known:
                parts.append(f"{measure} {', '.join(known)}")
        parts.append(f"{numbers['frames_per_second']:,.0f} steps/s")
        self.status(frames, "  ".join(parts))

    def status(self, frames: int, status: str) -> None:
        """Update the progress bar; without a terminal, print a line from time to time."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=frames, status=status)
        elif frames >= self._next_line:
            self._next_line += self._total / PLAIN_LINES
            self.say(status)

    def waiting(self, what: str | Callable[[], str]) -> Waiting:
        """Show what is being waited for while the body runs, on a terminal with the elapsed seconds."""
        return Waiting(what, quiet=self.rich.quiet)

    def say(self, text: str) -> None:
        """A plain line, to stderr like the bar; results go to stdout."""
        self.rich.print(text, highlight=False, markup=False, soft_wrap=True)
