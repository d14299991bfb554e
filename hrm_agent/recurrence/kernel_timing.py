"""Measures which path is the fastest for the work of a run, at the run's own sizes, in less than a second.

Paths take turns, so that a busy machine slows all of them, and the best round of each counts. Modules are copied; the
originals and the random streams are not changed.
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
from hrm_agent.recurrence.kernel_choice import use

BUDGET = 0.8
"""Seconds of timing; exceeded only where one round of the smallest size takes longer."""
WORTH = 1.05
"""Minimum speed-up over the plain path for another path to be chosen."""
CLEAR = 1.5
"""For ratios above this, or below its inverse, `FEW_ROUNDS` are enough."""
FEW_ROUNDS, MOST_ROUNDS = 3, 10
GROWTH = 4
"""Growth factor of the number of rows while finding how many the budget allows."""
GROWING = 0.75
"""Share of the budget for this search, the first round included."""
PLAIN = "plain"


class Size(NamedTuple):
    """Size of a job: segments, environment steps, rows of the batch."""

    segments: int
    steps: int
    rows: int

    @property
    def work(self) -> int:
        return self.segments * self.steps * self.rows


@dataclass(frozen=True)
class Job:
    """Work that a run repeats.

    Attributes:
        run: does it once with a module, at a size.
        whole: the size in the run.
        times: how often it is done, relative to the other jobs.
        threads: over which the rows are split; a lower limit of the rows.

    Its seconds must be proportional to segments and steps, and grow with rows no faster than these do.
    """

    run: Callable[[Any, Size], object]
    whole: Size
    times: float
    threads: int = 1


@dataclass(frozen=True)
class Choice:
    """The measured ratios and the choice.

    Attributes:
        path: the fastest that agrees with the plain path; `plain` where none is faster by `WORTH`.
        ratios: speed of each other path, as a multiple of the plain path's.
        wrong: paths that were faster but do not agree with the plain path; of bfloat16 also where its rounding alone
            changes some output by more than a quarter.
    """

    path: str
    ratios: dict[str, float] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = [
            f"{path} gives other numbers" if path in self.wrong else f"{path} {ratio:.1f} times as fast"
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
        module: not changed, its path included.
        paths: `plain` and those to compare with it; the module must support them.
        jobs: the work to time; each as a whole, or a part of it where the budget does not allow more.
        outputs: outputs on which paths must agree, see `hrm_agent.recurrence.agreement.agrees`.
        now: the clock, in seconds.
        budget: in seconds.
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
    """Args: see `measure`; the path of `module` is changed."""

    def __init__(
        self, module: nn.Module, paths: Sequence[str], jobs: Sequence[Job], now: Callable[[], float], budget: float
    ) -> None:
        self.module, self.paths, self.jobs, self.now = module, paths, jobs, now
        self.end = now() + budget

    def run(self) -> dict[str, float]:
        """Seconds of all jobs together, each `times` times, by path; from the best round of each job and path."""
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
        """The largest size of a job that the budget allows, and its seconds by path.

        Rows grow first: the fixed cost of a call, which differs between paths, is negligible at the number of rows of
        most runs, and dominates at a few.
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
        """Seconds of a round of all paths."""
        return sum(sum(times.values()) for times in best)

    def _turns(self, job: Job, size: Size) -> dict[str, float]:
        """Seconds of a job done once, by path."""
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
