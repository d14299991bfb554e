"""Checks of tasks' options; each error is one line with what was given, what was expected and what to do."""

from __future__ import annotations

from typing import Any


def check_flag(name: str, value: Any) -> bool:
    """Return the value, or raise ValueError where it is no bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a bool; give true or false")
    return value
