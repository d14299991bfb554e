"""Backends that compute a network: eager torch, our C++ kernels, `torch.compile`, or CUDA.

A module with more than one backend has an attribute `backend`; None is eager torch, the reference. `kernel_choice.use`
sets it for a policy or a puzzle model and all of its parts at once; `hrm_agent.recurrence.cuda` wraps a policy's
segments on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent.cores import Core, State
from hrm_agent.cores.blocks import BlockStack
from hrm_agent.recurrence.unroll import Rules, Steps, Unrolled, run_segments


class Backend:
    """A way to compute; this class leaves everything to the reference. A method returns None where it does.

    Attributes:
        path: its name.
        threads: over which the kernels divide a batch.
        outer: wraps the backend of the stacks of blocks, and stays when `use` changes that.
    """

    threads = 1
    outer = False

    def __init__(self, path: str) -> None:
        self.path = path

    def stack(self, stack: BlockStack, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """A stack of blocks, float `[B, L, D]` -> float `[B, L, D]`."""
        return stack.reference(x, angles)

    def run_segments(self, core: Core, tokens: Tensor, latent: State, segments: int) -> tuple[Tensor, State]:
        """See `hrm_agent.recurrence.run_segments`."""
        return run_segments(core, tokens, latent, segments)

    def unroll(self, core: Core, carry: Any, steps: Steps, rules: Rules) -> Unrolled | None:
        """See `hrm_agent.recurrence.unroll`."""
        return None

    def divides(self, core: Core, carry: Any, rules: Rules) -> bool:
        """Whether `unroll` itself divides a batch over `threads`."""
        return False

    def embed_grid(self, encoder: Any, ids: Tensor) -> Tensor | None:
        """Tokens float `[..., L, D]` of ids `[..., H, W]`, by `hrm_agent.policies.encoders.GridEncoder`."""
        return None

    def find_cell(self, encoder: Any, ids: Tensor, cell_id: int) -> Tensor | None:
        """The token that holds the first cell with an id, int64 `[...]` of ids `[..., H, W]`."""
        return None


class Compiled(Backend):
    """`torch.compile` of every stack of blocks, or of the whole core where it has no stacks."""

    def __init__(self) -> None:
        super().__init__("compiled")
        self._functions: dict[nn.Module, Callable[..., Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled()  # of other modules

    def _compiled(self, module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
        if module not in self._functions:
            self._functions[module] = torch.compile(function, dynamic=False)
        return self._functions[module]

    def stack(self, stack: BlockStack, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        result: Tensor = self._compiled(stack, stack.reference)(x, angles)
        return result

    def run_segments(self, core: Core, tokens: Tensor, latent: State, segments: int) -> tuple[Tensor, State]:
        if any(isinstance(m, BlockStack) for m in core.modules()):
            return super().run_segments(core, tokens, latent, segments)
        run = self._compiled(core, core)
        output = tokens
        for _ in range(segments):
            output, latent = run(tokens, latent)
        return output, latent


class EagerBfloat16(Backend):
    """Eager torch with the matrix products of stacks in bfloat16, to measure the error of rounding."""

    def stack(self, stack: BlockStack, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        # Not around the whole step: autocast is per thread, and a batch may be split over threads. Without its cache,
        # which some versions of torch wrongly reuse where a gradient is needed.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return stack.reference(x, angles).to(x.dtype)


@contextmanager
def reference_kernels(module: nn.Module) -> Iterator[None]:
    """Compute a module in eager torch inside a `with` block: to count its operations or to export it."""
    with _without(module, Backend):
        yield


@contextmanager
def without_compile(module: nn.Module) -> Iterator[None]:
    """Run a module uncompiled, for batches of shapes that it was not compiled for."""
    with _without(module, Compiled):
        yield


@contextmanager
def _without(module: nn.Module, kind: type[Backend]) -> Iterator[None]:
    """Take the backends of a kind out of a module and its parts inside a `with` block."""
    backends = {part: part.backend for part in module.modules() if isinstance(getattr(part, "backend", None), kind)}
    try:
        for part in backends:
            part.backend = None  # type: ignore[assignment]
        yield
    finally:
        for part, backend in backends.items():
            part.backend = backend
