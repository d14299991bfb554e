"""Compiles the C++ kernels on the machine that runs them, once, into the user's cache folder.

The library's name holds a hash of the source, the compiler and the processor, so that neither a new version nor a home
folder shared by different machines meets a library made for another.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_log = logging.getLogger(__name__)

SOURCES = Path(__file__).parents[1] / "source"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")


class NoKernels(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: `HRM_AGENT_CACHE`, else below the user's cache folder."""
    if given := os.environ.get("HRM_AGENT_CACHE"):
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hrm_agent"


def library() -> ctypes.CDLL:
    """The kernels, compiled if they are not in the cache yet (some ten seconds), or waited for (`begin`).

    Raises:
        NoKernels: no C++ compiler, no folder to keep them in, or what was made does not load.
    """
    with _lock:
        found = _library()
    if isinstance(found, str):
        raise NoKernels(found)
    return found


def begin() -> None:
    """Compile on a thread of its own, where that is still to be done; `library` waits for it and says what failed."""

    def build() -> None:
        with _lock:
            _library()

    thread = threading.Thread(target=build, daemon=True)
    thread.start()
    atexit.register(_stop, thread)


def compiling_for() -> float | None:
    """Seconds that the compiler has been at work for; None where it is not."""
    return None if _began is None else time.monotonic() - _began


def is_ready() -> bool:
    """Whether `library` answers at once."""
    if _lock.locked():
        return False
    try:
        return _library.cache_info().currsize > 0 or _place(_compiler()).exists()
    except (NoKernels, OSError, RuntimeError):
        return True


_lock = threading.Lock()
_began: float | None = None
_running: list[subprocess.Popen[str]] = []
_ended = threading.Event()


def _stop(thread: threading.Thread) -> None:
    """A program that ends early leaves no compiler at work, and nothing of it in the cache."""
    _ended.set()
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's own children too
    thread.join(timeout=5)


@cache
def _library() -> ctypes.CDLL | str:
    """The kernels, or why there are none: where compiling fails, it fails once."""
    try:
        compiler = _compiler()
        try:
            path = _place(compiler)
            if not path.exists():
                _compile(compiler, path)
        except NoKernels:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
            _log.warning("the C++ kernels are compiled anew in every process, their cache cannot be used: %s", error)
            return _load_uncached(compiler)
        return ctypes.CDLL(str(path))
    except NoKernels as error:
        return str(error)
    except OSError as error:
        return f"the kernels cannot be compiled or loaded: {error}"


def _place(compiler: str) -> Path:
    """Where the library is, or will be."""
    key = hashlib.sha256("\0".join([compiler, _version(compiler), *FLAGS, *_own_flags(), _processor()]).encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(source.read_bytes())
    return cache_folder() / f"stack-{key.hexdigest()[:16]}.so"


def _load_uncached(compiler: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:  # once it is loaded, the file may go
        path = Path(folder) / "stack.so"
        _compile(compiler, path)
        return ctypes.CDLL(str(path))


def _compiler() -> str:
    given = os.environ.get("CXX")
    for name in [given] if given else COMPILERS:
        if found := shutil.which(name):
            return found
    raise NoKernels(f"no C++ compiler found ({given or ', '.join(COMPILERS)})")


def _own_flags() -> list[str]:
    """`HRM_AGENT_CXXFLAGS`, which come last: `-mno-avx512f`, say, for kernels of a lesser processor."""
    return os.environ.get("HRM_AGENT_CXXFLAGS", "").split()


def _version(compiler: str) -> str:
    answer = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))})
    )


def _compile(compiler: str, path: Path) -> None:
    global _began
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _began = time.monotonic()
            made = Path(folder) / path.name
            reason = ""
            for native in ("-march=native", "-mcpu=native"):  # x86, ARM
                error = _compile_files([compiler, *FLAGS, native, *_own_flags()], made)
                if not error:
                    os.replace(made, path)  # whole or not at all, also where two processes compile at once
                    return
                reason = reason or " ".join(error.split())[:200]
    finally:
        _began = None
    raise NoKernels(f"{compiler} does not compile them: {reason}")


def _compile_files(command: list[str], made: Path) -> str:
    """Every source on a core of its own, then the library of all; returns what the compiler says where it fails."""
    objects = {source: str(made.with_name(f"{source.stem}.o")) for source in sorted(SOURCES.glob("*.cpp"))}
    apart = [flag for flag in command if flag != "-shared"]
    error = _run([[*apart, "-c", "-o", into, str(source)] for source, into in objects.items()])
    return error or _run([[*command, "-o", str(made), *objects.values()]])


def _run(commands: list[list[str]]) -> str:
    """Run commands side by side; returns what the first that fails says."""
    try:
        for command in commands:
            if _ended.is_set():
                break
            _running.append(
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            )
        said = [process.communicate()[1] for process in _running]
        failed = [text for process, text in zip(_running, said, strict=True) if process.returncode]
        return (failed[0] or "it ended without a word") if failed else ""
    finally:
        _running.clear()


def main() -> int:
    """`python -m hrm_agent.kernels.cpu.build`: compile now, and say where."""
    try:
        print(library()._name)
    except NoKernels as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
