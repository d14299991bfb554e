"""Training runs as processes of their own: several at once, resumed, and stopped together."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import fake_training
from hrm_agent.launch import side_by_side as processes
from hrm_agent.launch.side_by_side import RunFailed, side_by_side, train_in


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TRAIN", "fake_training")
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_training.__file__).parent))


def test_runs_train_at_once_and_what_was_begun_is_resumed(tmp_path: Path) -> None:
    def perform(name: str) -> str:
        train_in(tmp_path / name, ["seed=1"])
        return (tmp_path / name / "ended").read_text()

    assert side_by_side(["a", "b b", "c=1,2"], 2, perform) == ["at once"] * 3
    assert side_by_side(["a"], 1, perform) == ["resumed"]
    assert (tmp_path / "a.log").read_text() == "begun\n" * 2


def test_a_module_is_typed_again_where_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(processes, "_wait", lambda command, output: commands.append(command[3:]) or 0)
    typed = ["env=mine:Maze-v0", "core=mine:Core", "carry=full", "env.options.x=a:b", "seed=1"]
    train_in(tmp_path / "a", typed)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{}")
    train_in(tmp_path / "a", typed)
    assert commands[0] == [*typed, f"hydra.run.dir='{tmp_path / 'a'}'"]
    assert commands[1] == [f"resume={tmp_path / 'a'}", "env=mine:Maze-v0", "core=mine:Core"]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="error: it cannot be") as failed:
        side_by_side(["a"], 1, lambda name: train_in(tmp_path / name, ["fake=fail"]))
    assert failed.value.code == 2


def test_a_signal_stops_all_runs_and_no_other_begins(tmp_path: Path) -> None:
    def interrupt() -> None:
        until = time.monotonic() + 30
        while not all((tmp_path / name / "begun").exists() for name in "ab") and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waiter = threading.Thread(target=interrupt)
    waiter.start()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(["a", "b", "c"], 2, lambda name: train_in(tmp_path / name, ["fake=wait"]))
    waiter.join()
    assert all((tmp_path / name / "checkpoint").exists() for name in "ab")
    assert not (tmp_path / "c").exists()
    assert not processes._running
    side_by_side(["a", "b"], 2, lambda name: train_in(tmp_path / name, []))
    assert all((tmp_path / name / "ended").read_text() == "resumed" for name in "ab")
