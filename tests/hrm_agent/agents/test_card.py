"""Model cards: made from what an agent says of itself, for people and for the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import run_command, tiny_run
from hrm_agent import Agent
from hrm_agent.agents.card import BASELINES, SAMPLED, _evaluation, evaluation_facts, write_card
from hrm_agent.agents.description import add_facts
from hrm_agent.evaluate import evaluate
from hrm_agent.files.reading import CheckpointError
from tiny import ACTIONS, GRID, MAZE, tiny_policy

INFO: dict[str, Any] = {
    "env": "DynamicMaze-v0",
    "env_options": MAZE,
    "algo": "ppo",
    "core": "trm",
    "seed": 3,
    "frames": 12_345,
    "seconds": 6.5,
    "parameters": 27_000,
    "command": "python -m hrm_agent.train env=DynamicMaze-v0 carry=full",
}


def tiny_agent(info: dict[str, Any] | None = None) -> Agent:
    return Agent(tiny_policy(), GRID, ACTIONS, INFO if info is None else info)


def front_matter(page: str) -> dict[str, Any]:
    _, head, body = page.split("---\n", 2)
    assert body.lstrip().startswith("# ")
    return yaml.safe_load(head)


def test_a_saved_agent_has_a_card_that_says_what_it_is(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "agent.json", "agent.safetensors"]
    for fact in (INFO["command"], "12,345", "6.5", "27,000", "| seed | 3 |", "| carry | full |", json.dumps(MAZE)):
        assert fact in page
    assert "None is recorded" in page
    head = front_matter(page)
    assert head["library_name"] == "hrm-agent"
    assert head["license"] == "unknown"  # none was given
    assert {"reinforcement-learning", "DynamicMaze-v0", "ppo", "trm"} <= set(head["tags"])
    assert "model-index" not in head


def test_an_evaluation_stands_in_the_card_beside_its_baselines(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    report = evaluate(run=str(tmp_path), episodes=12)
    add_facts(tmp_path, evaluation=evaluation_facts(report), license="mit", id="Tiny-v0")
    page = (tmp_path / "README.md").read_text()
    for name, row in (("this agent", report), *((name, report[key]) for name, key in (SAMPLED, *BASELINES))):
        low, high = row["success_ci95"]
        assert f"| {name} | {row['success']:.3f} | {low:.3f} to {high:.3f} |" in page
    assert "12 test levels (seeds 0 to 11)" in page
    assert 'hrm_agent.make("Tiny-v0")' in page
    head = front_matter(page)
    assert head["license"] == "mit"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == report["success"]
    assert result["dataset"]["name"] == "DynamicMaze-v0"
    loaded = Agent.load(tmp_path)
    assert loaded.info == {**INFO, "evaluation": evaluation_facts(report), "license": "mit", "id": "Tiny-v0"}
    again = evaluate(run=str(tmp_path), episodes=12)
    assert evaluation_facts(again) == loaded.info["evaluation"]
    description = json.loads((tmp_path / "agent.json").read_text().replace('"split"', '"band"'))  # its former name
    assert write_card(description) == page
    del description["info"]["evaluation"]["sampled"]  # of an agent of before
    assert write_card(description) == "".join(line for line in page.splitlines(True) if "drawn" not in line)


def test_where_there_are_no_shortest_paths_the_return_stands_in_their_place() -> None:
    row = {"success": 0.5, "success_ci95": [0.25, 0.75], "spl": None, "return": 123.456}
    page = _evaluation({**row, "env": "CartPole-v1", "env_options": {}, "first_level": 0, "levels": 4, "sampled": row})
    assert "| | success | 95% interval | return |" in page
    assert "| this agent | 0.500 | 0.250 to 0.750 | 123.456 |" in page
    assert "| this agent, actions drawn | 0.500 | 0.250 to 0.750 | 123.456 |" in page


def test_a_page_that_is_no_card_is_left_alone_and_a_card_is_renewed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My agents\n")
    tiny_agent().save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My agents\n"
    (tmp_path / "README.md").unlink()
    tiny_agent().save(tmp_path)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: hrm-agent\n")
    tiny_agent({**INFO, "frames": 99_999}).save(tmp_path)
    assert b"99,999" in (tmp_path / "README.md").read_bytes()
    with pytest.raises(CheckpointError):
        add_facts(tmp_path / "absent", license="mit")


def test_a_card_with_words_of_its_owner_is_left_alone(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    card = tmp_path / "README.md"
    edited = card.read_text() + "\nTrained on a train.\n"
    card.write_text(edited)
    tiny_agent({**INFO, "frames": 99_999}).save(tmp_path)
    add_facts(tmp_path, license="mit")
    assert card.read_text() == edited
    assert Agent.load(tmp_path).info["license"] == "mit"


@pytest.mark.parametrize("damage", ["", "{", "{}", '{"agent_version": 1}', '{"agent_version": 1, "info": []}'])
def test_a_damaged_description_does_not_cost_the_page_beside_it(damage: str, tmp_path: Path) -> None:
    tiny_agent().save(tmp_path)
    page = (tmp_path / "README.md").read_bytes()
    (tmp_path / "agent.json").write_text(damage)
    tiny_agent({**INFO, "frames": 99_999}).save(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == page
    assert Agent.load(tmp_path).info["frames"] == 99_999


@pytest.mark.parametrize("info", [{}, {"evaluation": {"success": 0.5}, "env": None}, {"evaluation": "good"}])
def test_an_agent_that_says_little_has_a_card_all_the_same(info: dict[str, Any], tmp_path: Path) -> None:
    tiny_agent(info).save(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "None is recorded" in page
    assert front_matter(page)["library_name"] == "hrm-agent"
    assert Agent.load(tmp_path).info == info


def test_what_an_agent_says_cannot_change_the_front_matter() -> None:
    nasty = 'x"\nlicense: other\n---\n# Title'
    description = {
        "policy": tiny_policy().config.to_dict(),
        "observation_space": {},
        "action_space": {},
        "info": {**INFO, "algo": nasty, "license": nasty},
    }
    head = front_matter(write_card(description))
    assert head["license"] == nasty
    assert nasty in head["tags"]


def test_training_writes_its_test_evaluation_into_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    arguments = [a for a in tiny_run(run) if not a.startswith(("test_episodes", "total_steps", "hydra."))]
    run_command(monkeypatch, "train", *arguments, "test_episodes=6", "total_steps=64", f"hydra.run.dir={run}")
    report = json.loads((run / "eval.json").read_text())
    info = Agent.load(run).info
    assert info["evaluation"] == evaluation_facts(report)
    assert info["command"].startswith("python -m hrm_agent.train env=DynamicMaze-v0 ")
    page = (run / "agents" / "best" / "README.md").read_text()
    assert info["command"] in page
    assert str(tmp_path) not in page
    assert f"| this agent | {report['success']:.3f} |" in page
