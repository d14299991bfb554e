"""Memory that is there, and running out of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SYSTEM = Path("/")
CPU_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
)
"""What torch says, in a RuntimeError, where the memory of the machine is used up."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's and numpy's MemoryError, and those of torch."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def describe_out_of_memory(error: BaseException) -> str:
    """One line that says so, with the size that was asked for where the exception names it."""
    text = " ".join(str(error).split())
    size = re.search(r"allocate (\d+) bytes", text)
    if size is not None:
        return f"out of memory, of which {int(size[1]) / 1e9:,.1f} GB more were needed"
    return f"out of memory ({text[:200]})" if text else "out of memory"


def available_memory(device: torch.device, system: Path = SYSTEM) -> int | None:
    """Bytes that a process may still take: of a CUDA device, or of the machine; None where it is unknown.

    Of the machine it is the least of what is free (`MemAvailable`), the limit of every control group that this process
    is in (a container's, a job's), and its own limit (`ulimit -v`).

    Args:
        system: where `proc` and `sys` lie.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_limits(system), default=None)


def room_for_weights() -> int | None:
    """Bytes of weights that can be trained in the memory that is there, with a gradient and two moments of each."""
    available = available_memory(torch.device("cpu"))
    return None if available is None else available // 4


@contextmanager
def at_most(size: int | None, message: str) -> Iterator[None]:
    """Refuse to allocate more than so many bytes of new tensors in the body, before they are allocated.

    An operating system may grant memory that it does not have, and kill the process when it is used.

    Args:
        size: None: no limit.

    Raises:
        ValueError: with the message.
    """
    if size is None:
        yield
        return
    with _Budget(size, message):
        yield


class _Budget(TorchFunctionMode):
    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __init__(self, size: int, message: str) -> None:
        super().__init__()
        self.left, self.message = size, message

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FACTORIES:
            given = kwargs.get("size", args)
            shape = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.left -= math.prod(shape) * dtype.itemsize
            if self.left < 0:
                raise ValueError(self.message)
        return func(*args, **kwargs)


def _limits(system: Path) -> Iterator[int]:
    free = _free_memory(system)
    if free is not None:
        yield free
    for limit, used in _control_groups(system):
        yield max(0, limit - used)
    own = _address_space()
    if own is not None:
        yield own


def _free_memory(system: Path) -> int | None:
    for line in _read(system / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _control_groups(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each control group with one; what can be given back (files read) does not count as use."""
    for line in _read(system / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        first = number == "0" and not controllers
        if not first and "memory" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" if first else system / "sys/fs/cgroup/memory"
        names = ("memory.max", "memory.current") if first else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdecimal() and used.isdecimal() and int(limit) < 2**60:
                files = sum(
                    int(words[1])
                    for words in map(str.split, _read(folder / "memory.stat").splitlines())
                    if len(words) == 2 and words[0] in ("inactive_file", "active_file")
                )
                yield int(limit), max(0, int(used) - files)


def _address_space() -> int | None:
    """What `ulimit -v` leaves to this process; None without such a limit."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    used = _read(Path("/proc/self/statm")).split()
    return max(0, limit - (int(used[0]) * resource.getpagesize() if used else 0))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
