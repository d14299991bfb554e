"""`supervise task=text` and `task=text_carried` as commands: what a run leaves, how it goes on, what is refused."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from commands import run_command
from hrm_agent.launch.generate import generate
from hrm_agent.launch.solve import solve
from hrm_agent.supervised.deep_supervision import DeepSupervision
from hrm_agent.supervised.streams import StreamLearner
from hrm_agent.supervised.trainer import SupervisedTrainer
from refusals import not_refused, refusal
from texts import write_text

TINY = (
    "task.context=6", "core.hidden_size=16", "core.inner_size=16", "core.num_heads=1", "training.batch_size=4",
    "training.learning_rate=1e-2", "training.warmup=0", "total_steps=12", "eval_every=4", "eval_puzzles=3",
    "log_every=4", "checkpoint_every=4", "threads=1", "kernel=plain",
)  # fmt: skip
FORMS: dict[str, tuple[tuple[str, ...], Any]] = {
    "windows": (("task=text", "core=trm", "core.layers=1", "training.max_segments=2"), DeepSupervision),
    "steps": (("task=text_carried", "core=trm", "model.segments=2"), StreamLearner),
}


@pytest.fixture(autouse=True)
def _handlers() -> Any:
    """Hydra's logging is gone after the test."""
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def words(form: str, text: Path, folder: Path) -> list[str]:
    return [*FORMS[form][0], *TINY, f"task.path={text}", f"hydra.run.dir={folder}"]


@pytest.fixture(scope="module")
def run(form: str, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervise") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "supervise", *words(form, text, folder))
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_leaves_models_and_scores(run: Path, form: str) -> None:
    report = read(run / "eval.json")
    assert (report["split"], report["segments"]) == ("test", 2)
    assert report["tokens"] == 6 * report["puzzles"] == 18
    assert report["bits"] == pytest.approx(report["nats"] / math.log(2))
    assert len(report["curves"]["bits"]) == 2
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in logged if "validation/bits" in line] == [4, 8, 12, 12]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert len(losses) == 3
    info = read(run / "models" / "last" / "model.json")
    assert (info["task"], info["max_segments"], info["cross_entropy"]) == ("text", 2, "softmax")
    best = min(line["validation/bits"] for line in logged if "validation/bits" in line)
    assert read(run / "models" / "best" / "model.json")["validation"]["bits"] == pytest.approx(best)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    run: Path, form: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, learner = tmp_path / "stopped", FORMS[form][1]
    step = learner.step

    def interrupted(self: Any, done: float) -> dict[str, float]:
        if self.steps == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "step", interrupted)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "supervise", *words(form, text, folder))
    assert exit_.value.code == 130
    run_command(monkeypatch, "supervise", f"resume={folder}")
    for name in ("models/best/model", "models/last/model", "checkpoints/000000000012"):
        one, other = (load_file(place / f"{name}.safetensors") for place in (run, folder))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert read(run / "eval.json") == read(folder / "eval.json")


def test_a_run_goes_on_with_its_own_text_only(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_text(tmp_path)
    short = ["total_steps=2", "checkpoint_every=0", "eval_every=0", "test_puzzles=0"]
    run_command(monkeypatch, "supervise", *words(form, other, tmp_path / "run"), *short)
    other.write_text(other.read_text()[::-1])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "supervise", f"resume={tmp_path / 'run'}", "total_steps=4")
    assert exit_.value.code != 0
    assert "the text is not the one that the run began with" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "run").rglob("*.damaged"))


def test_solve_repeats_the_scores_of_the_run(run: Path, text: Path) -> None:
    report = solve(str(run), task_options={"path": str(text)}, best=False, kernel="plain")
    known = read(run / "eval.json")
    for name in ("bits", "nats", "cells", "perplexity", "tokens"):
        assert report[name] == pytest.approx(known[name], rel=1e-4)


def test_a_trained_model_writes(run: Path, text: Path) -> None:
    written = "".join(generate(str(run), prompt="abc", length=30))
    assert len(written) == 33
    assert set(written) <= set(text.read_text())


def test_solve_refuses_other_characters_and_files_that_files_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("wxyzabcd" * 50)
    asked = [f"model={run}", "task_options.path=other.txt"]
    assert "task=text: characters 'abcdwxyz', but the model" in refusal(monkeypatch, capsys, "solve", asked, tmp_path)
    assert "files named by files are not opened" in refusal(monkeypatch, capsys, "solve", [f"model={run}"], tmp_path)
    (tmp_path / "other.txt").write_text("abcdefgh" * 50)
    for given, message in (
        (["halt=true"], "halt=true with task=text, which runs all segments"),
        (["samples=2", "noise=0.1"], "noise=0.1 with task=text: noisy runs are of puzzles"),
    ):
        asked = [f"model={run}", *given, "task_options.path=other.txt", "task_options.context=6"]
        assert message in refusal(monkeypatch, capsys, "solve", asked, tmp_path)


BAD = [
    ("task=text task.path=none.txt", "task.path=none.txt: no such file; give a text in UTF-8"),
    ("task=text task.path=empty.txt", "task.path=empty.txt: empty"),
    ("task=text task.path=binary.txt", "task.path=binary.txt: binary, with a NUL byte at 2"),
    ("task=text task.path=latin.txt", "task.path=latin.txt: not a text in UTF-8"),
    ("task=text task.path=a.txt task.context=300", "the validation part has 200 characters in a row"),
    ("task=text task.path=a.txt task.context=0", "task.context=0: expected an integer from 1"),
    ("task=text task.path=a.txt task.tokens=words", "task.tokens='words': expected characters or bytes"),
    ("task=text task.path=a.txt core.causal=false", "core.causal=true, or carry the latent"),
    ("task=text task.path=a.txt core=gru", "core=gru, whose tokens see the one that follows"),
    ("task=text task.path=a.txt core.mixing=mlp", "causal=true with mixing=mlp"),
    ("task=text_carried task.path=a.txt model.carry=gait", "carry='gait'"),
    ("task=text_carried task.path=a.txt model.segments=0", "model.segments=0: expected an integer from 1"),
    ("task=text_carried task.path=a.txt model.time_gradient=no", "expected bptt or detached"),
    ("task=sudoku model.carry=gate", "model.carry=gate: of a text (task=text)"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[a for a, _ in BAD])
def test_bad_input_is_refused_in_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SupervisedTrainer, "run", not_refused)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"ab\0" * 200)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 200)
    (tmp_path / "a.txt").write_text("".join(np.random.default_rng(0).choice(list("abc "), 4000)))
    assert message in refusal(monkeypatch, capsys, "supervise", arguments.split(), tmp_path)
