"""When puzzles halt: rules, how one is chosen, and training that waits until answers stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised import ModelConfig, PuzzleModel
from hrm_agent.supervised.deep_supervision import DeepSupervision, SupervisedConfig
from hrm_agent.supervised.evaluation import Solver, evaluate_model, format_report
from hrm_agent.supervised.files import build_model, halting_rule_of
from hrm_agent.supervised.halting import (
    TOLERANCE,
    HaltingRule,
    candidates,
    choose_rule,
    halt_early,
    halting_segments,
)
from hrm_agent.supervised.published import export_published
from hrm_agent.supervised.tasks.base import Answers, Examples, TaskSpec
from puzzles import SPEC, TRM, Copying, make_model

PLAIN = SupervisedConfig(batch_size=6, max_segments=5, learning_rate=1e-2, warmup=0, weight_decay=0.0, ema=0.9)
RULES = (
    HaltingRule(),
    HaltingRule(threshold=0.7),
    HaltingRule(patience=1),
    HaltingRule(threshold=-0.5, patience=2),
    HaltingRule("q_learning"),
    HaltingRule("q_learning", 0.3, 1),
)


@st.composite
def answered(draw: st.DrawFn, ids: int = 2) -> Answers:
    """Answers of few ids, so that they often stand."""
    seed, segments, count = draw(st.integers(0, 2**31)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, ids, (segments, count, 2)).astype(np.int16)
    q = generator.normal(size=(2, segments, count)).astype(np.float32)
    return Answers(tokens, q[0], np.full(count, segments), q[1])


def slowly(answers: Answers, rule: HaltingRule, n: int, width: int | None) -> int:
    """Segments that a puzzle uses, by the words of the rule."""
    for segment in range(len(answers.tokens)):
        said = [row[n, :width].tolist() for row in answers.tokens[: segment + 1]]
        stands = len(said) > rule.patience and all(said[-1] == s for s in said[len(said) - 1 - rule.patience :])
        assert answers.q_continue is not None
        margin = answers.q_halt[segment, n] - (answers.q_continue[segment, n] if rule.head == "q_learning" else 0)
        if margin > rule.threshold and stands:
            return segment + 1
    return len(answers.tokens)


@given(answered(), st.sampled_from(RULES), st.booleans())
def test_a_puzzle_halts_at_the_first_segment_that_the_rule_allows(
    answers: Answers, rule: HaltingRule, one_choice: bool
) -> None:
    halted = halt_early(answers, rule, one_choice)
    for n, segments in enumerate(halted.segments):
        assert segments == slowly(answers, rule, n, 1 if one_choice else None)
        assert (halted.last[n] == answers.tokens[segments - 1, n]).all()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("choices", [0, 3])
def test_solving_with_a_rule_gives_what_follows_from_all_segments(rule: HaltingRule, choices: int) -> None:
    spec = dataclasses.replace(SPEC, num_puzzles=1, choices=choices)
    torch.manual_seed(0)
    model = build_model(ModelConfig("trm", TRM, 8), spec).eval()
    with torch.no_grad():
        model.halting_head.weight.normal_(std=3.0)
        model.halting_head.bias.zero_()
    examples = Examples(np.random.default_rng(1).integers(0, 5, (40, 6), np.int32), *np.zeros((2, 40), np.int32))
    whole = Solver(model, 6)(examples)
    expected, found = halt_early(whole, rule, choices > 0), Solver(model, 6, rule)(examples)
    assert len(set(expected.segments.tolist())) > 1
    assert (found.segments == expected.segments).all()
    assert (found.last == expected.last).all()


@given(answered(ids=3), st.sampled_from(["halt_only", "q_learning"]))
def test_no_rule_with_fewer_segments_is_as_good_as_the_chosen_one(answers: Answers, head: str) -> None:
    right = (answers.tokens == answers.tokens.max()).all(-1)
    chosen = choose_rule(answers, right, head)
    rows = np.arange(right.shape[1])
    scores, segments = {}, {}
    for rule in candidates(head):
        [at] = halting_segments(answers, [rule])
        scores[rule], segments[rule] = right[at, rows].mean(), at.mean()
    best = max(scores.values())
    wanted = max(best, right[-1].mean()) - TOLERANCE
    assert scores[chosen] >= min(wanted, best) - 1e-9
    assert all(segments[rule] >= segments[chosen] for rule in scores if scores[rule] >= min(wanted, best))


def early_and_wrong(count: int = 200) -> tuple[Answers, np.ndarray]:
    """Puzzles whose head says yes from the second segment on, and that are right once their answer stands."""
    generator = np.random.default_rng(0)
    settled = generator.integers(2, 6, count)
    tokens = np.arange(8)[:, None] * (np.arange(8)[:, None] < settled)
    tokens = np.broadcast_to(tokens[..., None], (8, count, 2)).astype(np.int16)
    q = np.full((8, count), 0.3, np.float32)
    q[0] = -1
    return Answers(tokens, q, np.full(count, 8)), np.arange(8)[:, None] >= settled


def test_answers_that_halt_before_they_are_right_are_kept_by_waiting_until_they_stand() -> None:
    answers, right = early_and_wrong()
    published = halt_early(answers, HaltingRule())
    assert (published.segments == 2).all()
    rule = choose_rule(answers, right, "halt_only")
    assert rule == HaltingRule(patience=1)
    [at] = halting_segments(answers, [rule])
    assert right[at, np.arange(right.shape[1])].all()
    assert at.mean() + 1 < 6


def test_where_the_published_rule_is_as_good_it_stays() -> None:
    answers, right = early_and_wrong()
    assert choose_rule(answers, np.ones_like(right), "halt_only").is_published


def test_the_report_says_what_a_rule_costs_and_what_the_published_one_would() -> None:
    task, model = Copying(), make_model().eval()
    report = evaluate_model(Solver(model, 4), task, "test", 60, HaltingRule(threshold=0.2, patience=1))
    halted = report["halted"]
    assert halted["rule"] == {"head": "halt_only", "threshold": 0.2, "patience": 1}
    assert halted["gained"] - halted["lost"] == pytest.approx(halted["exact"] - report["exact"])
    plain = evaluate_model(Solver(model, 4), task, "test", 60)
    assert halted["published"]["segments"] == plain["halted"]["segments"]
    assert halted["published"]["cells"] == plain["halted"]["cells"]
    assert "published" not in plain["halted"]
    text = format_report(report)
    sure = "the halting head's probability of a right answer is above 0.55"
    assert f"halts where the answer has stood for one segment, and {sure}" in text
    assert "by the published rule: exact" in text


def test_a_record_from_before_rules_were_chosen_can_be_shown() -> None:
    report = evaluate_model(Solver(make_model().eval(), 2), Copying(), "test", 9)
    report["halted"] = {k: v for k, v in report["halted"].items() if k not in ("rule", "lost", "gained")}
    assert "halts where" not in format_report(report)


def test_a_model_without_a_rule_has_the_published_one_of_its_head() -> None:
    assert halting_rule_of({}) == HaltingRule()
    assert halting_rule_of({"halting": "q_learning"}) == HaltingRule("q_learning")
    stored = {"head": "q_learning", "threshold": 0.5, "patience": 2}
    assert halting_rule_of({"halting": "q_learning", "halting_rule": stored}) == HaltingRule("q_learning", 0.5, 2)


@pytest.mark.parametrize(
    "forged",
    [{"head": "never"}, {"threshold": 1e9}, {"threshold": float("nan")}, {"patience": -1}, {"patience": 0.5}, 7],
)
def test_a_rule_that_is_none_is_refused(forged: Any) -> None:
    with pytest.raises(ValueError, match="halting_rule"):
        halting_rule_of({"halting_rule": forged})


# Training


def learner(config: SupervisedConfig, threads: int = 1, **model: Any) -> DeepSupervision:
    return DeepSupervision(make_model(**model), config, Copying().draw, 0, Threads(threads))


def always_sure(ours: DeepSupervision) -> None:
    with torch.no_grad():
        ours.model.halting_head.bias.fill_(100.0)


def test_training_waits_until_an_answer_has_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that is always sure, a puzzle halts exactly when its answer has stood for two segments."""
    ours = learner(dataclasses.replace(PLAIN, halt_patience=2, exploration=0.0, batch_size=16, max_segments=6))
    always_sure(ours)
    said: list[list[Tensor]] = [[] for _ in range(16)]
    forward, logits = PuzzleModel.forward, []

    def watched(self: PuzzleModel, *given: Any) -> Any:
        found = forward(self, *given)
        logits.append(found[1].detach().argmax(-1))
        return found

    monkeypatch.setattr(PuzzleModel, "forward", watched)
    halted = 0
    for _ in range(8):
        begun = ours.halted.clone()
        ours.step(0.0)
        now = torch.cat(logits)
        logits.clear()
        for n in range(16):
            said[n] = [*([] if begun[n] else said[n]), now[n]]
            stands = len(said[n]) > 2 and all(torch.equal(said[n][-1], past) for past in said[n][-3:])
            assert ours.halted[n] == (stands or len(said[n]) == 6)
            halted += int(stands)
    assert halted > 5


