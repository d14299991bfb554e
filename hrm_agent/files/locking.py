"""One process at a time writes into a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from hrm_agent.files.reading import CheckpointError, parse_json

LOCK_FILE = "run.lock"
HOLDER_LIMIT = 1000  # bytes
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
_open: set[int] = set()


class FolderInUse(ValueError):
    """Another process writes into the folder; the message says which."""


class Holder(msgspec.Struct):
    """The process that holds a lock."""

    pid: Annotated[int, msgspec.Meta(ge=1)]
    host: Annotated[str, msgspec.Meta(max_length=255)]


@contextmanager
def lock_folder(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock during the body.

    The lock is the kernel's (`flock` on `run.lock`), so it ends with the process, however that ends. The file stays.

    Args:
        warn: is called with one line where the file system has no locks; the body is run all the same.

    Raises:
        FolderInUse: another process holds it.
        CheckpointError: `run.lock` is not a regular file, or has another name elsewhere (a hard link).
        OSError: it cannot be opened or made.
    """
    path = folder / LOCK_FILE
    descriptor = _open_lock(path)
    _open.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{folder}: {_holder(descriptor, path)} is working on this run; wait until it has ended, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn(f"{path}: this file system has no locks; make sure that no other process works on this run")
        _name_holder(descriptor)
        yield
    finally:
        _open.discard(descriptor)
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        if path.is_symlink() or path.is_dir():
            raise CheckpointError(f"{path}: not a regular file") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file of this folder alone; remove it")
    return descriptor


def _name_holder(descriptor: int) -> None:
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n"
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int, path: Path) -> str:
    try:
        holder: Holder = parse_json(os.pread(descriptor, HOLDER_LIMIT, 0), Holder, str(path))
    except (CheckpointError, OSError):
        return "another process"
    host = holder.host if holder.host.isprintable() else repr(holder.host)
    return f"process {holder.pid} on {host}"


def _close_in_child() -> None:
    """A forked process does not keep the lock when this one has ended."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)
