"""The supervised loss of HRM and TRM: stablemax cross-entropy and a halting loss, summed over the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
HALTING_WEIGHT = 0.5


class PuzzleLoss(NamedTuple):
    """Sums over the batch, each a scalar: `total = stablemax + 0.5 * q_halt`."""

    total: Tensor
    stablemax: Tensor
    q_halt: Tensor


def stablemax_log_probabilities(logits: Tensor) -> Tensor:
    """Logarithm of stablemax over the last dimension (Prieto et al. 2025, arXiv 2501.04697).

    Stablemax replaces softmax's exponential by `s(x) = x + 1` for `x >= 0` and `1 / (1 - x)` below.

    Args:
        logits: float[..., V].

    Returns:
        float64[..., V]: the published code computes this loss in double precision.
    """
    x = logits.double()
    # Each branch is evaluated where it is finite only, or its gradient elsewhere would be 0 * inf.
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    return s.log() - s.sum(dim=-1, keepdim=True).log()


def puzzle_loss(logits: Tensor, q_halt: Tensor, labels: Tensor) -> PuzzleLoss:
    """Cross-entropy averaged over each sequence's labels, and whether the sequence was exactly right.

    Args:
        logits: float[B, L, V].
        q_halt: float[B], logit of "halt now"; its target is 1 where every label is the arg max.
        labels: int64[B, L]; -100 is ignored.

    Returns:
        The sums over the batch; `stablemax` and so `total` are float64.
    """
    labelled = labels != IGNORED_LABEL
    safe = labels.masked_fill(~labelled, 0).long()
    picked = stablemax_log_probabilities(logits).gather(-1, safe[..., None])[..., 0]
    counts = labelled.sum(dim=-1).clamp(min=1)
    stablemax = (-picked.masked_fill(~labelled, 0).sum(dim=-1) / counts).sum()
    exact = ((logits.argmax(dim=-1) == safe) | ~labelled).all(dim=-1)
    halting = F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
    return PuzzleLoss(stablemax + HALTING_WEIGHT * halting, stablemax, halting)
