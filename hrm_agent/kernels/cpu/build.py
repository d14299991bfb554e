"""Compiles the C++ kernels on the machine that runs them, once, into the user's cache folder.

The library's name holds a hash of the source, the compiler and the processor, so that neither a new version nor a home
directory shared by different machines loads the wrong one. Its size and SHA-256 are stored beside it: a truncated
library is recompiled, and one that another user could have written is not loaded.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

SOURCES = Path(__file__).parents[1] / "source"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")


class NoKernels(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


def cache_folder() -> Path:
    """Where compiled kernels are stored: `HRM_AGENT_CACHE`, else below the user's cache folder."""
    if given := os.environ.get("HRM_AGENT_CACHE"):
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hrm_agent"


def library() -> ctypes.CDLL:
    """The kernels, compiled first if they are not in the cache (some ten seconds); waits for a compilation by `begin`.

    Raises:
        NoKernels: there is no C++ compiler or no folder for the library, or it does not load.
    """
    with _lock:
        found = _library()
    if isinstance(found, str):
        raise NoKernels(found)
    return found


def begin() -> None:
    """Start compiling in a thread of its own, if needed; `library` waits for it and raises what failed."""

    def build() -> None:
        with _lock:
            _library()

    thread = threading.Thread(target=build, daemon=True)
    thread.start()
    atexit.register(_stop, thread)


def compiling_for() -> float | None:
    """Seconds since the compiler was started; None where it is not running."""
    return None if _began is None else time.monotonic() - _began


def is_ready() -> bool:
    """Whether `library` returns without compiling."""
    if _lock.locked():
        return False
    try:
        return _library.cache_info().currsize > 0 or _seal_of(_place(_compiler())).exists()
    except (NoKernels, OSError, RuntimeError):
        return True


_lock = threading.Lock()
_began: float | None = None
_running: list[subprocess.Popen[str]] = []
_ended = threading.Event()


def _stop(thread: threading.Thread) -> None:
    """Stop compilers when the program ends early, leaving nothing of theirs in the cache."""
    _ended.set()
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's own children too
    thread.join(timeout=5)


@cache
def _library() -> ctypes.CDLL | str:
    """The kernels, or why there are none; a failed compilation is not repeated."""
    try:
        compiler = _compiler()
        try:
            path = _place(compiler)
            if _is_whole(path):
                return ctypes.CDLL(str(path))
        except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
            return _compile_and_load(compiler, error)
        return _compile_and_load(compiler, path)
    except NoKernels as error:
        return str(error)
    except OSError as error:
        return f"the kernels cannot be compiled or loaded: {error}"


