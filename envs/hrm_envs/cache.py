"""Machine code of numba's kernels on disk: complete files that only this user can have written.

numba's own cache unpickles whatever lies in its folder, so a truncated file ends every later start, and a file that
another user left there runs as code. Here a file begins with the SHA-256 of the rest, and is read only if this user
wrote it (or whoever wrote the source file beside it).
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.serialize import dumps

_log = logging.getLogger(__name__)
_warned: set[str] = set()
"""Kinds of warnings that were logged; each is logged once in a process."""

_DIGEST = hashlib.sha256().digest_size
_SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "OPT")
"""Of `numba.config`: what is compiled under one value is not to be loaded under another."""


class Files:
    """The cached machine code of one kernel: one file for each combination of argument types.

    It stands in for numba's `IndexDataCacheFile`: `load`, `save` and `flush` are called by numba's cache.

    Args:
        folder: where numba keeps code of the kernel's source file; made readable by this user alone, unless it is the
            `__pycache__` of the source, whose writers could change the source's bytecode as well.
        base: the beginning of the files' names, different for each kernel.
        source: the kernel's source file.
        stamp: what the machine code was compiled from; code with another stamp is compiled anew.
    """

    def __init__(self, folder: Path, base: str, source: Path, stamp: Any) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._base, self._source = base, source
        self._stamp = repr((numba.__version__, stamp))
        self._settings = [(name, getattr(numba.config, name, None)) for name in _SETTINGS]
        self._in_tree = self.folder == Path(os.path.abspath(source)).parent / "__pycache__"

    def load(self, key: tuple[Any, ...]) -> Any:
        """What `save` was given; None where there is nothing whole and current.

        Raises:
            OSError: another user owns the folder or the file, or can write it; or it cannot be read.
        """
        code = self._code(key)
        if code is None:
            return None
        try:
            return pickle.loads(code)
        except Exception:  # whole, so of other versions of numba's classes
            return None

    def holds(self, key: tuple[Any, ...]) -> bool:
        """Whether `load` finds something.

        Raises:
            OSError: see `load`.
        """
        return self._code(key) is not None

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        """Write a file, whole or not at all, also where two processes compile at once.

        Raises:
            OSError: it cannot be written, or see `load`.
        """
        self._check_folder()
        path = self._path(key)
        content = self._freshness(key) + dumps(data)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with suppress(FileNotFoundError):
            temporary.unlink()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o644 if self._in_tree else 0o600), "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget all machine code of this kernel."""
        for path in self.folder.glob(f"{self._base}.*.code"):
            path.unlink(missing_ok=True)

    def _code(self, key: tuple[Any, ...]) -> bytes | None:
        """The pickled machine code, where a whole and current file has it."""
        self._check_folder()
        path = self._path(key)
        content = self._read(path)
        if content is None:
            return None
        content, digest = content[_DIGEST:], content[:_DIGEST]
        if hashlib.sha256(content).digest() != digest:
            warn_once("damaged", f"{path} is damaged: what was compiled there is compiled anew")
            return None
        fresh = content[:_DIGEST] == self._freshness(key)
        return content[_DIGEST:] if fresh else None

    def _path(self, key: tuple[Any, ...]) -> Path:
        signature, processor, _ = key
        name = hashlib.sha256(repr((self._settings, signature, processor)).encode()).hexdigest()[:16]
        return self.folder / f"{self._base}.{name}.code"

    def _freshness(self, key: tuple[Any, ...]) -> bytes:
        """Of everything that the machine code depends on."""
        return hashlib.sha256(f"{self._stamp}\n{key!r}".encode()).digest()

    def _read(self, path: Path) -> bytes | None:
        """Content of a file that only a trusted user can have written; None where there is none."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            self._check_owner(path, os.fstat(descriptor))
            return file.read()

    def _check_folder(self) -> None:
        """Refuse a folder of another user; make one of this user private."""
        if self._in_tree or not hasattr(os, "getuid"):
            return
        try:
            found = self.folder.lstat()
        except FileNotFoundError:
            return
        if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode):
            if stat.S_IMODE(found.st_mode) & 0o077:
                self.folder.chmod(0o700)
            return
        self._check_owner(self.folder, found)

    def _check_owner(self, path: Path, found: os.stat_result) -> None:
        """Check that only this user or root can have written a file or folder, as OpenSSH does with its keys.

        Raises:
            OSError: others can.
        """
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{path} is a link or no regular file")
        if not hasattr(os, "getuid"):
            return
        trusted = {0, os.getuid()}
        if self._in_tree:
            trusted.add(self._source.stat().st_uid)
        if found.st_uid not in trusted:
            raise OSError(f"{path} belongs to another user")
        if found.st_mode & 0o022:
            raise OSError(f"{path} can be written by other users")


def warn_once(kind: str, message: str) -> None:
    """Log a warning, unless one of this kind was logged before."""
    if kind not in _warned:
        _warned.add(kind)
        _log.warning("%s", message)
