"""The machine's resources, and batches divided over CPU threads.

At our sizes torch's own parallel loops lose more to barriers than they gain; splitting the batch over a few Python
threads, each running single-threaded operations, is faster and does not stall when another program takes a core
(`experiments/speed`). The split depends on the number of threads alone, so results are reproducible.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from hrm_agent.parallel.processes import local_world_size

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_AUTO_THREADS = 8
CACHE_BYTES = 2**21
"""Largest size of a batch's widest activation. Larger batches are computed in parts on a CPU: their temporaries would
not fit in the cache, and their pages would be returned to the system and allocated again at every operation."""


def available_cores() -> int:
    """Cores available to this process, divided among `torchrun`'s processes here; at most `MAX_AUTO_THREADS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, usable // local_world_size()), MAX_AUTO_THREADS)


@cache
def instruction_set() -> str:
    """The processor's widest vector instructions: `avx512_bf16`, `avx512`, `avx2`, `neon`, or `plain`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    for flag, name in (("avx512_bf16", "avx512_bf16"), ("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "neon")):
        if flag in flags:
            return name
    return "neon" if platform.machine() in ("arm64", "aarch64") else "plain"


def check_device(device: str) -> None:
    """Raises: ValueError unless it is the CPU or a CUDA device that torch sees."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}: torch {torch.__version__} sees no CUDA device; use device=cpu")


def chunk_size(network: nn.Module, length: int, device: torch.device) -> int | None:
    """Rows of a batch that are best computed at once on this device; None: no limit.

    Args:
        network: has at least one `nn.Linear`; the widest counts.
        length: tokens of a row.
    """
    if device.type != "cpu":
        return None
    widest = max(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    return max(1, CACHE_BYTES // (4 * length * widest))


@cache
def _thread_local_counts() -> tuple[Callable[[int], None], Callable[[int], int]] | None:
    """OpenMP's and MKL's setters of the number of threads of the calling thread; None where torch has neither.

    `torch.set_num_threads` sets these two, and besides them the number that threads of the program which use torch
    later begin with.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(folder / name))  # loaded already; names of the OpenMP it is linked to are found
            openmp = library.omp_set_num_threads
            openmp.restype, openmp.argtypes = None, [ctypes.c_int]
            mkl = getattr(library, "MKL_Set_Num_Threads_Local", lambda count: 0)
            return openmp, mkl
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """In the body, torch's operations that the calling thread starts use this thread alone.

    Other threads keep their number, and this one has its own again afterwards. MKL divides even the product of one
    row, and its threads wait for each other in loops, which takes tens of milliseconds where another program takes a
    core. It has no effect where torch has no OpenMP.
    """
    own, setters = torch.get_num_threads(), _thread_local_counts()  # the first call in a thread settles its number
    if own == 1 or setters is None:
        yield
        return
    openmp, mkl = setters
    openmp(1)
    before = mkl(1)
    try:
        yield
    finally:
        openmp(own)
        mkl(before)


class Threads:
    """Runs a function over `count` slices of a batch, one thread each; `count=1` runs in the calling thread.

    From then on torch's operations are single-threaded in the whole process.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"threads={count}: expected 1 or more threads")
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="slice") if count > 1 else None
        # With one thread too: parallel processes must not each start a thread per core.
        torch.set_num_threads(1)

    def slices(self, batch_size: int, largest: int | None = None) -> list[slice]:
        """Contiguous slices of nearly equal size that cover `range(batch_size)`, one for each thread.

        Args:
            largest: most rows of a slice; with it each thread has several, all equally many.
        """
        each = -(-batch_size // (largest * self.count)) if largest else 1
        count = min(self.count * each, batch_size)
        edges = [batch_size * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(edges)]

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Results in the order of `items`; re-raises the first exception."""
        if self._pool is None or len(items) == 1:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))
