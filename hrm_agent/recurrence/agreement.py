"""Do two paths compute the same function? Their errors, what rounding explains of them, and references for it.

Recursion amplifies rounding, by how much depends on depth and weights. So a path is judged by what rounding in its
precision does to the plain path on the very same input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from hrm_agent.recurrence.backends import use

Module = TypeVar("Module", bound=nn.Module)

MARGIN = {"float32": 16.0, "bfloat16": 3.0}
"""A path may be off by so many times what rounding in its precision changes on the plain path."""
FLOOR = {"float32": 1e-5, "bfloat16": 1e-2}
CEILING = 0.25
"""No tolerance is above this, whatever rounding does: what is no function of the input is always found."""
NEGLIGIBLE = 1e-4
"""Of the largest number of all outputs: one whose numbers are smaller is judged on this scale, not on its own."""

Outputs = dict[str, Tensor]


def precision_of(path: str) -> str:
    """Of the matrix products: `float32` or `bfloat16`."""
    return "bfloat16" if path.endswith("bf16") else "float32"


def error_between(ours: Outputs, reference: Outputs) -> float:
    """The largest error of any output, relative to the largest number of that output; NaN counts as infinite.

    Raises:
        ValueError: outputs of other names or shapes.
    """
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in reference.items()}:
        raise ValueError("the outputs of two paths have other names or shapes")
    scales = {name: float(t.double().abs().max()) if t.numel() else 0.0 for name, t in reference.items()}
    least = NEGLIGIBLE * max(scales.values())
    worst = 0.0
    for name, t in reference.items():
        if t.numel():
            apart = float((ours[name].double() - t.double()).abs().max())
            error = 0.0 if apart == 0.0 else apart / max(scales[name], least, torch.finfo(torch.float64).tiny)
            worst = max(worst, error if error == error else float("inf"))
    return worst


def tolerance(precision: str, rounding: float) -> float:
    """What a path of a precision may be off by, where rounding in it moves the plain path by `rounding`."""
    return min(CEILING, max(FLOOR[precision], MARGIN[precision] * rounding))


def agrees(module: Module, path: str, outputs: Callable[[Module, str], Outputs]) -> bool:
    """Whether a path computes what the plain one does, on copies of a module.

    Args:
        module: left as it is.
        path: of `hrm_agent.recurrence.PATHS`.
        outputs: of a module, float32 or float64, for a precision: tensors by name. Its input is the same every time.
    """
    precision = precision_of(path)
    judged = copy.deepcopy(module)

    def by(way: str) -> Outputs:
        use(judged, way)
        return {name: t.detach() for name, t in outputs(judged, precision).items()}

    plain = by("plain")
    error = error_between(by(path), plain)
    if error <= FLOOR[precision]:
        return True
    if precision == "float32":
        judged.double()
    rounded = by("plain" if precision == "float32" else "plain_bf16")
    return error <= tolerance(precision, error_between(rounded, plain))
