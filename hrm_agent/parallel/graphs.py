"""A function over buffers that stay in place, captured once and replayed.

A CUDA graph replays launches, not Python: the function must read its inputs from, and leave its results in, memory that
is there for good, and must not look at a number on the way. `Again` is the same contract without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate (PyTorch's notes on CUDA graphs)."""

Say = Callable[[str], None]
Function = Callable[[], Any]


class Capture(Protocol):
    """How a function is recorded."""

    def warm(self, function: Function) -> None:
        """Call it once before it is captured."""

    def capture(self, function: Function) -> tuple[Any, Callable[[], None]]:
        """Its outputs, whose memory every replay writes, and what replays it. Whether it has run is left open."""


class Again:
    """Without a graph: the function is called again, and its results are written where the first ones lie."""

    def warm(self, function: Function) -> None:
        function()

    def capture(self, function: Function) -> tuple[Any, Callable[[], None]]:
        outputs = function()

        def replay() -> None:
            for old, new in zip(leaves(outputs), leaves(function()), strict=True):
                old.copy_(new)

        return outputs, replay


class CudaGraph:
    """A CUDA graph.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm(self, function: Function) -> None:
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            function()
        torch.cuda.current_stream(self.device).wait_stream(aside)

    def capture(self, function: Function) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return outputs, graph.replay


class Replayed:
    """Calls a function by replaying it; the first call captures it. Results are overwritten by the next call.

    Args:
        name: of the function, for the line that says it could not be captured.
        function: without arguments, over buffers that stay in place; returns tensors, or tuples or dictionaries of
            them, or nothing.
        capture: how it is recorded; None: it is simply called.
        kept: the tensors that a call changes. Calls that only serve the capture leave them as they were; what appears
            in the list meanwhile (an optimizer's state) is set to zero.
        say: is told, in one line, that the capture failed. The function is simply called from then on.
    """

    def __init__(
        self, name: str, function: Function, capture: Capture | None, kept: Callable[[], Sequence[Tensor]], say: Say
    ) -> None:
        self.name, self.function, self.capture, self.kept, self.say = name, function, capture, kept, say
        self._replay: Callable[[], None] | None = None
        self._outputs: Any = None

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self) -> Any:
        if self.capture is not None and self._replay is None:
            self._record(self.capture)
        if self._replay is None:
            return self.function()
        self._replay()
        return self._outputs

    def _record(self, capture: Capture) -> None:
        before = {id(t): (t, t.detach().clone()) for t in self.kept()}

        @torch.no_grad()
        def undo() -> None:
            for tensor in self.kept():
                if id(tensor) in before:
                    tensor.copy_(before[id(tensor)][1])
                else:
                    tensor.zero_()

        try:
            for _ in range(WARM_UP):
                capture.warm(self.function)
                undo()
            self._outputs, self._replay = capture.capture(self.function)
        except (RuntimeError, NotImplementedError) as error:
            self.say(f"cuda.graphs: {self.name} cannot be captured and runs without ({_first_line(error)})")
            self.capture = self._outputs = self._replay = None
        undo()


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dictionaries, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)


def copy_into(target: Any, source: Any) -> None:
    """Write the tensors of one tree into another's of the same shape, without waiting for the device."""
    for to, value in zip(leaves(target), leaves(source), strict=True):
        to.copy_(value, non_blocking=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
