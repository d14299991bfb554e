"""The comparison with Stable-Baselines3: what it runs and what it records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.baselines import draw
from experiments.baselines.run import HERE, Study
from experiments.engine import runner
from experiments.engine.records import load
from experiments.engine.runner import Job
from experiments.engine.statistics import NEVER
from hrm_agent.launch.cli import compose_config, open_options, parse_options
from hrm_agent.launch.settings import resolve, settings

CONFIG = Study(HERE).settings
TUNED: dict[str, Any] = {name: {"trial": 1, "settings": {"num_envs": 64}} for name in CONFIG["sb3"]}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The study in a folder of its own, with settings found."""
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    made = Study(tmp_path)
    made.settings = CONFIG
    return made


def test_records_say_their_arm_and_when_they_were_good() -> None:
    for r in load(HERE / "results.json"):
        assert r["arm"] == r["agent"] + "_fog" * r["fog"]
        if "curve" in r and r["seconds_to_90"] is not None:
            assert 0 < r["seconds_to_90"] <= r["seconds"] + 1
            assert 0 < r["frames_to_90"] <= r["frames"]


def test_every_agent_has_both_worlds_and_the_slowest_to_train_come_first(study: Study) -> None:
    jobs = study.missing([0])
    assert jobs[:2] == [("sb3_recurrent_ppo", 0, ""), ("sb3_recurrent_ppo_fog", 0, "")]
    assert len(set(jobs)) == 2 * (len(CONFIG["sb3"]) + len(CONFIG["ours"]))


def test_the_searchs_winner_is_an_arm_of_its_own_unless_it_is_the_default(study: Study) -> None:
    tuned = study.folder / "tuned.json"
    study.settings = {**CONFIG, "search": "trm"}
    tuned.write_text(json.dumps({**TUNED, "trm": {"settings": {}}}))
    assert "trm_tuned" not in study.arms()
    tuned.write_text(json.dumps({**TUNED, "trm": {"settings": {"algo.gamma": 0.9}}}))
    arms = {name: arm["overrides"] for name, arm in study.arms().items()}
    assert arms["trm"] == ["+earlier=november_2026", "core=trm"]
    assert arms["trm_tuned"] == arms["trm_tuned_fog"] == [*arms["trm"], "algo.gamma=0.9"]
    study.settings = {**CONFIG, "search": None}
    assert "trm_tuned" not in study.arms()


def test_every_command_is_accepted_and_both_worlds_are_the_same_for_all(study: Study) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    from hrm_agent.baselines.config import Options, RunConfig

    for name, arm in study.arms().items():
        job = Job(name, 2)
        world, overrides = {"view": CONFIG["view"]} if arm["fog"] else {}, study.overrides(job)
        if study.module_of(job) == "hrm_agent.baselines":
            options = parse_options([*overrides, "out=RUN"], Options, "")
            run = RunConfig.parse({key: value for key, value in options.items() if key != "out"})
            seconds = CONFIG["seconds_of"].get(name.removesuffix("_fog"), CONFIG["seconds"])
            assert (run.max_seconds, run.test_episodes, run.settings.num_envs) == (seconds, 1000, 64)
        else:
            run, _, _ = settings(resolve(compose_config(open_options(overrides), "train")))
            assert (run.total_steps, run.threads) == (400_000, 1)
        assert (run.env, run.env_options, run.seed, run.clock) == (CONFIG["env"], world, 2, "cpu")


def test_a_run_of_theirs_that_was_cut_short_is_begun_anew(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the evaluation and the note of what it took, its record would lack its commit and memory."""
    trained: list[Path] = []

    def train(place: Path, overrides: list[str], side_by_side: int, module: str) -> None:
        trained.append(place)
        (place / "study.json").write_text("{}")

    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(study, "place", lambda job: tmp_path)
    (tmp_path / "eval.json").write_text('{"success": 0.5}')
    for _ in range(2):
        study.trained(Job("sb3_dqn", 0))
    assert trained == [tmp_path]


@pytest.mark.parametrize(
    ("tuned", "says"),
    [(None, "tuned.json: not there"), ({"sb3_dqn": {"settings": {}}}, "no settings of sb3_recurrent_ppo, sb3_ppo_cnn")],
)
def test_without_settings_it_refuses_in_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], tuned: Any, says: str
) -> None:
    (study.folder / "tuned.json").unlink()
    if tuned:
        (study.folder / "tuned.json").write_text(json.dumps(tuned))
    with pytest.raises(SystemExit) as exit_:
        study.arms()
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert says in printed
    assert printed.count("\n") == 1


def test_references_are_recorded_once_a_world(study: Study) -> None:
    played = {"success": 0.5, "success_ci95": [0.4, 0.6]}
    report = {"env": "X-v0", "env_options": {}, **dict.fromkeys(("random", "bfs_replanner", "clairvoyant"), played)}
    found = study.reference_records(report, "_fog", fog=True)
    assert [r["arm"] for r in found] == ["random_fog", "bfs_replanner_fog", "clairvoyant_fog"]
    assert (found[0]["spl"], found[2]["spl"], found[2]["fog"]) == (None, 0.5, True)
    (study.folder / "results.json").write_text(json.dumps(found))
    assert study.reference_records(report, "_fog", fog=True) == []
    assert len(study.reference_records(report, fog=False)) == 3


def test_the_race_is_to_the_best_of_theirs() -> None:
    def record(agent: str, success: float, curve: list[list[float]]) -> dict[str, Any]:
        same = {"fog": False, "validation_curve": [], "seconds": curve[-1][1], "sampled_success": curve[-1][2]}
        return {"agent": agent, "success": success, "curve": curve, **same}

    records = [
        record("sb3_dqn", 0.6, [[1, 10.0, 0.3], [2, 100.0, 0.55]]),
        record("sb3_ppo_mlp", 0.7, [[1, 50.0, 0.795], [2, 100.0, 0.8]]),
        record("trm", 0.9, [[1, 5.0, 0.75], [2, 20.0, 0.8]]),
        record("gru", 0.5, [[1, 5.0, 0.5]]),
    ]
    first, last = draw.race(records)
    assert (first["agent"], first["best"], first["target"]) == ("trm", "sb3_ppo_mlp", 0.8)
    assert (first["sampled"], first["whole"], first["first"]) == (20.0, 100.0, 50.0)
    assert (last["agent"], last["sampled"]) == ("gru", NEVER)
    assert "| 0.20 |" in draw.race_table(records)
    assert "| 0.40 |" in draw.race_table(records)
