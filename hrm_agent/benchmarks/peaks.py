"""Peak performance of the machine: the rate of large matrix products, and the bandwidth at sizes of its caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BANDWIDTH_BYTES = (2**18, 2**20, 2**23, 2**28)
"""Bytes moved by one pass of a bandwidth test: within a core's own cache, the shared cache, and memory."""


MATRIX_SIZES = (512, 1024)
"""The smaller fits into a time slice of a busy machine, the larger keeps all threads of a quiet one busy."""


def matrix_peak(precision: str, threads: int, size: int, seconds: float = 0.3) -> float:
    """Operations per second (two for a multiply-add) of the product of two square matrices; the best of the calls.

    Args:
        precision: `float32` or `bfloat16`.
        threads: of torch.
        size: rows and columns.
        seconds: to repeat for.
    """
    a, b = (torch.randn(size, size).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), threads, seconds)


def matrix_peaks(
    threads: int, sizes: Sequence[int] = MATRIX_SIZES, seconds: float = 0.3
) -> dict[str, dict[str, float]]:
    """GFLOP/s by precision and by number of threads, one and `threads`; the best of the sizes."""

    def best(precision: str, count: int) -> float:
        return round(max(matrix_peak(precision, count, size, seconds) for size in sizes) / 1e9, 2)

    return {precision: {str(n): best(precision, n) for n in sorted({1, threads})} for precision in DTYPES}


def bandwidth(size: int, threads: int = 1, seconds: float = 0.2) -> float:
    """Bytes per second, read and written together, of copying within `size` bytes; the best of the calls."""
    source = torch.zeros(max(1, size // 8), dtype=torch.float32)
    target = torch.zeros_like(source)
    repeats = max(1, 2**22 // size)

    def copy() -> None:
        for _ in range(repeats):
            target.copy_(source)

    return repeats * 2 * source.nbytes / _best(copy, threads, seconds)


def _best(call: Callable[[], object], threads: int, seconds: float) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        call()
        best, end = float("inf"), time.perf_counter() + seconds
        while True:
            began = time.perf_counter()
            call()
            now = time.perf_counter()
            best = min(best, now - began)
            if now >= end:
                return best
    finally:
        torch.set_num_threads(before)
