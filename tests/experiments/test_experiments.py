"""A number in a page has a record behind it: tables are what the JSON says, records have what they must."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.engine.pages import ELSEWHERE, filled, measured, pages_of, tables_of
from experiments.engine.records import ROOT, load, put
from experiments.engine.runner import Job, Study, chosen, study_of
from experiments.engine.runs import POINTS, command_of, first_above, sampled_curve, thinned, validation_curve
from experiments.engine.statistics import crossed_interval, success_interval
from experiments.engine.tables import EMPTY, UNTRAINED, arm_rows, estimate, levels_line
from forks import Forks
from hrm_agent import Agent
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.launch.hydra_plugin import GENERIC_ALGO
from tiny import ACTIONS, GRID, MAZE, tiny_policy

FOLDERS = sorted(page.parent for page in ROOT.glob("experiments/*/README.md"))
STUDIES = [f for f in FOLDERS if (f / "study.yaml").exists() and (f / "results.json").exists()]  # those that were run
RECORDS = sorted(ROOT.glob("experiments/*/*.json"))
MARK = re.compile(r"^<!-- table (.+) -->$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.name


# Pages


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_tables_say_what_the_records_say(folder: Path) -> None:
    tables, own, marked = tables_of(folder), folder / "README.md", set()
    for page in pages_of(folder):
        text = page.read_text()
        assert text == filled(text, tables), page
        marked |= set(MARK.findall(text))
    assert set(MARK.findall(own.read_text())) <= set(tables)
    assert {name for name in tables if not name.endswith(" short")} <= marked


def test_every_table_of_the_readme_has_its_records() -> None:
    drawn = {f"{folder.name}{kind}" for folder in STUDIES for kind in ("", " short", " levels")}
    drawn |= set(tables_of(ROOT / "experiments" / "carry_budget"))
    assert set(MARK.findall((ROOT / "README.md").read_text())) <= drawn


def test_pages_of_success_say_what_levels_it_is_of() -> None:
    """A page that has figures of levels has the line, beside its first table."""
    for folder in FOLDERS:
        name = f"{folder.name} levels"
        wanted = bool(measured(folder)) or ((folder / "study.yaml").exists() and folder.name not in ELSEWHERE)
        assert (name in tables_of(folder)) == (f"<!-- table {name} -->" in (folder / "README.md").read_text()) == wanted
    page = (ROOT / "experiments/dqn/README.md").read_text()
    assert "Levels: split `development`, called `test` until 30 November 2026." in page


def test_levels_are_those_of_the_records() -> None:
    old, new, other = {"success": 0.5}, {"success": 0.5, "split": "test"}, {"success": 0.5, "split": "validation"}
    assert levels_line([old, old]) == "Levels: split `development`, called `test` until 30 November 2026."
    assert levels_line([new]) == "Levels: split `test`."
    mixed = "Levels: 1 record of split `validation`; 2 records of split `development`, called `test` until 30 November"
    assert levels_line([old, new, new, other, old]) == f"{mixed} 2026; 2 records of split `test`."
    foreign = {"success": 0.5, "split": None}
    none = "1 record of an environment without splits, on seeds that were kept for testing"
    assert levels_line([new, new, foreign]) == f"Levels: 2 records of split `test`; {none}."
    assert levels_line([]) == EMPTY


def test_a_table_that_does_not_end_is_refused() -> None:
    text = "a\n<!-- table x -->\nold\n<!-- /table x -->\nb"
    assert filled(text, {"x": "new", "y": "not here"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="table x: expected <!-- /table x -->"):
        filled(text.replace("/table x", "/table"), {"x": "new"})


# Records


@pytest.mark.parametrize("folder", STUDIES, ids=name_of)
def test_records_are_whole_and_belong_to_the_study(folder: Path) -> None:
    study = study_of(folder)
    records = load(folder / study.results)
    assert records or not (folder / study.results).exists()  # an edition that has not been run
    keys = [tuple(record.get(field) for field in study.key) for record in records]
    assert len(keys) == len(set(keys))
    for record, key in zip(records, keys, strict=True):
        assert set(record) >= study.required
        if key[0].removesuffix("_fog") not in UNTRAINED:
            assert record["seed"] in study.arm(key[0])["seeds"]
        if "success" in record:
            low, high = record["success_ci95"]
            assert low <= record["success"] <= high


@pytest.mark.parametrize("folder", STUDIES, ids=name_of)
def test_outcomes_on_levels_and_lesions_belong_to_records(folder: Path) -> None:
    study = study_of(folder)
    records = {tuple(r.get(field) for field in study.key): r for r in load(folder / study.results)}
    for outcome in load(folder / "levels.json"):
        won, record = outcome["success"], records[tuple(outcome.get(field) for field in study.key)]
        assert won.count("1") / len(won) == pytest.approx(record["success"])
        if record.get("sampled"):
            assert outcome["sampled"].count("1") / len(won) == pytest.approx(record["sampled"]["success"])
    lesions = study.settings.get("lesions", {})
    for lesion in load(folder / "lesions.json"):
        assert (lesion["agent"], lesion["seed"]) in records
        assert lesion["options"] == lesions[lesion["lesion"]]["options"]
        assert lesion["agent"] in lesions[lesion["lesion"]]["arms"]


# The engine


def test_memory_is_of_the_one_command_and_failures_are_reported(tmp_path: Path) -> None:
    """In a process of its own: a child's peak is never below that of the process that began it."""
    program = f"""
import subprocess, sys
from experiments.engine.runs import run_logged
log = open({str(tmp_path / "log")!r}, "a")
for mb in (300, 1):
    print(run_logged([sys.executable, "-c", f"print(len(bytearray({{mb}} << 20)))"], log).ru_maxrss // 1024)
try:
    run_logged([sys.executable, "-c", "raise SystemExit(3)"], log)
except subprocess.CalledProcessError as error:
    print(error.returncode)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    large, small, code = map(int, done.stdout.split())
    assert large > 300
    assert small < 150
    assert code == 3
    assert (tmp_path / "log").read_text().split() == [str(300 << 20), str(1 << 20)]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    arms, worlds = {"a": ["core=gru"], "b": {"overrides": [], "seeds": [1]}}, {"plain": {}, "fog": {"view": 2}}
    settings = {"seeds": [0, 1], "base": ["env=X-v0"], "arms": arms, "worlds": worlds}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    made = Study(tmp_path, side_by_side=10**6)
    made.key = ("agent", "seed", "world")
    return made


def test_one_seed_of_everything_before_the_next_and_nothing_twice(study: Study) -> None:
    jobs = study.missing()
    assert [str(job) for job in jobs] == ["a plain 0", "a fog 0", "a plain 1", "a fog 1", "b plain 1", "b fog 1"]
    put(study.folder / study.results, [{"agent": "a", "seed": 0, "world": "fog"}], study.key)
    assert study.missing() == [job for job in jobs if job != ("a", 0, "fog")]
    assert [str(job) for job in study.missing([7])] == ["a plain 7", "a fog 7", "b plain 7", "b fog 7"]
    assert study.overrides(jobs[1]) == [
        "env=X-v0", "core=gru", "env.options.view=2", "seed=0", "test_episodes=0", "threads=1"
    ]  # fmt: skip


def test_a_record_says_greedy_and_sampled_success_its_split_and_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text("seeds: [0]\narms: {a: []}\ntest: {episodes: 7}\n")
    study, place = Study(tmp_path), tmp_path / "run"
    info = {"env": "DynamicMaze-v0", "env_options": MAZE, "algo": "ppo", "frames": 64, "seconds": 0.1}
    for name in ("best", "last"):
        Agent(tiny_policy(), GRID, ACTIONS, info).save(place / "agents" / name)
    (place / "metrics.jsonl").write_text("")
    (place / "run.json").write_text('{"command": "python -m hrm_agent.train"}')
    study.place = lambda job: place  # type: ignore[method-assign]
    [record] = study.measure(Job("a", 0))
    [outcome] = load(tmp_path / "levels.json")
    assert record["split"] == "test"
    assert outcome["success"].count("1") == round(7 * record["success"])
    assert outcome["sampled"].count("1") == round(7 * record["sampled"]["success"])
    assert len(outcome["success"]) == len(outcome["sampled"]) == 7
    assert {*study.required, "sampled", "split"} <= set(record)
    study.settings["test"] = {"episodes": 7, "split": "development"}
    [developed] = study.measure(Job("a", 0))
    assert developed["split"] == "development"
    assert load(tmp_path / "levels.json") != [outcome]
    monkeypatch.setattr("hrm_agent.evaluate.evaluate", lambda *_, **given: {"split": None, "asked": given["split"]})
    report = study.evaluate(place, split="test")  # of an environment without splits, whose seeds it names
    assert report == {"split": "test", "asked": "test"}


def test_words_choose_jobs_and_a_word_that_is_nothing_is_refused_in_one_line(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = study.jobs()
    assert chosen(jobs, jobs, []) == jobs
    assert chosen(jobs, jobs, ["fog", "1"]) == [("a", 1, "fog"), ("b", 1, "fog")]
    assert chosen(jobs, jobs, ["a", "b", "0"]) == [("a", 0, "plain"), ("a", 0, "fog")]
    with pytest.raises(SystemExit) as exit_:
        chosen(jobs, jobs, ["aa"])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert printed == "error: --only aa: expected some of a, b, 0, 1, plain, fog\n"


def test_a_failed_job_says_where_its_log_is_and_the_others_go_on(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(job: Job) -> list[dict[str, Any]]:
        if job.arm == "a":
            raise subprocess.CalledProcessError(3, ["python"])
        return [{"agent": job.arm, "seed": job.seed, "world": job.world, "success": 0.5, "seconds": 1.0}]

    monkeypatch.setattr(study, "measure", measure)
    assert [study.run(job) for job in study.jobs()] == [False, False, False, False, True, True]
    assert "a fog 1: failed with 3, see " in capsys.readouterr().out
    assert {r["world"] for r in load(study.folder / study.results)} == {"plain", "fog"}


def test_records_replace_those_of_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    put(path, [{"agent": "b", "seed": 0, "x": 1}, {"agent": "a", "seed": 1}], ("agent", "seed"))
    put(path, [{"agent": "b", "seed": 0, "x": 2}], ("agent", "seed"))
    assert load(path) == [{"agent": "a", "seed": 1}, {"agent": "b", "seed": 0, "x": 2}]
    assert len(path.read_text().splitlines()) == 4  # one a line
    put(path, [{"agent": "a", "seed": 0}], ("agent", "seed"), order=())
    assert [r["seed"] for r in load(path)] == [1, 0, 0]


def test_curves_know_the_time_with_or_without_a_line_that_says_it() -> None:
    lines = [
        {"frames": 100, "train/frames_per_second": 50.0},
        {"frames": 200, "train/success": 0.5, "train/frames_per_second": 50.0},
        {"frames": 200, "validation/success": 0.7},
        {"frames": 400, "train/success": 0.95, "train/seconds": 9.0, "train/frames_per_second": 44.4},
        {"frames": 600, "validation/success": 0.9},
    ]
    curve = sampled_curve(lines)
    assert curve == [[200, 4.0, 0.5], [400, 9.0, 0.95]]
    assert (first_above(curve), first_above(curve[:1])) == ([400, 9.0], [None, None])
    assert validation_curve(lines) == [[200, 4.0, 0.7], [600, 13.5, 0.9]]
    assert validation_curve(lines[2:3]) == []
    long = [[i, float(i), 0.5] for i in range(1000)]
    assert len(thinned(long)) <= POINTS
    assert thinned(long)[-1] == long[-1]
    assert thinned([]) == []


@pytest.mark.parametrize("command", [["-m", "experiments.engine"], ["experiments/study.py"]])
def test_a_folder_without_a_study_is_refused_in_one_line(command: list[str], forks: Forks) -> None:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs")])}
    (done,) = forks.run([[*command, "experiments/engine"]], [environment], ROOT)
    assert done.returncode == 2
    assert "expected a folder with a study.yaml" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_arm_has_the_crossed_interval_where_all_its_seeds_have_their_outcomes() -> None:
    base = {"agent": "a", "spl": 0.5, "frames": 10, "seconds": 1.0, "parameters": 3, "env": "X-v0"}
    references = dict.fromkeys(("random", "bfs_replanner", "clairvoyant"))
    records = [
        {**base, **references, "seed": seed, "success": won, "success_ci95": list(wilson_interval(int(4 * won), 4))}
        for seed, won in enumerate((0.5, 0.75))
    ]
    levels = [
        {"agent": "a", "seed": 0, "success": "1100", "sampled": "1000"},
        {"agent": "a", "seed": 1, "success": "1101", "sampled": "1001"},
    ]
    (row,) = arm_rows(records, ["a"], levels)
    greedy = np.array([[1, 1, 0, 0], [1, 1, 0, 1]], float)
    assert row["success [95% over seeds and levels]"] == estimate(crossed_interval(greedy))
    assert row["sampled [95%]"].startswith("0.375 [")
    (plain,) = arm_rows(records, ["a"], levels[:1])  # an outcome is lacking
    assert plain["success [95% over seeds and levels]"] == estimate(success_interval(records))
    assert plain["sampled [95%]"] == ""
    assert "sampled [95%]" not in arm_rows(records, ["a"])[0]


# Where the records come from


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def _whole_history() -> None:
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no checkout with its history")


@pytest.mark.usefixtures("_whole_history")
@pytest.mark.parametrize("file", RECORDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_commit_of_a_record_is_there_and_was_clean(file: Path) -> None:
    """In the history of what is checked out, without further edits; what is not is named on the study's page."""
    page = file.with_name("README.md")
    text = page.read_text() if page.exists() else ""
    for commit in set(re.findall(r'"commit": "([^"]*)"', file.read_text())):
        if f"`{commit}`" not in text:
            assert not commit.endswith("-dirty"), commit
            assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, commit


