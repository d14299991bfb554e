"""Output to terminals and pipes that may go away: losing its output does not end a program.

Imports the standard library alone, so that messages appear before torch is imported.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STANDARD = (0, 1, 2)
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
"""Errors of a stream whose reader is gone."""


class Forgiving:
    """A text stream that falls silent where writing fails: a closed pipe (`| head`), a terminal that is gone.

    What fails for a moment alone, as on a full disk, is lost, and later text is written. Everything else is that of the
    stream itself.

    Attributes:
        broken: the reader is gone; nothing more is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.broken = stream, False

    def write(self, text: str) -> int:
        self.attempt("write", text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.attempt("flush")

    def isatty(self) -> bool:
        return self.attempt("isatty")

    def attempt(self, method: str, *arguments: str) -> bool:
        """Whether a method of the stream succeeded and returned something other than False."""
        if self.broken:
            return False
        try:
            return getattr(self.stream, method)(*arguments) is not False
        except UnicodeError:
            raise
        except ValueError:  # it has been closed
            self.broken = True
        except OSError as error:
            self.broken = error.errno in GONE
        return False

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of an object that is being copied
            raise AttributeError(name)
        return getattr(self.stream, name)


def forgiving(stream: TextIO | Forgiving | None) -> Any:
    """`stream` as one that falls silent; None, as `sys.stderr` is where a program starts with it closed, is silent."""
    if isinstance(stream, Forgiving):
        return stream
    if stream is None:
        silent = Forgiving(sys.__stderr__ or _Nowhere())  # type: ignore[arg-type]
        silent.broken = True
        return silent
    return Forgiving(stream)


class _Nowhere:
    """In place of a stream that was closed from the beginning."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("no such stream")


@contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """During the body `sys.stdout` and `sys.stderr` fall silent where they cannot be written, instead of raising.

    A standard descriptor that is closed is opened on nothing, so that no file of the program gets its number and with
    it the messages of C libraries. What is left in the buffer of a broken stream is dropped at the end, or Python would
    fail with it at exit.
    """
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            _silence(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = forgiving(before[0]), forgiving(before[1])
    try:
        yield
    finally:
        for stream, original in ((out, before[0]), (err, before[1])):
            if not stream.attempt("flush") and original is not None and stream is not original:
                with suppress(OSError, ValueError, AttributeError):
                    _silence(original.fileno())
        sys.stdout, sys.stderr = before


def _silence(descriptor: int) -> None:
    """Open a descriptor on nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(nothing, descriptor)
        os.close(nothing)
