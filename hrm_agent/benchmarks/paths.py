"""What computes a network's blocks, by name: the paths of `hrm_agent.recurrence`, and two to compare them with.

`plain_bf16` is eager torch with matrix products in bfloat16; `double` is the float64 reference for rounding errors.
"""

from __future__ import annotations

from torch import nn

from hrm_agent import recurrence

PLAIN, PLAIN_BF16, COMPILED, DOUBLE = "plain", "plain_bf16", "compiled", "double"
FAST = ("fused", "fused_bf16", COMPILED)


class NoPath(ValueError):
    """A path does not support a network."""


def available_paths() -> list[str]:
    """Paths that this machine supports, `plain` first."""
    return [PLAIN, PLAIN_BF16, *(path for path in FAST if recurrence.available(path))]


def put_on(module: nn.Module, path: str) -> None:
    """Choose the path that computes every stack of blocks in a module, in place.

    Raises:
        NoPath: the path does not support the module.
        ValueError: this machine has no such path.
    """
    wanted = PLAIN if path == DOUBLE else path
    used = recurrence.use(module, wanted)
    if used != wanted:
        raise NoPath(f"path {path}: {used} is used in its place")
    if path == DOUBLE:
        module.double()
