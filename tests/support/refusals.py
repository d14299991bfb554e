"""What a command that is given something wrong must do: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from commands import run_command
from hrm_agent.training.trainer import Trainer


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def not_refused(*arguments: object) -> None:
    pytest.fail("training began")


def refusal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    folder: Path,
) -> str:
    """The line that a command refuses with, run in `folder`, which must stay as it was."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Trainer, "run", not_refused)
    before, handlers = files(folder), list(logging.root.handlers)
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, command, *arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    assert files(folder) == before
    assert list(folder.rglob("*.tmp")) == []
    assert logging.root.handlers == handlers
    return printed.err
