"""The ways a network's blocks can be computed, by name: those of `hrm_agent.kernels`, and two to compare them with.

`plain_bf16` is eager torch with matrix products in bfloat16. `double` is what rounding is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent import kernels

PLAIN, PLAIN_BF16, COMPILED, DOUBLE = "plain", "plain_bf16", "compiled", "double"
FAST = ("fused", "fused_bf16", COMPILED)


class NoPath(ValueError):
    """A network that a path cannot compute."""


def available_paths() -> list[str]:
    """Paths of this machine, `plain` first."""
    return [PLAIN, PLAIN_BF16, *(path for path in FAST if kernels.available(path))]


def precision_of(path: str) -> str:
    """Of the matrix products: `float32` or `bfloat16`."""
    return "bfloat16" if path.endswith("bf16") else "float32"


def put_on(module: nn.Module, path: str) -> None:
    """Have every stack of blocks in a module computed by a path, in place.

    Raises:
        NoPath: the path does not suit the module.
        ValueError: this machine has no such path.
    """
    wanted = PLAIN if path in (PLAIN_BF16, DOUBLE) else path
    used = kernels.use(module, wanted)
    if used != wanted:
        raise NoPath(f"path {path}: {used} is used in its place")
    if path == PLAIN_BF16:
        for stack in module.modules():
            if isinstance(stack, kernels.Accelerated):
                stack.forward = _in_bfloat16(stack.forward)  # type: ignore[method-assign]
    if path == DOUBLE:
        module.double()


def _in_bfloat16(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def cast(x: Tensor, *arguments: Any) -> Tensor:
        # Not around the whole step: autocast is per thread, and shards have threads of their own. Without its cache,
        # which some versions of torch reuse where a gradient is wanted.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return forward(x, *arguments).to(x.dtype)

    return cast
