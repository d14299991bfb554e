"""What noisy runs of each puzzle add to trained models (PTRM, arXiv 2605.19943): writes ptrm.json, redraws the page.

    python -m experiments.supervised.ptrm [--only ARM ...] [--seeds N ...] [--puzzles N]

For every run of `study.yaml` that is trained and has no record yet: the level of the noise is chosen on validation
puzzles, four runs of each; then 1, 4 and 16 runs of each test puzzle at that level, beside the same number of segments
without noise. Nothing is chosen on test puzzles. One run of 16 holds those of 4 and of 1, and a run of 256 segments
those of 64 and of 16, so each is computed once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine import machine
from experiments.engine.pages import draw
from experiments.engine.records import Record, load, put
from experiments.engine.runner import Job
from experiments.supervised.run import Study
from hrm_agent.launch.solve import load_to_solve
from hrm_agent.parallel.threads import Threads, available_cores
from hrm_agent.supervised.evaluation import Solver, right_of, summarise
from hrm_agent.supervised.kernel_work import choose_for_solving
from hrm_agent.supervised.sampling import Runs, RunScores, SampledSolver, blocks
from hrm_agent.supervised.tasks.base import Examples, Task

HERE = Path(__file__).resolve().parent
FILE = HERE / "ptrm.json"
NOISE = (0.05, 0.1, 0.2, 0.4)
"""Levels that are tried on validation puzzles."""
SAMPLES = (1, 4, 16)
CHOOSING_SAMPLES, CHOOSING_PUZZLES = 4, 200
PUZZLES = 1000


def main() -> None:
    study = Study(HERE)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="ARM", help="arms of study.yaml; none: all")
    parser.add_argument("--seeds", nargs="*", type=int, metavar="N", help="their seeds; none: all")
    parser.add_argument("--puzzles", type=int, default=PUZZLES, help="test puzzles")
    given = parser.parse_args()
    if unknown := [name for name in given.only if name not in study.arms()]:
        parser.error(f"{unknown[0]}: no arm of study.yaml; known: {', '.join(study.arms())}")
    known = {(record["agent"], record["seed"]) for record in load(FILE)}
    for job in study.jobs():
        wanted = (not given.only or job.arm in given.only) and (not given.seeds or job.seed in given.seeds)
        votes = "task=arc" in study.arm(job.arm)["overrides"]  # scored by a vote over images, not puzzle by puzzle
        if wanted and not votes and (job.arm, job.seed) not in known and study.is_trained(study.place(job)):
            put(FILE, [measure(study, job, given.puzzles)], ["agent", "seed"])
    draw(HERE)


def measure(study: Study, job: Job, puzzles: int) -> Record:
    """The record of a trained run."""
    loaded = load_to_solve(study.place(job))
    model, task, threads = loaded.model, loaded.task, Threads(available_cores())
    kernel = choose_for_solving(model, "auto", puzzles, loaded.precision, loaded.info)
    validation, test = task.examples("validation", CHOOSING_PUZZLES), task.examples("test", puzzles)

    def sampler(samples: int, noise: float) -> SampledSolver:
        return SampledSolver(model, loaded.segments, samples, noise, 0, threads, loaded.precision)

    tried = []
    for noise in NOISE:
        scores = RunScores(task)
        sampler(CHOOSING_SAMPLES, noise).observed(validation, scores.add)
        tried.append({"noise": noise, **one_score(scores.summary())})
        print(job, tried[-1], flush=True)
    noise = best_level(tried)
    sampled, began = ByCount(task, SAMPLES), time.perf_counter()
    sampler(max(SAMPLES), noise).observed(test, sampled.add)
    sampling_seconds = time.perf_counter() - began
    began = time.perf_counter()
    deep = Solver(model, max(SAMPLES) * loaded.segments, None, threads, loaded.precision)
    depth = depths(deep, task, test, [count * loaded.segments for count in SAMPLES])
    record = {
        "agent": job.arm,
        "seed": job.seed,
        "puzzles": len(test),
        "segments": loaded.segments,
        "validation": {"puzzles": len(validation), "samples": CHOOSING_SAMPLES, "levels": tried},
        "noise": noise,
        "samples": {str(count): found for count, found in sampled.summary().items()},
        "depth": {str(count): found for count, found in depth.items()},
        "seconds": {"sampling": round(sampling_seconds, 1), "depth": round(time.perf_counter() - began, 1)},
        "kernel": kernel,
        "command": machine.command(),
        "machine": machine.machine(threads=threads.count),
        "commit": machine.commit_of_code(),
    }
    print(job, {count: found["surest"] for count, found in record["samples"].items()}, flush=True)
    return record


def one_score(summary: dict[str, Any]) -> dict[str, float]:
    """Of every way of choosing the one score by which puzzles are right."""
    return {way: scores.get("valid", scores["exact"]) for way, scores in summary.items()}


def best_level(tried: list[dict[str, float]]) -> float:
    """The level at which the surest run is right most often; of equals the least noise."""
    return max(tried, key=lambda level: (level["surest"], -level["noise"]))["noise"]


class ByCount:
    """Scores of the first of all runs, for several numbers of them."""

    def __init__(self, task: Task, counts: tuple[int, ...]) -> None:
        self.scores = {count: RunScores(task) for count in counts}

    def add(self, examples: Examples, runs: Runs) -> None:
        for count, scores in self.scores.items():
            scores.add(examples, Runs(runs.tokens[:count], runs.q_halt[:count]))

    def summary(self) -> dict[int, dict[str, Any]]:
        return {count: scores.summary() for count, scores in self.scores.items()}


def depths(solver: Solver, task: Task, examples: Examples, counts: list[int]) -> dict[int, dict[str, Any]]:
    """Without noise: right after so many segments (`last`), and at the one of them where the head is surest."""
    right: dict[int, dict[str, list[NDArray]]] = {count: {"last": [], "surest": []} for count in counts}
    for _, block in blocks(examples, solver.segments):
        answers = solver(block)
        for count, ways in right.items():
            surest = answers.q_halt[:count].argmax(0)
            tokens = {"last": answers.tokens[count - 1], "surest": answers.tokens[surest, np.arange(len(block))]}
            for way, found in tokens.items():
                ways[way].append(right_of(task.score(block, found)))
    return {
        count: {way: summarise({"right": np.concatenate(found)}) for way, found in ways.items()}
        for count, ways in right.items()
    }


if __name__ == "__main__":
    main()
