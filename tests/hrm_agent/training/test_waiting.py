"""What a command says while one waits for it."""

from __future__ import annotations

import io
import sys

import pytest

from hrm_agent.training import waiting
from hrm_agent.training.waiting import Waiting


def test_other_work_is_a_line_at_once_and_progress_one_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Waiting("measuring") as line:
        for done in range(3):
            line.say("playing", f"{done} over")
        monkeypatch.setattr(waiting, "PLAIN_EVERY", 0.0)
        line.say("playing", "3 over")
        monkeypatch.setattr(waiting, "PLAIN_EVERY", 1e9)
        line.say("playing", "4 over")
        line.say("voting")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["measuring", "playing: 0 over", "playing: 3 over", "voting"]
    assert not printed.out


def test_an_empty_one_says_nothing_before_there_is_something(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("") as line:
        assert capsys.readouterr() == ("", "")
        line.say("playing")
    assert capsys.readouterr().err == "playing\n"


def test_a_quiet_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("measuring", quiet=True) as line:
        line.say("playing", "1 over")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_shows_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    with Waiting("measuring") as line:
        line.say("playing", "1 over")
        while "playing: 1 over (" not in terminal.getvalue():
            assert line._thread is not None
            assert line._thread.is_alive()
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
