"""The study of puzzles: seeds, what noisy runs add, and what is put into the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.engine.records import load, put
from experiments.engine.runner import Job
from experiments.supervised import draw, ptrm, ship
from experiments.supervised.run import HERE, Study
from hrm_agent.launch.solve import solve
from hrm_agent.supervised import registry
from hrm_agent.supervised.card import CARD_FILE, card_of
from hrm_agent.supervised.files import read_info
from hrm_agent.supervised.registry import PuzzleModels
from hrm_agent.supervised.sampling import Runs
from puzzle_folders import write_puzzle_model

RULE = {"head": "halt_only", "threshold": 0.1, "patience": 1}


def test_every_seed_is_trained_with_its_own() -> None:
    study = Study(HERE)
    assert study.arm("maze_9")["seeds"] == study.arm("sudoku_30")["seeds"] == [0, 1000, 2000]
    for job in study.jobs():
        assert study.overrides(job)[-1] == f"seed={job.seed}"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `ptrm` measures of a model that was never trained."""
    folder = write_puzzle_model(tmp_path / "run" / "models" / "best")
    study = Study(HERE)
    monkeypatch.setattr(study, "place", lambda job: folder.parents[1])
    for name, value in {"NOISE": (0.2, 1.0), "SAMPLES": (1, 3), "CHOOSING_SAMPLES": 2, "CHOOSING_PUZZLES": 12}.items():
        monkeypatch.setattr(ptrm, name, value)
    found: dict[str, Any] = json.loads(json.dumps(ptrm.measure(study, Job("maze_9", 0), 20)))
    return found


def test_a_record_of_noisy_runs_is_whole_and_agrees_with_solve(record: dict[str, Any], tmp_path: Path) -> None:
    assert [level["noise"] for level in record["validation"]["levels"]] == [0.2, 1.0]
    assert record["noise"] == ptrm.best_level(record["validation"]["levels"])
    assert set(record["samples"]) == {"1", "3"}
    assert set(record["depth"]) == {"4", "12"}
    whole = solve(str(tmp_path / "run"), samples=3, noise=record["noise"], puzzles=20)["sampling"]
    for way in ("one_run", "surest", "most_frequent", "any_run"):
        assert record["samples"]["3"][way]["cells"] == pytest.approx(whole[way]["cells"], abs=0.01)
    for way, key in (("last", "more_segments"), ("surest", "surest_segment")):
        assert record["depth"]["12"][way]["right"] == pytest.approx(whole[key]["valid"], abs=0.05)
    assert record["depth"]["4"]["last"]["right"] == pytest.approx(whole["noiseless"]["valid"], abs=0.05)


def test_the_level_is_that_of_the_surest_and_of_equals_the_smallest() -> None:
    levels = [(0.1, 0.5, 0.9), (0.2, 0.7, 0.1), (0.4, 0.7, 0.8), (0.8, 0.6, 1.0)]
    tried = [{"noise": noise, "surest": surest, "any_run": best} for noise, surest, best in levels]
    assert ptrm.best_level(tried) == 0.2


