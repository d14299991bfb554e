"""Two attempts at every test input of ARC-AGI, by a vote among the answers to its augmented images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.files.writing import write_output
from hrm_agent.supervised.tasks.arc_grids import Grid

ATTEMPTS = 2


class Candidate(NamedTuple):
    """One answer to a test input: how many images voted for it, and the mean of their sigmoid(q_halt)."""

    grid: Grid
    votes: int
    confidence: float


def rank(grids: Sequence[Grid], q_halt: NDArray[np.floating]) -> list[Candidate]:
    """The different grids, the one with most votes first; of equal votes the more confident.

    Args:
        grids: one answer per image, brought back to the task's own colours and orientation. Empty ones, where the
            model showed no grid at all, have no vote.
        q_halt: float `[len(grids)]`, logits of "this answer is right".
    """
    confidence = 1 / (1 + np.exp(-np.asarray(q_halt, np.float64)))
    voters: dict[tuple, list[int]] = {}
    for i, grid in enumerate(grids):
        if grid.size:
            voters.setdefault((grid.shape, np.ascontiguousarray(grid).tobytes()), []).append(i)
    candidates = [Candidate(grids[who[0]], len(who), float(confidence[who].mean())) for who in voters.values()]
    return sorted(candidates, key=lambda candidate: candidate[1:], reverse=True)


class InputResult(NamedTuple):
    """The result of a vote on one test input.

    Attributes:
        attempts: two grids as lists of rows; the first again where there was no second candidate, one black cell
            where there was none.
        first, either, any_vote: the first attempt is right; one of the two; any candidate at all.
    """

    attempts: list[list[list[int]]]
    first: bool
    either: bool
    any_vote: bool


def judge(candidates: Sequence[Candidate], answer: Grid) -> InputResult:
    """Compare ranked candidates with the right answer."""
    right = [np.array_equal(candidate.grid, answer) for candidate in candidates]
    attempts = [candidate.grid.tolist() for candidate in candidates[:ATTEMPTS]]
    while len(attempts) < ATTEMPTS:
        attempts.append(attempts[0] if attempts else [[0]])
    return InputResult(attempts, any(right[:1]), any(right[:ATTEMPTS]), any(right))


def summary(results: Mapping[str, Sequence[InputResult]]) -> dict[str, Any]:
    """Scores over tasks: each counts as the mean over its test inputs, as ARC Prize scores it.

    Args:
        results: task id -> results of all its test inputs, in order.

    Returns:
        JSON-able: `tasks`, `test_inputs`; `score` (two attempts) with its Wilson 95% interval over tasks
        `score_ci95`; `pass_at_1` (the first attempt); `pass_at_any` (any candidate: what a perfect choice among the
        votes would score); `solved` (ids of tasks all of whose test inputs are right); and `attempts`, see
        `write_submission`.
    """

    def share(name: str) -> list[float]:
        return [float(np.mean([getattr(result, name) for result in inputs])) for inputs in results.values()]

    either = share("either")
    # Half a task is counted as half a success. No score between 0 and 1 varies more than one that is 0 or 1, so
    # the interval is at worst too wide.
    low, high = wilson_interval(sum(either), len(either))
    return {
        "tasks": len(results),
        "test_inputs": sum(map(len, results.values())),
        "score": float(np.mean(either)),
        "score_ci95": [low, high],
        "pass_at_1": float(np.mean(share("first"))),
        "pass_at_any": float(np.mean(share("any_vote"))),
        "solved": [name for name, score in zip(results, either, strict=True) if score == 1],
        "attempts": {
            name: [{f"attempt_{i}": grid for i, grid in enumerate(result.attempts, 1)} for result in inputs]
            for name, inputs in results.items()
        },
    }


def write_submission(result: Mapping[str, Any], path: Path) -> None:
    """Write the `attempts` of an evaluation as ARC Prize's `submission.json`.

    The file maps a task's id to one entry per test input, `{"attempt_1": rows, "attempt_2": rows}`.

    Raises:
        ValueError: the result has no attempts, so it is not of the task `arc`.
    """
    if "attempts" not in result:
        raise ValueError("the evaluation has no 'attempts'; give what task=arc returned")
    write_output(path, json.dumps(result["attempts"]).encode())
