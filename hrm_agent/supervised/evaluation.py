"""Answers of a puzzle model after every segment, and scores of them with intervals."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import without_compile
from hrm_agent.supervised.deep_supervision import autocast, to_batch
from hrm_agent.supervised.losses import token_losses
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.scores import format_likelihood, likelihood_report, summarise
from hrm_agent.supervised.streams import StreamSolver
from hrm_agent.supervised.tasks.base import Answers, Examples, Task
from hrm_agent.supervised.tasks.text import TextTask
from hrm_agent.tensors import trees

EVALUATION_BATCH = 256


class Answering(Protocol):
    """Answers examples after each of some segments."""

    segments: int

    def __call__(self, examples: Examples) -> Answers: ...


class AnySolver(Answering, Protocol):
    """The same, with a model."""

    threads: Threads
    precision: str
    check_stop: CheckStop


class Solver:
    """Runs a model on puzzles: `solver(examples) -> Answers`.

    Args:
        model: never changed here.
        segments: S, of every puzzle; at most, where puzzles may halt.
        halting: None: all S segments are run, as published. `halt_only`: a puzzle halts when its `q_halt` is above 0;
            `q_learning`: above its `q_continue`. Halted puzzles are not computed any further.
        threads: threads that puzzles are divided over.
        precision: see `SupervisedConfig`.
        check_stop: called before every segment.
        cross_entropy: of which `Answers.nats` are, see `SupervisedConfig`; None: they are not asked for.
    """

    def __init__(
        self,
        model: PuzzleModel,
        segments: int,
        halting: str | None = None,
        threads: Threads | None = None,
        precision: str = "float32",
        check_stop: CheckStop = never,
        cross_entropy: str | None = None,
    ) -> None:
        self.model, self.segments, self.halting, self.precision = model, segments, halting, precision
        self.cross_entropy = cross_entropy
        self.check_stop = check_stop
        self.threads = threads or Threads(1)

    def __call__(self, examples: Examples) -> Answers:
        largest = min(self.model.chunk_size or EVALUATION_BATCH, EVALUATION_BATCH)
        slices = self.threads.slices(len(examples), largest)
        with without_compile(self.model):  # compiled for training, whose batches have one shape
            parts = self.threads.map(lambda rows: self._solve(examples.rows(rows)), slices)
        tokens, q_halt, segments, q_continue, nats = zip(*parts, strict=True)
        by_segment = [np.concatenate(column, 1) for column in (tokens, q_halt, q_continue)]
        losses = None if self.cross_entropy is None else np.concatenate(nats, 1)
        return Answers(by_segment[0], by_segment[1], np.concatenate(segments), by_segment[2], losses)

    @torch.no_grad()
    def _solve(self, examples: Examples) -> Answers:
        device = self.model.lm_head.weight.device
        batch = to_batch(examples, device)
        labels = batch.pop("labels").long()  # a model must not see them
        count, length = examples.inputs.shape
        tokens = np.zeros((self.segments, count, length), np.int16)
        nats = None if self.cross_entropy is None else np.zeros((self.segments, count, length), np.float32)
        q = np.zeros((2, self.segments, count), np.float32)  # halt, continue
        used = np.full(count, self.segments)
        rows = np.arange(count)  # not halted
        state = self.model.initial_state(count)
        for segment in range(self.segments):
            self.check_stop()
            with autocast(self.precision, device):
                state, logits, q_halt, q_continue = self.model(state, batch)
            if segment and len(rows) < count:
                tokens[segment], q[:, segment] = tokens[segment - 1], q[:, segment - 1]
                if nats is not None:
                    nats[segment] = nats[segment - 1]
            tokens[segment, rows] = logits.argmax(-1).cpu().numpy()
            if nats is not None:
                assert self.cross_entropy is not None
                nats[segment, rows] = token_losses(logits, labels[rows], self.cross_entropy).cpu().numpy()
            q[:, segment, rows] = torch.stack([q_halt, q_continue]).float().cpu().numpy()
            if self.halting is None or segment == self.segments - 1:
                continue
            on = q_halt <= (q_continue if self.halting == "q_learning" else 0)
            keep = on.cpu().numpy()
            used[rows[~keep]] = segment + 1
            rows = rows[keep]
            if not len(rows):
                tokens[segment + 1 :], q[:, segment + 1 :] = tokens[segment], q[:, segment, None]
                if nats is not None:
                    nats[segment + 1 :] = nats[segment]
                break
            if not keep.all():
                state, batch = trees.rows((state, batch), on)
        return Answers(tokens, q[0], used, q[1], nats)


def solver_of(
    model: PuzzleModel | Policy, task: Task, split: str, segments: int, cross_entropy: str, lanes: int = 1
) -> AnySolver:
    """What answers a task's examples with a model: `StreamSolver` for a policy, else `Solver`.

    Args:
        segments, lanes: see these.
        cross_entropy: see `SupervisedConfig`.
    """
    if not isinstance(model, Policy):
        return Solver(model, segments, cross_entropy=cross_entropy if task.by_probability else None)
    assert isinstance(task, TextTask)
    return StreamSolver(model, segments, task.begins(split), cross_entropy, lanes)


def evaluate_model(
    solver: Answering,
    task: Task,
    split: str,
    count: int,
    halting: str = "halt_only",
    curves: bool = True,
    own: bool = True,
    stopping: Answering | None = None,
) -> dict[str, Any]:
    """Scores of a model on the first `count` puzzles of a split, after all segments.

    Args:
        halting: rule for the scores under `halted`.
        curves: report the scores after every segment, and what later segments repaired.
        own: report the task's own evaluation, which may take much longer.
        stopping: a solver that halts, run for `halted`; None: `halted` is derived from all answers (`halt_early`).

    Returns:
        For every score of the task (`exact`, `cells`, perhaps more) its mean and `NAME_ci95`: Wilson's interval of a
        yes-or-no score, the normal one of a fraction. Then `puzzles`, `segments`; `q_halt_accuracy`, of the last
        `q_halt` as a predictor of `exact`; `halted`: the same scores and mean segments with halting at inference;
        `curves` by score, a list over segments; `repaired` and `spoiled`: fractions of the puzzles that were wrong
        after the first segment and right after the last, and vice versa; `task`: the task's own evaluation, where it
        has one. Of a task scored by probability what `likelihood_report` says in place of all but the first.
    """
    examples = task.examples(split, count)
    answers = solver(examples)
    report: dict[str, Any] = {"split": split, "puzzles": len(examples), "segments": solver.segments}
    if answers.nats is not None:
        return report | likelihood_report(task, examples, answers)
    after = [task.score(examples, tokens) for tokens in answers.tokens] if curves else []
    scores = after[-1] if after else task.score(examples, answers.last)
    report |= summarise(scores)
    report["q_halt_accuracy"] = float(((answers.q_halt[-1] > 0) == scores["exact"]).mean())
    stopped = stopping(examples) if stopping else halt_early(answers, halting)
    report["halted"] = {**summarise(task.score(examples, stopped.last)), "segments": float(stopped.segments.mean())}
    if curves:
        report["curves"] = {name: [float(s[name].mean()) for s in after] for name in scores}
        right = [np.asarray(s.get("valid", s["exact"]), bool) for s in after]
        report["repaired"] = float((~right[0] & right[-1]).mean())
        report["spoiled"] = float((right[0] & ~right[-1]).mean())
    by_task = task.evaluate(solver, split, count) if own else None
    if by_task is not None:
        report["task"] = by_task
    return report


def halt_early(answers: Answers, halting: str) -> Answers:
    """Answers as they would be if puzzles halted by a rule (see `Solver`), from those after every segment."""
    margin = answers.q_halt
    if halting == "q_learning":
        assert answers.q_continue is not None
        margin = margin - answers.q_continue
    over = margin > 0
    at = np.where(over.any(0), over.argmax(0), len(margin) - 1)
    rows = np.arange(len(at))
    return Answers(answers.tokens[at, rows][None], answers.q_halt[at, rows][None], at + 1)


def format_report(report: dict[str, Any]) -> str:
    """A report as a few lines for the terminal."""
    if "bits" in report:
        return format_likelihood(report)
    halted = report["halted"]
    lines = [f"{report['puzzles']} {report['split']} puzzles, {report['segments']} segments each"]
    for name in [key for key in report if f"{key}_ci95" in report]:
        low, high = report[f"{name}_ci95"]
        lines.append(f"  {name:<8} {report[name]:.3f} [{low:.3f}, {high:.3f}]   halting by itself: {halted[name]:.3f}")
    lines.append(f"  segments {report['segments']:.1f}                  halting by itself: {halted['segments']:.1f}")
    if "ms_per_puzzle" in report:
        halting = f"{halted['ms_per_puzzle']:8.3f}" if "ms_per_puzzle" in halted else "not timed"
        lines.append(f"  ms a puzzle {report['ms_per_puzzle']:8.3f}          halting by itself: {halting}")
    if "curves" in report:
        name = "valid" if "valid" in report["curves"] else "exact"
        curve = "  ".join(f"{value:.3f}" for value in report["curves"][name])
        lines += [f"  {name} after each segment: {curve}"]
        lines += [f"  wrong after the first segment and right in the end: {report['repaired']:.3f}"]
    for name, value in report.get("task", {}).items():
        if isinstance(value, int | float | str):
            lines.append(f"  {name}: {value}")
    return "\n".join(lines)
