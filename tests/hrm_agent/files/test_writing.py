"""What a result is written into: replaced whole, written into, or refused before the work begins."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hrm_agent.files import writing
from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.writing import check_output, open_log, write_atomically, write_output


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_new_file_follows_the_umask_and_a_replaced_one_keeps_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_output(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o640
    (tmp_path / "new").chmod(0o604)
    write_output(tmp_path / "new", b"2")
    assert mode(tmp_path / "new") == 0o604
    assert (tmp_path / "new").read_bytes() == b"2"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(Path("results") / name)
    (tmp_path / "results" / "there").write_bytes(b"old")
    for name in ("there", "absent"):
        write_output(check_output(tmp_path / name), b"new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "results" / name).read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["absent", "there"]


def test_a_file_of_a_run_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / "agent.json").symlink_to("outside")
    write_atomically(tmp_path / "agent.json", b"{}")
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "agent.json").is_symlink()


def test_a_fifo_takes_the_result_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_output(check_output(path), b"x" * 100_000)
    reader.join()
    assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO(path.lstat().st_mode)


def test_a_terminal_takes_the_result_and_stays(tmp_path: Path) -> None:
    """Through a link, which is not replaced either."""
    controller, terminal = os.openpty()
    path = tmp_path / "terminal"
    path.symlink_to(os.ttyname(terminal))
    write_output(check_output(path), b"result\n")
    assert os.read(controller, 100) == b"result\r\n"
    assert path.is_symlink()
    os.close(controller)
    os.close(terminal)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout")
@pytest.mark.parametrize("to", ["a pipe", "a file"])
def test_stdout_can_be_named(to: str, tmp_path: Path) -> None:
    code = (
        "from hrm_agent.files.writing import check_output, write_output\n"
        "print('before'); write_output(check_output('/dev/stdout'), b'result\\n'); print('after')"
    )
    with open(tmp_path / "file", "w+") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE if to == "a pipe" else file, check=True
        )
        file.seek(0)
        printed = done.stdout.decode() if to == "a pipe" else file.read()
    assert printed == "before\nresult\nafter\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_planted_temporary_name_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.secrets, "token_hex", lambda _: "0")
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / ".a.0.tmp").symlink_to("outside")
    with pytest.raises(OSError, match=f"{tmp_path}/a"):
        write_output(tmp_path / "a", b"x")
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (tmp_path / "a").exists()


def test_a_reader_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    threading.Timer(0.05, os.close, [reader]).start()
    with pytest.raises(BrokenPipeError, match=str(path)):
        write_output(path, b"x" * 10_000_000)


@pytest.mark.parametrize("given", ["", "folder", "absent/file", "file/inside", "loop", "n" * 300, "a\0b", "socket"])
def test_what_cannot_be_written_is_refused_in_one_line(given: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket must be short
        try:
            bound.bind("socket")
            with pytest.raises(ValueError, match=r"^--out=") as caught:
                check_output(given, "--out")
        finally:
            os.chdir(before)
    assert str(caught.value).isprintable()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "loop", "socket"]


def test_a_folder_without_permission_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so what the system would say is simulated."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for make_folder, path in ((False, tmp_path / "a"), (True, tmp_path / "new" / "deep" / "a")):
        with pytest.raises(ValueError, match=f"no permission to write in {tmp_path}$"):
            check_output(path, make_folder=make_folder)

    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "temporary")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(PermissionError, match=f"{tmp_path}/a"):
            write_output(tmp_path / "a", b"x")


def test_a_log_is_a_regular_file(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        log.write("1\n")
    with open_log(tmp_path / "log") as log:
        log.write("2\n")
    assert (tmp_path / "log").read_text() == "1\n2\n"
    (tmp_path / "link").symlink_to("log")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo"):
        with pytest.raises(CheckpointError, match=f"{tmp_path / name}: not a regular file"):
            open_log(tmp_path / name)
    assert (tmp_path / "log").read_text() == "1\n2\n"
