"""Backends that compute a network: eager torch, our C++ kernels, `torch.compile`, or CUDA.

A module with more than one backend has an attribute `backend`; None is eager torch, the reference. `use` sets it for a
policy or a puzzle model and all of its parts at once; `hrm_agent.recurrence.cuda` wraps a policy's segments on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent.cores import Core, GRUCore, State
from hrm_agent.cores.blocks import BlockStack
from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.kernels.cpu.stack import has_bfloat16
from hrm_agent.recurrence.unroll import Rules, Steps, Unrolled, run_segments

_log = logging.getLogger(__name__)
PATHS = ("plain", "fused", "fused_bf16", "compiled")
"""`plain` is eager torch, the reference. `fused` is the C++ kernels in float32, `fused_bf16` the same with bfloat16
matrix products in the forward. `compiled` is `torch.compile`."""
CHOICES = ("auto", *PATHS)
"""`auto` measures the `candidates` and takes the fastest (`hrm_agent.recurrence.kernel_choice`)."""


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


def use(module: nn.Module, path: str) -> str:
    """Set the backend of a module and of all its parts, in place; a GPU's own (`Backend.outer`) stays around it.

    Args:
        path: of `PATHS`, or `plain_bf16` (`EagerBfloat16`).

    Returns:
        The path in use: the given one, or `plain` where no part of the module supports it.

    Raises:
        ValueError: an unknown path, or one that is not available on this machine.
    """
    if path != "plain_bf16":
        check_kernel(path)
    if (path.startswith("fused") and not has_kernels(module)) or not any(
        hasattr(m, "backend") for m in module.modules()
    ):
        path = "plain"
    set_backend(module, _build(path))
    return path


def _build(path: str) -> Backend | None:
    if path.startswith("fused"):
        from hrm_agent.recurrence.cpu import CPUKernels

        return CPUKernels(path)
    return {"plain": None, "compiled": Compiled(), "plain_bf16": EagerBfloat16(path)}[path]


def set_backend(module: nn.Module, backend: Backend | None) -> None:
    """Set the backend object of a module and of all its parts."""
    for part in module.modules():
        if hasattr(part, "backend") and not getattr(part.backend, "outer", False):
            part.backend = backend  # type: ignore[assignment]


def path_of(module: nn.Module) -> str:
    """The path that `use` set, `plain` where it set none."""
    backends = (getattr(part, "backend", None) for part in module.modules())
    return next((backend.path for backend in backends if backend is not None and not backend.outer), "plain")


@contextmanager
def reference_kernels(module: nn.Module) -> Iterator[None]:
    """Compute a module in eager torch inside a `with` block: to count its operations or to export it."""
    backends = {part: part.backend for part in module.modules() if hasattr(part, "backend")}
    try:
        for part in backends:
            part.backend = None  # type: ignore[assignment]
        yield
    finally:
        for part, backend in backends.items():
            part.backend = backend


@contextmanager
def without_compile(module: nn.Module) -> Iterator[None]:
    """Run a module uncompiled, for batches of shapes that it was not compiled for."""
    backends = {p: p.backend for p in module.modules() if isinstance(getattr(p, "backend", None), Compiled)}
    try:
        for part in backends:
            part.backend = None  # type: ignore[assignment]
        yield
    finally:
        for part, backend in backends.items():
            part.backend = backend


def check_kernel(kernel: str) -> None:
    """Raises: ValueError for a value not in `CHOICES`, or a path that is not available on this machine."""
    if kernel not in CHOICES:
        raise ValueError(f"kernel={kernel}: expected one of {', '.join(CHOICES)}")
    if reason := _lacking(kernel):
        raise ValueError(f"kernel={kernel}: {reason}; use kernel=auto or kernel=plain")


def candidates(module: nn.Module, device: torch.device | str = "cpu", allow_bf16: bool = False) -> list[str]:
    """Paths that `auto` chooses from, `plain` first: those that this machine and the module support.

    Args:
        allow_bf16: include paths with bfloat16 products.
    """
    if torch.device(device).type != "cpu" or not has_kernels(module):
        return ["plain"]
    if reason := _lacking("fused"):
        _log.warning("kernel=plain, which is slower: %s", reason)
        return ["plain"]
    multiplies = bool(_parts(module)[0])  # a GRU's products are torch's, in float32
    return ["plain", "fused", *(["fused_bf16"] if allow_bf16 and multiplies and available("fused_bf16") else [])]


def available(path: str) -> bool:
    """Whether this machine supports a path; the first call compiles the kernels (some seconds)."""
    return _lacking(path) == ""


def has_kernels(module: nn.Module) -> bool:
    """Whether the C++ kernels support a part of a module."""
    from hrm_agent.recurrence.cpu import plan_of, shape_of

    stacks, cores = _parts(module)
    return any(shape_of(stack).fits for stack in stacks) or any(plan_of(core) is not None for core in cores)


def _parts(module: nn.Module) -> tuple[list[BlockStack], list[GRUCore]]:
    """What the kernels may support: stacks of blocks, and the core that is not made of them."""
    parts = list(module.modules())
    return [m for m in parts if isinstance(m, BlockStack)], [m for m in parts if isinstance(m, GRUCore)]


def _lacking(path: str) -> str:
    if not path.startswith("fused"):
        return ""
    try:
        bf16 = has_bfloat16()
    except NoKernels as error:
        return str(error)
    if path == "fused_bf16" and not bf16:
        return "this processor does not multiply bfloat16 numbers (AVX512_BF16)"
    return ""
