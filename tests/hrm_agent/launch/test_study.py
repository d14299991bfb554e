"""Studies: arms over seeds, measured on the same levels, continued where they stopped."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from commands import TINY_RUN, run_command
from folders import make_run
from hrm_agent import study as command
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.evaluation.statistics import crossed_difference, crossed_interval, holm
from hrm_agent.files.locking import lock_folder
from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.records import load, put
from hrm_agent.launch import study as studies
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.groups import show
from hrm_agent.launch.side_by_side import RunFailed
from hrm_agent.launch.study import Job, Study, StudyOptions, read_spec
from refusals import refusal

SPEC = {
    "seeds": [0, 1, 2],
    "base": ["env=DynamicMaze-v0"],
    "arms": {"full": ["carry=full"], "reset": ["carry=reset"], "gate": []},
}
CHANCE = {"full": 0.9, "reset": 0.4, "gate": 0.8}


def write(folder: Path, **changed: Any) -> Path:
    path = folder / "carry.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changed}, sort_keys=False))
    return path


def outcome(arm: str, seed: int, way: str) -> str:
    random = np.random.default_rng([list(CHANCE).index(arm), seed, len(way)])
    return "".join(str(int(success)) for success in random.random(100) < CHANCE[arm])


def evaluate(run: str, **options: Any) -> dict[str, Any]:
    """Made up, but for the arm and the seed in the folder's name."""
    arm, seed = Path(run).name.split("_seed")
    ways = {way: outcome(arm, int(seed), way) for way in ("greedy", "sampled")}
    same = {"success_ci95": [0, 1], "return": 1.0, "spl": 0.5}
    played = {way: {"success": o.count("1") / 100, **same, "levels": {"success": o}} for way, o in ways.items()}
    about = {"env": "DynamicMaze-v0", "env_options": {}, "split": options["split"], "core": "hrm", "carry": arm}
    numbers = {"episodes": 100, "frames": 10, "seconds": 1.0, "parameters": 5, "hrm_agent_version": "0.1.0"}
    return {**played["greedy"], "sampled": played["sampled"], **about, **numbers}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are trained, at once."""
    found: list[str] = []

    def train_in(folder: Path, overrides: list[str]) -> None:
        found.append(folder.name)
        seed = int(next(o for o in overrides if o.startswith("seed=")).partition("=")[2])
        curves = {"validation/success": [(5, 0.1), (10, 0.5)], "train/success": [(5, 0.2), (10, 0.4)]}
        make_run(folder, {"seed": seed, "env": {"id": "DynamicMaze-v0"}}, curves)
        (folder / "agents" / "last").mkdir(parents=True)
        (folder / "agents" / "last" / "agent.safetensors").touch()

    monkeypatch.setattr(studies, "train_in", train_in)
    return found


def open_study(path: Path) -> Study:
    study = Study(read_spec(path), path.with_suffix(""), 1, 2, evaluate)
    study.check_unchanged()
    study.begin()
    return study


def test_what_has_no_result_is_trained_and_the_table_compares_with_the_first_arm(
    tmp_path: Path, trained: list[str]
) -> None:
    study = open_study(write(tmp_path))
    assert study.missing()[:4] == [Job("full", 0), Job("reset", 0), Job("gate", 0), Job("full", 1)]
    assert all(map(study.run, study.missing()))
    assert len(trained) == 9
    assert study.missing() == []
    tables = {
        way: {arm: [[int(o) for o in outcome(arm, seed, way)] for seed in (0, 1, 2)] for arm in CHANCE}
        for way in ("greedy", "sampled")
    }
    others = [(way, arm) for way in tables for arm in ("reset", "gate")]
    compared = {(way, arm): crossed_difference(tables[way][arm], tables[way]["full"]) for way, arm in others}
    p_values = dict(zip(compared, holm([found.p_value for found in compared.values()]), strict=True))
    rows = {row["arm"]: row for row in study.table()}
    assert list(rows) == list(CHANCE)
    for arm, row in rows.items():
        assert row["seeds"] == "0 1 2"
        for way in tables:
            assert row[f"success, {way} [95%]"] == show(crossed_interval(tables[way][arm]))
            shown = row[f"{way}, less the first"]
            if arm == "full":
                assert shown is None
            else:
                found = compared[way, arm]
                assert shown == (
                    f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {p_values[way, arm]:.2g}"
                )
    records = load(study.folder / "results.json")
    assert {record["sampled"]["success"] for record in records} == {
        outcome(arm, seed, "sampled").count("1") / 100 for arm in CHANCE for seed in (0, 1, 2)
    }
    assert {record["split"] for record in records} == {"test"}
    picture = study.draw()
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_study_continues_and_grows(tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, overrides: list[str]) -> None:
        raise RunFailed(2, "error: no memory")

    study = open_study(write(tmp_path, seeds=[0]))
    assert study.run(Job("full", 0))
    with monkeypatch.context() as broken:
        broken.setattr(studies, "train_in", fail)
        assert not study.run(Job("reset", 0))
    assert study.problems == ["reset, seed 0: ended with exit code 2: error: no memory"]
    assert [row["arm"] for row in study.table()] == ["full"]  # one seed, and nothing to compare
    grown = open_study(write(tmp_path, seeds=[0, 5], arms={**SPEC["arms"], "new": ["carry=leak"]}))
    assert grown.missing()[0] == Job("reset", 0)
    assert len(grown.missing()) == 7
    smaller = open_study(write(tmp_path, seeds=[0], arms={"reset": ["carry=reset"]}))
    assert smaller.records() == []
    changed = write(tmp_path, arms={"full": ["carry=leak"]})  # the file had it in between, not now
    with pytest.raises(UsageError, match="arm full was begun with env=DynamicMaze-v0 carry=full; give the arm another"):
        open_study(changed)
    with pytest.raises(UsageError, match="holds results on other levels"):
        open_study(write(tmp_path, levels={"episodes": 5}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="not the folder of a study"):
        Study(read_spec(write(tmp_path)), tmp_path / "mine", 1, 1, evaluate).check_unchanged()


def test_what_was_trained_but_not_measured_is_brought_to_its_end_first(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(write(tmp_path, seeds=[0], arms={"full": []}))
    place = study.place(Job("full", 0))
    make_run(place, {"seed": 0, "env": {"id": "DynamicMaze-v0"}}, {"train/success": [(10, 0.5)]})
    (place / "agents" / "last").mkdir(parents=True)  # written before the validation that chooses the best
    (place / "agents" / "last" / "agent.safetensors").touch()
    resumed: list[Path] = []
    monkeypatch.setattr(studies, "train_in", lambda folder, overrides: resumed.append(folder))
    assert study.run(Job("full", 0))
    assert resumed == [place]


def test_an_environment_that_fails_in_one_run_ends_no_other(tmp_path: Path, trained: list[str]) -> None:
    study = open_study(write(tmp_path, arms={"full": []}))

    def fail(run: str, **options: Any) -> dict[str, Any]:
        if run.endswith("seed1"):
            raise EnvironmentFailed("env=DynamicMaze-v0: failed in step (KeyError: 1)")
        return evaluate(run, **options)

    study.evaluate = fail
    assert list(map(study.run, study.missing())) == [True, False, True]
    assert study.problems == ["full, seed 1: env=DynamicMaze-v0: failed in step (KeyError: 1)"]
    assert study.missing() == [Job("full", 1)]


def test_an_arm_does_not_take_the_runs_of_another_name(tmp_path: Path) -> None:
    open_study(write(tmp_path, seeds=[0], arms={"no memory": ["carry=reset"]}))
    with pytest.raises(UsageError, match="arms 'no memory' and 'no_memory' would share a folder"):
        open_study(write(tmp_path, seeds=[0], arms={"no_memory": ["carry=full"]}))


def test_a_second_process_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    study = open_study(path)
    before = (study.folder / "study.json").read_bytes()
    write(tmp_path, arms={"full": ["carry=full"], "more": []})
    with lock_folder(study.folder, pytest.fail), pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "study", str(path))
    assert ended.value.code == 2
    assert "is working on this run" in capsys.readouterr().err
    assert (study.folder / "study.json").read_bytes() == before


def test_arms_of_different_worlds_are_not_compared(tmp_path: Path, trained: list[str]) -> None:
    study = open_study(write(tmp_path))
    assert all(map(study.run, study.missing()))
    records = [{**r, "env_options": {"rows": 3}} for r in study.records() if r["arm"] == "reset"]
    put(study.folder / "results.json", records, ("arm", "seed"))
    rows = {row["arm"]: row["greedy, less the first"] for row in study.table()}
    assert rows["reset"] is None
    assert rows["gate"] is not None


def test_the_return_stands_beside_success_where_there_are_no_shortest_paths(tmp_path: Path, trained: list[str]) -> None:
    study = open_study(write(tmp_path, arms={"full": []}))
    assert all(map(study.run, study.missing()))
    assert not any("return" in name for name in study.table()[0])
    put(study.folder / "results.json", [{**r, "spl": None} for r in study.records()], ("arm", "seed"))
    (row,) = study.table()
    assert [row[f"return, {way} [95%]"] for way in ("greedy", "sampled")] == ["1.000 [1.000, 1.000]"] * 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "seeds: one is given twice"),
        ({"seeds": ["a"]}, "Expected int, got str - at $.seeds[0]"),
        ({"arms": {}}, "arms"),
        ({"arms": {"../x": []}}, "arm '../x': expected a name of letters, digits"),
        ({"arms": {"a b": [], "a_b": ["carry=reset"]}}, "arms 'a b' and 'a_b' would share a folder"),
        ({"arms": {"a": [], "A": ["carry=reset"]}}, "arms 'a' and 'A' would share a folder"),
        ({"arms": {"a": "carry=full"}}, "Expected array, got str"),
        ({"arms": {"a": ["carry=full,reset"]}}, "arm a: carry=full,reset: expected one value"),
        ({"arms": {"a": ["seed=3"]}}, "arm a: seed=3: is set for every run"),
        ({"base": ["threads=1", "test_episodes=0"]}, "arm full: threads=1, test_episodes=0: is set for every run"),
        ({"base": ["hydra.run.dir=x"]}, "arm full: hydra.run.dir=x: is set for every run"),
        ({"arms": {"a": ["carry"]}}, "carry: expected NAME=VALUE"),
        ({"arms": {"a": ["carry=fulll"]}}, "arm a: carry=fulll: no such carry; did you mean full?"),
        ({"levels": {"split": "train"}}, "levels.split='train': expected validation or test"),
        ({"worlds": {}}, "unknown field worlds"),
    ],
)
def test_a_bad_file_is_one_line(
    changed: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, **changed)
    assert message in refusal(monkeypatch, capsys, "study", [str(path)], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "which study?"), (["a.yaml", "b.yaml"], "expected one FILE.yaml"), (["a.yaml"], "a.yaml: no such file")],
)
def test_one_file_is_expected(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refusal(monkeypatch, capsys, "study", arguments, tmp_path)


def test_records_are_records(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    put(path, [{"arm": "b", "seed": 1, "x": 1}], ("arm", "seed"))
    put(path, [{"arm": "a", "seed": 1}, {"arm": "b", "seed": 1, "x": 2}], ("arm", "seed"))
    assert load(path) == [{"arm": "a", "seed": 1}, {"arm": "b", "seed": 1, "x": 2}]
    assert path.read_text().count("\n") == 4
    for text in ("{", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="not a file of records"):
            load(path)


def test_records_are_kept_where_folders_have_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS does for a folder

    monkeypatch.setattr("fcntl.flock", refuse)
    put(tmp_path / "results.json", [{"arm": "a", "seed": 1}], ("arm", "seed"))
    assert load(tmp_path / "results.json") == [{"arm": "a", "seed": 1}]


def test_the_command_prints_the_table_and_fails_where_a_run_does(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(file: Path, options: StudyOptions) -> Study:
        return open_study(file)

    monkeypatch.setattr(command, "prepare", prepare)
    path = write(tmp_path, arms={"full": ["carry=full"], "gate": []})
    run_command(monkeypatch, "study", str(path), "jobs=2")
    said = capsys.readouterr()
    assert "less the first" in said.out
    assert said.out.endswith(f"wrote {path.with_suffix('')}/results.json, levels.json and curves.png\n")
    assert said.err.count("training, see") == 6
    run_command(monkeypatch, "study", str(path))
    assert capsys.readouterr() == (said.out, "")
    monkeypatch.setattr(Study, "run", lambda self, job: False)
    write(tmp_path, arms={"full": ["carry=full"], "gate": []}, seeds=[0, 1, 2, 3])
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "study", str(path))
    assert ended.value.code == 1
    assert "2 of 2 runs failed; the same command tries them again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_that_is_interrupted_is_continued_by_the_same_command(tmp_path: Path) -> None:
    long = [a for a in TINY_RUN if not a.startswith(("total_steps", "test_episodes", "threads"))]
    arms = {"full": ["carry=full"], "reset": ["carry=reset"]}
    path = write(tmp_path, seeds=[0, 1], arms=arms, base=[*long, "total_steps=3_000"], levels={"episodes": 8})
    typed = [sys.executable, "-m", "hrm_agent", "study", str(path), "jobs=2"]
    process = subprocess.Popen(typed, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(tmp_path.rglob("checkpoints/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1].endswith("interrupted; the same command continues\n")
    assert process.returncode == 130
    before = {file.parent.parent.name for file in tmp_path.rglob("checkpoints/*.safetensors")}
    assert before
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "less the first" in done.stdout
    assert len(json.loads((tmp_path / "carry" / "results.json").read_text())) == 4
    assert any("resuming from" in log.read_text() for log in tmp_path.rglob("*_seed0.log"))
