"""`supervise` and `solve` on puzzles whose answer is one choice: other numbers of disks, resuming, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands import run_command
from hrm_agent.launch.solve import solve
from refusals import refusal

# 6 steps of 8 puzzles of 2 to 4 disks, a checkpoint after every third.
TINY = (
    "task=hanoi", "task.disks=4", "task.train_disks=3", "task.min_disks=2", "task.solutions=3", "core.hidden_size=8",
    "core.inner_size=8", "core.L_cycles=1", "training.batch_size=8", "training.max_segments=2", "training.warmup=0",
    "training.anneal=false", "total_steps=6", "eval_every=0", "eval_puzzles=9", "test_puzzles=9", "log_every=3",
    "checkpoint_every=3", "threads=1", "kernel=plain",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hanoi") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "supervise", *TINY, f"hydra.run.dir={folder}")
    return folder


def test_a_run_ends_with_its_scores_by_number_of_disks(run: Path) -> None:
    report = json.loads((run / "eval.json").read_text())
    assert set(report["task"]["by_disks"]) == {"2", "3", "4"}
    assert all(own["states"] == own["games"] == 3 for own in report["task"]["by_disks"].values())
    assert {"exact", "top_3", "top_5", "legal"} <= set(report)


def test_a_model_solves_other_numbers_of_disks(run: Path) -> None:
    report = solve(str(run), task_options={"disks": 6, "test_disks": 6, "solutions": 2}, puzzles=5)
    assert list(report["task"]["by_disks"]) == ["6"]
    again = solve(str(run), puzzles=9)
    trained = json.loads((run / "eval.json").read_text())
    assert again["task"] == trained["task"]


def test_solve_says_that_it_plays_games(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(monkeypatch, "solve", f"model={run}", "puzzles=9")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"playing 3 games of {disks} disks" for disks in (2, 3, 4)]
    assert printed.out.startswith("9 test puzzles")


def test_an_interrupted_run_ends_alike(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    short = [o if not o.startswith("total_steps") else "total_steps=3" for o in TINY]
    run_command(monkeypatch, "supervise", *short, f"hydra.run.dir={folder}")
    run_command(monkeypatch, "supervise", f"resume={folder}", "total_steps=6")
    one, other = (load_file(place / "models" / "last" / "model.safetensors") for place in (run, folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    lines = capsys.readouterr().err.splitlines()
    assert lines[-4:] == ["measuring on 9 test puzzles", *(f"playing 3 games of {disks} disks" for disks in (2, 3, 4))]


BAD: list[tuple[str, str, str]] = [
    ("supervise", "task=hanoi task.disks=0", "task.disks=0: expected an integer from 1 to 20"),
    ("supervise", "task=hanoi task.disks=2", "min_disks=3 is above disks=2"),
    ("supervise", "task=hanoi model.crop=1", "crop=1: the answer is a choice among all cells"),
    ("solve", "model=run task_options.disks=0", "task.disks=0: expected an integer from 1 to 20"),
    ("solve", "model=run task_options.test_disks=9", "test_disks=9: expected a number from 1 to disks=4"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), BAD, ids=[arguments for _, arguments, _ in BAD])
def test_bad_input_is_one_line(
    command: str,
    arguments: str,
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[Any] = arguments.replace("model=run", f"model={run}").split()
    assert message in refusal(monkeypatch, capsys, command, given, tmp_path)
