"""Several noisy runs of each puzzle: noise by seed alone, the surest chosen, memory that does not grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm_agent.parallel.threads import Threads
from hrm_agent.supervised import ModelConfig, PuzzleModel
from hrm_agent.supervised import sampling as module
from hrm_agent.supervised.evaluation import Solver, evaluate_model, format_report
from hrm_agent.supervised.files import build_model
from hrm_agent.supervised.noise import Noise
from hrm_agent.supervised.sampling import Runs, RunScores, SampledSolver, score_depth
from hrm_agent.supervised.tasks.base import Examples, Task, TaskSpec
from puzzles import TRM, Copying, make_model

LOUD = 1.0
"""Noise that changes most answers of an untrained model."""


def observed(solver: SampledSolver, examples: Examples) -> tuple[Any, Runs]:
    """The answers, and the runs of all blocks."""
    blocks: list[Runs] = []
    answers = solver.observed(examples, lambda _, runs: blocks.append(runs))
    return answers, Runs(*(np.concatenate([block[i] for block in blocks], 1) for i in (0, 1)))


class Pointing(Copying):
    """The one choice is the largest input, with the id that it has."""

    spec = TaskSpec(sequence_length=6, input_ids=5, answer_ids=5, grid=(2, 3), choices=1)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        inputs = generator.integers(0, 5, (count, 6), dtype=np.int32)
        labels = (inputs.argmax(1) * 5 + inputs.max(1))[:, None].astype(np.int32)
        return Examples(inputs, labels, np.zeros(count, np.int32), np.ones((count, 1), np.float32))


def models() -> dict[str, tuple[Task, PuzzleModel]]:
    torch.manual_seed(0)
    pointing = build_model(ModelConfig("trm", TRM, 8), Pointing.spec).eval()
    with torch.no_grad():
        pointing.halting_head.weight.normal_()
    return {
        "trm": (Copying(), make_model().eval()),
        "hrm": (Copying(), make_model("hrm").eval()),
        "one choice": (Pointing(), pointing),
    }


# Noise


def test_noise_is_normal_fresh_at_every_segment_and_of_its_row_alone() -> None:
    state, rows = (torch.zeros(3, 20, 50), torch.zeros(3, 20, 50)), np.arange(3)
    noise = Noise(0.5, 7, [4, 4, 9], [0, 1, 0])
    drawn = torch.stack([torch.stack(noise.added_to(state, rows)) for _ in range(3)])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.02)
    kinds = drawn.reshape(18, -1)  # segments, latents, rows: all of them different
    assert (torch.corrcoef(kinds) - torch.eye(18)).abs().max() < 0.15
    alone = Noise(0.5, 7, [9], [0])
    for at in range(3):
        found = torch.stack(alone.added_to((state[0][:1], state[1][:1]), np.arange(1)))
        assert torch.equal(found[:, 0], drawn[at, :, 2])


def test_noise_leaves_what_is_no_number_and_adds_nothing_where_it_is_zero() -> None:
    state = (torch.randn(2, 3), torch.tensor([True, False]), torch.tensor([1, 2]))
    same = Noise(0.0, 0, [0, 1], [0, 0]).added_to(state, np.arange(2))
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))
    noisy = Noise(1.0, 0, [0, 1], [0, 0]).added_to(state, np.arange(2))
    assert not torch.equal(noisy[0], state[0])
    assert torch.equal(noisy[1], state[1])
    assert torch.equal(noisy[2], state[2])


# Runs


@pytest.mark.parametrize("kind", ["trm", "hrm", "one choice"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(kind: str) -> None:
    task, model = models()[kind]
    examples = task.examples("test", 20)
    one, two, other = (observed(SampledSolver(model, 3, 4, LOUD, seed), examples) for seed in (5, 5, 6))
    for first, second in zip([*one[0], *one[1]], [*two[0], *two[1]], strict=True):
        np.testing.assert_array_equal(first, second)
    assert (one[1].tokens != other[1].tokens).any()
    assert (one[1].tokens[0] != one[1].tokens[1]).any()
    assert (one[0].segments == 3).all()


@pytest.mark.parametrize("kind", ["trm", "one choice"])
def test_a_run_is_its_own_whatever_is_run_beside_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = models()[kind]
    examples = task.examples("test", 23)
    answers, runs = observed(SampledSolver(model, 3, 5, LOUD), examples)
    monkeypatch.setattr("hrm_agent.supervised.evaluation.EVALUATION_BATCH", 4)
    monkeypatch.setattr(module, "MOST_ROWS", 3)  # blocks of three puzzles, one run at a time
    split, apart = observed(SampledSolver(model, 3, 5, LOUD, threads=Threads(2)), examples)
    np.testing.assert_allclose(runs.q_halt, apart.q_halt, atol=1e-4)
    np.testing.assert_allclose(answers.q_halt, split.q_halt, atol=1e-4)
    assert (runs.tokens == apart.tokens).mean() > 0.99
    _, fewer = observed(SampledSolver(model, 3, 2, LOUD), examples.rows(slice(0, 10)))
    np.testing.assert_allclose(fewer.q_halt, runs.q_halt[:2, :10], atol=1e-4)


def test_the_answer_is_that_of_the_surest_run_after_every_segment() -> None:
    model, examples = make_model().eval(), Copying().examples("test", 15)
    answers = SampledSolver(model, 3, 4, LOUD)(examples)
    rows = np.arange(15)
    each = [Solver(model, 3).run(examples, Noise(LOUD, 0, rows.tolist(), [run] * 15)) for run in range(4)]
    q = np.stack([run.q_halt for run in each])
    best = q.argmax(0)
    np.testing.assert_allclose(answers.q_halt, q.max(0), atol=1e-5)
    for segment in range(3):
        expected = np.stack([each[best[segment, n]].tokens[segment, n] for n in rows])
        assert (answers.tokens[segment] == expected).mean() > 0.98


def test_without_noise_a_run_is_that_of_the_plain_solver() -> None:
    model, examples = make_model().eval(), Copying().examples("test", 15)
    plain, silent = Solver(model, 3)(examples), SampledSolver(model, 3, 1, 0.0)(examples)
    for one, other in zip(plain, silent, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.booleans())
def test_the_vote_goes_to_the_most_frequent_answer_and_of_equals_to_the_surest(
    seed: int, samples: int, one_choice: bool
) -> None:
    generator = np.random.default_rng(seed)
    runs = Runs(
        generator.integers(0, 2, (samples, 7, 2)).astype(np.int16),
        generator.normal(size=(samples, 7)).astype(np.float32),
    )
    voted, width = runs.most_frequent(one_choice), 1 if one_choice else 2
    for n in range(7):
        said = [tuple(row[:width]) for row in runs.tokens[:, n].tolist()]
        often = max(said.count(answer) for answer in said)
        candidates = [r for r in range(samples) if said.count(said[r]) == often]
        assert voted[n] == max(candidates, key=lambda r: (runs.q_halt[r, n], -r))


def test_what_is_held_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = make_model().eval(), Copying().examples("test", 12)
    monkeypatch.setattr(module, "AT_ONCE", 6 * 2 * 20)  # the answers of 20 rows
    held, run = [], Solver.run

    def watched(self: Solver, examples: Examples, noise: Noise | None = None) -> Any:
        held.append(len(examples) * self.segments * 6)
        return run(self, examples, noise)

    monkeypatch.setattr(Solver, "run", watched)
    answers = SampledSolver(model, 2, 8, LOUD)(examples)
    assert answers.tokens.shape == (2, 12, 6)
    assert sum(held) == 12 * 8 * 2 * 6
    assert max(held) <= 6 * 2 * 20
    held.clear()
    SampledSolver(model, 2, 30, LOUD)(examples.rows(slice(0, 2)))  # more runs of a puzzle than are held at once
    assert sum(held) == 2 * 30 * 2 * 6
    assert max(held) <= 6 * 2 * 20
    held.clear()
    score_depth(Solver(model, 16), Copying(), examples, 2)
    assert sum(held) == 12 * 16 * 6
    assert max(held) <= 6 * 2 * 20


# Scores


@pytest.mark.parametrize("kind", ["trm", "hrm", "one choice"])
def test_ways_of_choosing_are_in_the_order_that_they_must_be(kind: str) -> None:
    task, model = models()[kind]
    examples, scores = task.examples("test", 60), RunScores(task)
    solver = SampledSolver(model, 3, 6, LOUD)
    answers = solver.observed(examples, scores.add)
    found = scores.summary()
    names = [name for name in found["one_run"] if not name.endswith("_ci95")]
    fine = "cells" if "cells" in names else "top_5"  # an untrained model is seldom exact
    assert found["any_run"][fine] > found["one_run"][fine] > 0
    for name in names:
        best = found["any_run"][name]
        assert best >= found["one_run"][name]
        for way in ("surest", "most_frequent"):
            assert 0 <= found[way][name] <= best
    report = evaluate_model(solver, task, "test", 60, answers=answers)
    assert {name: report[name] for name in names} == {name: found["surest"][name] for name in names}
    runs = [Solver(model, 3).run(examples, Noise(LOUD, 0, list(range(60)), [r] * 60)).last for r in range(6)]
    every = np.stack([task.score(examples, tokens)[fine] for tokens in runs])
    assert found["one_run"][fine] == pytest.approx(every.mean(), abs=0.01)
    assert found["any_run"][fine] == pytest.approx(every.max(0).mean(), abs=0.01)


def test_one_run_leaves_nothing_to_choose() -> None:
    scores = RunScores(Copying())
    SampledSolver(make_model().eval(), 2, 1, LOUD).observed(Copying().examples("test", 20), scores.add)
    found = scores.summary()
    assert found["surest"] == found["most_frequent"] == found["any_run"]
    assert found["one_run"]["exact"] == found["surest"]["exact"]


def test_more_segments_are_those_of_a_deeper_solver() -> None:
    model, task = make_model().eval(), Copying()
    examples = task.examples("test", 40)
    found = score_depth(Solver(model, 6), task, examples, 2)
    for way, segments in (("noiseless", 2), ("more_segments", 6)):
        scores = task.score(examples, Solver(model, segments)(examples).last)
        assert found[way]["cells"] == pytest.approx(scores["cells"].mean(), abs=0.01)
    answers = Solver(model, 6)(examples)
    surest = answers.tokens[answers.q_halt.argmax(0), np.arange(40)]
    assert found["surest_segment"]["cells"] == pytest.approx(task.score(examples, surest)["cells"].mean(), abs=0.01)
    assert set(score_depth(Solver(model, 2), task, examples, 2)) == {"noiseless"}


def test_the_report_has_a_line_for_every_way() -> None:
    model, task, scores = make_model().eval(), Copying(), RunScores(Copying())
    solver = SampledSolver(model, 2, 3, LOUD)
    answers = solver.observed(task.examples("test", 20), scores.add)
    report = evaluate_model(solver, task, "test", 20, answers=answers)
    without = score_depth(Solver(model, 6), task, task.examples("test", 20), 2)
    about = {"samples": 3, "noise": LOUD, "seed": 0, "segments": 6}
    report["sampling"] = {**about, **scores.summary(), **without}
    text = format_report(report)
    assert "3 noisy runs of each puzzle, noise 1, seed 0" in text
    for words in ("one run, on average", "the surest of 3 ", "the most frequent answer of 3", "the best of 3, if one"):
        assert words in text
    for words in ("no noise, 2 segments", "no noise, 6 segments", "no noise, the surest of 6 segments"):
        assert words in text


@pytest.mark.parametrize(
    ("samples", "noise", "segments", "message"),
    [
        (2, 0.0, 3, "samples=2 noise=0: without noise all runs are one; give noise=0.1"),
        (1024, 0.1, 65, "samples=1024 of 65 segments each: expected at most 65,536 segments of a puzzle"),
    ],
)
def test_samples_that_make_no_sense_are_refused(samples: int, noise: float, segments: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampledSolver(make_model(), segments, samples, noise)


def test_a_choice_is_compared_by_its_first_entry_alone() -> None:
    tokens = np.array([[[3, 1]], [[3, 2]], [[4, 1]]], np.int16)
    runs = Runs(tokens, np.array([[0.0], [0.1], [0.9]], np.float32))
    assert runs.most_frequent(one_choice=True)[0] == 1
    assert runs.most_frequent()[0] == 2
