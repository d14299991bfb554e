# mypy: disable-error-code="no-untyped-def"
"""One decorator for every compiled function of the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

_KERNEL_FILES = (
    "cells.py",
    "cue.py",
    "jit.py",
    "kernel.py",
    "levels.py",
    "oracle.py",
    "planners.py",
    "rng.py",
    "schedule.py",
    "minihack/doors.py",
)


def _source_stamp(*more: Path) -> tuple[tuple[int, int], ...]:
    folder = Path(__file__).parent
    stats = [path.stat() for path in (*(folder / name for name in _KERNEL_FILES), *more) if path.exists()]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


def kernel(function: Callable[..., Any], allocates: bool = True) -> Any:
    """Compile a function that Python calls: on its first call, with the machine code cached on disk.

    numba's cache looks at the defining file alone, but a kernel also holds the inlined code of functions
    from other files: editing those would leave stale machine code behind. The stamp therefore covers every
    file that holds kernels, and the function's own, which may lie in another package. Should numba's private
    cache object change shape, numba's own stamp is kept.
    """
    options: dict[str, Any] = {"cache": True, "_nrt": allocates}
    dispatcher = njit(**options)(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _source_stamp(Path(function.__code__.co_filename))
    return dispatcher


def is_cached(kernel: Any) -> bool:
    """Whether the machine code of a ``kernel`` lies on disk, newer than every file that it was compiled from.

    True as well where numba does not say (its cache is private, and there is none with ``NUMBA_DISABLE_JIT``).
    """
    index = getattr(getattr(getattr(kernel, "_cache", None), "_cache_file", None), "_index_path", None)
    if index is None or kernel.signatures:
        return True
    stamp = _source_stamp(Path(kernel.py_func.__code__.co_filename))
    try:
        return Path(index).stat().st_mtime_ns >= max(changed for changed, _ in stamp)
    except OSError:
        return False


def hot_kernel(function: Callable[..., Any]) -> Any:
    """``kernel`` without reference counts, for a function that allocates no array.

    Counting references costs an atomic operation for every array handed to another function and every row
    taken, which for the small rows of a maze is most of the time of a step, and of the compilation.
    """
    return kernel(function, allocates=False)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call: without the wrapper that would unpack Python objects.

    The wrappers are a third of the compilation time. Its code goes into its callers' cache. It counts no
    references (see ``hot_kernel``) and therefore cannot allocate.
    """
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return njit(**options)(function)


@inner
def assign(target, source):
    """``target[:] = source`` for rows of equal length.

    A loop, because numba's own array assignment brings the formatting of its error message into the machine
    code, which makes up half of the compilation time of everything here.
    """
    for k in range(len(target)):
        target[k] = source[k]