def _place(compiler: str) -> Path:
    """Path of the library, present or not."""
    key = hashlib.sha256("\0".join([compiler, _version(compiler), *FLAGS, *_own_flags(), _processor()]).encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(source.read_bytes())
    return cache_folder().resolve() / f"stack-{key.hexdigest()[:16]}.so"  # absolute: the loader searches for names


def _seal_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_whole(path: Path) -> bool:
    """Whether an intact library is there; a damaged one is to be recompiled.

    Raises:
        OSError: another user owns it, or could have written it.
    """
    if not path.exists():
        return False
    _check_owner(path.parent)
    _check_owner(path)
    data = path.read_bytes()
    try:
        seal = json.loads(_seal_of(path).read_text())
        whole = seal == _seal(data)
    except (OSError, ValueError):
        whole = False
    if not whole:
        _log.warning("%s is damaged, or of an earlier version: the C++ kernels are recompiled", path)
    return whole


def _seal(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _check_owner(path: Path) -> None:
    """Check that only this user can write a file, as OpenSSH does with its keys.

    Raises:
        OSError: others can.
    """
    if not hasattr(os, "getuid"):
        return
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise OSError(f"{path} belongs to another user, or is a link")
    if found.st_mode & 0o022:
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{path} can be written by other users")
        path.chmod(stat.S_IMODE(found.st_mode) & ~0o022)  # files in it are checked themselves


def _compile_and_load(compiler: str, into: Path | Exception) -> ctypes.CDLL:
    """Compile outside the cache, whose disk may be full, then keep the library there.

    Args:
        into: its path; or why the cache cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:  # once a library is loaded, its file may go
        made = Path(folder) / "stack.so"
        _compile(compiler, made)
        try:
            if isinstance(into, Exception):
                raise into
            _keep(made, into)
        except (OSError, RuntimeError) as error:
            why = f"their cache cannot be used: {error} (HRM_AGENT_CACHE sets another folder)"
            _log.warning("the C++ kernels are compiled anew in every process, %s", why)
            return ctypes.CDLL(str(made))
    return ctypes.CDLL(str(into))


def _compiler() -> str:
    given = os.environ.get("CXX")
    for name in [given] if given else COMPILERS:
        if shutil.which(_words("CXX", name)[0]):
            return name
    raise NoKernels(f"no C++ compiler found ({given or ', '.join(COMPILERS)})")


def _own_flags() -> list[str]:
    """`HRM_AGENT_CXXFLAGS`, appended last: `-mno-avx512f`, for example, compiles for an older processor."""
    return _words("HRM_AGENT_CXXFLAGS", os.environ.get("HRM_AGENT_CXXFLAGS", ""))


def _words(name: str, value: str) -> list[str]:
    """Of a variable such as CXX="ccache g++"; `[""]` where there are none."""
    try:
        return shlex.split(value) or ([""] if name == "CXX" else [])
    except ValueError as error:
        raise NoKernels(f"{name}={value}: {error}") from None


def _version(compiler: str) -> str:
    answer = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False)
    return answer.stdout


def _processor() -> str:
    """The processor's features, on which `-march=native` depends."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))})
    )


def _compile(compiler: str, made: Path) -> None:
    """Compile to `made`, whose folder also holds what is made on the way."""
    global _began
    reason = ""
    try:
        _began = time.monotonic()
        for native in ("-march=native", "-mcpu=native"):  # x86, ARM
            error = _compile_files([*shlex.split(compiler), *FLAGS, native, *_own_flags()], made)
            if not error:
                return
            reason = reason or " ".join(error.split())[:200]
    finally:
        _began = None
    raise NoKernels(f"{compiler} does not compile them: {reason}")


def _keep(made: Path, path: Path) -> None:
    """Copy a library to its place, atomically, also where two processes compile at once.

    Raises:
        OSError: it cannot be written there.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    data = made.read_bytes()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for place, content in ((path, data), (_seal_of(path), json.dumps(_seal(data)).encode())):
            file = Path(folder) / place.name
            with open(file, "wb") as opened:
                file.chmod(0o600)
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(file, place)


def _compile_files(command: list[str], made: Path) -> str:
    """Compile the sources in parallel, then link them; returns the compiler's error message, empty on success."""
    objects = {source: str(made.with_name(f"{source.stem}.o")) for source in sorted(SOURCES.glob("*.cpp"))}
    apart = [flag for flag in command if flag != "-shared"]
    error = _run([[*apart, "-c", "-o", into, str(source)] for source, into in objects.items()])
    return error or _run([[*command, "-o", str(made), *objects.values()]])


def _run(commands: list[list[str]]) -> str:
    """Run commands in parallel; returns the error message of the first that fails, empty on success."""
    try:
        for command in commands:
            if _ended.is_set():
                return "the program has ended"
            _running.append(
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            )
        said = [process.communicate()[1] for process in _running]
        failed = [text for process, text in zip(_running, said, strict=True) if process.returncode]
        return (failed[0] or "it failed without a message") if failed else ""
    finally:
        _running.clear()


def main() -> int:
    """`python -m hrm_agent.kernels.cpu.build`: compile now, and print the library's path."""
    try:
        print(library()._name)
    except NoKernels as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
