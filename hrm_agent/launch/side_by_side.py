"""Training runs as processes of their own, several at once, for studies and searches; a signal stops all of them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hrm_agent.launch.python import override
from hrm_agent.launch.runs import holds_run
from hrm_agent.names.values import printable

TRAIN = "hrm_agent.train"
SET_HERE = ("hydra", "resume", "seed", "test_episodes", "threads")
"""Settings that belong to what starts the runs."""
SET_FOR_ALL = "{}: is set for every run (the cores are divided by jobs=); leave it out"
MODULE = re.compile(r"(env|core)=[^=]*:")
LAST = 300
"""Characters of a run's last line that are repeated."""

Job = TypeVar("Job")
Result = TypeVar("Result")

_running: set[subprocess.Popen[bytes]] = set()
_stopping = threading.Event()


class RunFailed(Exception):
    """A run ended with an error; the message is its last line.

    Attributes:
        code: exit code; negative: the number of the signal that killed it.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def train_in(folder: Path, overrides: Sequence[str]) -> None:
    """Train in a folder, or resume what was interrupted there, in a process of its own; its output is in `FOLDER.log`.

    Raises:
        RunFailed: it did.
        KeyboardInterrupt: `side_by_side` is being stopped.
    """
    begun = holds_run(folder)
    modules = [given for given in overrides if MODULE.match(given)]  # which a run's files do not import
    arguments = [f"resume={folder}", *modules] if begun else [*overrides, override("hydra.run.dir", str(folder))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "ab") as file:
        code = _wait([sys.executable, "-m", TRAIN, *arguments], file.fileno())
    if _stopping.is_set():
        raise KeyboardInterrupt
    if code:
        raise RunFailed(code, last_line(log))


def _wait(command: list[str], output: int) -> int:
    """Run a command to its end. In a session of its own: Ctrl-C of the terminal reaches it once, by `stop_all`."""
    if _stopping.is_set():
        raise KeyboardInterrupt
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    _running.add(process)
    try:
        if _stopping.is_set():
            process.send_signal(signal.SIGINT)
        return process.wait()
    finally:
        _running.discard(process)


def last_line(log: Path) -> str:
    """What a run said last."""
    with suppress(OSError):
        lines = [line for line in log.read_bytes()[-10_000:].decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return printable(lines[-1])[:LAST]
    return "no output"


def stop_all() -> None:
    """Interrupt all runs, which write a checkpoint first; no further one begins."""
    _stopping.set()
    for process in list(_running):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)


def side_by_side(jobs: Sequence[Job], at_once: int, perform: Callable[[Job], Result]) -> list[Result]:
    """`perform` every job, so many at once, in their order; each may call `train_in`.

    Raises:
        KeyboardInterrupt: after a signal; the runs have been stopped and have written their checkpoints.
    """
    _stopping.clear()
    pool = ThreadPoolExecutor(at_once)
    try:
        return list(pool.map(perform, jobs))
    except BaseException:
        stop_all()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
