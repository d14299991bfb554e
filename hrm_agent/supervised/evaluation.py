"""Answers of a puzzle model after every segment, and scores of them with intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import without_compile
from hrm_agent.supervised.deep_supervision import autocast, to_batch
from hrm_agent.supervised.halting import HaltingRule, choose_rule, halt_early
from hrm_agent.supervised.losses import token_losses
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.noise import Noise
from hrm_agent.supervised.scores import format_likelihood, likelihood_report, summarise
from hrm_agent.supervised.streams import StreamSolver
from hrm_agent.supervised.tasks.base import Answers, Examples, Say, Task, say_nothing
from hrm_agent.supervised.tasks.text import TextTask
from hrm_agent.tensors import trees

EVALUATION_BATCH = 256
TOP = 10
"""Choices of an answer that is one, at most."""


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
        halting: None: all S segments are run, as published. Else the rule by which a puzzle halts; the name of a head
            (`halt_only`, `q_learning`) is its published rule. Halted puzzles are not computed any further.
        threads: threads that puzzles are divided over.
        precision: see `SupervisedConfig`.
        check_stop: called before every segment.
        cross_entropy: of which `Answers.nats` are, see `SupervisedConfig`; None: they are not asked for.
    """

    def __init__(
        self,
        model: PuzzleModel,
        segments: int,
        halting: HaltingRule | str | None = None,
        threads: Threads | None = None,
        precision: str = "float32",
        check_stop: CheckStop = never,
        cross_entropy: str | None = None,
    ) -> None:
        self.model, self.segments, self.precision = model, segments, precision
        self.halting = HaltingRule(halting) if isinstance(halting, str) else halting
        self.cross_entropy = cross_entropy
        self.check_stop = check_stop
        self.threads = threads or Threads(1)

    def __call__(self, examples: Examples) -> Answers:
        return self.run(examples)

    def run(self, examples: Examples, noise: Noise | None = None) -> Answers:
        """Answers to some puzzles.

        Args:
            noise: added to their latents before every segment.
        """
        largest = min(self.model.chunk_size or EVALUATION_BATCH, EVALUATION_BATCH)
        slices = self.threads.slices(len(examples), largest)
        with without_compile(self.model):  # compiled for training, whose batches have one shape
            parts = self.threads.map(
                lambda rows: self._solve(examples.rows(rows), None if noise is None else noise.rows(rows)), slices
            )
        tokens, q_halt, segments, q_continue, nats = zip(*parts, strict=True)
        by_segment = [np.concatenate(column, 1) for column in (tokens, q_halt, q_continue)]
        losses = None if self.cross_entropy is None else np.concatenate(nats, 1)
        return Answers(by_segment[0], by_segment[1], np.concatenate(segments), by_segment[2], losses)

    @torch.no_grad()
    def _solve(self, examples: Examples, noise: Noise | None = None) -> Answers:
        device = self.model.lm_head.weight.device
        batch = to_batch(examples, device)
        labels = batch.pop("labels").long()  # a model must not see them
        batch.pop("weights", None)
        count, length = examples.inputs.shape
        if self.model.one_choice:
            length = min(TOP, length * self.model.answer_ids)
        tokens = np.zeros((self.segments, count, length), np.int16)
        nats = None if self.cross_entropy is None else np.zeros((self.segments, count, length), np.float32)
        q = np.zeros((2, self.segments, count), np.float32)  # halt, continue
        used, stood = np.full(count, self.segments), np.zeros(count, np.int64)
        rows = np.arange(count)  # not halted
        state = self.model.initial_state(count)
        for segment in range(self.segments):
            self.check_stop()
            if noise is not None:
                state = noise.added_to(state, rows)
            with autocast(self.precision, device):
                state, logits, q_halt, q_continue = self.model(state, batch)
            if segment and len(rows) < count:
                tokens[segment], q[:, segment] = tokens[segment - 1], q[:, segment - 1]
                if nats is not None:
                    nats[segment] = nats[segment - 1]
            answers = self._answer(logits).cpu().numpy()
            if segment and self.halting is not None:
                same = self._same(answers, tokens[segment - 1, rows])
                stood[rows] = np.where(same, stood[rows] + 1, 0)
            tokens[segment, rows] = answers
            if nats is not None:
                assert self.cross_entropy is not None
                nats[segment, rows] = token_losses(logits, labels[rows], self.cross_entropy).cpu().numpy()
            q[:, segment, rows] = torch.stack([q_halt, q_continue]).float().cpu().numpy()
            if self.halting is None or segment == self.segments - 1:
                continue
            keep = ~self.halting.over(q[0, segment, rows], q[1, segment, rows], stood[rows])
            used[rows[~keep]] = segment + 1
            rows = rows[keep]
            if not len(rows):
                tokens[segment + 1 :], q[:, segment + 1 :] = tokens[segment], q[:, segment, None]
                if nats is not None:
                    nats[segment + 1 :] = nats[segment]
                break
            if not keep.all():
                state, batch = trees.rows((state, batch), torch.from_numpy(keep).to(device))
        return Answers(tokens, q[0], used, q[1], nats)

    def _same(self, answers: NDArray, before: NDArray) -> NDArray:
        """Whether answers are those of the segment before, bool `[B]`; where an answer is one choice, that one is."""
        last = 1 if self.model.one_choice else None
        same: NDArray = (answers[:, :last] == before[:, :last]).all(1)
        return same

    def _answer(self, logits: Tensor) -> Tensor:
        """int64[B, L] or [B, T]; see `Answers.tokens`."""
        if not self.model.one_choice:
            return logits.argmax(-1)
        flat = logits.flatten(1)
        return flat.topk(min(TOP, flat.shape[1])).indices


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
    halting: HaltingRule | str | None = "halt_only",
    curves: bool = True,
    own: bool = True,
    stopping: Answering | None = None,
    choose: bool = False,
    answers: Answers | None = None,
    say: Say = say_nothing,
) -> dict[str, Any]:
    """Scores of a model on the first `count` puzzles of a split, after all segments.

    Args:
        halting: rule for the scores under `halted`; the name of a head is its published rule; None: they are left out.
        curves: report the scores after every segment, and what later segments repaired.
        own: report the task's own evaluation, which may take much longer.
        stopping: a solver that halts, run for `halted`; None: `halted` is derived from all answers (`halt_early`).
        choose: choose the rule on these puzzles (`hrm_agent.supervised.halting.choose_rule`); needs `curves`.
        answers: of the solver to these puzzles, where they are known already.
        say: says what the task's own evaluation does.

    Returns:
        For every score of the task (`exact`, `cells`, perhaps more) its mean and `NAME_ci95`: Wilson's interval of a
        yes-or-no score, the normal one of a fraction. Then `puzzles`, `segments`; `q_halt_accuracy`, of the last
        `q_halt` as a predictor of `exact`; `halted`: the same scores and mean segments with halting at inference, its
        `rule`, the fractions of puzzles that it `lost` and `gained` (right after all segments and wrong as halted, and
        vice versa), and where the rule is another than the published one, the scores of that one under `published`;
        `curves` by score, a list over segments; `repaired` and `spoiled`: fractions of the puzzles that were wrong
        after the first segment and right after the last, and vice versa; `task`: the task's own evaluation, where it
        has one. Of a task scored by probability what `likelihood_report` says in place of all but the first.
    """
    examples = task.examples(split, count)
    answers = solver(examples) if answers is None else answers
    report: dict[str, Any] = {"split": split, "puzzles": len(examples), "segments": solver.segments}
    if answers.nats is not None:
        return report | likelihood_report(task, examples, answers)
    after = [task.score(examples, tokens) for tokens in answers.tokens] if curves else []
    scores = after[-1] if after else task.score(examples, answers.last)
    rule = HaltingRule(halting) if isinstance(halting, str) else halting
    if choose and rule is not None:
        rule = choose_rule(answers, np.array([right_of(s) for s in after]), rule.head, task.spec.choices > 0)
    report |= summarise(scores)
    report["q_halt_accuracy"] = float(((answers.q_halt[-1] > 0) == scores["exact"]).mean())
    if rule is not None:
        stopped = stopping(examples) if stopping else None
        report["halted"] = halted_scores(task, examples, answers, rule, stopped)
    if curves:
        report["curves"] = {name: [float(s[name].mean()) for s in after] for name in scores}
        right = [right_of(s) for s in after]
        report["repaired"] = float((~right[0] & right[-1]).mean())
        report["spoiled"] = float((right[0] & ~right[-1]).mean())
    by_task = task.evaluate(solver, split, count, say) if own else None
    if by_task is not None:
        report["task"] = by_task
    return report


