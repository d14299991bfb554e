"""Ctrl-C while a command is still importing: one line in place of a traceback of whatever was being imported.

Imports the standard library alone, and is called first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

INTERRUPTED = 130
"""Exit code."""
SCRIPT = "hrm-agent"
"""The command of `hrm_agent/__main__.py`."""


def is_command(arguments: Sequence[str], original: Sequence[str], package: str) -> bool:
    """Whether this process is `python -m PACKAGE...`, and Python is importing that module, or the script `hrm-agent`.

    Args:
        arguments, original: `sys.argv`, which begins with `-m` until the module has been found, and `sys.orig_argv`.
    """
    if arguments and os.path.basename(arguments[0]) == SCRIPT:
        return True
    if list(arguments[:1]) != ["-m"] or "-m" not in original:
        return False
    module = original[list(original).index("-m") + 1 :][:1]
    return bool(module) and (module[0] == package or module[0].startswith(f"{package}."))


def in_one_line() -> None:
    """From now on Ctrl-C that nothing catches ends the process with one line and exit code 130.

    So does an exception that a library makes of it, while it is imported for example.
    """
    happened: list[bool] = []
    before = sys.excepthook

    def note(number: int, frame: Any) -> None:
        happened.append(True)
        signal.default_int_handler(number, frame)

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not happened and not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)
            return
        sys.excepthook = before
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED)

    sys.excepthook = end
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
