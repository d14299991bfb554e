"""The attempts at recurrent PPO of sb3-contrib: what they run, what is recorded of those that were stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.baselines.attempts import attempts_table
from experiments.baselines.recurrent import BASELINE, HERE, Attempts
from experiments.engine.records import load
from experiments.engine.runner import Job

LINES = [
    {"frames": 10, "train/success": 0.25, "train/seconds": 2.0, "train/frames_per_second": 5.0},
    {"frames": 20, "validation/success": 0.125},
    {"frames": 30, "train/success": 0.5, "train/seconds": 6.0, "train/frames_per_second": 5.0},
]
ARM = {"frames": 40, "seeds": [0], "settings": {"mlp_layers": 1}}


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """One attempt whose run is in a folder of the test."""
    place = tmp_path / "a_seed0"
    place.mkdir()
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (place / "run.json").write_text('{"command": "python -m hrm_agent.baselines seed=0 out=/tmp/x"}')
    made = Attempts(tmp_path)
    made.settings = {**made.settings, "base": {"features": 8}, "attempts": {"a": ARM}}
    monkeypatch.setattr(made, "place", lambda job: place)
    return made


def test_a_stopped_attempt_is_recorded_as_far_as_it_came(attempts: Attempts) -> None:
    attempts.settings["attempts"] = {"a": {**ARM, "stopped": "abc1234"}}
    [record] = attempts.measure(Job("a", 0))
    assert (record["frames"], record["seconds"], record["planned_frames"]) == (30, 6.0, 40)
    assert (record["stopped"], record["commit"], record["success"]) == (True, "abc1234", None)
    assert record["validation_success"] == 0.125
    assert record["settings"] == {"features": 8, "mlp_layers": 1}
    assert "30 (stopped)" in attempts_table([record])


def test_a_finished_attempt_has_test_levels_greedy_and_sampled(attempts: Attempts, tmp_path: Path) -> None:
    played = {"success": 0.5, "success_ci95": [0.1, 0.9], "levels": {"success": "01"}}
    drawn = {"success": 1.0, "success_ci95": [0.3, 1.0], "levels": {"success": "11"}}
    about = {"spl": 0.4, "split": "test", "macs_per_decision": 7, "frames": 40, "seconds": 8.0, "parameters": 3}
    validation = {"validation": {"success": 0.25}, "validation_sampled": {"success": 0.75}}
    place = tmp_path / "a_seed0"
    (place / "eval.json").write_text(json.dumps({**played, "sampled": drawn, **about, **validation}))
    (place / "study.json").write_text('{"commit": "abc1234", "wall_seconds": 9.0}')
    [record] = attempts.measure(Job("a", 0))
    assert (record["success"], record["sampled_success"], record["commit"]) == (0.5, 1.0, "abc1234")
    assert record["levels"] == {"success": "01", "sampled": "11"}
    assert record["steps_per_second"] == 5.0
    row = attempts_table([record]).splitlines()[2]
    assert "| 1 hidden layer of 8 |" in row
    assert "| 0.250 | 0.750 | **0.500** [0.100, 0.900] | **1.000** [0.300, 1.000] |" in row


def test_every_attempt_is_accepted_by_its_command_and_records_are_of_attempts() -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    from hrm_agent.baselines.config import Options, RunConfig
    from hrm_agent.launch.cli import parse_options

    study = Attempts(HERE)
    for job in study.jobs():
        options = parse_options([*study.overrides(job), "out=RUN"], Options, "")
        run = RunConfig.parse({key: value for key, value in options.items() if key != "out"})
        assert (run.baseline, run.max_seconds, run.clock, run.test_episodes) == (BASELINE, 0.0, "cpu", 1000)
        assert all(vars(run.settings)[name] == value for name, value in study.settings_of(job.arm).items())
    for record in load(HERE / study.results):
        assert record["settings"] == study.settings_of(record["arm"])
        assert record["frames"] >= study.arms()[record["arm"]]["frames"] or record["stopped"]
