"""One process at a time writes into a run's folder, and all of it lies in the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from pathlib import Path

import pytest

from forks import Forks
from hrm_agent.files.folders import check_own
from hrm_agent.files.locking import LOCK_FILE, FolderInUse, lock_folder
from hrm_agent.files.reading import CheckpointError


def lock(folder: Path) -> None:
    with lock_folder(folder, pytest.fail):
        pass


def test_the_second_is_told_who_is_the_first(tmp_path: Path) -> None:
    with lock_folder(tmp_path, pytest.fail):
        with pytest.raises(FolderInUse, match=f"^{tmp_path}: process {os.getpid()} on {socket.gethostname()} is"):
            lock(tmp_path)
        (tmp_path / LOCK_FILE).write_text('{"pid": 5, "host": "\\u001b[31m"}')
        with pytest.raises(FolderInUse, match=r"process 5 on '\\x1b\[31m' is"):
            lock(tmp_path)
        (tmp_path / LOCK_FILE).write_text("[" * 100_000)
        with pytest.raises(FolderInUse, match="another process is"):
            lock(tmp_path)
    lock(tmp_path)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "pass"])
def test_the_lock_ends_with_its_process(ending: str, forks: Forks, tmp_path: Path) -> None:
    """However it ends, and whatever processes it leaves behind."""
    code = (
        "import os, signal, sys, time; from pathlib import Path; from hrm_agent.files.locking import lock_folder\n"
        "with lock_folder(Path(sys.argv[1]), print):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(60); os._exit(0)\n"
        "    Path(sys.argv[1], 'child').write_text(str(child))\n"
        f"    {ending}\n"
    )
    (ended,) = forks.run([["-c", code, str(tmp_path)]], [{}])
    assert ended.returncode == (0 if ending == "pass" else -signal.SIGKILL), ended.stderr
    child = int((tmp_path / "child").read_text())
    os.kill(child, 0)  # it is still there
    lock(tmp_path)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "hard link"])
def test_a_lock_elsewhere_is_not_taken(what: str, tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    run.mkdir()
    match what:
        case "link":
            (run / LOCK_FILE).symlink_to(outside)
        case "fifo":
            os.mkfifo(run / LOCK_FILE)
        case "folder":
            (run / LOCK_FILE).mkdir()
        case "hard link":
            (run / LOCK_FILE).hardlink_to(outside)
    with pytest.raises(CheckpointError, match=f"{run / LOCK_FILE}: not a regular file"):
        lock(run)
    assert outside.read_text() == "mine"


def test_without_locks_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lines: list[str] = []
    with lock_folder(tmp_path, lines.append):
        assert len(lines) == 1
    assert "has no locks" in lines[0]


def test_folders_are_looked_at_to_their_depth_and_only_those_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "agents" / "best").mkdir(parents=True)
    (run / "agents" / "best" / "agent.json").touch()
    (run / "notes").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(run)
    names = ("agents", "metrics.jsonl")
    check_own(run, names)
    check_own(tmp_path / "linked", names)
    (run / "agents" / "best" / "README.md").symlink_to(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"best/README.md: a symbolic link"):
        check_own(run, names)
    (run / "agents" / "best" / "README.md").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: not a regular file"):
        check_own(run, names)
