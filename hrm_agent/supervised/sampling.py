"""Several noisy runs of each puzzle, among whose answers the halting head chooses (PTRM, arXiv 2605.19943).

The recursion is deterministic, so a puzzle whose latent has settled on a wrong answer stays wrong. With Gaussian noise
on its latents before every segment, runs of one puzzle settle in different places, and the halting head, which has
learned whether an answer is right, says which of them to believe. The weights are those that were trained without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised.evaluation import Answering, Solver, summarise
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.noise import Noise
from hrm_agent.supervised.tasks.base import Answers, Examples, Task

AT_ONCE = 2**25
"""Ids of answers that are held at once, over segments: 64 MB."""
MOST_ROWS = 2048
"""Runs that are held at once."""
MOST_SEGMENTS = 2**16
"""Runs times segments of a puzzle."""


class Runs(NamedTuple):
    """The S runs of N puzzles after their last segment.

    Attributes:
        tokens: int16 `[S, N, L]`, see `hrm_agent.supervised.tasks.base.Answers`.
        q_halt: float32 `[S, N]`.
    """

    tokens: NDArray[np.int16]
    q_halt: NDArray[np.float32]

    @property
    def surest(self) -> NDArray[np.int64]:
        """The run whose answer the halting head is most sure of, `[N]`; the first among equals."""
        return self.q_halt.argmax(0)

    def most_frequent(self, one_choice: bool = False) -> NDArray[np.int64]:
        """The surest run among those with the most frequent answer, `[N]`.

        Args:
            one_choice: an answer is the first entry of its row.
        """
        answers = self.tokens[..., :1] if one_choice else self.tokens
        found = np.empty(answers.shape[1], np.int64)
        for n in range(len(found)):
            _, kind, count = np.unique(answers[:, n], axis=0, return_inverse=True, return_counts=True)
            often = count[kind.reshape(-1)]
            found[n] = np.where(often == often.max(), self.q_halt[:, n], -np.inf).argmax()
        return found


Observe = Callable[[Examples, Runs], None]
"""Is given the runs of some puzzles."""


class SampledSolver(Solver):
    """Answers by the surest of several noisy runs.

    `Answers.tokens` and `q_halt` after a segment are those of the run that is surest there; `segments` counts those of
    one run. Memory does not grow with the number of runs times puzzles.

    Args:
        model, segments, threads, precision, check_stop: see `Solver`; no run halts.
        samples: runs of every puzzle.
        noise: standard deviation, see `Noise`.
        seed: of the noise; that of run r of puzzle n depends on the three alone, n being its place among the examples.

    Raises:
        ValueError: several runs without noise, which would all be the same, or more segments of a puzzle than 65,536.
    """

    def __init__(
        self,
        model: PuzzleModel,
        segments: int,
        samples: int,
        noise: float,
        seed: int = 0,
        threads: Threads | None = None,
        precision: str = "float32",
        check_stop: CheckStop = never,
    ) -> None:
        super().__init__(model, segments, None, threads, precision, check_stop)
        check_samples(samples, noise, segments)
        self.samples, self.noise, self.seed = samples, noise, seed

    def __call__(self, examples: Examples) -> Answers:
        return self.observed(examples)

    def observed(self, examples: Examples, observe: Observe | None = None) -> Answers:
        """As a call; `observe` is given the runs of one block of puzzles after the other."""
        parts = []
        for first, block in blocks(examples, self.samples * self.segments):
            answers, runs = self._block(block, first)
            if observe is not None:
                observe(block, runs)
            parts.append(answers)
        tokens, q_halt, segments, q_continue, _ = zip(*parts, strict=True)
        by_segment = [np.concatenate(column, 1) for column in (tokens, q_halt, q_continue)]
        return Answers(by_segment[0], by_segment[1], np.concatenate(segments), by_segment[2])

    def _block(self, examples: Examples, first: int) -> tuple[Answers, Runs]:
        """Puzzles `first`, `first + 1`, ...: the surest answers after every segment, and all runs."""
        count, length = len(examples), examples.inputs.shape[1]
        at_once = min(self.samples, max(1, min(MOST_ROWS, AT_ONCE // (self.segments * length)) // count))
        best: Answers | None = None
        tokens, q = [], []
        for begin in range(0, self.samples, at_once):
            runs = np.arange(begin, min(begin + at_once, self.samples))
            rows = np.tile(np.arange(count), len(runs))
            noise = Noise(self.noise, self.seed, (first + rows).tolist(), np.repeat(runs, count).tolist())
            found = self.run(examples.rows(rows), noise)
            for group in np.split(np.arange(len(rows)), len(runs)):
                q_continue = None if found.q_continue is None else found.q_continue[:, group]
                answers = Answers(found.tokens[:, group], found.q_halt[:, group], found.segments[group], q_continue)
                tokens.append(answers.last)
                q.append(answers.q_halt[-1])
                best = answers if best is None else surer(best, answers)
        assert best is not None
        return best, Runs(np.stack(tokens), np.stack(q))


def check_samples(samples: int, noise: float, segments: int) -> None:
    """Raises: ValueError; see `SampledSolver`."""
    if samples > 1 and noise == 0:
        raise ValueError(
            f"samples={samples} noise=0: without noise all runs are one; give noise=0.1, say, or samples=1"
        )
    if samples * segments > MOST_SEGMENTS:
        raise ValueError(
            f"samples={samples} of {segments} segments each: expected at most {MOST_SEGMENTS:,} segments of a puzzle; "
            "give fewer of either"
        )


def blocks(examples: Examples, segments: int) -> Iterator[tuple[int, Examples]]:
    """Puzzles in blocks whose answers after so many segments each fit `AT_ONCE`; with the place of the first."""
    size = max(1, min(MOST_ROWS, AT_ONCE // (segments * examples.inputs.shape[1])))
    for first in range(0, len(examples), size):
        yield first, examples.rows(slice(first, first + size))


def surer(one: Answers, other: Answers) -> Answers:
    """After every segment the answers of whichever is surer; of equals those of `one`."""
    better = other.q_halt > one.q_halt
    assert one.q_continue is not None
    assert other.q_continue is not None
    return Answers(
        np.where(better[..., None], other.tokens, one.tokens),
        np.where(better, other.q_halt, one.q_halt),
        one.segments,
        np.where(better, other.q_continue, one.q_continue),
    )


@dataclass
class RunScores:
    """Scores of the runs of puzzles, whose answers are not kept; see `summary`.

    Attributes:
        task: that scores.
        parts: by way of choosing, the scores of each block.
    """

    task: Task
    parts: dict[str, list[dict[str, NDArray]]] = field(default_factory=dict)

    def add(self, examples: Examples, runs: Runs) -> None:
        """Score the runs of some puzzles; an `Observe`."""
        every = [self.task.score(examples, tokens) for tokens in runs.tokens]
        stacked = {name: np.stack([scores[name] for scores in every]) for name in every[0]}
        rows = np.arange(len(examples))
        chosen, voted = runs.surest, runs.most_frequent(self.task.spec.choices > 0)
        found = {
            "one_run": {name: values.mean(0) for name, values in stacked.items()},
            "surest": {name: values[chosen, rows] for name, values in stacked.items()},
            "most_frequent": {name: values[voted, rows] for name, values in stacked.items()},
            "any_run": {name: values.max(0) for name, values in stacked.items()},
        }
        for way, scores in found.items():
            self.parts.setdefault(way, []).append(scores)

    def summary(self) -> dict[str, Any]:
        """Mean and interval of every score, by way of choosing among the runs.

        `one_run`: none, the mean over runs; `surest`: the run that the halting head is most sure of; `most_frequent`:
        a majority vote, ties by the head; `any_run`: the best of them, as if one knew (pass@S).
        """
        whole = {
            way: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for way, parts in self.parts.items()
        }
        return {way: summarise(scores) for way, scores in whole.items()}


def score_depth(solver: Answering, task: Task, examples: Examples, segments: int) -> dict[str, Any]:
    """Scores of a solver without noise that runs at least `segments` of them, the fewer and the many.

    Returns:
        Of the answers after `segments` segments, `noiseless`; where the solver runs more, after all of them,
        `more_segments`, and `surest_segment`: after the one at which the halting head is most sure.
    """
    parts: dict[str, list[dict[str, NDArray]]] = {}
    for _, block in blocks(examples, solver.segments):
        answers = solver(block)
        ways = {"noiseless": answers.tokens[segments - 1]}
        if solver.segments > segments:
            surest = answers.q_halt.argmax(0)
            ways |= {"more_segments": answers.last, "surest_segment": answers.tokens[surest, np.arange(len(block))]}
        for way, tokens in ways.items():
            parts.setdefault(way, []).append(task.score(block, tokens))
    return {
        way: summarise({name: np.concatenate([scores[name] for scores in found]) for name in found[0]})
        for way, found in parts.items()
    }
