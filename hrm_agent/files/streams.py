"""Output to terminals and pipes that may go away: a message that nobody can read ends no program.

Imports the standard library alone, so that messages appear before torch is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STANDARD = (0, 1, 2)


class Forgiving:
    """A text stream that falls silent where writing fails: a closed pipe (`| head`), a terminal that is gone.

    Everything else is that of the stream itself.

    Attributes:
        broken: writing has failed; nothing more is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.broken = stream, False

    def write(self, text: str) -> int:
        if not self.broken:
            try:
                self.stream.write(text)
            except (OSError, ValueError) as error:
                self._failed(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self.broken:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, UnicodeError):
            raise error
        self.broken = True

    def __getattr__(self, name: str) -> Any:
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
            stream.flush()
            if stream.broken and original is not None and stream is not original:
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
