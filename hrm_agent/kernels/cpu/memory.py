"""Buffers that are used again: fresh memory costs a page fault every 4 kB, a tenth of a training step at our sizes."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MOST_FLOATS = 2**27
"""Held back for use again, in all: 512 MiB."""


class Pool:
    """Float32 buffers that are taken, and given back when nobody reads them any more."""

    def __init__(self, most: int = MOST_FLOATS) -> None:
        self._most, self._held = most, 0
        self._buffers: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, floats: int) -> Tensor:
        """A buffer of at least so many floats, with any content."""
        with self._lock:
            fitting = [i for i, b in enumerate(self._buffers) if floats <= b.numel() <= 2 * floats]
            if fitting:
                buffer = self._buffers.pop(min(fitting, key=lambda i: self._buffers[i].numel()))
                self._held -= buffer.numel()
                return buffer
        return torch.empty(floats)

    def give(self, buffer: Tensor) -> None:
        """Hold a buffer for the next who needs one; the oldest are let go where they are too many."""
        with self._lock:
            self._buffers.append(buffer)
            self._held += buffer.numel()
            while self._held > self._most:
                self._held -= self._buffers.pop(0).numel()


pool = Pool()
