"""Baselines of the language page against hand computations; its study, table and figure."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.engine.pages import filled, settings_of
from experiments.engine.runner import Job
from experiments.language import draw, ngram, recurrent
from experiments.language.ngram import SPLITS, NGram, write_on
from experiments.language.recurrent import Recurrent, score, train
from experiments.language.recurrent import write_on as recurrent_write_on
from experiments.language.run import HERE, Study, curve_of, whole, without_folder
from hrm_agent.launch.cli import compose_config
from hrm_agent.supervise import check_run
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.tasks.text import TextTask
from texts import write_text

ARMS = settings_of(HERE)["arms"]


# The 5-gram model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=60), st.integers(1, 5), st.lists(st.integers(0, 4), max_size=7))
def test_probabilities_sum_to_one_after_every_context(text: list[int], order: int, context: list[int]) -> None:
    """Also after contexts, and with a character, that the text does not have."""
    model = NGram(np.array(text), 5, order)
    chances = model.distribution(np.array(context, int))
    assert chances.sum() == pytest.approx(1)
    assert chances.min() > 0
    whole_text = np.array([*context, 2], int)
    assert model.probabilities(whole_text)[-1] == pytest.approx(chances[2])


def test_a_bigram_model_by_hand() -> None:
    """Of `abcabdab`: ab 3, bc 1, ca 1, bd 1, da 1; a, b, c, d stand behind 2, 1, 1 and 1 different characters."""
    model = NGram(np.array([0, 1, 2, 0, 1, 3, 0, 1]), 4, order=2)
    discount_2 = 0.5  # no pair occurs twice
    discount_1 = 3 / (3 + 2 * 1)  # three continuation counts of 1, one of 2

    def lower(token: int) -> float:
        count = (2, 1, 1, 1)[token]
        return (count - discount_1) / 5 + discount_1 * 4 / 5 / 4

    assert model.distribution(np.array([], int)) == pytest.approx([lower(t) for t in range(4)])
    after_b = [discount_2 * 2 / 2 * lower(t) + (0.5 / 2 if t in (2, 3) else 0) for t in range(4)]
    assert model.distribution(np.array([1])) == pytest.approx(after_b)
    after_a = [discount_2 * 1 / 3 * lower(t) + (2.5 / 3 if t == 1 else 0) for t in range(4)]
    assert model.distribution(np.array([3, 0])) == pytest.approx(after_a)
    assert model.parameters == 5 + 4


def test_contexts_that_the_text_has_not_fall_back() -> None:
    model = NGram(np.array([0, 1, 0, 1, 0, 1]), 3, order=3)
    assert model.distribution(np.array([2, 2])) == pytest.approx(model.distribution(np.array([], int)))


def test_more_context_says_more_and_order_one_is_frequency() -> None:
    random = np.random.default_rng(0)
    text = random.choice([1, 1, 1, 2], 4000).cumsum() % 4
    losses = [-np.log(NGram(text[:3000], 4, order).probabilities(text[3000:])).mean() for order in (1, 2, 3)]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert losses[0] == pytest.approx(math.log(4), abs=0.02)
    assert losses[1] == pytest.approx(entropy, abs=0.05)
    assert abs(losses[2] - losses[1]) < 0.02
    assert set(write_on(NGram(text, 4, 3), text[:2], 50)) <= set(range(4))


@pytest.mark.parametrize(("size", "order", "message"), [(65, 11, "use a lower order"), (4, 9, "expected at least 9")])
def test_what_the_model_cannot_do_is_refused(size: int, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGram(np.zeros(8, int), size, order)


# LSTM and GRU


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_a_window_equals_its_steps(kind: str) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, 8, 5, 6, layers=2)
    tokens, begins = torch.randint(0, 8, (7, 3)), torch.rand(7, 3) < 0.3
    state = tuple(torch.randn_like(s) for s in model.initial_state(3))
    window = model.unroll(tokens, state, begins)
    for t in range(7):
        one = model.unroll(tokens[t : t + 1], state, begins[t : t + 1])
        state = one.state
        torch.testing.assert_close(window.logits[t], one.logits[0], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(window.state, state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    fresh = model.unroll(tokens[:1], model.initial_state(3), torch.zeros(1, 3, dtype=torch.bool))
    began = model.unroll(tokens[:1], state, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(fresh.logits, began.logits)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_they_learn(kind: str, tmp_path: Path) -> None:
    task = TextTask(path=str(write_text(tmp_path, 2000)), context=10)
    config = {**ARMS["lstm"]["settings"]["training"], "batch_size": 8, "learning_rate": 2e-2, "warmup": 0}
    learner, spent, curve = train(task, kind, {"embedding": 8, "hidden": 16}, SupervisedConfig(**config), 0, 1.0)
    assert spent >= 1.0
    assert [seconds for seconds, _ in curve] == sorted(seconds for seconds, _ in curve)
    assert score(learner, task, "test")["bits"] < 2.2 < 3  # of 8 characters; the text's own entropy is 1.4 bits
    assert len(recurrent_write_on(learner.model, [0, 1], 20)) == 20


# The study


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm["kind"] == "supervise"])
def test_every_arm_can_run_with_about_as_many_weights(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hrm_agent.supervised import files

    monkeypatch.setattr(Study, "text", write_text(tmp_path, 4000))
    counted, build = [], files.build_model

    def counting(*arguments: Any) -> Any:
        made = build(*arguments)
        counted.append(sum(p.numel() for p in made.parameters()))
        return made

    monkeypatch.setattr("hrm_agent.supervise.build_model", counting)
    words = Study(HERE).overrides(Job(arm, 1, "text.txt"))
    config = compose_config(words, "supervise")
    check_run(config)
    most = 420_000 if arm == "feedforward-4" else 220_000
    assert 170_000 < counted[0] < most
    assert f"task.path={Study.text}" in words


def test_the_recurrent_arms_have_as_many_weights_too() -> None:
    for kind in ("lstm", "gru"):
        sizes = ARMS[kind]["settings"]["sizes"]
        assert 170_000 < sum(p.numel() for p in Recurrent(kind, 65, **sizes).parameters()) < 220_000
        SupervisedConfig(**ARMS[kind]["settings"]["training"])


def test_the_5_gram_arm_is_recorded_without_a_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "text", write_text(tmp_path, 4000))
    study = Study(HERE)
    job = next(job for job in study.jobs() if job.arm == "5-gram")
    (record,) = study.measure(job)
    assert record.keys() >= study.required
    assert (record["agent"], record["seed"], record["text"]) == ("5-gram", 0, "text.txt")
    assert str(tmp_path) not in json.dumps(record)
    assert record["bits"] == pytest.approx(record["nats"] / math.log(2))
    assert record["bits"] < 2.2
    assert tuple(record[field] for field in study.key) == job[:3]


def test_the_command_of_a_5_gram_record_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `study.yaml` says by then, and also where the record is there."""
    monkeypatch.setattr(Study, "text", write_text(tmp_path, 4000).rename(tmp_path / "a text's.txt"))
    (record,) = Study(HERE).measure(Job("5-gram", 0, "a text's.txt"))
    program, words = record["command"].split(" ", 3)[:3], shlex.split(record["command"])[3:]
    assert program == ["python", "-m", "experiments.language.ngram"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ngram", *words])
    ngram.main()
    again = json.loads((tmp_path / "result.json").read_text())
    assert {name: record[name] for name in ("parameters", "tokens_read", "sample")}.items() <= again.items()
    for split in ("validation", "test"):
        assert again["scores"][split] == record[split]


@pytest.mark.parametrize("text", [None, "a text's.txt"])
@pytest.mark.parametrize("arm", ["lstm", "gru"])
def test_the_command_of_a_recurrent_record_has_all_that_it_needs(
    arm: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = None if text is None else write_text(tmp_path).rename(tmp_path / text)
    monkeypatch.setattr(Study, "text", path)
    monkeypatch.setattr(Study, "place", lambda study, job: tmp_path)
    scores = {"nats": 1.0, "bits": 1.0, "perplexity": 1.0, "tokens": 4}
    made = {"parameters": 1, "seconds": 1.0, "tokens_read": 9, "curve": [], "scores": dict.fromkeys(SPLITS, scores)}
    started: list[list[str]] = []

    def run(place: Path, words: list[str]) -> None:
        started.append(words)
        (tmp_path / "result.json").write_text(json.dumps(made))

    monkeypatch.setattr("experiments.language.run.run_python", run)
    (record,) = Study(HERE).measure(Job(arm, 2, text or "default"))
    recorded = shlex.split(record["command"])
    assert recorded[:3] == ["python", "-m", "experiments.language.recurrent"]
    assert str(tmp_path) not in record["command"]
    given, ran = (vars(recurrent.arguments().parse_args(words)) for words in (recorded[3:], started[0][2:]))
    assert given["text"] == text
    assert given["settings"] == ARMS[arm]["settings"]
    assert {"kind": arm, "seed": 2, "seconds": 360.0}.items() <= given.items()
    assert {**given, "text": path and str(path), "out": tmp_path / "result.json"} == ran


def test_parts_are_weighed_by_their_characters() -> None:
    scores = {"validation": {"nats": 2.0, "tokens": 100}, "test": {"nats": 1.0, "tokens": 300}}
    assert whole(scores)["nats"] == 1.25
    assert without_folder("python x task.path=/a/b/t.txt", Path("/a/b/t.txt")) == "python x task.path=t.txt"


def test_a_curve_takes_its_seconds_from_the_nearest_line() -> None:
    lines = [
        {"steps": 100, "train/seconds": 10.0},
        {"steps": 200, "validation/bits": 3.0},
        {"steps": 300, "train/seconds": 33.0},
        {"steps": 300, "validation/bits": 2.5},
    ]
    assert curve_of(lines) == [[20.0, 3.0], [33.0, 2.5]]


def made_up() -> list[dict[str, Any]]:
    common = {"text": "a.txt", "form": "carried", "parameters": 1000, "tokens_read": 2e6, "seconds": 360.0}
    own = [("trm-gate", 0, 1.5), ("trm-gate", 1, 1.7), ("lstm", 0, 1.4)]
    curve = [[10.0, 4.0], [360.0, 2.0]]
    records = [
        {
            **{**common, "agent": agent, "seed": seed, "nats": nats, "bits": nats / math.log(2), "curve": curve},
            "validation": {"nats": nats - 0.1},
            "test": {"nats": nats + 0.1, "nats_ci95": [nats, nats + 0.2]},
        }
        for agent, seed, nats in own
    ]
    records[0] |= {"by_segments": [3.0, 2.5], "sample": "to be"}
    records[2] |= {"sample": "\nor not to be\n"}
    return records


def test_tables_and_figure_come_from_the_records(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text((HERE / "study.yaml").read_text())
    (tmp_path / "results.json").write_text(json.dumps(made_up()))
    tables = draw.tables(tmp_path)
    lines = tables["language"].splitlines()
    assert "`lstm`" in lines[2]
    assert "**1.600**" in lines[3]
    assert "1.500 1.700" in lines[3]
    assert "| 1.500 | 1.700 [1.500, 1.700] |" in lines[3]
    assert "3.000" in tables["language segments"]
    assert "or not to be" in tables["language sample"]
    assert "to be\n```" in tables["language sample"]
    draw.figures(tmp_path)
    assert (tmp_path / "bits.png").stat().st_size > 1000
    page = (HERE / "README.md").read_text()
    assert all(f"<!-- table {name} -->" in page for name in tables)
    assert filled(page, tables) != page
