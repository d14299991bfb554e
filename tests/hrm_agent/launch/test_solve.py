"""`solve`: noisy runs of each puzzle, and the rule by which a model halts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import run_command
from hrm_agent.launch.solve import solve
from hrm_agent.supervised.evaluation import Solver, evaluate_model
from hrm_agent.supervised.files import INFO_FILE, load_model
from hrm_agent.supervised.halting import HaltingRule
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.tasks.maze import MazeTask
from puzzle_folders import OPTIONS, write_puzzle_model
from refusals import refusal

RULE = {"head": "halt_only", "threshold": 0.1, "patience": 0}
TIMES = ("ms_per_puzzle", "ms_per_puzzle_without_noise")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_puzzle_model(tmp_path / "model")


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    return {k: untimed(v) if isinstance(v, dict) else v for k, v in report.items() if k not in TIMES}


# Noisy runs


def test_noisy_runs_are_reported_beside_as_many_segments_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    given = ["model=model", "samples=3", "noise=0.5", "seed=2", "puzzles=30"]
    run_command(monkeypatch, "solve", *given, "out=one.json")
    printed = capsys.readouterr().out
    assert "3 noisy runs of each puzzle, noise 0.5, seed 2" in printed
    report = json.loads((folder.parent / "one.json").read_text())
    assert "halt" not in printed
    assert "halted" not in report
    sampling = report["sampling"]
    assert (sampling["samples"], sampling["noise"], sampling["seed"], sampling["segments"]) == (3, 0.5, 2, 12)
    for name in ("valid", "exact", "cells"):
        assert report[name] == sampling["surest"][name] <= sampling["any_run"][name]
    plain, deep = (solve("model", puzzles=30, segments=s) for s in (4, 12))
    for name in ("valid", "exact", "cells"):
        assert sampling["noiseless"][name] == pytest.approx(plain[name], abs=0.01)
        assert sampling["more_segments"][name] == pytest.approx(deep[name], abs=0.01)
    assert report["ms_per_puzzle"] > 0
    assert sampling["ms_per_puzzle_without_noise"] > 0
    again = solve("model", samples=3, noise=0.5, seed=2, puzzles=30)
    assert untimed(again) == untimed(report)
    other = solve("model", samples=3, noise=0.5, seed=3, puzzles=30)
    assert other["sampling"]["one_run"] != sampling["one_run"]


def test_noisy_runs_are_not_given_to_the_task_s_own_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hanoi's games end where a state comes back, which says something of players without noise alone."""
    monkeypatch.setattr(MazeTask, "evaluate", lambda *given: {"asked": True})
    assert solve(str(folder), puzzles=5)["task"] == {"asked": True}
    assert "task" not in solve(str(folder), puzzles=5, samples=2, noise=0.5)


def test_one_sample_without_noise_is_what_there_was_before(folder: Path) -> None:
    report = solve(str(folder), samples=1, noise=0.0, seed=9, puzzles=30)
    expected = evaluate_model(Solver(load_model(folder), 4), build_task("maze", OPTIONS), "test", 30)
    assert {name: report[name] for name in expected} == expected
    assert "sampling" not in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("samples=4", "samples=4 noise=0: without noise all runs are one; give noise=0.1, say, or samples=1"),
        ("samples=0 noise=0.1", "samples=0: expected an integer from 1"),
        ("samples=2000 noise=0.1", "samples=2000: expected an integer from 1 to 1,024"),
        ("samples=few noise=0.1", "samples='few': expected an integer from 1"),
        ("samples=1024 noise=0.1 segments=65", "samples=1024 of 65 segments each: expected at most 65,536"),
        ("noise=-0.1", "noise=-0.1: expected a number"),
        ("noise=.inf", "noise=inf: expected a number"),
        ("noise=loud", "noise='loud': expected a number"),
        ("samples=2 noise=0.1 seed=-1", "seed=-1: expected an integer from 0"),
        ("noise=0.1 halt=true", "halt=true noise=0.1: noisy runs are compared after all segments"),
        ("noise=0.1 halting=validation", "halting=validation noise=0.1: noisy runs are compared after all segments"),
        ("halting=never", "halting='never': expected one of stored, published, validation"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["model=model", *arguments.split(), "out=solved.json"]
    assert message in refusal(monkeypatch, capsys, "solve", given, folder.parent)


# The rule of halting


def test_a_model_halts_by_the_rule_that_is_stored_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = write_puzzle_model(tmp_path / "old"), write_puzzle_model(tmp_path / "new", halting_rule=RULE)
    task, model = build_task("maze", OPTIONS), load_model(old)
    splits: list[str] = []

    def watched(solver: Solver, task: Any, split: str, *given: Any, **named: Any) -> dict[str, Any]:
        splits.append(split)
        return evaluate_model(solver, task, split, *given, **named)

    monkeypatch.setattr("hrm_agent.launch.solve.evaluate_model", watched)
    for folder, halting, rule in (
        (old, "stored", HaltingRule()),
        (new, "stored", HaltingRule(**RULE)),
        (new, "published", HaltingRule()),
    ):
        report = solve(str(folder), puzzles=40, halting=halting)
        expected = evaluate_model(Solver(model, 4), task, "test", 40, rule)
        assert report["halted"] == expected["halted"]
        assert 1 < report["halted"]["segments"] < 4
    stopped, derived = (solve(str(new), puzzles=40, halt=halt)["halted"] for halt in (True, False))
    for name in ("cells", "segments", "lost"):
        assert stopped[name] == pytest.approx(derived[name], abs=0.01)
    assert stopped["rule"] == derived["rule"] == RULE
    assert set(splits) == {"test"}  # nothing is chosen anew


def test_a_rule_can_be_chosen_for_a_model_that_has_none(folder: Path) -> None:
    report = solve(str(folder), puzzles=40, halting="validation")
    task, model = build_task("maze", OPTIONS), load_model(folder)
    chosen = evaluate_model(Solver(model, 4), task, "validation", 256, own=False, choose=True)["halted"]["rule"]
    assert report["halted"]["rule"] == chosen
    expected = evaluate_model(Solver(model, 4), task, "test", 40, HaltingRule(**chosen))
    assert report["halted"] == expected["halted"]


def test_a_forged_rule_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**info, "halting_rule": {"patience": 10**9}}))
    assert "halting_rule" in refusal(monkeypatch, capsys, "solve", ["model=model"], folder.parent)
