"""Searches with Optuna: kept in a storage, shared by processes, continued where they stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import TINY_RUN, run_command
from folders import make_run
from hrm_agent import search as command
from hrm_agent.launch import search as searches
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.search import Plan, Search, SearchOptions, plan_search
from hrm_agent.launch.search_space import Space
from hrm_agent.launch.side_by_side import RunFailed
from hrm_agent.training.loop import DIVERGED
from refusals import refusal

optuna = pytest.importorskip("optuna")

SPACE = Space({"algo.gamma": "interval(0,1)", "algo.epochs": "choice(1,2,4)"}, ["algo=ppo"], ["test_episodes=0"])
Train = Callable[[Path, list[str]], None]


def score(overrides: list[str]) -> float:
    return float(next(o for o in overrides if o.startswith("algo.gamma=")).partition("=")[2])


def finish(folder: Path, overrides: list[str]) -> None:
    """A run whose success is its gamma."""
    gamma = score(overrides)
    if not folder.exists():
        curves = {f"validation/{name}": [(5, 0.0), (10, gamma)] for name in ("success", "return")}
        make_run(folder, {"env": {"id": "Maze-v0"}, "algo": {"gamma": gamma}}, curves)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[[Train], list[Path]]:
    """Sets what trains, and returns the folders that are trained."""
    monkeypatch.setattr(searches, "train_in", finish)

    def replace(own: Train) -> list[Path]:
        found: list[Path] = []

        def train_in(folder: Path, overrides: list[str]) -> None:
            found.append(folder)
            own(folder, overrides)

        monkeypatch.setattr(searches, "train_in", train_in)
        return found

    return replace


def plan(folder: Path, storage: str | None = None, name: str = "maze", space: Space = SPACE) -> Plan:
    options = SearchOptions(name=name, out=str(folder), storage=storage)
    return plan_search(options, space, "Maze-v0", "success")


def run(folder: Path, trials: int, **more: Any) -> Any:
    with Search(plan(folder, **more), trials, 0) as search:
        search.work(0)
        return search.study


def test_trials_are_drawn_and_the_command_continues(tmp_path: Path, train: Callable[[Train], list[Path]]) -> None:
    trained = train(finish)
    study = run(tmp_path / "s", 4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert len({trial.params["algo.gamma"] for trial in study.trials}) == 4
    run(tmp_path / "s", 4)
    assert len(trained) == 4  # there are enough
    study = run(tmp_path / "s", 6)
    assert len(study.trials) == len(trained) == 6
    assert len({trial.params["algo.gamma"] for trial in study.trials}) == 6  # no draw is repeated
    assert study.best_value == pytest.approx(max(trial.params["algo.gamma"] for trial in study.trials))
    with Search(plan(tmp_path / "s"), 6, 0) as search:
        best = search.best()
    assert best is not None
    lines = best.splitlines()
    assert lines[0].endswith(f", success {study.best_value:.3f} on validation levels")
    assert (
        lines[1] == f"python -m hrm_agent.train algo=ppo {' '.join(f'{n}={v}' for n, v in study.best_params.items())}"
    )


def test_the_same_search_draws_the_same(tmp_path: Path, train: Callable[[Train], list[Path]]) -> None:
    train(finish)
    one, other = (run(tmp_path / name, 3) for name in "ab")
    assert [t.params for t in one.trials] == [t.params for t in other.trials]


def test_a_combination_that_cannot_be_fails_alone_and_one_that_diverges_is_the_worst(
    tmp_path: Path, train: Callable[[Train], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    number = itertools.count()

    def sometimes(folder: Path, overrides: list[str]) -> None:
        match next(number):
            case 0:
                raise RunFailed(2, "error: algo.window=3: does not divide 16")
            case 1:
                raise RunFailed(1, f"error: gradient norm is nan at 5 frames; {DIVERGED}")
            case 2:
                raise RunFailed(-9, "Killed")
        finish(folder, overrides)

    train(sometimes)
    study = run(tmp_path / "s", 4)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].value == 0.0
    assert study.trials[0].user_attrs["error"] == "error: algo.window=3: does not divide 16"
    assert "trial 0: failed: algo.window=3: does not divide 16\n" in capsys.readouterr().err


@pytest.mark.parametrize("storage", [None, "search.journal"])
def test_an_interrupted_trial_is_marked_as_failed_and_its_run_resumed(
    storage: str | None, tmp_path: Path, train: Callable[[Train], list[Path]]
) -> None:
    def interrupt(folder: Path, overrides: list[str]) -> None:
        raise KeyboardInterrupt

    where = None if storage is None else str(tmp_path / storage)
    trained = train(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", 2, storage=where)
    again = train(finish)
    study = run(tmp_path / "s", 2, storage=where)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[1].user_attrs["instead_of"] == 0
    assert again[0] == trained[0]
    assert len(set(again)) == 2


def test_a_trial_whose_process_was_killed_is_redone_and_one_whose_process_lives_is_not(
    tmp_path: Path, train: Callable[[Train], list[Path]]
) -> None:
    trained = train(finish)
    with Search(plan(tmp_path / "s"), 3, 0) as alive:
        taken = alive.next_trial()
        assert taken is not None
        killed = Search(plan(tmp_path / "s"), 3, 0).__enter__()
        lost = killed.next_trial()
        assert lost is not None
        killed._held.close()  # as the kernel does
        study = run(tmp_path / "s", 3)
        states = [trial.state.name for trial in study.trials]
        assert states[taken.number] == "RUNNING"
        assert states[lost.number] == "FAIL"
        assert len([p for p in trained if p.name == lost.user_attrs["run"]]) == 1
        assert len(trained) == 2
        alive.perform(taken)
        assert alive.next_trial() is None
        done = [t for t in alive.study.trials if t.state.name == "COMPLETE"]
        assert len(done) == 3
        assert lost.params in [t.params for t in done]


def test_a_run_that_outlives_its_search_is_left_alone(tmp_path: Path, train: Callable[[Train], list[Path]]) -> None:
    train(finish)
    killed = Search(plan(tmp_path / "s"), 1, 0).__enter__()
    lost = killed.next_trial()
    assert lost is not None
    killed._held.close()
    place = killed.place(lost.user_attrs["run"])
    place.mkdir(parents=True)
    with searches.lock_folder(place, print):  # it is still training
        assert [t.state.name for t in run(tmp_path / "s", 1).trials] == ["RUNNING"]


@pytest.mark.parametrize("storage", [None, "search.journal"])
def test_several_workers_share_a_search(
    storage: str | None, tmp_path: Path, train: Callable[[Train], list[Path]]
) -> None:
    both = threading.Barrier(2, timeout=60)
    first = threading.local()

    def together(folder: Path, overrides: list[str]) -> None:
        if not hasattr(first, "done"):
            first.done = True
            both.wait()
        finish(folder, overrides)

    trained = train(together)
    where = None if storage is None else str(tmp_path / storage)
    workers = [threading.Thread(target=run, args=(tmp_path / "s", 7), kwargs={"storage": where}) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    study = run(tmp_path / "s", 7, storage=where)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7
    assert len(set(trained)) == len(trained) == 7
    assert {trial.user_attrs["owner"] for trial in study.trials} == {0, 1}
    assert len({trial.params["algo.gamma"] for trial in study.trials}) == 7


def test_another_search_of_the_same_name_is_refused(tmp_path: Path, train: Callable[[Train], list[Path]]) -> None:
    run(tmp_path / "s", 1)
    other = Space(SPACE.params, ["algo=ppo", "core=gru"], SPACE.trial)
    with pytest.raises(UsageError, match="name=maze: another search of this name is in"):
        run(tmp_path / "s", 1, space=other)
    shared = f"sqlite:///{tmp_path / 's' / 'search.db'}"
    assert len(run(tmp_path / "gru", 1, space=other, name="gru", storage=shared).trials) == 1


def test_a_folder_has_the_trials_of_one_search_and_a_search_one_folder(
    tmp_path: Path, train: Callable[[Train], list[Path]]
) -> None:
    trained = train(finish)
    shared = f"sqlite:///{tmp_path / 's.db'}"
    run(tmp_path / "s", 1, storage=shared)
    with pytest.raises(UsageError, match="holds the trials of another search; give another folder with out="):
        run(tmp_path / "s", 1, storage=shared, name="other")  # whose trial 0 would be the run that is there
    assert [study.study_name for study in optuna.get_all_study_summaries(shared)] == ["maze"]
    with pytest.raises(UsageError, match="search maze has its trials in another folder"):
        run(tmp_path / "elsewhere", 2, storage=shared)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "s.db").unlink()
    with pytest.raises(UsageError, match="holds the trials of another search"):
        run(tmp_path / "s", 2, storage=shared)
    assert len(trained) == 1


def test_a_trial_that_was_given_up_for_lost_ends_no_search(
    tmp_path: Path, train: Callable[[Train], list[Path]]
) -> None:
    def give_back(folder: Path, overrides: list[str]) -> None:
        if not lost:
            lost.append(folder)
            trial = search.study.trials[0]
            search.give_back(trial.number, trial.params, trial.user_attrs["run"])
        finish(folder, overrides)

    lost: list[Path] = []
    train(give_back)
    with Search(plan(tmp_path / "s"), 2, 0) as search:
        search.work(0)
        assert [trial.state.name for trial in search.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_storage_names_no_folder_elsewhere(tmp_path: Path, train: Callable[[Train], list[Path]]) -> None:
    trained = train(finish)
    with Search(plan(tmp_path / "s"), 1, 0) as search:
        search.study.enqueue_trial({"algo.gamma": 0.5}, {"run": "../../elsewhere"})
        with pytest.raises(UsageError, match=r"a trial's run is .*elsewhere'; expected a number"):
            search.work(0)
    assert trained == []


@pytest.mark.parametrize("storage", ["nonsense://x", "sqlite:////absent/x.db", "/absent/search.journal"])
def test_a_storage_that_cannot_be_opened_is_one_line_and_leaves_nothing(storage: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        run(tmp_path / "s", 1, storage=storage)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "s").exists()


def test_every_setting_of_train_may_be_given() -> None:
    typed = ["threads=1", "total_steps=5_000", "readout=mean", "core=trm", "algo.window=8"]
    assert command.split(["trials=3", *typed, "jobs=2"]) == (["trials=3", "jobs=2"], typed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["space=pop"], "no such space; did you mean ppo?"),
        (["trails=3"], "trails: no such setting; did you mean trials?"),
        (["trials=0"], "trials=0: expected an integer from 1"),
        (["space"], "expected KEY=VALUE"),
        (["env=DynamicMaze-v1"], "DynamicMaze-v1"),
        (["algo.window=3"], "algo.window"),
        (["algo.epochs=1,0"], "algo.epochs=0"),
        (["algo.gamma=interval(0.9,1.5)"], "algo.gamma=1.5"),
        (["resume=x"], "resume=x: is set by the search"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = Space.jobs
    few = ("algo.epochs=0", "algo.gamma=1.5")  # the ends that matter; the shipped choices are checked elsewhere
    monkeypatch.setattr(
        Space, "jobs", lambda self: (j for n, j in enumerate(jobs(self)) if n == 0 or any(f in j for f in few))
    )
    assert message in refusal(monkeypatch, capsys, "search", arguments, tmp_path)


def test_the_command_prints_the_trials_and_the_best(
    tmp_path: Path,
    train: Callable[[Train], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(finish)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check_run", lambda cfg: None)
    monkeypatch.setattr(Space, "jobs", lambda self: iter([self.settings]))
    run_command(monkeypatch, "search", "trials=3", "algo.gamma=interval(0,1)", "total_steps=64")
    said = capsys.readouterr()
    folder = "runs/searches/DynamicMaze-v0_ppo"
    assert f"dashboard: optuna-dashboard sqlite:///{folder}/search.db\n" in said.err
    assert said.err.count("trial ") == 3
    assert f"best: {folder}/trials/000" in said.out
    assert said.out.splitlines()[-1].startswith("python -m hrm_agent.train algo=ppo total_steps=64 ")
    assert "validation_success" in said.out

    def fail(folder: Path, overrides: list[str]) -> None:
        raise RunFailed(2, "error: no")

    train(fail)
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "search", "trials=1", "name=other", "total_steps=64")
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(
        "error: no trial has succeeded; the logs are in runs/searches/other/trials\n"
    )


@pytest.mark.slow
def test_a_search_that_is_killed_and_interrupted_continues(tmp_path: Path) -> None:
    """Killed with its training, as by a machine that is switched off: a trial is left that is said to run."""
    small = [a for a in TINY_RUN if not a.startswith(("algo.epochs", "test_episodes", "threads", "total_steps"))]
    (tmp_path / "space.yaml").write_text(json.dumps({"params": {"algo.epochs": "choice(1,2)"}}))
    typed = [sys.executable, "-m", "hrm_agent", "search", "space=space.yaml", *small, "total_steps=2_000", "out=s"]
    run = tmp_path / "s" / "trials" / "0000"

    def begin_and_stop(until: Callable[[], bool], how: int) -> tuple[int, str]:
        process = subprocess.Popen([*typed, "trials=2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        limit = time.monotonic() + 120
        while not until() and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(how)
        if how == signal.SIGKILL:
            os.kill(json.loads((run / "run.lock").read_text())["pid"], signal.SIGKILL)
        return process.wait(timeout=120), process.communicate()[1]

    killed, _ = begin_and_stop(lambda: any(run.glob("checkpoints/*.safetensors")), signal.SIGKILL)
    assert killed == -signal.SIGKILL
    log = run.with_name("0000.log")
    interrupted, said = begin_and_stop(lambda: "resuming from" in log.read_text(), signal.SIGINT)
    assert interrupted == 130
    assert said.endswith("interrupted; the same command continues\n")
    done = subprocess.run([*typed, "trials=2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("resuming from") == 2
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/s/search.db")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert [trial.user_attrs["run"] for trial in study.trials] == ["0000", "0000", "0000", "0003"]
