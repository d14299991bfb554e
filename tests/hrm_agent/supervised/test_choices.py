"""Puzzles whose answer is one choice of a token and an id, under one distribution over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised import ModelConfig, PuzzleModel
from hrm_agent.supervised.deep_supervision import DeepSupervision, SupervisedConfig, to_batch
from hrm_agent.supervised.evaluation import Solver, evaluate_model
from hrm_agent.supervised.files import build_model
from hrm_agent.supervised.losses import CROSS_ENTROPIES, choice_loss, puzzle_loss, soft_cross_entropy
from hrm_agent.supervised.saved import check_batch
from hrm_agent.supervised.tasks.base import Examples, Task, TaskSpec
from puzzles import TRM

SPEC = TaskSpec(sequence_length=6, input_ids=5, answer_ids=3, grid=(2, 3), choices=6)
PLAIN = SupervisedConfig(batch_size=5, max_segments=3, learning_rate=1e-2, warmup=0, weight_decay=0.0, ema=0.9)


class Pointing(Task):
    """Choose one of the tokens with the largest input, with id 2; all of them are equally good."""

    spec = SPEC

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        inputs = generator.integers(0, 5, (count, 6), dtype=np.int32)
        best = inputs == inputs.max(1, keepdims=True)
        labels = np.where(best, np.arange(6) * 3 + 2, -100).astype(np.int32)
        weights = (best / best.sum(1, keepdims=True)).astype(np.float32)
        return Examples(inputs, labels, np.zeros(count, np.int32), weights)

    def examples(self, split: str, count: int) -> Examples:
        return self.draw(np.random.default_rng(len(split)), count)


def make_model(spec: TaskSpec = SPEC, seed: int = 0, **config: Any) -> PuzzleModel:
    torch.manual_seed(seed)
    model = build_model(ModelConfig("trm", TRM, 8, **config), spec)
    with torch.no_grad():  # zero at first, and then no puzzle halts
        model.halting_head.weight.normal_()
        model.halting_head.bias.zero_()
    return model


def learner(config: SupervisedConfig = PLAIN, threads: int = 1, seed: int = 0) -> DeepSupervision:
    return DeepSupervision(make_model(seed=seed), config, Pointing().draw, 0, Threads(threads))


def soft_loss_slowly(logits: Tensor, targets: Tensor, cross_entropy: str) -> Tensor:
    """Per-row cross-entropy in double precision, with autograd's own gradient."""
    x = logits.double()
    s = x.exp() if cross_entropy == "softmax" else torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    return -(targets.double() * (s / s.sum(-1, keepdim=True)).log()).sum(-1)


@pytest.mark.parametrize("cross_entropy", CROSS_ENTROPIES)
def test_soft_targets_have_the_loss_and_gradient_of_their_formula(cross_entropy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 11, generator=generator)
    targets = torch.rand(7, 11, generator=generator).softmax(-1)
    ours, slow = (logits.clone().requires_grad_() for _ in range(2))
    found, expected = soft_cross_entropy(ours, targets, cross_entropy), soft_loss_slowly(slow, targets, cross_entropy)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    scale = torch.arange(1.0, 8.0)
    (found * scale).sum().backward()
    (expected * scale).sum().backward()
    torch.testing.assert_close(ours.grad, slow.grad, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31 - 1), st.sampled_from(CROSS_ENTROPIES))