def test_a_new_puzzle_begins_anew_although_its_answer_is_that_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PuzzleModel.forward

    def constant(self: PuzzleModel, *given: Any) -> Any:
        state, logits, *rest = forward(self, *given)
        return state, 0 * logits, *rest

    monkeypatch.setattr(PuzzleModel, "forward", constant)
    ours = learner(dataclasses.replace(PLAIN, halt_patience=2, exploration=0.0, max_segments=9))
    always_sure(ours)
    for step in range(9):
        ours.step(0.0)
        assert ours.halted.all() == ours.halted.any() == (step % 3 == 2)


def test_without_patience_training_is_as_published() -> None:
    ours = learner(dataclasses.replace(PLAIN, exploration=0.0))
    always_sure(ours)
    ours.step(0.0)
    assert ours.halted.all()
    assert "stood" not in ours.tensors()


def test_going_on_from_a_checkpoint_that_waits_changes_nothing() -> None:
    config = dataclasses.replace(PLAIN, halt_patience=1)
    whole, first, second = learner(config), learner(config), learner(config, seed=1)
    for _ in range(9):
        whole.step(0.0)
    for _ in range(4):
        first.step(0.0)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, first.metadata())
    for _ in range(5):
        second.step(0.0)
    one, other = whole.tensors(), second.tensors()
    assert {"answers", "stood"} <= one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def too_long(tensors: dict[str, Tensor]) -> None:
    tensors["stood"][0] = 6