def right_of(scores: dict[str, NDArray]) -> NDArray:
    """Which puzzles are right, bool `[N]`: by the rules where the task knows them, else as the label says."""
    return np.asarray(scores.get("valid", scores["exact"]), bool)


def halted_scores(
    task: Task, examples: Examples, answers: Answers, rule: HaltingRule, stopped: Answers | None = None
) -> dict[str, Any]:
    """The entries of `halted`, see `evaluate_model`.

    Args:
        answers: after every segment.
        stopped: by the rule, where they have been computed; None: they follow from `answers`.
    """
    one_choice = task.spec.choices > 0
    stopped = halt_early(answers, rule, one_choice) if stopped is None else stopped
    scores = task.score(examples, stopped.last)
    before, after = right_of(task.score(examples, answers.last)), right_of(scores)
    found = {
        **summarise(scores),
        "segments": float(stopped.segments.mean()),
        "rule": asdict(rule),
        "lost": float((before & ~after).mean()),
        "gained": float((~before & after).mean()),
    }
    if not rule.is_published:
        published = halt_early(answers, HaltingRule(rule.head), one_choice)
        found["published"] = {
            **summarise(task.score(examples, published.last)), "segments": float(published.segments.mean())
        }  # fmt: skip
    return found


def format_report(report: dict[str, Any]) -> str:
    """A report as a few lines for the terminal."""
    if "bits" in report:
        return format_likelihood(report)
    halted = report.get("halted")  # not of noisy runs
    lines = [f"{report['puzzles']} {report['split']} puzzles, {report['segments']} segments each"]
    names = [key for key in report if f"{key}_ci95" in report]
    width = max(len("segments"), *map(len, names))
    for name in names:
        low, high = report[f"{name}_ci95"]
        beside = f"   halting by itself: {halted[name]:.3f}" if halted else ""
        lines.append(f"  {in_words(name):<{width}} {report[name]:.3f} [{low:.3f}, {high:.3f}]{beside}")
    if halted:
        segments = f"{report['segments']:.1f}"
        lines.append(f"  {'segments':<{width}} {segments:<22} halting by itself: {halted['segments']:.1f}")
        lines += format_halting(halted)
    if "ms_per_puzzle" in report:
        timed = f"{halted['ms_per_puzzle']:8.3f}" if halted and "ms_per_puzzle" in halted else "not timed"
        beside = f"          halting by itself: {timed}" if halted else ""
        lines.append(f"  ms a puzzle {report['ms_per_puzzle']:8.3f}{beside}")
    if "curves" in report:
        name = "valid" if "valid" in report["curves"] else "exact"
        curve = "  ".join(f"{value:.3f}" for value in report["curves"][name])
        lines += [f"  {name} after each segment: {curve}"]
        lines += [f"  wrong after the first segment and right in the end: {report['repaired']:.3f}"]
    if "sampling" in report:
        lines += format_sampling(report["sampling"], report["segments"])
    own = report.get("task", {})  # what a task says in words, else its numbers
    for kind in (str, int | float):
        if found := {name: value for name, value in own.items() if isinstance(value, kind)}:
            return "\n".join([*lines, *(f"  {in_words(name)}: {value}" for name, value in found.items())])
    return "\n".join(lines)


