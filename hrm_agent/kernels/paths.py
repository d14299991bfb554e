"""Which code computes the stacks of blocks in a module: eager torch, our C++ kernels, or what torch compiles."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.kernels.cpu.stack import Shape, has_bfloat16, run_stack

_log = logging.getLogger(__name__)
PATHS = ("plain", "fused", "fused_bf16", "compiled")
"""`plain` is eager torch, the reference. `fused` are the C++ kernels in float32, `fused_bf16` the same with the matrix
products of the forward in bfloat16. `compiled` is `torch.compile`."""


CHOICES = ("auto", *PATHS)
"""`auto` takes the fastest of `candidates`, which is measured (`hrm_agent.kernels.measure`)."""


class Switched(nn.Module):
    """A module that more than one path computes; see `PATHS`."""

    path = "plain"
    threads = 1
    """That a kernel of its own may divide a batch over."""

    @property
    def is_fused(self) -> bool:
        """Whether it is to be computed by the C++ kernels where these suit what comes."""
        return self.path.startswith("fused")


class Accelerated(Switched):
    """A stack of blocks with more than one path; see `PATHS`.

    Whatever the path, inputs that it does not suit (another device or type, tracing, a shape that the kernels do not
    know) go the plain way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shape: Shape | None = None

    @abstractmethod
    def plain(self, x: Tensor, angles: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The stack in eager torch, float `[B, L, D]` -> float `[B, L, D]`."""

    @abstractmethod
    def kernel_weights(self) -> Sequence[Tensor]:
        """Weights in the order of `hrm_agent.kernels.cpu.stack.run_stack`."""

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if not self.runs_kernels(x):
            return self.plain(x, angles)
        return run_stack(self.kernel_shape, x, angles, self.kernel_weights(), self.in_bfloat16)

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels know this kind of stack."""
        return self._shape is not None and self._shape.fits

    @property
    def kernel_shape(self) -> Shape:
        assert self._shape is not None
        return self._shape

    @property
    def in_bfloat16(self) -> bool:
        """Whether the forward's matrix products are in bfloat16."""
        return self.path == "fused_bf16" or (torch.is_autocast_enabled("cpu") and has_bfloat16())

    def runs_kernels(self, x: Tensor) -> bool:
        """Whether such an input goes through the kernels."""
        if not self.is_fused or x.dtype != torch.float32 or x.device.type != "cpu":
            return False
        known = x.shape[-2:] == (self.kernel_shape.length, self.kernel_shape.size) and self._weights_suit()
        return known and not (torch.compiler.is_compiling() or torch.jit.is_tracing())

    def _weights_suit(self) -> bool:
        """Whether the weights are laid out as the kernels read them."""
        return all(w.dtype == torch.float32 and w.is_contiguous() and w.is_cpu for w in self.kernel_weights())


def use(module: nn.Module, path: str) -> str:
    """Set the path of every stack of blocks in a module, in place, and of what is beside them.

    Returns:
        The path in use: the one asked for, or `plain` where it suits none of the stacks.

    Raises:
        ValueError: an unknown path, or one that this machine does not have.
    """
    check_kernel(path)
    stacks = [m for m in module.modules() if isinstance(m, Accelerated)]
    for stack in stacks:
        stack.path = path if path == "compiled" or (path.startswith("fused") and stack.has_kernels) else "plain"
    parts: list[nn.Module] = [*stacks] or [m for m in [getattr(module, "core", None)] if isinstance(m, nn.Module)]
    for part in parts:  # the whole core, where it is not made of stacks
        part._compiled_call_impl = None
        if path == "compiled":
            part.compile(dynamic=False)
    used = path if path == "compiled" or any(stack.path == path for stack in stacks) else "plain"
    for other in module.modules():
        if isinstance(other, Switched) and not isinstance(other, Accelerated):
            other.path = used
    return used


@contextmanager
def reference_kernels(module: nn.Module) -> Iterator[None]:
    """Compute a module in eager torch for a while: to count its operations or to export it."""
    paths = {m: m.path for m in module.modules() if isinstance(m, Switched)}
    try:
        for part in paths:
            part.path = "plain"
        with without_compile(module):
            yield
    finally:
        for part, path in paths.items():
            part.path = path


@contextmanager
def without_compile(module: nn.Module) -> Iterator[None]:
    """Run a module uncompiled: for batches of other shapes than those it was compiled for."""
    compiled = {m: m._compiled_call_impl for m in module.modules() if m._compiled_call_impl is not None}
    try:
        for part in compiled:
            part._compiled_call_impl = None
        yield
    finally:
        for part, call in compiled.items():
            part._compiled_call_impl = call


def check_kernel(kernel: str) -> None:
    """Raises: ValueError for what is none of `CHOICES`, or a path that this machine does not have."""
    if kernel not in CHOICES:
        raise ValueError(f"kernel={kernel}: expected one of {', '.join(CHOICES)}")
    if reason := _lacking(kernel):
        raise ValueError(f"kernel={kernel}: {reason}; use kernel=auto or kernel=plain")


def candidates(module: nn.Module, device: torch.device | str = "cpu", narrow: bool = False) -> list[str]:
    """Paths that `auto` chooses from, `plain` first: those that this machine has and that suit the module.

    Args:
        narrow: bfloat16 products are welcome.
    """
    if torch.device(device).type != "cpu" or not any(_has_kernels(m) for m in module.modules()):
        return ["plain"]
    if reason := _lacking("fused"):
        _log.warning("kernel=plain, which is slower: %s", reason)
        return ["plain"]
    return ["plain", "fused", *(["fused_bf16"] if narrow and available("fused_bf16") else [])]


def available(path: str) -> bool:
    """Whether this machine has a path; the first time, the kernels are compiled for it (some seconds)."""
    return _lacking(path) == ""


def _has_kernels(module: nn.Module) -> TypeGuard[Accelerated]:
    return isinstance(module, Accelerated) and module.has_kernels


def _lacking(path: str) -> str:
    if not path.startswith("fused"):
        return ""
    try:
        narrow = has_bfloat16()
    except NoKernels as error:
        return str(error)
    if path == "fused_bf16" and not narrow:
        return "this processor does not multiply bfloat16 numbers (AVX512_BF16)"
    return ""
