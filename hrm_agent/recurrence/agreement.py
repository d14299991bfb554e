"""Do two paths compute the same function? Their errors, compared with the effect of rounding.

Recursion amplifies rounding by a factor that depends on depth and weights. So a path's error is compared with the error
that rounding to its precision causes on the plain path, on the same input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from hrm_agent.recurrence.kernel_choice import use

Module = TypeVar("Module", bound=nn.Module)

MARGIN = {"float32": 16.0, "bfloat16": 3.0}
"""Tolerance, as a multiple of the error that rounding in the path's precision causes on the plain path."""
FLOOR = {"float32": 1e-5, "bfloat16": 1e-2}
CEILING = 0.25
"""Upper limit of the tolerance, so that outputs unrelated to the input always fail."""
NEGLIGIBLE = 1e-4
"""Errors of an output with small values are relative to this fraction of the largest value of all outputs."""

Outputs = dict[str, Tensor]


def precision_of(path: str) -> str:
    """Precision of the matrix products: `float32` or `bfloat16`."""
    return "bfloat16" if path.endswith("bf16") else "float32"


def error_between(ours: Outputs, reference: Outputs) -> float:
    """The largest error of any output, relative to that output's largest absolute value; NaN counts as infinite.

    Raises:
        ValueError: the names or shapes of the outputs differ.
    """
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in reference.items()}:
        raise ValueError("the outputs of the two paths differ in names or shapes")
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
    """The allowed error of a path in a precision, where rounding to it changes the plain path by `rounding`."""
    return min(CEILING, max(FLOOR[precision], MARGIN[precision] * rounding))


def agrees(module: Module, path: str, outputs: Callable[[Module, str], Outputs]) -> bool:
    """Whether a path computes the same function as the plain one, on copies of a module.

    Args:
        module: not changed.
        path: of `hrm_agent.recurrence.PATHS`.
        outputs: from a module and a precision to its outputs, float32 or float64 tensors by name, for a fixed input.
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
