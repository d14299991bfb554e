"""Buffers that are used again: fresh memory costs a page fault every 4 kB, a tenth of a training step at our sizes."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MOST_FLOATS = 2**27
"""Most memory held for reuse: 512 MiB."""


class Pool:
    """A pool of float32 buffers, returned when their last reader is done."""

    def __init__(self, most: int = MOST_FLOATS) -> None:
        self._most, self._held = most, 0
        self._buffers: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, floats: int) -> Tensor:
        """An uninitialised buffer of at least this many floats."""
        with self._lock:
            fitting = [i for i, b in enumerate(self._buffers) if floats <= b.numel() <= 2 * floats]
            if fitting:
                buffer = self._buffers.pop(min(fitting, key=lambda i: self._buffers[i].numel()))
                self._held -= buffer.numel()
                return buffer
        return torch.empty(floats)

    def give(self, buffer: Tensor) -> None:
        """Hold a buffer for reuse; beyond the limit the oldest are freed."""
        with self._lock:
            self._buffers.append(buffer)
            self._held += buffer.numel()
            while self._held > self._most:
                self._held -= self._buffers.pop(0).numel()


pool = Pool()
