# mypy: disable-error-code="no-untyped-def"
"""One decorator for every compiled function of the package."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, typeof
from numba.core.types import unliteral

_log = logging.getLogger(__name__)
_told: list[str] = []  # why there is no cache, once it was said

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


class _Cache:
    """numba's cache of one kernel: machine code on disk. A folder that cannot be used costs the cache, not the run.

    numba's is private. Should it change shape, what is asked of it here falls back to what it does itself.

    Args:
        own: numba's; None where it found no folder to write into.
        loads_bare: machine code from disk needs nothing of numba's runtime (see ``hot_kernel``).
    """

    def __init__(self, own: Any, loads_bare: bool) -> None:
        self._own, self._loads_bare = own, loads_bare

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("_own"), name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        if self._own is None:
            _say_uncached("numba finds no folder that it can write into; NUMBA_CACHE_DIR names one")
            return None
        # numba fills its tables of everything that it can compile first, which takes a second, most of it imports.
        load = getattr(self._own, "_load_overload", None) if self._loads_bare else None
        try:
            return (load or self._own.load_overload)(signature, target)
        except OSError as error:
            _say_uncached(str(error))
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        try:
            if self._own is not None:
                self._own.save_overload(signature, compiled)
        except OSError as error:
            _say_uncached(str(error))

    def holds(self, signature: Any, target: Any) -> bool:
        """Whether the machine code for a signature is there, compiled from the sources as they are."""
        try:
            key = self._own._index_key(signature, target.codegen())
            return key in self._own._cache_file._load_index()
        except (AttributeError, OSError):
            return False


def _say_uncached(reason: str) -> None:
    if _told:
        return
    _told.append(reason)
    _log.warning("the environments are compiled anew in every process, their cache cannot be used: %s", reason)


def kernel(function: Callable[..., Any], allocates: bool = True) -> Any:
    """Compile a function that Python calls: on its first call, with the machine code cached on disk.

    numba's cache looks at the defining file alone, but a kernel also holds the inlined code of functions
    from other files: editing those would leave stale machine code behind. The stamp therefore covers every
    file that holds kernels, and the function's own, which may lie in another package. Should numba's private
    cache object change shape, numba's own stamp is kept.
    """
    options: dict[str, Any] = {"_nrt": allocates}
    dispatcher = njit(**options)(function)
    if not hasattr(dispatcher, "enable_caching"):  # the function itself, under NUMBA_DISABLE_JIT
        return dispatcher
    try:
        dispatcher.enable_caching()
    except RuntimeError:
        dispatcher._cache = _Cache(None, False)
        return dispatcher
    cache_file = getattr(dispatcher._cache, "_cache_file", None)
    if cache_file is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _source_stamp(Path(function.__code__.co_filename))
    dispatcher._cache = _Cache(dispatcher._cache, loads_bare=not allocates)
    return dispatcher


def is_cached(kernel: Any, *arguments: Any) -> bool:
    """Whether a call of ``kernel`` compiles nothing: it was called so before, or the machine code lies on disk.

    True as well where there is no compiler to wait for (``NUMBA_DISABLE_JIT``).
    """
    held = getattr(kernel, "_cache", None)
    if not isinstance(held, _Cache):
        return True
    signature = tuple(typeof(argument) for argument in arguments)
    return signature in kernel.overloads or held.holds(signature, kernel.targetctx)


def compile_for(kernel: Any, *arguments: Any) -> None:
    """Compile ``kernel`` for calls with such arguments, or load the machine code, without calling it."""
    if hasattr(kernel, "compile"):
        kernel.compile(tuple(typeof(argument) for argument in arguments))


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

    numba compiles it once for each combination of the constants that it is called with, ``draw`` two dozen times.
    What is optimised with its callers gains nothing by that: the types alone count here.
    """
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    dispatcher = njit(**options)(function)
    if hasattr(dispatcher, "get_call_template"):
        templates = dispatcher.get_call_template
        dispatcher.get_call_template = lambda args, kws: templates(
            tuple(unliteral(arg) for arg in args), {name: unliteral(kind) for name, kind in kws.items()}
        )
    return dispatcher


@inner
def assign(target, source):
    """``target[:] = source`` for rows of equal length.

    A loop, because numba's own array assignment brings the formatting of its error message into the machine
    code, which makes up half of the compilation time of everything here.
    """
    for k in range(len(target)):
        target[k] = source[k]