def another_shape(tensors: dict[str, Tensor]) -> None:
    tensors["answers"] = tensors["answers"][:, :3]


@pytest.mark.parametrize(("forge", "message"), [(too_long, "stood: 6 is not"), (another_shape, "answers is")])
def test_a_forged_standing_is_refused(forge: Callable[[dict[str, Tensor]], None], message: str) -> None:
    ours = learner(dataclasses.replace(PLAIN, halt_patience=1))
    ours.step(0.0)
    tensors = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    forge(tensors)
    with pytest.raises(ValueError, match=message):
        ours.restore(tensors, ours.metadata())


def test_the_split_of_a_batch_changes_nothing_where_answers_must_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(PLAIN, halt_patience=1, batch_size=12)
    whole = learner(config)
    monkeypatch.setattr(PuzzleModel, "chunk_size", 5)
    parts = learner(config, threads=2)
    for _ in range(5):
        assert whole.step(0.0) == pytest.approx(parts.step(0.0), rel=1e-4, abs=1e-6)
    assert (whole.stood == parts.stood).all()


# What the halting head reads


def test_a_head_that_reads_all_tokens_sees_what_is_far_away() -> None:
    """Convolutions pass on nine cells a segment: of a line of 40 the first one knows nothing of the last."""
    spec = TaskSpec(sequence_length=40, input_ids=5, answer_ids=5, grid=(1, 40))
    for reads, differs in (("first", False), ("mean", True)):
        torch.manual_seed(0)
        model = build_model(ModelConfig("trm", TRM, 8, halting_reads=reads), spec).eval()
        with torch.no_grad():
            model.halting_head.weight.normal_()
        inputs = np.zeros((2, 40), np.int32)
        inputs[1, -1] = 4
        q = Solver(model, 1)(Examples(inputs, inputs, inputs[:, 0])).q_halt[0]
        assert (q[0] != q[1]) == differs


def test_a_head_that_reads_all_tokens_has_no_published_form() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig("trm", {**TRM, "mixing": "mlp"}, 8, 8, 1, halting_reads="mean"), SPEC)
    with pytest.raises(ValueError, match="halting_reads=mean: the published halting head reads the first token"):
        export_published(model)


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.halting_reads='last': expected first or mean"):
        ModelConfig(halting_reads="last")