def test_one_sure_choice_is_a_label_among_all_tokens_and_ids(seed: int, cross_entropy: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, q = 2 * torch.randn(4, 6, 3, generator=generator), torch.randn(4, generator=generator)
    chosen = torch.randint(18, (4, 1), generator=generator)
    labels = F.pad(chosen, (1, 2), value=-100)
    found = choice_loss(logits, q, labels, (labels >= 0).float(), q, q.sigmoid(), cross_entropy)
    expected = puzzle_loss(logits.flatten(1)[:, None], q, chosen, q, q.sigmoid(), cross_entropy)
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_any_of_the_best_labels_is_exact_and_no_other() -> None:
    labels, weights = torch.tensor([[4, 7, 1, -100]] * 5), torch.tensor([[0.4, 0.4, 0.2, 0.0]] * 5)
    logits = torch.zeros(5, 6, 3)
    for row, choice in enumerate([4, 7, 1, 0, 17]):
        logits.view(5, 18)[row, choice] = 1.0
    loss = choice_loss(logits, torch.zeros(5), labels, weights)
    assert loss.exact.tolist() == [True, True, False, False, False]
    assert loss.right.tolist() == [1, 1, 0, 0, 0]
    assert loss.labelled.tolist() == [1] * 5
    targets = torch.zeros(5, 18).scatter_(1, labels.clamp(min=0), weights)
    slow = soft_loss_slowly(logits.flatten(1), targets, "stablemax")
    assert float(loss.answers) == pytest.approx(float(slow.sum()), rel=1e-5)


def test_answers_are_in_order_of_probability() -> None:
    model, examples = make_model().eval(), Pointing().examples("test", 9)
    answers = Solver(model, 2)(examples)
    assert answers.tokens.shape == (2, 9, 10)
    assert answers.tokens.dtype == np.int16
    state, batch = model.initial_state(9), to_batch(examples, torch.device("cpu"))
    with torch.no_grad():
        for segment in range(2):
            state, logits, _, _ = model(state, batch)
            order = logits.flatten(1).argsort(dim=1, descending=True)[:, :10]
            assert (answers.tokens[segment] == order.numpy()).all()
    few = TaskSpec(sequence_length=6, input_ids=5, answer_ids=1, grid=(2, 3), choices=1)
    tokens = Solver(make_model(few).eval(), 1)(examples).last
    assert (np.sort(tokens, 1) == np.arange(6)).all()


def test_the_labels_and_their_weights_are_not_shown() -> None:
    model, examples = make_model().eval(), Pointing().examples("test", 7)
    assert examples.weights is not None
    shown = examples.labels[::-1].copy(), examples.puzzle_identifiers, examples.weights[::-1].copy()
    other = Examples(examples.inputs, *shown)
    assert (Solver(model, 2)(examples).tokens == Solver(model, 2)(other).tokens).all()


def test_scores_read_the_first_one_three_and_five() -> None:
    labels, weights = np.array([[4, 7, 1]] * 4), np.array([[0.45, 0.45, 0.1]] * 4, np.float32)
    answers = np.array([[7, 1, 0, 2, 3, 4], [1, 0, 4, 2, 3, 5], [1, 0, 2, 3, 7, 5], [1, 0, 2, 3, 5, 7]])
    blank = np.zeros((4, 6), np.int32)
    scores = Pointing().score(Examples(blank, labels, blank[:, 0], weights), answers)
    assert scores["exact"].tolist() == [True, False, False, False]
    assert scores["top_3"].tolist() == [True, True, False, False]
    assert scores["top_5"].tolist() == [True, True, True, False]
    swapped = labels[:, [2, 0, 1]], weights[:, [2, 0, 1]]
    again = Pointing().score(Examples(blank, swapped[0], blank[:, 0], swapped[1]), answers)
    assert all((scores[name] == again[name]).all() for name in scores)


def test_it_learns_and_the_report_says_so() -> None:
    ours = learner(dataclasses.replace(PLAIN, batch_size=64))
    for _ in range(150):
        ours.step(0.0)
    with ours.averaged() as model:
        report = evaluate_model(Solver(model, 3), Pointing(), "test", 200)
    assert report["exact"] > 0.8  # chance is 0.1
    assert report["exact"] <= report["top_3"] <= report["top_5"]
    assert report["curves"]["top_5"][-1] == report["top_5"]


def test_going_on_from_a_checkpoint_changes_nothing() -> None:
    whole, first, second = learner(), learner(), learner(seed=1)
    for _ in range(8):
        whole.step(0.0)
    for _ in range(4):
        first.step(0.0)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, first.metadata())
    for _ in range(4):
        second.step(0.0)
    one, other = whole.tensors(), second.tensors()
    assert "batch/weights" in one
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_split_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learner()
    monkeypatch.setattr(PuzzleModel, "chunk_size", 2)
    parts = learner(threads=2)
    for _ in range(4):
        assert whole.step(0.0) == pytest.approx(parts.step(0.0), rel=1e-4, abs=1e-6)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def a_choice_beyond_the_last(batch: dict[str, Tensor]) -> None:
    batch["labels"][0, 0] = 18


def no_weights(batch: dict[str, Tensor]) -> None:
    del batch["weights"]


def a_negative_weight(batch: dict[str, Tensor]) -> None:
    batch["weights"][1, 2] = -0.5


def a_weight_that_is_none(batch: dict[str, Tensor]) -> None:
    batch["weights"][1, 2] = float("nan")


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (a_choice_beyond_the_last, "batch labels: 18 is not from 0 to 17"),
        (no_weights, "batch weights is missing"),
        (a_negative_weight, "batch weights: -0.5 is not from 0 to 1"),
        (a_weight_that_is_none, "batch weights has entries that are NaN"),
    ],
)
def test_a_saved_batch_that_no_run_has_is_refused(forge: Callable[[dict[str, Tensor]], None], message: str) -> None:
    batch = to_batch(Pointing().examples("test", 4), torch.device("cpu"))
    check_batch(batch, SPEC, 4)
    forge(batch)
    with pytest.raises(ValueError, match=message):
        check_batch(batch, SPEC, 4)


@pytest.mark.parametrize(("length", "ids", "choices"), [(6, 3, 19), (6, 3, -1), (400, 100, 1)])
def test_choices_that_cannot_be_are_refused(length: int, ids: int, choices: int) -> None:
    with pytest.raises(ValueError, match=f"choices={choices} of {length} tokens x {ids} answer ids"):
        TaskSpec(length, 5, ids, choices=choices)


def test_a_cropped_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="crop=1: the answer is a choice among all cells"):
        make_model(dataclasses.replace(SPEC, grid=(3, 2)), crop=1)


def test_rows_keep_their_weights() -> None:
    some = Pointing().examples("test", 9).rows(slice(2, 5))
    assert some.weights is not None
    assert len(some.weights) == len(some) == 3
    assert ((some.weights > 0) == (some.labels >= 0)).all()
