"""Progress messages: what a command is waiting for, and since when.

Imports nothing but the standard library, so that messages appear before torch is imported.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from hrm_agent.files.streams import forgiving

EVERY = 0.5  # seconds
PLAIN_EVERY = 30.0
"""Seconds between lines on the progress of one piece of work, where there is no terminal."""


class Waiting:
    """While the body runs, one line on stderr: on a terminal with the seconds, and gone at the end.

    Args:
        what: description of the work, or a function that is called at every update; empty: nothing is shown before
            `say` is called.
        quiet: print nothing.
    """

    def __init__(self, what: str | Callable[[], str], quiet: bool = False) -> None:
        self._what = what if callable(what) else lambda: what
        self._quiet = quiet
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._work, self._said = "", 0.0

    def __enter__(self) -> Waiting:
        self._began = time.monotonic()
        self._stream: Any = forgiving(sys.stderr)
        if self._quiet:
            return self
        if not self._stream.isatty():
            if text := self._what():
                print(text, file=self._stream, flush=True)
            return self
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._ends.set()
            self._thread.join()
            self._write("")
            self._thread = None

    def say(self, what: str, progress: str = "") -> None:
        """What is being waited for from now on, and how far it is.

        On a terminal it takes the place of what was shown; elsewhere other work is a line at once, and the progress of
        the same work one from time to time.
        """
        text = f"{what}: {progress}" if progress else what
        other, self._work, self._what = what != self._work, what, lambda: text
        if self._quiet or self._thread is not None:
            return
        now = time.monotonic()
        if other or now - self._said >= PLAIN_EVERY:
            self._said = now
            print(text, file=self._stream, flush=True)

    def _show(self) -> None:
        while not self._ends.is_set():
            if text := self._what():
                self._write(f"{text} ({time.monotonic() - self._began:.0f} s)")
            self._ends.wait(EVERY)

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
