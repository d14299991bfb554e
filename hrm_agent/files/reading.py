"""Files that may come from a stranger: regular, bounded, and of the expected types before anything uses them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

TEXT_LIMIT = 1_000_000
"""Bytes of a description or a configuration; more is refused unread."""
DEPTH_LIMIT = 50
"""Lists and dictionaries within one another."""

Record = TypeVar("Record")


class CheckpointError(ValueError):
    """An unusable file; the message is one line with its path and the reason."""


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is refused without waiting for it.

    Args:
        links: follow a symbolic link at `path` itself, as those of huggingface_hub's cache.

    Raises:
        CheckpointError: there is none, it is no regular file, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            raise CheckpointError(f"{path}: a symbolic link; expected a regular file, copy it here") from None
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return open(descriptor, "rb")


def read_bytes(path: Path, limit: int = TEXT_LIMIT, links: bool = True) -> bytes:
    """The content of a regular file.

    Raises:
        CheckpointError: see `open_regular`; or it is longer than `limit` bytes.
    """
    with open_regular(path, links) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path}: longer than {limit:,} bytes, which nothing that hrm_agent writes there is")
    return data


def read_text(path: Path, limit: int = TEXT_LIMIT, links: bool = True) -> str:
    """The same as text in UTF-8.

    Raises:
        CheckpointError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit, links).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: Path, kind: type[Record] | Any = Any, limit: int = TEXT_LIMIT, links: bool = True) -> Record:
    """A JSON file as `kind`: a `msgspec.Struct`, a dataclass, or a type of the `typing` module.

    Raises:
        CheckpointError: see `read_bytes`; or it is not valid JSON, or a value is of another type or out of the bounds
            that `kind` states; the message names the place.
    """
    return parse_json(read_bytes(path, limit, links), kind, str(path))


def parse_json(data: bytes | str, kind: type[Record] | Any, source: str) -> Record:
    """`read_json` of what has been read. `NaN` and `Infinity` are numbers, as Python writes them.

    Args:
        source: where it comes from, for messages.

    Raises:
        CheckpointError: see `read_json`.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{source}: not valid JSON ({error})") from None
    except UnicodeError as error:
        raise CheckpointError(f"{source}: not valid JSON ({error.reason})") from None  # type: ignore[attr-defined]
    except ValueError:
        raise CheckpointError(f"{source}: not valid JSON (a number of thousands of digits)") from None
    except RecursionError:
        raise CheckpointError(f"{source}: nested too deeply") from None
    return convert_json(value, kind, source)


def convert_json(value: Any, kind: type[Record] | Any, source: str) -> Record:
    """Values from JSON as `kind`.

    Raises:
        CheckpointError: nested more than `DEPTH_LIMIT` deep; or see `read_json`.
    """
    if _is_deeper(value, DEPTH_LIMIT):
        raise CheckpointError(f"{source}: nested more than {DEPTH_LIMIT} deep")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{source}: {str(error).replace('`', '')}") from None


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
