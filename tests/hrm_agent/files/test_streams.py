"""A terminal or a pipe that is closed ends no program."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrm_agent.files.streams import Forgiving, forgiving, outliving_the_terminal

BODY = """
import sys
from hrm_agent.files.streams import outliving_the_terminal
with outliving_the_terminal():
    for stream in (sys.stdout, sys.stderr):
        print("x" * 100_000, file=stream, flush=True)
        print("left in the buffer", file=stream)
    open("end", "w").write("reached")
raise SystemExit(3)
"""


@pytest.mark.parametrize("closed", ["a pipe", "a terminal", "nothing"])
def test_a_closed_stream_ends_nothing_and_leaves_the_exit_code(closed: str, tmp_path: Path) -> None:
    """`python` itself would fail with what is left in a buffer; `nothing`: stdout and stderr are closed before."""
    command = [sys.executable, "-c", BODY]
    if closed == "nothing":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], cwd=tmp_path, check=False)
    else:
        reader, writer = os.pipe() if closed == "a pipe" else os.openpty()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=writer, cwd=tmp_path, check=False)
        os.close(writer)
    assert done.returncode == 3
    assert (tmp_path / "end").read_text() == "reached"


def test_what_can_be_written_is(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with outliving_the_terminal(), outliving_the_terminal():
        print("out")
        print("err", file=sys.stderr)
        assert isinstance(sys.stdout, Forgiving)
        assert not isinstance(sys.stdout.stream, Forgiving)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("out\n", "err\n")


def test_no_stream_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.stderr` is None where a program is started with it closed."""
    monkeypatch.setattr(sys, "__stderr__", None)
    silent = forgiving(None)
    print("x", file=silent, flush=True)
    assert not silent.isatty()


def test_a_broken_stream_falls_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = forgiving(os.fdopen(writer, "w"))
    print("x", file=stream, flush=True)
    assert stream.broken
    print("y", file=stream, flush=True)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_full_disk_is_not_for_ever() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    log = Full()
    stream = forgiving(log)
    print("lost", file=stream, flush=True)
    log.full = False
    print("written", file=stream, flush=True)
    assert log.getvalue() == "written\n"
    log.close()
    print("nowhere", file=stream, flush=True)
    assert stream.broken
    assert not stream.isatty()