@pytest.mark.usefixtures("_whole_history")
@pytest.mark.parametrize("agent", ["DoorKey", "MemoryS7", "MemoryS7-reset"])
def test_a_command_leans_on_no_later_settings(agent: str) -> None:
    """What has shipped for an environment since the commit of the record is in the record's command."""
    [record] = [r for r in load(ROOT / "experiments/foreign/results.json") if r["agent"] == agent]
    earlier = yaml.safe_load((ROOT / "configs/earlier/november_2026.yaml").read_text())
    generic = set(leaves({"algo": {**GENERIC_ALGO["ppo"], **earlier["algo"]}}))  # as at these commits already
    for file in (f"configs/env/{record['env']}.yaml", f"configs/recommended/algo/{record['env']}/ppo.yaml"):
        then = yaml.safe_load(git("show", f"{record['commit']}:{file}").stdout) or {}
        now = {k: v for k, v in yaml.safe_load((ROOT / file).read_text()).items() if k != "defaults"}
        for name, value in leaves(now):
            if (name, value) not in generic | set(leaves(then)):
                assert re.search(rf"\b{re.escape(name)}=", record["command"]), f"{name}={value} shipped later"


def leaves(node: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting of a configuration file by its full name, but for what describes the environment itself."""
    found: list[tuple[str, str]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found


def test_a_record_has_the_command_that_was_typed(tmp_path: Path) -> None:
    typed = "python -m hrm_agent.train env=X-v0 algo.gamma=0.98 hydra.run.dir=/somewhere/else seed=0"
    (tmp_path / "run.json").write_text(json.dumps({"command": typed}))
    assert command_of(tmp_path) == "python -m hrm_agent.train env=X-v0 algo.gamma=0.98 seed=0"
