"""The signals that end a run in order, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which a terminal that is closed sends.

    A SIGHUP that is ignored stays ignored: that is what `nohup` does for a command.
    """
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None) else []
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


@contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take the signals that end a run during the body.

    In another thread than the main one, where Python allows no handlers, they stay as they are, and so does one that
    was not set from Python, since it could not be set again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [s for s in stop_signals() if signal.getsignal(s) is not None]
    previous = {s: signal.signal(s, handler) for s in taken}
    try:
        yield
    finally:
        for s, before in previous.items():
            signal.signal(s, before)