def test_fewer_runs_are_the_first_of_them() -> None:
    class Task:
        class spec:
            choices = 0

        @staticmethod
        def score(examples: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
            return {"exact": tokens[:, 0] == 1}

    tokens = np.array([[[0], [1]], [[1], [0]], [[1], [1]]], np.int16)
    runs = Runs(tokens, np.array([[0, 0], [1, -1], [-1, 2]], np.float32))
    sampled = ptrm.ByCount(Task(), (1, 3))  # type: ignore[arg-type]
    sampled.add([0, 0], runs)  # type: ignore[arg-type]
    found = sampled.summary()
    assert [found[n]["surest"]["exact"] for n in (1, 3)] == [0.5, 1.0]
    assert [found[n]["any_run"]["exact"] for n in (1, 3)] == [0.5, 1.0]
    assert found[3]["one_run"]["exact"] == pytest.approx(4 / 6)


def test_tables_and_figures_of_noisy_runs(record: dict[str, Any], tmp_path: Path) -> None:
    records = [record, {**record, "seed": 1000}]
    [one, three] = draw.ptrm_rows(records)
    assert (one["noisy runs"], three["noisy runs"]) == ("1", "3")
    assert three["segments without noise"] == "12"
    assert three["the surest run"].startswith(f"{record['samples']['3']['surest']['valid']:.3f} [")
    levels = draw.level_rows(records)
    assert [row["noise"] for row in levels] == ["0.2", "1"]
    assert sum("**" in cell for row in levels for cell in row.values()) == 2
    put(tmp_path / "ptrm.json", records, ["agent", "seed"])
    draw.figures(tmp_path)
    assert (tmp_path / "ptrm.png").stat().st_size > 1000
    assert not (tmp_path / "segments.png").exists()


def result(seed: int, valid: float, **halted: Any) -> dict[str, Any]:
    scores = {"valid": valid, "valid_ci95": [valid - 0.02, valid + 0.02], "segments": 5.0}
    test = {**scores, "puzzles": 1000, "exact": 0.5, "cells": 0.9, "repaired": 0.4, "curves": {"valid": [0.1, valid]}}
    common = {"parameters": 10, "seconds": 900.0, "wall_seconds": 1000.0}
    return {"agent": "maze_9", "seed": seed, "test": {**test, "halted": {**scores, **halted}}, **common}


def test_a_row_is_an_arm_over_its_seeds_with_both_rules_of_halting(tmp_path: Path) -> None:
    published = {"valid": 0.6, "segments": 2.0}
    records = [result(0, 0.95), result(1000, 0.97, rule=RULE, published=published)]
    [row] = draw.rows_of(records, Study(HERE).arms())
    assert row["each seed"] == "0.950 0.970"
    assert row["halting by the published rule"] == "0.775 in 3.5 segments"
    assert row["by the rule chosen on validation puzzles"] == "0.970 in 5.0 segments"
    assert row["whole command, longest"] == "1000 s"
    put(tmp_path / "results.json", records, ["agent", "seed"])
    draw.figures(tmp_path)
    assert (tmp_path / "segments.png").exists()


# What ships


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    write_puzzle_model(run / "models" / "best", halting_rule={**RULE, "patience": 0}, seconds=3.0, clock="cpu")
    typed = "python -m hrm_agent.supervise task=maze hydra.run.dir=/x seed=0"
    described = {"run_version": 1, "command": typed, "machine": "2 cores"}
    (run / "run.json").write_text(json.dumps(described))
    (run / "study.json").write_text(json.dumps({"commit": "abc1234"}))
    return run


def test_a_run_s_best_model_is_packed_with_its_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "files", lambda package: tmp_path)
    monkeypatch.setattr(ship, "PUZZLES", 30)
    folder = ship.pack("tiny_3-TRM-v0", run, tmp_path / "models")
    assert (folder / "model.safetensors").read_bytes() == (run / "models" / "best" / "model.safetensors").read_bytes()
    info = read_info(folder)
    assert (info["id"], info["commit"], info["machine"]) == ("tiny_3-TRM-v0", "abc1234", "2 cores")
    assert info["command"] == "python -m hrm_agent.supervise task=maze seed=0"
    assert "tiny_3-TRM-v0" in PuzzleModels()
    found = ship.measure("tiny_3-TRM-v0")
    expected = solve(str(folder), puzzles=30)
    assert found["test"]["cells"] == expected["cells"]
    assert found["test"]["halted"]["rule"] == {**RULE, "patience": 0}
    assert (folder / CARD_FILE).read_text() == card_of(folder)
    assert f"{expected['cells']:.3f}" in (folder / CARD_FILE).read_text()
    [row] = draw.shipped_rows([found])
    assert row["id"] == "`tiny_3-TRM-v0`"


@pytest.mark.parametrize(("name", "limit", "message"), [("tiny", 10**6, "expected a name"), ("a-v0", 99, "99")])
def test_what_may_not_ship_is_refused_and_nothing_is_written(
    name: str, limit: int, message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "LIMIT", limit)
    with pytest.raises(ValueError, match=message):
        ship.pack(name, run, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_records_of_what_ships_are_those_of_the_package() -> None:
    records = {record["agent"]: record for record in load(HERE / "shipped.json")}
    assert set(records) == set(registry.shipped())
    for name, folder in registry.shipped().items():
        assert records[name]["test"] == read_info(folder)["evaluation"]