def in_words(name: str) -> str:
    """A score's name for the terminal."""
    return name.replace("_", " ")


def format_halting(halted: dict[str, Any]) -> list[str]:
    """Lines on the rule, what it costs, and what the published one would have given."""
    if "rule" not in halted:  # a record from before rules were chosen
        return []
    lines = [
        f"  halts where {HaltingRule(**halted['rule'])}",
        f"  against all segments: {halted['lost']:.3f} right no more, {halted['gained']:.3f} right by it",
    ]
    if (published := halted.get("published")) is not None:
        name = "valid" if "valid" in published else "exact"
        lines.append(f"  by the published rule: {name} {published[name]:.3f} in {published['segments']:.1f} segments")
    return lines


def format_sampling(sampling: dict[str, Any], segments: int) -> list[str]:
    """Lines on noisy runs: what each way of choosing among them gives, and as many segments without noise."""
    samples, many = sampling["samples"], sampling["segments"]
    lines = [f"  {samples} noisy runs of each puzzle, noise {sampling['noise']:g}, seed {sampling['seed']}"]
    said = {
        "one_run": "one run, on average",
        "surest": f"the surest of {samples}",
        "most_frequent": f"the most frequent answer of {samples}",
        "any_run": f"the best of {samples}, if one knew",
        "noiseless": f"no noise, {segments} segments",
        "more_segments": f"no noise, {many} segments",
        "surest_segment": f"no noise, the surest of {many} segments",
    }
    for way, words in said.items():
        if way in sampling:
            scores = [f"{in_words(n)} {v:.3f}" for n, v in sampling[way].items() if not n.endswith("_ci95")]
            lines.append(f"    {words:<40} {'  '.join(scores)}")
    return lines
