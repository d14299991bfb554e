"""Imports: of modules that a user types, and without the working folder for names that come from a file.

`python -m` searches the working folder first. In a folder from a stranger, a name that an installed package is meant by
(`minigrid`, an entry point) would be found there.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hrm_agent.names.values import printable

_TYPED_MODULE = re.compile(r"\+{0,2}(?:env|core|agent|task\.env|task_options\.env)=.*:")
_lock = threading.Lock()
_bodies = 0
_left_out: list[tuple[int, str]] = []


def import_typed(module: str, given: str) -> None:
    """Import a module that a user named, which runs its code.

    Args:
        given: what was typed, `env=MODULE:ID`.

    Raises:
        ValueError: it cannot be imported; the message has the line of its own that fails.
    """
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may do anything
        reason = printable(f"cannot import {module}: {_why(error, module)}")
        raise ValueError(f"{printable(given)}: {reason}") from None


def _why(error: BaseException, module: str) -> str:
    """Why an import failed, with the line of the module's own that did."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is not None and (module == name or module.startswith(f"{name}.")):
        return "there is no such module; is its package installed?"
    why = f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    if isinstance(error, SyntaxError) or len(frames) < 2:  # the first frame is the import here
        return why
    return f"{why} (line {frames[-1].lineno} of {frames[-1].filename})"


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
