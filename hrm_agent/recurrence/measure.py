"""Which path is the fastest for the work that a run does? Measured in less than a second, at the run's own sizes.

Paths take turns, so that a busy machine slows all of them, and the best of their rounds counts. Everything happens on
copies: what is measured is left as it is, random streams included.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from hrm_agent.recurrence.agreement import Outputs, agrees
from hrm_agent.recurrence.backends import use

BUDGET = 0.8
"""Seconds of timing, but for one turn of each path where even the smallest piece of the work takes longer."""
WORTH = 1.05
"""A path must be so many times as fast as the plain one to be taken."""
CLEAR = 1.5
"""Ratios beyond this, or below its inverse, need no more than `FEW_ROUNDS`."""
FEW_ROUNDS, MOST_ROUNDS = 3, 10
GROWTH = 4
"""How many times the rows are tried next, while finding out how many the budget allows."""
GROWING = 0.75
"""Share of the budget for that, the first round included."""
PLAIN = "plain"


class Size(NamedTuple):
    """How much of a job is done: segments of thought, environment steps, rows of the batch."""

    segments: int
    steps: int
    rows: int

    @property
    def work(self) -> int:
        return self.segments * self.steps * self.rows


@dataclass(frozen=True)
class Job:
    """Something that a run does again and again.

    Attributes:
        run: does it once with a module, at a size.
        whole: the size in the run.
        times: how often it is done, beside the other jobs.
        threads: that the rows are split over; no fewer rows are tried.

    Its seconds must be proportional to segments and steps, and grow with rows no faster than these do.
    """

    run: Callable[[Any, Size], object]
    whole: Size
    times: float
    threads: int = 1


@dataclass(frozen=True)
class Choice:
    """What was measured, and what follows.

    Attributes:
        path: the fastest that computes the right thing; `plain` where none is worth its while.
        ratios: how many times as fast as the plain path each other one is.
        wrong: paths that would have been taken, but compute something else.
    """

    path: str
    ratios: dict[str, float] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = [
            f"{path} computes something else" if path in self.wrong else f"{path} {ratio:.1f} times as fast"
            for path, ratio in self.ratios.items()
            if path != self.path
        ]
        own = f", {self.ratios[self.path]:.1f} times the plain path" if self.path in self.ratios else ""
        return f"kernel: {self.path}{own}" + (f" ({', '.join(others)})" if others else "")


def _smallest(job: Job) -> Size:
    return Size(1, 1, min(job.threads, job.whole.rows))


def measure(
    module: nn.Module,
    paths: Sequence[str],
    jobs: Sequence[Job],
    outputs: Callable[[Any, str], Outputs],
    now: Callable[[], float] = time.perf_counter,
    budget: float = BUDGET,
) -> Choice:
    """Time the paths and choose one.

    Args:
        module: left as it is; its path is not changed either.
        paths: `plain` and those it is compared with, all of which suit the module.
        jobs: what is timed; each as a whole, or a part of it where the budget does not allow more.
        outputs: what must be the same on all paths, see `hrm_agent.recurrence.agreement.agrees`.
        now: the clock, in seconds.
        budget: seconds that it may take.
    """
    others = [path for path in paths if path != PLAIN]
    if not others:
        return Choice(PLAIN)
    with torch.random.fork_rng(devices=[]):
        seconds = _Race(copy.deepcopy(module), [PLAIN, *others], jobs, now, budget).run()
        ratios = {path: seconds[PLAIN] / max(seconds[path], 1e-9) for path in others}
        wrong: list[str] = []
        for path in sorted(others, key=lambda path: -ratios[path]):
            if ratios[path] < WORTH:
                break
            if agrees(module, path, outputs):
                return Choice(path, ratios, tuple(wrong))
            wrong.append(path)
    return Choice(PLAIN, ratios, tuple(wrong))


class _Race:
    """Args: see `measure`; `module` may be put on any path."""

    def __init__(
        self, module: nn.Module, paths: Sequence[str], jobs: Sequence[Job], now: Callable[[], float], budget: float
    ) -> None:
        self.module, self.paths, self.jobs, self.now = module, paths, jobs, now
        self.end = now() + budget

    def run(self) -> dict[str, float]:
        """Seconds of all jobs together, as often as each is done, by path; the best round of each job and path."""
        for job in self.jobs:  # the first call of all fills caches
            self._seconds(PLAIN, job, _smallest(job))
        sizes, best = [], []
        for left, job in zip(range(len(self.jobs), 0, -1), self.jobs, strict=True):
            size, seconds = self._first_round(job, GROWING * (self.end - self.now()) / left)
            sizes.append(size)
            best.append(seconds)
        for done in range(1, MOST_ROUNDS):
            clear = done >= FEW_ROUNDS and self._is_clear(self._total(sizes, best))
            if clear or self.now() + self._round(best) > self.end:
                break
            for job, size, times in zip(self.jobs, sizes, best, strict=True):
                for path, seconds_again in self._turns(job, size).items():
                    times[path] = min(times[path], seconds_again)
        return self._total(sizes, best)

    def _first_round(self, job: Job, budget: float) -> tuple[Size, dict[str, float]]:
        """As much of a job as the budget allows, and the seconds that it takes, by path.

        Rows first: what a call costs whatever the rows, which differs from path to path, counts for nothing at the
        number of rows of most runs, and for everything at a few.
        """
        end = self.now() + budget
        size, slope = _smallest(job), 0.0
        seconds = self._turns(job, size)
        while size.rows < job.whole.rows:
            larger = size._replace(rows=min(GROWTH * size.rows, job.whole.rows))
            spent, more = sum(seconds.values()), larger.rows - size.rows
            if self.now() + spent + (slope or spent / size.rows) * more > end:
                return size, seconds
            seconds = self._turns(job, larger)
            slope, size = max(0.0, sum(seconds.values()) - spent) / more, larger
        times = int((end - self.now()) / max(sum(seconds.values()), 1e-9))
        steps = max(1, min(job.whole.steps, times))
        whole = Size(max(1, min(job.whole.segments, times // steps)), steps, size.rows)
        return (size, seconds) if whole == size else (whole, self._turns(job, whole))

    def _round(self, best: Sequence[dict[str, float]]) -> float:
        """Seconds that a round of all turns takes."""
        return sum(sum(times.values()) for times in best)

    def _turns(self, job: Job, size: Size) -> dict[str, float]:
        """Seconds of doing a job once, by path."""
        return {path: self._seconds(path, job, size) for path in self.paths}

    def _seconds(self, path: str, job: Job, size: Size) -> float:
        use(self.module, path)
        began = self.now()
        job.run(self.module, size)
        return self.now() - began

    def _total(self, sizes: Sequence[Size], best: Sequence[dict[str, float]]) -> dict[str, float]:
        shares = [job.times * job.whole.work / size.work for job, size in zip(self.jobs, sizes, strict=True)]
        return {path: sum(s * times[path] for s, times in zip(shares, best, strict=True)) for path in self.paths}

    def _is_clear(self, total: dict[str, float]) -> bool:
        ratios = [total[PLAIN] / max(total[path], 1e-9) for path in self.paths if path != PLAIN]
        return all(not 1 / CLEAR < ratio < CLEAR for ratio in ratios)
