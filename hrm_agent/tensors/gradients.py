"""From the gradients of a batch's parts to the one that an optimizer takes its step by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class NonFiniteNumbers(RuntimeError):
    """NaN or infinity where numbers were expected; training cannot go on."""


def set_gradients(parameters: Sequence[nn.Parameter], parts: Iterable[tuple[Tensor | None, ...]]) -> None:
    """Give every parameter the sum of its gradients, in the order of the parts; None where no part has one.

    Args:
        parameters: P of them.
        parts: of a batch, each with P gradients, as `torch.autograd.grad(allow_unused=True)` returns them.
    """
    for parameter, *gradients in zip(parameters, *parts, strict=True):
        present = [g for g in gradients if g is not None]
        parameter.grad = sum(present[1:], present[0]) if present else None


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down where their norm is above `limit` (0: never), and return what it was, a scalar.

    Raises:
        NonFiniteNumbers: the norm is NaN or infinite. The weights have not been touched.
    """
    norm = nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    if not torch.isfinite(norm):
        raise NonFiniteNumbers(f"gradient norm is {norm.item()}")
    return norm
