"""Records: lists of flat records in JSON, one a line, which several processes may extend."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrm_agent.files.locking import NO_LOCKS
from hrm_agent.files.reading import CheckpointError, read_bytes
from hrm_agent.files.writing import write_atomically

LIMIT = 1_000_000_000
"""Bytes of a file of records."""

Record = dict[str, Any]


def load(path: Path) -> list[Record]:
    """The records of a file; none where there is no file.

    Raises:
        CheckpointError: it holds something else.
    """
    if not os.path.lexists(path):
        return []
    try:
        records = json.loads(read_bytes(path, LIMIT))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a file of records ({error})") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CheckpointError(f"{path}: not a file of records; expected a list of objects")
    return records


def save(path: Path, records: Sequence[Record]) -> None:
    """Replace a file as a whole, one record a line."""
    text = "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
    write_atomically(path, text.encode())


def values_of(record: Record, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(record.get(field) for field in fields)


def put(path: Path, records: Sequence[Record], key: Sequence[str], order: Sequence[str] | None = None) -> None:
    """Add records to a file, in place of those with the same values of `key`.

    Args:
        key: fields that tell one record from another.
        order: fields by which the file is sorted; `key` where None, and as they came where empty.
    """
    new = {values_of(record, key) for record in records}
    with locked(path.parent):
        kept = [record for record in load(path) if values_of(record, key) not in new]
        save(path, sorted([*kept, *records], key=lambda r: values_of(r, key if order is None else order)))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: one thread of one process at a time. Not to be taken twice by the same thread.

    Where the file system has no locks of folders, such as NFS, the body is run all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (*NO_LOCKS, errno.EBADF):  # the last of NFS, since a folder is not open for writing
                raise
        yield
    finally:
        os.close(descriptor)
