"""Step functions captured once and replayed. Experimental: no capture has run on a GPU yet.

A CUDA graph replays launches, not Python: its inputs and outputs have fixed addresses, and nothing inside synchronises
with the host. `EagerReplay` has the same contract without a GPU, so everything but the capture is tested on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hrm_agent.tensors import trees

WARM_UP = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate (PyTorch's notes on CUDA graphs)."""

Function = Callable[..., Any]
Say = Callable[[str], None]
Wrap = Callable[[str, Function], Function]
"""From a name and a step function to an equivalent function whose results are overwritten by the next call."""


class Capture(Protocol):
    """Records a function."""

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """A function's outputs, and a function that recomputes them in the same memory."""


class EagerReplay:
    """Without a graph: calls the function again and writes the results over the first ones."""

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        for _ in range(WARM_UP):
            function()
        outputs = trees.clone(function())
        return outputs, lambda: trees.copy_into(outputs, function())


class CudaGraph:
    """A CUDA graph.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with torch.cuda.device(self.device):  # whose stream the capture takes
            return self._capture(function)

    def _capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return outputs, graph.replay


class GraphedCallable:
    """Calls a function by replaying it; the first call captures it for inputs of its shapes.

    Results are overwritten by the next call. For inputs of other shapes the function itself is called.

    Args:
        name: of the function, for the message of a failed capture.
        function: from trees of tensors to a tree of tensors, without side effects.
        capture: how to record it.
        say: called with one line where the capture fails; from then on the function itself is called.
    """

    def __init__(self, name: str, function: Function, capture: Capture, say: Say) -> None:
        self.name, self.function, self.capture, self.say = name, function, capture, say
        self._inputs: Any = None
        self._outputs: Any = None
        self._replay: Callable[[], None] | None = None

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self, *inputs: Any) -> Any:
        if self._inputs is None:
            self._record(inputs)
        if self._replay is None or _form(inputs) != _form(self._inputs):
            return self.function(*inputs)
        trees.copy_into(self._inputs, inputs)
        self._replay()
        return self._outputs

    def _record(self, inputs: tuple[Any, ...]) -> None:
        self._inputs = trees.clone(inputs)
        devices = {t.device for t in trees.leaves(inputs) if t.is_cuda}
        try:
            with torch.random.fork_rng(list(devices)):  # calls for the capture must not advance the generators
                self._outputs, self._replay = self.capture(lambda: self.function(*self._inputs))
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.say(f"cuda.graphs: {self.name} cannot be captured and runs without ({lines[0][:120]})")


def graph_wrapper(device: torch.device, say: Say) -> Wrap:
    """Wraps step functions in CUDA graphs; on a CPU, for tests, in `EagerReplay`."""
    capture: Capture = CudaGraph(device) if device.type == "cuda" else EagerReplay()
    return lambda name, function: GraphedCallable(name, function, capture, say)


def _form(tree: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in trees.leaves(tree)]
