"""One-axis shifts: one option at a time, all players on the same levels, and a reason for every skipped point."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import hrm_agent.shifts
from hrm_agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.shifts import AXES, base_config, format_point, list_points, why_not
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.shifts import shifts
from hrm_envs import MazeConfig

MAZE = "DynamicMaze-v0"
OPTIONS = {"rows": 3, "cols": 3, "walls": 1, "doors": 1, "max_episode_steps": 9}
CORE = {"mixing": "conv", "layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 8}
BASES = [
    MazeConfig(),
    MazeConfig(rows=5, cols=6, walls=10, doors=5, max_episode_steps=80),
    MazeConfig(layout="braid", loops=0.5, doors=0),
    MazeConfig(layout="four_rooms", goal_process="walk", p_goal=0.05, view=2),
]


def save_agent(folder: Path, env: str = MAZE, options: dict[str, Any] | None = None, **config: Any) -> str:
    torch.manual_seed(0)
    spaces = make_vector_env(env, 1, options)
    settings = {"core_options": CORE, "hidden_size": 8, "encoder": EncoderConfig(1, 2), **config}
    policy = Policy(PolicyConfig(**settings), spaces.single_observation_space, spaces.single_action_space)
    torch.nn.init.normal_(policy.policy_head.weight)
    info = {"env": env, "env_options": options or {}}
    Agent(policy, spaces.single_observation_space, spaces.single_action_space, info).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_agent(tmp_path_factory.mktemp("agent"), MAZE, OPTIONS)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.layout)
def test_a_point_changes_its_own_axis_alone(base: MazeConfig) -> None:
    may_change = {
        "size": {"rows", "cols", "max_episode_steps", "walls"},
        "goal": {"goal_process", "p_goal"},
        **{name: {name} for name in ("doors", "p_change", "door_process", "view")},
    }
    points = list_points(base, list(AXES), 10)
    assert [p.axis for p in points if not p.changes] == ["trained"]
    assert len({(p.axis, p.value) for p in points}) == len(points)
    for point in points[1:]:
        assert set(point.changes) <= may_change[point.axis]
        assert any(asdict(base)[name] != value for name, value in point.changes.items())
    assert {p.axis for p in points} == {"trained", *AXES}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.layout)
def test_larger_mazes_have_as_much_time_and_as_many_walls_for_their_size(base: MazeConfig) -> None:
    sizes = [p.changes for p in list_points(base, ["size"], 16)[1:]]
    assert [s["rows"] for s in sizes] == list(range(max(base.rows, base.cols) + 2, 17, 2))
    for changes in sizes:
        larger = MazeConfig(**{**asdict(base), **changes})
        assert larger.rows == larger.cols
        steps_per_cell = larger.max_episode_steps / (larger.rows * larger.cols)
        assert steps_per_cell == pytest.approx(base.max_episode_steps / (base.rows * base.cols), rel=0.01)
        assert larger.doors == base.doors
        assert larger.walls is not None
        assert base.walls is not None
        assert larger.walls / larger.edges == pytest.approx(base.walls / base.edges, abs=1 / larger.edges)


@pytest.mark.thorough
def test_every_point_is_an_evaluation(run: str, tmp_path: Path) -> None:
    out = tmp_path / "shifts.json"
    report = shifts(run, 12, str(out), axes=["size", "doors", "view"], max_size=5, seed=3, split="validation")
    assert json.loads(out.read_text()) == report
    records = {record["value"]: record for record in report["records"]}
    assert list(records)[:4] == ["as trained", "11x11, 5x5 cells", "0 doors", "2 doors"]
    for value in ("as trained", "11x11, 5x5 cells", "view radius 1"):
        record = records[value]
        same = evaluate(run, 12, env_options=record["env_options"], seed=3, split="validation")
        assert record["sampled"] == {name: same["sampled"][name] for name in ("success", "success_ci95", "spl")}
        names = (
            "success",
            "spl",
            "regret_by_change",
            "changes",
            "segments_per_decision",
            "levels",
            "bfs_replanner",
            "clairvoyant",
        )
        for name in names:
            assert record[name] == same[name], (value, name)
        assert record["env_options"].items() >= {**OPTIONS, **record["env_options"]}.items()
    assert records["11x11, 5x5 cells"]["env_options"] == {
        **OPTIONS,
        "rows": 5,
        "cols": 5,
        "walls": 3,
        "max_episode_steps": 25,
    }
    assert records["0 doors"]["clairvoyant"]["success"] == 1


def test_what_does_not_fit_is_skipped_with_its_reason(tmp_path: Path) -> None:
    tied = save_agent(tmp_path / "tied", MAZE, OPTIONS, encoder=EncoderConfig(1, 2, "learned"))
    report = shifts(tied, 4, axes=["size", "doors"], max_size=5)
    reasons = {record["value"]: record["skipped"] for record in report["records"]}
    assert reasons.pop("11x11, 5x5 cells").startswith("the agent's weights encoder.positions belong to observations")
    assert set(reasons.values()) == {None}

    full = save_agent(tmp_path / "full", MAZE, {**OPTIONS, "doors": 4})
    reasons = {record["value"]: record["skipped"] for record in shifts(full, 4, axes=["doors"])["records"]}
    assert reasons == {
        "as trained": None,
        "0 doors": None,
        "8 doors": None,
        "16 doors": "walls=1 and doors=16 do not fit on the 12 edges of a 3x3 maze; use fewer, or a larger maze",
    }

    records = shifts(tied, 4, axes=["size"], max_size=4)["records"]
    assert [(r["axis"], r["skipped"]) for r in records[1:]] == [("size", "they begin at 5x5 cells, above max_size=4")]
    assert records[1]["env_options"] == OPTIONS

    bare = save_agent(tmp_path / "bare", MAZE, {**OPTIONS, "doors": 0})
    records = shifts(bare, 4, axes=["p_change", "door_process"])["records"]
    assert {record["skipped"] for record in records[1:]} == {"the maze has no doors"}
    assert all("success" not in record for record in records[1:])


@pytest.mark.parametrize(("own", "max_size"), [(3, 4), (63, 64), (3, 1)])
def test_an_axis_without_a_point_is_a_record_with_its_reason(own: int, max_size: int) -> None:
    base = MazeConfig(**{**OPTIONS, "rows": own, "cols": own})
    trained, point, *more = list_points(base, ["size", "doors"], max_size)
    assert (trained.axis, point.axis, point.changes) == ("trained", "size", {})
    assert why_not(base, point) == f"they begin at {own + 2}x{own + 2} cells, above max_size={max_size}"
    assert {p.axis for p in more} == {"doors"}
    assert all(why_not(base, p) is None for p in more)
    record = {"value": point.value, "skipped": why_not(base, point)}
    assert format_point(record).split("skipped: ")[1] == why_not(base, point)


def test_the_command_says_what_it_writes(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"run={run}", "out=s.json", "episodes=6", "axes=[size,door_process]", "max_size=7", "carry=reset"]
    monkeypatch.setattr(sys, "argv", ["shifts", *given])
    hrm_agent.shifts.main()
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["carry"] == "reset"
    assert len(lines) == 1 + len(report["records"]) + 1 == 7
    for line, record in zip(lines[1:], report["records"], strict=False):
        assert line.startswith(record["value"])
        assert f"{record['success']:.1%}" in line
        assert f"{record['sampled']['success']:.1%}" in line
        assert f"{record['bfs_replanner']['success']:.1%}" in line
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("run=absent", "absent: no such folder"),
        ("axes=[sizes]", "expected a list of one or more of size, doors"),
        ("axes=[size,size]", "each once"),
        ("axes=[]", "each once"),
        ("axes=7", "axes=7: expected a list"),
        ("axes=size", "axes='size': expected a list"),
        ("max_size=65", "max_size=65: expected an integer from 1 to 64"),
        ("episodes=0", "episodes=0"),
        ("env=CartPole-v1", "shifts change the options of a maze"),
        ("env=CueMaze-v0", "shifts change the options of a maze"),
        ("carry=gate", "carry=gate: it has weights of its own"),
        ("out=missing/s.json", "folder that exists"),
        ("wich=last", "did you mean which"),
    ],
)
def test_bad_input_is_one_line(
    argument: str,
    message: str,
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shifts", f"run={run}", "out=s.json", "episodes=2", argument])
    with pytest.raises(SystemExit) as exit_:
        hrm_agent.shifts.main()
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_what_the_environment_says() -> None:
    assert base_config("PaperMaze-v0", {"doors": 2}).walls == 10
    assert base_config("PaperMaze-v0", {"doors": 2}).doors == 2
