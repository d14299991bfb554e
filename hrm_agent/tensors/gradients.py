"""Gradient clipping and checks for non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class NonFiniteNumbers(RuntimeError):
    """NaN or infinity where finite numbers are required; training cannot continue."""


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down where their norm is above `max_norm` (0: never), and return the norm before.

    Raises:
        NonFiniteNumbers: a gradient is NaN or infinite.
    """
    gradients = [(p, p.grad) for p in parameters if p.grad is not None]
    norm = nn.utils.clip_grad_norm_([p for p, g in gradients if not g.is_sparse], max_norm or math.inf).item()
    if not math.isfinite(norm):
        raise NonFiniteNumbers(f"gradient norm is {norm}")
    # SignSGD, which uses the sparse gradients, would never recover from NaN.
    if not all(torch.isfinite(g._values()).all() for _, g in gradients if g.is_sparse):
        raise NonFiniteNumbers("the gradient of the puzzle embeddings is not finite")
    return norm
