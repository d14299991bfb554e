"""Means of scores with their intervals; and scores by probability: nats, bits and perplexity per character or byte."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.supervised.tasks.base import Answers, Examples, Task

BITS = 1 / math.log(2)
"""Of a nat."""
UNBOUNDED = ("nats", "bits")
"""Scores that may be above 1; the lower the better."""


def summarise(scores: dict[str, NDArray]) -> dict[str, Any]:
    """Mean and 95% interval of each score `[N]`; see `evaluate_model`."""
    summary: dict[str, Any] = {}
    for name, values in scores.items():
        mean, count = float(values.mean()), len(values)
        if values.dtype == bool:
            interval = list(wilson_interval(int(values.sum()), count))
        else:
            half = 1.96 * float(values.std()) / count**0.5
            interval = [max(0.0, mean - half), mean + half if name in UNBOUNDED else min(1.0, mean + half)]
        summary |= {name: mean, f"{name}_ci95": interval}
    return summary


def likelihood_report(task: Task, examples: Examples, answers: Answers) -> dict[str, Any]:
    """Scores of answers with `Answers.nats`, as JSON.

    Returns:
        `tokens`, their number, and `unit`, what they are (`TaskSpec.unit`). After the last segment `nats` and `bits`,
        means over all tokens of minus the logarithm of the label's probability; `perplexity`, e to the power of `nats`;
        `cells` and `exact` of `Task.score`; each with `NAME_ci95`, the normal interval over examples (of `exact`
        Wilson's). `likelihood`, the geometric mean of the probabilities, which is 1 at best. `curves`: these scores
        after every segment.
    """
    assert answers.nats is not None
    after: list[dict[str, NDArray]] = []
    for tokens, losses in zip(answers.tokens, answers.nats, strict=True):
        nats = losses.mean(-1, dtype=np.float64)  # of examples, which are of equal length
        after.append({"nats": nats, "bits": BITS * nats, **task.score(examples, tokens)})
    report: dict[str, Any] = {"tokens": int(examples.labels.size), "unit": task.spec.unit, **summarise(after[-1])}
    report["perplexity"] = math.exp(report["nats"])
    report["perplexity_ci95"] = [math.exp(bound) for bound in report["nats_ci95"]]
    report["likelihood"] = math.exp(-report["nats"])
    report["curves"] = {name: [float(scores[name].mean()) for scores in after] for name in after[-1]}
    return report


def format_likelihood(report: dict[str, Any]) -> str:
    """A report as a few lines for the terminal."""
    unit, segments = report["unit"], report["segments"]
    windows = f"{report['puzzles']:,} windows, {segments} segment" + "s" * (segments > 1)
    lines = [f"{report['tokens']:,} {report['split']} {unit}s in {windows}"]
    per = f"per {unit}"
    for name, what in (("bits", per), ("nats", per), ("perplexity", per), ("cells", "most probable")):
        low, high = report[f"{name}_ci95"]
        lines.append(f"  {name:<10} {report[name]:.3f} [{low:.3f}, {high:.3f}] {what}".rstrip())
    if "ms_per_puzzle" in report:
        lines.append(f"  ms a window {report['ms_per_puzzle']:.3f}")
    if report["segments"] > 1:
        lines.append("  bits by segments: " + "  ".join(f"{bits:.3f}" for bits in report["curves"]["bits"]))
    return "\n".join(lines)
