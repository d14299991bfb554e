# mypy: disable-error-code="no-untyped-def"
"""Decorators that compile the package's kernels with numba, and their cache on disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit, typeof
from numba.core.types import unliteral

from hrm_envs.cache import Files, warn_once

_KERNEL_FILES = (
    "cells.py",
    "cue.py",
    "endgames/batch.py",
    "endgames/geometry.py",
    "endgames/shares.py",
    "endgames/tables.py",
    "jit.py",
    "kernel.py",
    "levels.py",
    "oracle.py",
    "planners.py",
    "rng.py",
    "schedule.py",
    "sizes.py",
    "minihack/doors.py",
)


def _distrust_folder() -> None:
    """Take where machine code is loaded from, and by which class, from the user's variables alone.

    numba reads both from ``.numba_config.yaml`` in the working folder too, which may be a stranger's.
    """
    if os.path.isfile(".numba_config.yaml"):
        for name in ("CACHE_DIR", "CACHE_LOCATOR_CLASSES"):
            setattr(numba.config, name, os.environ.get(f"NUMBA_{name}", ""))


_distrust_folder()  # before the first kernel is made


def _source_stamp(*more: Path) -> tuple[tuple[int, int], ...]:
    folder = Path(__file__).parent
    stats = [path.stat() for path in (*(folder / name for name in _KERNEL_FILES), *more) if path.exists()]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


class _Cache:
    """numba's cache of one kernel's machine code on disk; without a usable folder, kernels work uncached.

    numba's cache class is private. If its attributes change, kernels are compiled in every process.

    Args:
        own: numba's cache, with its files replaced by ours; None if there is no folder.
        files: ours.
        loads_bare: whether cached machine code needs nothing of numba's runtime (see ``hot_kernel``).
        reason: why there is no folder.
    """

    def __init__(self, own: Any, files: Files | None, loads_bare: bool, reason: str = "") -> None:
        self._own, self._files, self._loads_bare, self._reason = own, files, loads_bare, reason

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("_own"), name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        if self._own is None:
            _warn_uncached(self._reason)
            return None
        # numba would first load its tables of all supported functions, which takes a second, mostly for imports.
        load = getattr(self._own, "_load_overload", None) if self._loads_bare else None
        try:
            return (load or self._own.load_overload)(signature, target)
        except OSError as error:
            _warn_uncached(str(error))
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        try:
            if self._own is not None:
                self._own.save_overload(signature, compiled)
        except OSError as error:
            _warn_uncached(str(error))

    def holds(self, signature: Any, target: Any) -> bool:
        """Whether machine code for a signature is cached, compiled from the current sources."""
        if self._own is None or self._files is None:
            return False
        try:
            return self._files.holds(self._own._index_key(signature, target.codegen()))
        except (AttributeError, OSError):
            return False


def _warn_uncached(reason: str) -> None:
    warn_once("uncached", f"the environments are compiled anew in every process, their cache cannot be used: {reason}")


def kernel(function: Callable[..., Any], allocates: bool = True, **options: Any) -> Any:
    """Compile a function that Python calls: on its first call, with the machine code cached on disk.

    numba's cache checks the defining file only, but a kernel also contains inlined functions of other files,
    so editing those would leave stale machine code behind. The stamp therefore covers every file with kernels
    and the function's own file, which may be in another package.

    Args:
        allocates: whether it allocates arrays (see ``hot_kernel``).
        options: of ``numba.njit``.
    """
    options = {"_nrt": allocates, **options}
    dispatcher = njit(**options)(function)
    if hasattr(dispatcher, "enable_caching"):  # not the plain function, under NUMBA_DISABLE_JIT
        dispatcher._cache = _cache_of(dispatcher, Path(function.__code__.co_filename), allocates)
    return dispatcher


def _cache_of(dispatcher: Any, source: Path, allocates: bool) -> _Cache:
    """Where a kernel's machine code is kept: in the folder that numba chooses, in `hrm_envs.cache.Files`."""
    nowhere = "numba finds no writable folder; set NUMBA_CACHE_DIR to one"
    homeless = not os.path.isabs(os.path.expanduser("~"))  # numba would make a folder named ~ in the working folder
    if homeless and not getattr(numba.config, "CACHE_DIR", "") and not os.access(source.parent, os.W_OK):
        return _Cache(None, None, False, nowhere)
    try:
        dispatcher.enable_caching()
        own = dispatcher._cache
        files = Files(Path(own.cache_path), own._impl.filename_base, source, _source_stamp(source))
        if not hasattr(own, "_cache_file"):
            raise AttributeError("_cache_file")
        own._cache_file = files
    except RuntimeError:
        return _Cache(None, None, False, nowhere)
    except AttributeError as error:
        return _Cache(None, None, False, f"numba {numba.__version__} keeps its files otherwise ({error})")
    # With NUMBA_BOUNDSCHECK some reference counts remain, which need numba's runtime: a crash where it is not loaded.
    return _Cache(own, files, loads_bare=not allocates and not numba.config.BOUNDSCHECK)  # type: ignore[attr-defined]


def is_cached(kernel: Any, *arguments: Any) -> bool:
    """Whether calling ``kernel`` with such arguments needs no compilation: it is compiled or cached on disk.

    Also true if nothing is ever compiled (``NUMBA_DISABLE_JIT``).
    """
    cache = getattr(kernel, "_cache", None)
    if not isinstance(cache, _Cache):
        return True
    signature = tuple(typeof(argument) for argument in arguments)
    return signature in kernel.overloads or cache.holds(signature, kernel.targetctx)


def compile_for(kernel: Any, *arguments: Any) -> None:
    """Compile ``kernel`` for such arguments, or load its machine code, without calling it."""
    if hasattr(kernel, "compile"):
        kernel.compile(tuple(typeof(argument) for argument in arguments))


def hot_kernel(function: Callable[..., Any]) -> Any:
    """``kernel`` without reference counting, for a function that allocates no array.

    Reference counting costs an atomic operation for every array passed to a function and every row taken.
    With the small rows of a maze, that is most of the time of a step, and of compilation.
    """
    return kernel(function, allocates=False)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call, without the wrappers that unpack Python objects.

    Those wrappers take a third of the compilation time. The code is cached with its callers'. It has no
    reference counting (see ``hot_kernel``) and so must not allocate.

    numba would specialise it for every combination of constant arguments, ``draw`` two dozen times. It is optimised
    together with its callers anyway, so one version per combination of types is enough.
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

    A loop, because numba's own array assignment compiles the formatting of its error message as well, which
    would double the compilation time of the whole package.
    """
    for k in range(len(target)):
        target[k] = source[k]
