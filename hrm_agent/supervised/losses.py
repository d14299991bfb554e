"""The supervised loss of HRM and TRM: stablemax cross-entropy and losses of halting, summed over the batch.

`puzzle_loss` is of puzzles whose answer is an id for every token, `choice_loss` of those whose answer is one choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100
SAME_WEIGHT = 1e-6
"""A choice is among the best where its target probability is within this of the largest."""
HALTING_WEIGHT = 0.5
CROSS_ENTROPIES = ("stablemax", "softmax")


class PuzzleLoss(NamedTuple):
    """Sums over the batch, each a scalar: `total = answers + 0.5 * (q_halt + q_continue)`.

    Attributes:
        answers: cross-entropy, averaged over each sequence's labels.
        q_halt: of the logit of "the answer is right".
        q_continue: of HRM's second logit, 0 where it is not trained.
        exact: bool[B], every label is the arg max; of one choice: the arg max is among the best labels.
        right, labelled: int64[B], labels that are the arg max, and labels; of one choice: `exact`, and 1.
    """

    total: Tensor
    answers: Tensor
    q_halt: Tensor
    q_continue: Tensor
    exact: Tensor
    right: Tensor
    labelled: Tensor


class _StablemaxCrossEntropy(torch.autograd.Function):
    """`-log(s(x_label) / sum s(x))` with its gradient written out, in float32.

    The published code uses double precision, which many devices lack or compute slowly. Float32 suffices: both branches
    of s are exact in float32 once written as `1 + |x|` and its reciprocal, the logarithm of either is plus or
    minus `log(1 + |x|)`, and the gradient `(p_j - [j = label]) / (1 + |x_j|)` has no difference of large numbers.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        magnitude = logits.abs().add_(1)
        s = torch.where(logits >= 0, magnitude, magnitude.reciprocal())
        total = s.sum(dim=-1, keepdim=True)
        picked = s.gather(-1, labels[..., None])
        ctx.save_for_backward(magnitude, s.div_(total), labels)
        return (total.log_() - picked.log())[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        magnitude, probabilities, labels = ctx.saved_tensors
        at = labels[..., None]
        back = probabilities.scatter(-1, at, probabilities.gather(-1, at) - 1)
        return back.div_(magnitude).mul_(gradient[..., None]), None


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood under stablemax (Prieto et al. 2025, arXiv 2501.04697), float32[...].

    Stablemax replaces softmax's exponential by `s(x) = x + 1` for `x >= 0` and `1 / (1 - x)` below.

    Args:
        logits: float[..., V]; half precision is widened first.
        labels: int64[...], from 0 to V - 1.
    """
    loss: Tensor = _StablemaxCrossEntropy.apply(logits.float(), labels)
    return loss


class _StablemaxSoftCrossEntropy(torch.autograd.Function):
    """`log sum s(x) - sum_j t_j log s(x_j)` of target probabilities t; see `_StablemaxCrossEntropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        magnitude = logits.abs().add_(1)
        s = torch.where(logits >= 0, magnitude, magnitude.reciprocal())
        total = s.sum(dim=-1, keepdim=True)
        expected = (targets * s.log()).sum(dim=-1)
        ctx.save_for_backward(magnitude, s.div_(total), targets)
        return total.log_()[..., 0] - expected

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        magnitude, probabilities, targets = ctx.saved_tensors
        return (probabilities - targets).div_(magnitude).mul_(gradient[..., None]), None


def soft_cross_entropy(logits: Tensor, targets: Tensor, cross_entropy: str) -> Tensor:
    """Cross-entropy of target probabilities that sum to 1, float32[...], under softmax or stablemax.

    Args:
        logits: float[..., V]; half precision is widened first.
        targets: float32[..., V].
        cross_entropy: `stablemax` or `softmax`.
    """
    if cross_entropy == "stablemax":
        loss: Tensor = _StablemaxSoftCrossEntropy.apply(logits.float(), targets)
        return loss
    return -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def log_probabilities(logits: Tensor, cross_entropy: str) -> Tensor:
    """Logarithms of the probabilities that a cross-entropy is of, float32[..., V].

    Args:
        logits: float[..., V].
        cross_entropy: `stablemax` or `softmax`.
    """
    wide = logits.float()
    if cross_entropy == "softmax":
        return wide.log_softmax(-1)
    magnitude = 1 + wide.abs()
    s = torch.where(wide >= 0, magnitude, magnitude.reciprocal())
    return (s / s.sum(-1, keepdim=True)).log()


def token_losses(logits: Tensor, labels: Tensor, cross_entropy: str) -> Tensor:
    """Minus the logarithm of each label's probability, float32[...].

    Args:
        logits: float[..., V].
        labels: int64[...], from 0 to V - 1.
        cross_entropy: `stablemax` or `softmax`.
    """
    if cross_entropy == "stablemax":
        return stablemax_cross_entropy(logits, labels)
    losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
    return losses.view(labels.shape)


def puzzle_loss(
    logits: Tensor,
    q_halt: Tensor,
    labels: Tensor,
    q_continue: Tensor | None = None,
    continue_target: Tensor | None = None,
    cross_entropy: str = "stablemax",
) -> PuzzleLoss:
    """Cross-entropy averaged over each sequence's labels, and whether the sequence was exactly right.

    Args:
        logits: float[B, L, V].
        q_halt: float[B], logit of "halt now"; its target is 1 where every label is the arg max.
        labels: int[B, L]; -100 is ignored.
        q_continue: float[B], HRM's logit of "continue"; None trains `q_halt` alone, as TRM does.
        continue_target: float[B], probability that continuing leads to the right answer; goes with `q_continue`.
        cross_entropy: `stablemax`, as published, or `softmax`.
    """
    labelled = labels != IGNORED_LABEL
    safe = labels.masked_fill(~labelled, 0).long()
    losses = token_losses(logits, safe, cross_entropy)
    counts = labelled.sum(dim=-1)
    answers = (losses.masked_fill(~labelled, 0).sum(dim=-1) / counts.clamp(min=1)).sum()
    right = ((logits.argmax(dim=-1) == safe) & labelled).sum(dim=-1)
    return _with_halting(answers, right == counts, right, counts, q_halt, q_continue, continue_target)


def choice_loss(
    logits: Tensor,
    q_halt: Tensor,
    labels: Tensor,
    weights: Tensor,
    q_continue: Tensor | None = None,
    continue_target: Tensor | None = None,
    cross_entropy: str = "stablemax",
) -> PuzzleLoss:
    """The loss of puzzles whose answer is one choice of a token and an id, under one distribution over all of them.

    Args:
        logits: float[B, L, V].
        labels: int[B, M], choices `token * V + id`, each once in a row; -100 is ignored.
        weights: float[B, M], their target probabilities.
        q_halt, q_continue, continue_target, cross_entropy: see `puzzle_loss`; the target of `q_halt` is 1 where the
            most probable choice is among the labels of the largest weight.
    """
    flat = logits.flatten(1)
    labelled = labels != IGNORED_LABEL
    safe = labels.masked_fill(~labelled, 0).long()
    weights = weights.float().masked_fill(~labelled, 0)
    targets = torch.zeros_like(flat, dtype=torch.float32).scatter_add_(1, safe, weights)
    answers = soft_cross_entropy(flat, targets, cross_entropy).sum()
    best = labelled & (weights >= weights.amax(dim=1, keepdim=True) - SAME_WEIGHT)
    exact = ((flat.argmax(dim=1, keepdim=True) == safe) & best).any(dim=1)
    right, counts = exact.long(), torch.ones_like(exact, dtype=torch.int64)
    return _with_halting(answers, exact, right, counts, q_halt, q_continue, continue_target)


def _with_halting(
    answers: Tensor,
    exact: Tensor,
    right: Tensor,
    counts: Tensor,
    q_halt: Tensor,
    q_continue: Tensor | None,
    continue_target: Tensor | None,
) -> PuzzleLoss:
    """The loss of the answers with those of halting."""
    halting = F.binary_cross_entropy_with_logits(q_halt.float(), exact.float(), reduction="sum")
    continuing = halting.new_zeros(())
    if q_continue is not None:
        assert continue_target is not None
        continuing = F.binary_cross_entropy_with_logits(q_continue.float(), continue_target, reduction="sum")
    total = answers + HALTING_WEIGHT * (halting + continuing)
    return PuzzleLoss(total, answers, halting, continuing, exact, right, counts)
