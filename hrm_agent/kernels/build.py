"""Compiles the C++ kernels on the machine that runs them, once, into the user's cache folder.

The library's name holds a hash of the source, the compiler and the processor, so that neither a new version nor a home
folder shared by different machines meets a library made for another.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "source"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


class NoKernels(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: `HRM_AGENT_CACHE`, else below the user's cache folder."""
    if given := os.environ.get("HRM_AGENT_CACHE"):
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hrm_agent"


def library() -> ctypes.CDLL:
    """The kernels, compiled if they are not in the cache yet (some ten seconds).

    Raises:
        NoKernels: no C++ compiler, no folder to keep them in, or what was made does not load.
    """
    found = _library()
    if isinstance(found, str):
        raise NoKernels(found)
    return found


@cache
def _library() -> ctypes.CDLL | str:
    """The kernels, or why there are none: where compiling fails, it fails once."""
    try:
        compiler = _compiler()
        flags = [*FLAGS, *_own_flags()]
        key = hashlib.sha256("\0".join([compiler, _version(compiler), *flags, _processor()]).encode())
        for source in sorted(SOURCES.iterdir()):
            key.update(source.read_bytes())
        path = cache_folder() / f"stack-{key.hexdigest()[:16]}.so"
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except NoKernels as error:
        return str(error)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home folder
        return f"the kernels cannot be compiled or loaded: {error}"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        reason = ""
        for native in ("-march=native", "-mcpu=native"):  # x86, ARM
            sources = map(str, sorted(SOURCES.glob("*.cpp")))
            command = [compiler, *FLAGS, native, *_own_flags(), "-o", str(made), *sources]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                os.replace(made, path)  # whole or not at all, also where two processes compile at once
                return
            reason = reason or " ".join(answer.stderr.split())[:200]
    raise NoKernels(f"{compiler} does not compile them: {reason}")


def main() -> int:
    """`python -m hrm_agent.kernels.build`: compile now, and say where."""
    try:
        print(library()._name)
    except NoKernels as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
