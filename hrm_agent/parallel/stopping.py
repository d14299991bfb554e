"""Cooperative cancellation of long work, such as an evaluation, between two of its steps."""

from __future__ import annotations

from collections.abc import Callable

CheckStop = Callable[[], None]
"""Called between two steps; raises `Stopped` where the work is to stop. Threads may call it."""


class Stopped(Exception):
    """Work was stopped between two of its steps, because a signal asked for it; it can be repeated."""


def never() -> None:
    """A `CheckStop` of work that is not stopped."""
