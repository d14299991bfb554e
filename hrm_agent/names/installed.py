"""Imports in which the working folder has no part, for names that come from a file and were not typed.

`python -m` searches the working folder first. In a folder from a stranger, a name that an installed package is meant by
(`minigrid`, an entry point) would be found there.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_TYPED_MODULE = re.compile(r"\+{0,2}(?:env|agent|task\.env|task_options\.env)=.*:")
_lock = threading.Lock()
_bodies = 0
_left_out: list[tuple[int, str]] = []


@contextmanager
def without_working_folder() -> Iterator[None]:
    """In the body, modules and the metadata of packages are searched where pip puts them, and in `PYTHONPATH`.

    The working folder is left out, and so are relative entries of `sys.path`. It stays where an editable installation
    has put it behind the standard library. Several threads may be in such bodies.
    """
    global _bodies, _left_out
    with _lock:
        if _bodies == 0:
            _left_out = _take_out()
        _bodies += 1
    try:
        yield
    finally:
        with _lock:
            _bodies -= 1
            if _bodies == 0:
                for place, entry in _left_out:
                    sys.path.insert(place, entry)


def leave_out_working_folder(arguments: Iterable[str] = ()) -> None:
    """The same for the rest of a command, unless its `arguments` name a module, as `env=MODULE:ID` does."""
    if not any(_TYPED_MODULE.match(argument) for argument in arguments):
        _take_out()


def _take_out() -> list[tuple[int, str]]:
    """Remove the entries of the working folder from `sys.path`; returns their places, first to last."""
    library = sysconfig.get_path("stdlib")
    installed_from = sys.path.index(library) if library in sys.path else len(sys.path)
    found = [
        (place, entry)
        for place, entry in enumerate(sys.path)
        if not os.path.isabs(entry) or (place < installed_from and _is_working_folder(entry))
    ]
    for place, _ in reversed(found):
        del sys.path[place]
    return found


def _is_working_folder(entry: str) -> bool:
    try:
        return os.path.samefile(entry, os.getcwd())
    except OSError:  # one of them is not there
        return False
