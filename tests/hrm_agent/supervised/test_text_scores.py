"""Bits and perplexity of a text model equal an independent computation, after every segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrm_agent.supervised.evaluation import Solver, evaluate_model, format_report
from hrm_agent.supervised.files import check_answerable
from hrm_agent.supervised.losses import log_probabilities, token_losses
from hrm_agent.supervised.scores import likelihood_report
from hrm_agent.supervised.tasks.base import Answers, Examples
from hrm_agent.supervised.tasks.text import TextTask
from puzzles import Copying, make_model
from texts import CHARACTERS, CONTEXT, make_carried, make_causal, write_text


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TextTask:
    return TextTask(path=str(write_text(tmp_path_factory.mktemp("text"))), context=CONTEXT)


def probability(scores: np.ndarray, cross_entropy: str) -> np.ndarray:
    """In double precision, by the definitions."""
    if cross_entropy == "softmax":
        weights = np.exp(scores)
    else:
        weights = np.array([x + 1 if x >= 0 else 1 / (1 - x) for x in scores.ravel()]).reshape(scores.shape)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("cross_entropy", ["softmax", "stablemax"])
@torch.no_grad()
def test_perplexity_equals_an_independent_computation(task: TextTask, cross_entropy: str) -> None:
    model, examples = make_causal(), task.examples("validation", 3)
    assert "".join(CHARACTERS[token] for token in task.stream("validation").inputs[:CONTEXT])
    report = evaluate_model(Solver(model, 2, cross_entropy=cross_entropy), task, "validation", 3)
    state, product, right, bits = model.initial_state(1), [0.0, 0.0], 0, []
    for inputs, labels in zip(examples.inputs, examples.labels, strict=True):
        state = model.initial_state(1)
        batch = {"inputs": torch.from_numpy(inputs)[None], "puzzle_identifiers": torch.zeros(1, dtype=torch.int32)}
        for segment in range(2):
            state, logits, _, _ = model(state, batch)
            chances = probability(logits[0].double().numpy(), cross_entropy)[range(CONTEXT), labels]
            product[segment] -= float(np.log2(chances).sum())
        bits.append(-np.log2(chances).mean())
        right += int((logits[0].argmax(-1).numpy() == labels).sum())
    count = 3 * CONTEXT
    assert report["tokens"] == count
    assert report["bits"] == pytest.approx(product[1] / count, rel=1e-4)
    assert report["nats"] == pytest.approx(product[1] / count * np.log(2), rel=1e-4)
    assert report["perplexity"] == pytest.approx(2 ** (product[1] / count), rel=1e-3)
    assert report["likelihood"] == pytest.approx(1 / report["perplexity"])
    assert report["curves"]["bits"] == pytest.approx([bits / count for bits in product], rel=1e-4)
    assert report["cells"] == pytest.approx(right / count)
    half = 1.96 * np.std(bits) / 3**0.5
    assert report["bits_ci95"] == pytest.approx([report["bits"] - half, report["bits"] + half], rel=1e-3)
    lines = format_report(report)
    assert lines.startswith(f"{count} validation characters in 3 windows, 2 segments\n")
    assert f"{report['bits']:.3f} [" in lines
    assert "bits by segments: " in lines


@pytest.mark.parametrize("unit", ["character", "byte"])
def test_scores_are_of_what_a_token_is(unit: str, tmp_path: Path) -> None:
    task = TextTask(path=str(write_text(tmp_path)), tokens=f"{unit}s", context=CONTEXT)
    nats = np.full((1, 3, CONTEXT), 1.5, np.float32)
    answers = Answers(np.zeros((1, 3, CONTEXT), np.int16), np.zeros((1, 3)), np.ones(3, np.int64), nats=nats)
    report = {
        "split": "test",
        "puzzles": 3,
        "segments": 1,
        **likelihood_report(task, task.examples("test", 3), answers),
    }
    first, bits, natural, perplexity, *_ = format_report(report).splitlines()
    assert first == f"18 test {unit}s in 3 windows, 1 segment"
    assert all(line.endswith(f"] per {unit}") for line in (bits, natural, perplexity))
    assert "token" not in format_report(report)


@pytest.mark.parametrize("cross_entropy", ["softmax", "stablemax"])
def test_logarithms_of_probabilities(cross_entropy: str) -> None:
    logits = 5 * torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12).view(4, 3) % 7
    logs = log_probabilities(logits, cross_entropy)
    np.testing.assert_allclose(logs.exp().sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(logs.exp(), probability(logits.double().numpy(), cross_entropy), rtol=1e-4)
    picked = logs.gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(token_losses(logits, labels, cross_entropy), -picked, rtol=1e-4, atol=1e-5)


def test_a_mean_of_nats_may_be_above_one_and_its_interval_too(task: TextTask) -> None:
    class Uniform:
        segments = 1

        def __call__(self, examples: Examples) -> Answers:
            nats = np.linspace(1, 3, examples.labels.size, dtype=np.float32).reshape(1, *examples.labels.shape)
            nothing = np.zeros((1, len(examples)), np.float32)
            return Answers(examples.labels[None].astype(np.int16), nothing, np.ones(len(examples), np.int64), nats=nats)

    report = evaluate_model(Uniform(), task, "test", 3)
    assert report["nats"] == pytest.approx(2, abs=1e-6)
    assert report["nats_ci95"][0] < 2 < report["nats_ci95"][1]
    assert report["cells"] == 1
    assert "halted" not in report


def test_puzzles_are_scored_as_before() -> None:
    report = evaluate_model(Solver(make_model(), 2), Copying(), "test", 4)
    assert "bits" not in report
    assert {"halted", "repaired", "q_halt_accuracy"} <= report.keys()


@pytest.mark.parametrize(
    "options", [{"causal": False}, {"core": "feedforward", "causal": False}], ids=["trm", "feedforward"]
)
def test_a_core_that_sees_the_answer_is_refused(task: TextTask, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whose tokens see the one that follows, which is the answer"):
        check_answerable(make_causal(**options), task)
    check_answerable(make_causal(), task)
    check_answerable(make_carried(), task)
