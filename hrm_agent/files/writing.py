"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from hrm_agent.files.reading import CheckpointError

STANDARD_STREAMS = (1, 2)  # stdout and stderr
LEFTOVER = re.compile(r"\..+\.([0-9a-f]{16}|[0-9]+)\.tmp", re.S)
"""Names of temporary files, those of earlier versions included."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it untouched. A symbolic link at `path` is replaced, not followed.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` which replaces it when the body ends; if the body raises, `path` is unchanged.

    The permissions of a file that is replaced are kept; those of a new one follow the umask.

    Raises:
        OSError: the disk is full or not writable; the temporary file is removed and `path` unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_mode(file, path)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `replacing` of a killed process, in a folder that no other process writes to."""
    for path in folder.glob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def _keep_mode(file: BinaryIO, path: Path) -> None:
    """Give a new file the owner and the permissions of the regular file that it will replace, if there is one."""
    try:
        before = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(before.st_mode):
        with suppress(OSError):  # another user's file in a folder that both can write, a file system without owners
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        with suppress(OSError):
            os.fchmod(file.fileno(), before.st_mode & 0o777)


def _sync_folder(folder: Path) -> None:
    """The rename itself must survive a power cut, where the file system can promise that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written and not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def check_output(path: str | Path, option: str = "out", make_folder: bool = False, continued: bool = False) -> Path:
    """The file that a user names for a result, checked before the work begins; nothing is written.

    Args:
        option: its name on the command line, for messages.
        make_folder: its folder need not exist; `write_output` makes it.
        continued: it is read and appended to, so that it is a regular file, and none that messages go to.

    Raises:
        ValueError: no file can be written there.
    """
    shown = f"{option}={path}" if str(path).isprintable() else f"{option}={str(path)!r}"
    if not str(path):
        raise ValueError(f"{shown}: expected a file in a folder that exists")
    try:
        status = _status(path)
        folder = Path(os.path.realpath(path)).parent
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown}: {getattr(error, 'strerror', None) or error}") from None
    if status is not None and not _takes_data(status):
        raise ValueError(f"{shown}: expected a file in a folder that exists")
    if continued and status is not None and not _is_replaced(status):
        raise ValueError(f"{shown}: expected a regular file, which is read and added to; give a file's name")
    if status is None or _is_replaced(status):
        while make_folder and not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{shown}: expected a file in a folder that exists")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{shown}: no permission to write in {folder}")
    return Path(path)


def write_output(path: str | Path, data: bytes) -> None:
    """Write a result to the file that a user named.

    A regular file is replaced, or left untouched on an error; where `path` is a symbolic link, the file that it points
    to is replaced. Data is written into a FIFO, a terminal or another device, and into what stdout or stderr already
    write to, so that `out=/dev/stdout` works.

    Raises:
        OSError: the disk is full, not writable, or the reader of a FIFO is gone.
    """
    status = _status(path)
    if status is None or _is_replaced(status):
        write_atomically(Path(os.path.realpath(path)), data)
        return
    if not _takes_data(status):
        raise OSError(errno.EINVAL, "not a file that can be written", str(path))
    stream = _standard_stream(status)
    for printed in (sys.stdout, sys.stderr):  # what was printed before comes before
        with suppress(OSError, ValueError, AttributeError):
            printed.flush()
    try:
        descriptor = os.dup(stream) if stream else os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _status(path: str | Path) -> os.stat_result | None:
    """Of what is there, links followed; None: nothing."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _takes_data(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)


def _is_replaced(status: os.stat_result) -> bool:
    """Whether it is a regular file, other than those that stdout and stderr write to."""
    return stat.S_ISREG(status.st_mode) and _standard_stream(status) is None


def _standard_stream(status: os.stat_result) -> int | None:
    for descriptor in STANDARD_STREAMS:
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


def open_log(path: Path) -> TextIO:
    """Open a text file for appending; a new one is made where there is none.

    Raises:
        CheckpointError: it is a symbolic link, or no regular file.
        OSError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise CheckpointError(f"{path}: not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "a")
