"""Which backend computes: `use` sets it, once for a module and all of its parts.

For `kernel=auto` it is the fastest of the `candidates`, timed at a run's own sizes by `kernel_timing.measure`; a run
does that in `training/loop.py: settle_kernel`. A backend leaves to the reference what it does not support.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from hrm_agent.cores import GRUCore
from hrm_agent.cores.blocks import BlockStack
from hrm_agent.kernels.cpu.build import NoKernels
from hrm_agent.kernels.cpu.stack import has_bfloat16
from hrm_agent.recurrence.backends import Backend, Compiled, EagerBfloat16

_log = logging.getLogger(__name__)
PATHS = ("plain", "fused", "fused_bf16", "compiled")
"""`plain` is eager torch, the reference. `fused` is the C++ kernels in float32, `fused_bf16` the same with bfloat16
matrix products in the forward. `compiled` is `torch.compile`."""
CHOICES = ("auto", *PATHS)
"""`auto` measures the `candidates` and takes the fastest (`hrm_agent.recurrence.kernel_timing`)."""


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
