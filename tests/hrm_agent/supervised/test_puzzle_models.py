"""Puzzle models by name: registered, listed, solved with, and those that ship."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hrm_agent.agents.__main__ import main as list_all
from hrm_agent.agents.card import CARD_FILE
from hrm_agent.agents.registry import registry as agents
from hrm_agent.launch.solve import solve
from hrm_agent.supervised import load_model, registry
from hrm_agent.supervised.card import card_of, evaluation_facts, write_description
from hrm_agent.supervised.files import INFO_FILE, read_info
from hrm_agent.supervised.registry import PuzzleModels, find_named, puzzle_models, register, shipped
from puzzle_folders import write_puzzle_model
from refusals import refusal

SHIPPED = shipped()


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    known = dict(puzzle_models.registered)
    yield
    puzzle_models.registered = known


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a card that says what it solves."""
    made = write_puzzle_model(tmp_path / "tiny")
    report = solve(str(made), puzzles=40)
    facts = {"id": "tiny_3-TRM-v0", "license": "mit", "evaluation": evaluation_facts(report)}
    write_description(made, {**read_info(made), **facts})
    return made


def test_a_name_stands_for_its_folder(folder: Path) -> None:
    register("tiny_3-TRM-v0", folder)
    register("tiny_3-TRM-v0", folder)
    by_name, by_path = solve("tiny_3-TRM-v0", puzzles=40), solve(str(folder), puzzles=40)
    assert by_name.pop("model") == "tiny_3-TRM-v0"
    assert by_path.pop("model") == str(folder / "model.safetensors")
    assert {k: v for k, v in by_name.items() if "ms" not in k} == {k: v for k, v in by_path.items() if "ms" not in k}
    assert by_name["valid"] == read_info(folder)["evaluation"]["valid"]
    assert load_model(puzzle_models["tiny_3-TRM-v0"]).halting_reads == "first"


def test_a_folder_of_that_name_comes_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("other-v0", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    write_puzzle_model(tmp_path / "other-v0")
    assert find_named("other-v0") == Path("other-v0")
    register("tiny-v0", folder)
    assert find_named("tiny-v0") == folder


@pytest.mark.parametrize("name", ["maze", "maze-v", "ma ze-v0", "../x-v0", "maze--v0", "-v0", "mäze-v0", ""])
def test_a_malformed_name_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="such as maze_9-TRM-v0"):
        register(name, folder)


def test_a_name_that_is_taken_is_refused(folder: Path, tmp_path: Path) -> None:
    register("tiny-v0", folder)
    with pytest.raises(ValueError, match="tiny-v0: already registered"):
        register("tiny-v0", tmp_path)


def test_an_unknown_name_is_one_line_with_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register("tiny_3-TRM-v0", folder)
    line = refusal(monkeypatch, capsys, "solve", ["model=tiny_3-TRM-v1"], folder.parent)
    assert "model=tiny_3-TRM-v1: no such file or folder, nor a registered model; did you mean tiny_3-TRM-v0?" in line


def test_they_are_listed_beside_the_agents_and_show_their_cards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register("tiny_3-TRM-v0", folder)
    register("bare-v0", write_puzzle_model(tmp_path / "bare"))
    register("gone-v0", tmp_path / "gone")
    forged = write_puzzle_model(tmp_path / "forged", evaluation={"valid": "[bold]all"})
    register("forged-v0", forged)
    monkeypatch.setattr(sys, "argv", ["agents"])
    list_all()
    lines = capsys.readouterr().out.splitlines()
    rows = {name: next(line for line in lines if f" {name} " in line) for name in puzzle_models}
    assert "not evaluated" in rows["bare-v0"]
    for name in ("gone-v0", "forged-v0"):
        assert "cannot be read" in rows[name]
    found = read_info(folder)["evaluation"]
    assert f"{found['valid']:.1%}" in rows["tiny_3-TRM-v0"]
    assert f"{found['halted']['valid']:.1%} in {found['halted']['segments']:.1f} segments" in rows["tiny_3-TRM-v0"]
    assert any(name in "\n".join(lines) for name in agents)
    monkeypatch.setattr(sys, "argv", ["agents", "tiny_3-TRM-v0"])
    list_all()
    assert capsys.readouterr().out.strip() == (folder / CARD_FILE).read_text().strip()


def test_a_card_is_a_function_of_what_lies_beside_it(folder: Path) -> None:
    text = (folder / CARD_FILE).read_text()
    assert text == card_of(folder)
    info = read_info(folder)
    for words in ("# tiny_3-TRM-v0", 'license: "mit"', "`maze` with", "python -m hrm_agent.solve model=tiny_3-TRM-v0"):
        assert words in text
    valid, (low, high) = info["evaluation"]["valid"], info["evaluation"]["valid_ci95"]
    assert f"| `valid`: right by the rules | {valid:.3f} [{low:.3f}, {high:.3f}] |" in text
    changed = {**info, "steps": 6}
    (folder / INFO_FILE).write_text(json.dumps(changed))
    assert card_of(folder) != text


def test_what_a_model_says_of_itself_cannot_break_out_of_its_line(folder: Path) -> None:
    info: dict[str, Any] = {
        **read_info(folder),
        "id": "a\nlicense: evil\n",
        "machine": "x | y\n# head",
        "task": "`b`\n",
    }
    write_description(folder, info)
    text = (folder / CARD_FILE).read_text()
    assert "\nlicense: evil" not in text
    assert "\n# head" not in text
    assert "x \\| y" in text


def test_a_card_without_an_evaluation_says_so(tmp_path: Path) -> None:
    made = write_puzzle_model(tmp_path / "bare")
    write_description(made, read_info(made))
    assert "None is recorded with this model." in (made / CARD_FILE).read_text()


# What ships


def test_what_ships_is_registered_and_small() -> None:
    assert set(SHIPPED) <= set(PuzzleModels())
    assert sum(file.stat().st_size for folder in SHIPPED.values() for file in folder.iterdir()) < 1_000_000


def test_a_model_in_the_package_s_folder_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_puzzle_model(tmp_path / "models" / "new-TRM-v0")
    (tmp_path / "models" / "empty-v0").mkdir()
    monkeypatch.setattr(registry, "files", lambda package: tmp_path)
    assert list(shipped()) == ["new-TRM-v0"]
    assert "new-TRM-v0" in PuzzleModels()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_that_ships_is_that_of_its_files(name: str) -> None:
    folder = SHIPPED[name]
    assert (folder / CARD_FILE).read_text() == card_of(folder)
    info = read_info(folder)
    assert info["id"] == name
    assert {"command", "commit", "machine", "license", "evaluation", "halting_rule"} <= info.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_that_ships_does_what_its_card_says(name: str) -> None:
    """On the first of the test puzzles: within five standard deviations of the card's figures."""
    found, report = read_info(SHIPPED[name])["evaluation"], solve(name, puzzles=100)
    score = "valid" if "valid" in found else "exact"
    for says, does in ((found, report), (found["halted"], report["halted"])):
        spread = (says[score] * (1 - says[score]) / 100) ** 0.5
        assert does[score] == pytest.approx(says[score], abs=5 * spread + 0.02)
    assert report["halted"]["segments"] == pytest.approx(found["halted"]["segments"], rel=0.25)
