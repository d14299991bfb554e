"""Grids of settings, what is checked before they begin, and the table of what came out."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import TINY_RUN, run_command
from hrm_agent.launch.cli import UsageError, check_jobs, compose_config, expand_sweeps, one_at_a_time
from hrm_agent.launch.sweep_table import print_table, sweep_table
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.train import check_run
from hrm_agent.training.trainer import Trainer
from refusals import refusal


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


def test_every_choice_is_tried_once_beside_the_first_of_the_others() -> None:
    assert list(one_at_a_time(["a=1,2,3", "b=x", "c=int(interval(5, 7))"])) == [
        ["a=1", "b=x", "c=5"], ["a=2", "b=x", "c=5"], ["a=3", "b=x", "c=5"], ["a=1", "b=x", "c=7"],
    ]  # fmt: skip
    assert list(expand_sweeps(["a=1,2", "b=3,4"])) == [["a=1", "b=3"], ["a=1", "b=4"], ["a=2", "b=3"], ["a=2", "b=4"]]


def test_a_grid_draws_from_no_interval() -> None:
    with pytest.raises(UsageError, match=r"algo.gamma=interval\(0.9,1\): .*python -m hrm_agent.search"):
        check_jobs(["--multirun", "algo.gamma=interval(0.9,1)"], "train", check_run)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("+sweep=ppo env=CartPole-v1", "space=ppo env=CartPole-v1"),
        ("+sweep=dqn hydra.sweeper.n_trials=12 hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweeper.n_jobs=2",
         "space=dqn trials=12 jobs=2"),
        ("--multirun hydra/sweeper=optuna hydra.sweeper.storage=sqlite:///a.db hydra.sweeper.study_name=maze "
         "hydra.sweeper.sampler.seed=1 hydra.sweep.dir=x algo.epochs=1,2",
         "storage=sqlite:///a.db name=maze sampler_seed=1 out=x algo.epochs=1,2"),
    ],
)  # fmt: skip
def test_the_former_search_says_what_to_type_now(
    former: str, present: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refusal(monkeypatch, capsys, "train", former.split(), tmp_path)
    assert line.endswith(f": python -m hrm_agent.search {present}\n")


@pytest.mark.parametrize("group", ["hydra/launcher=submitit_slurm", "hydra/launcher=ray"])
def test_a_plugin_that_is_missing_is_named(group: str) -> None:
    plugin = group.partition("=")[2].partition("_")[0]
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher"):
        pytest.skip("it is installed")
    with pytest.raises(UsageError, match=r"not installed; pip install (hydra-ray-launcher|'hrm-agent\[cluster\]')"):
        compose_config([group], "train")


@pytest.mark.slow
def test_joblib_trains_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = ["seed=0,1", "total_steps=32", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    run_command(monkeypatch, "train", "--multirun", *TINY_RUN, *jobs, f"hydra.sweep.dir={tmp_path}")
    assert {(row["run"], row["seed"], row["frames"]) for row in sweep_table(str(tmp_path))} == {
        ("0", 0, 32),
        ("1", 1, 32),
    }


@pytest.mark.slow
def test_submitit_trains_as_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher of Slurm with processes of this machine in its place; a task that comes back finds its run."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    jobs = ["seed=0,1", "total_steps=32", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    command = ["--multirun", *TINY_RUN, *jobs, f"hydra.sweep.dir={tmp_path}"]
    run_command(monkeypatch, "train", *command)
    found = {(row["run"], row["seed"], row["frames"]) for row in sweep_table(str(tmp_path))}
    assert found == {("0", 0, 32), ("1", 1, 32)}
    written = (tmp_path / "1" / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        run_command(monkeypatch, "train", *command)
    assert (tmp_path / "1" / "metrics.jsonl").read_bytes() == written


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_the_settings_of_the_page_are_those_of_the_launcher(launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    given = ["timeout_min=60", "cpus_per_task=2", "mem_gb=4", "gpus_per_node=1"]
    given += ["partition=cpu", "array_parallelism=20"] if launcher == "submitit_slurm" else []
    jobs = ["seed=0,1", f"hydra/launcher={launcher}", *(f"hydra.launcher.{setting}" for setting in given)]
    composed = compose_config([j for j in jobs if not j.startswith("seed")], "train", hydra=True)
    assert composed.hydra.launcher.timeout_min == 60
    check_jobs(["--multirun", *jobs], "train", check_run)
    with pytest.raises(UsageError, match="minutes"):
        check_jobs(["--multirun", *jobs, "hydra.launcher.minutes=3"], "train", check_run)


@pytest.mark.thorough
def test_a_run_that_diverges_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def diverge_first(self: Trainer, console: Any) -> None:
        trained.append(self.config.seed)
        if self.config.seed == 0:
            raise NonFiniteNumbers("not a number")
        self.validation = {"success": 0.5, "return": 1.0}

    monkeypatch.setattr(Trainer, "run", diverge_first)
    run_command(monkeypatch, "train", "--multirun", *TINY_RUN, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert trained == [0, 1]
    with pytest.raises(SystemExit):  # alone it is an error
        run_command(monkeypatch, "train", *TINY_RUN, "seed=0", f"hydra.run.dir={tmp_path / 'alone'}")


@pytest.mark.thorough
def test_the_command_of_a_job_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Trainer, "run", lambda self, console: setattr(self, "validation", {"success": 0.5, "return": 1})
    )
    run_command(monkeypatch, "train", "--multirun", *TINY_RUN, "seed=3,4", f"hydra.sweep.dir={tmp_path}")
    command = json.loads((tmp_path / "1" / "run.json").read_text())["command"].split()
    assert command[:3] == ["python", "-m", "hrm_agent.train"]
    assert {"seed=4", "hydra.mode=RUN", "core.hidden_size=8"} <= set(command)
    run_command(monkeypatch, "train", *command[3:], f"hydra.run.dir={tmp_path / 'again'}")
    again, first = ((tmp_path / name / "config.yaml").read_text() for name in ("again", "1"))
    assert again == first


@pytest.mark.parametrize(("argument", "message"), [("objective=spl", "objective='spl': expected success or return")])
def test_an_unknown_objective_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(compose_config([argument], "train"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs: finished and tested, finished, and killed before anything was measured."""
    for name, rate, success, test in (("a", 0.1, 0.5, 0.7), ("deep/b", 0.2, 0.9, None), ("c", 0.1, None, None)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        (folder / "config.yaml").write_text(f"seed: 0\nalgo: {{learning_rate: {rate}, name: ppo}}\n")
        if success is not None:
            last = {"frames": 20, "validation/success": success, "validation/return": -success}
            first = {"frames": 10, "validation/success": 0.99, "validation/return": 0.0}
            (folder / "metrics.jsonl").write_text(f'{json.dumps(first)}\n{json.dumps(last)}\n{{"frames": 3')
        if test is not None:
            (folder / "eval.json").write_text(json.dumps({"success": test, "sampled": {"success": 0.6}}))
    return tmp_path / "runs"


def test_the_table_holds_what_differs_best_first(runs: Path) -> None:
    rows = sweep_table(str(runs), sort="validation_success")
    assert [row["run"] for row in rows] == ["deep/b", "a", "c"]
    assert rows[0] == {
        "run": "deep/b", "test_success": None, "test_sampled": None, "validation_success": 0.9,
        "validation_return": -0.9, "frames": 20, "algo.learning_rate": 0.2,
    }  # fmt: skip
    assert [row["run"] for row in sweep_table(str(runs))] == ["a", "deep/b", "c"]  # by test levels, where there are any
    assert [row["run"] for row in sweep_table(str(runs), sort="validation_return")] == ["a", "deep/b", "c"]


def test_the_table_is_written(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("table.csv", "table.md"):
        run_command(monkeypatch, "sweep_table", f"folder={runs}", f"out={runs / out}")
        assert "deep/b" in capsys.readouterr().out
    with open(runs / "table.csv") as file:
        assert [row["algo.learning_rate"] for row in csv.DictReader(file)] == ["0.1", "0.2", "0.1"]
    lines = (runs / "table.md").read_text().splitlines()
    assert lines[2] == "| a | 0.7 | 0.6 | 0.5 | -0.5 | 20 | 0.1 |"
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder=absent"], "no such folder"),
        (["folder={runs}", "sort=loss"], "expected one of test_success, test_sampled, validation_success"),
        (["folder={runs}", "out=table.txt"], "ends in .csv or .md"),
        (["folder={empty}"], "no run in it"),
        ([], "folder=... is required"),
    ],
)
def test_the_table_refuses_bad_input(
    arguments: list[str],
    message: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (runs / "empty").mkdir()
    given = [a.format(runs=runs, empty=runs / "empty") for a in arguments]
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "sweep_table", *given)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_what_another_program_left_is_no_run(runs: Path) -> None:
    expected = sweep_table(str(runs))
    (runs / "baseline").mkdir()
    (runs / "baseline" / "run.json").write_text('{"command": "python -m hrm_agent.baselines"}')
    assert sweep_table(str(runs)) == expected
    with pytest.raises(UsageError, match="no run in it"):
        sweep_table(str(runs / "baseline"))


def test_a_run_of_puzzles_is_not_in_the_table(runs: Path) -> None:
    """It counts steps, and has no success."""
    expected = sweep_table(str(runs))
    (runs / "c" / "run.json").write_text('{"command": "python -m hrm_agent.supervise task=maze"}')
    (runs / "c" / "metrics.jsonl").write_text('{"steps": 10}\n')
    assert sweep_table(str(runs)) == expected[:2]


DAMAGES = {
    "eval.json": ["{", '{"success": "0.5"}', '{"success": null}', "[]", "[" * 100_000],
    "metrics.jsonl": ["[1]\n", '{"steps": 3}\n', '{"frames": "20"}\n', '{"frames": 1, "validation/success": {}}\n'],
    "config.yaml": ["[1]", "a: &a [*a]", "a: !!python/object/apply:os.getcwd []", "a: [", "[" * 100_000],
    "run.json": ["{", "[1]", '{"command": 1}'],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGES.items() for text in texts])
def test_a_damaged_run_is_named(name: str, text: str, runs: Path) -> None:
    (runs / "a" / name).write_text(text)
    with pytest.raises(UsageError, match=r"runs/a: a damaged run") as caught:
        sweep_table(str(runs))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*DAMAGES, "link"])
def test_a_table_waits_for_no_fifo_and_follows_no_link(name: str, runs: Path) -> None:
    file = runs / "a" / ("metrics.jsonl" if name == "link" else name)
    file.unlink()
    if name == "link":
        file.symlink_to(runs / "deep" / "b" / "metrics.jsonl")
    else:
        os.mkfifo(file)
    with pytest.raises(UsageError, match=rf"runs/a: a damaged run \(.*{file.name}"):
        sweep_table(str(runs))


def test_a_table_holds_settings_as_they_stand(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_SECRET", "hidden")
    (runs / "a" / "config.yaml").write_text("seed: 0\nkey: ${oc.env:HRM_SECRET}\n")
    assert sweep_table(str(runs))[0]["key"] == "${oc.env:HRM_SECRET}"


def test_a_table_shows_no_control_characters_and_no_markup(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "config.yaml").write_text(json.dumps({"seed": 0, "key": "\x1b[31m[bold]red"}))
    print_table(sweep_table(str(runs)))
    said = capsys.readouterr().out
    assert "\\x1b[31m[bold]red" in said
    assert "\x1b" not in said
