"""The optimizer step of PPO, DQN, imitation and deep supervision, from the gradients of a batch's parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrm_agent.algos.optim import Optimizer
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.gradients import clip_gradients


class Part(NamedTuple):
    """The contribution of a part of a batch; contributions add up.

    Attributes:
        gradients: one for each parameter, None where the loss does not depend on it.
        measured: scalars.
    """

    gradients: tuple[Tensor | None, ...]
    measured: dict[str, Tensor]


def part_of(loss: Tensor, measured: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> Part:
    return Part(torch.autograd.grad(loss, parameters, allow_unused=True), measured)


def window_gradient(
    batch: Any,
    loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]],
    policy: Policy,
    parameters: Sequence[nn.Parameter],
    threads: Threads,
) -> Part:
    """The gradient on a batch of windows, whose columns are divided over threads.

    Args:
        batch: `Windows` or `LabelledWindows`.
        loss: of some of its columns; the losses of all parts add up.
    """

    def part(columns: slice) -> Part:
        return part_of(*loss(batch.columns(columns)), parameters)

    return add_parts(threads.map(part, policy.slices(threads, batch.episode_start.shape[1])))


def add_parts(parts: Sequence[Part]) -> Part:
    """The sums over the parts, in order; measurements in float64."""
    gradients = tuple(_sum(g) for g in zip(*(part.gradients for part in parts), strict=True))
    measured = {name: _sum(part.measured[name].double() for part in parts) for name in parts[0].measured}
    return Part(gradients, measured)


def _sum(tensors: Iterable[Tensor | None]) -> Any:
    present = [t for t in tensors if t is not None]
    return sum(present[1:], present[0]) if present else None


def gradient_step(
    parameters: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
    parts: Sequence[Part],
    max_norm: float,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, float]:
    """One step of the optimizers by the sum of all parts' gradients, over all processes.

    Args:
        parameters: P of them; the parts have a gradient for each.
        max_norm: to which the gradient is clipped, 0: never. Sparse gradients are neither counted nor clipped.

    Returns:
        the sums of what was measured; `state_drift` in place of `drift_sums`, where these are among it; and
        `gradient_norm`, before clipping.

    Raises:
        NonFiniteNumbers: no weight has been touched.
    """
    gradients, measured = add_parts(parts)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    numbers = torch.stack(list(measured.values())).tolist()
    total = processes.all_reduce_gradients(parameters, dict(zip(measured, numbers, strict=True)))
    norm = clip_gradients(parameters, max_norm)
    for optimizer in optimizers:
        optimizer.step()
    if "drift_norm" in total:
        total["state_drift"] = _relative(total.pop("drift_error"), total.pop("drift_norm"))
    return {**total, "gradient_norm": norm}


def drift_sums(stored: tuple[Tensor, ...], recomputed: tuple[Tensor, ...], device: torch.device) -> dict[str, Tensor]:
    """Sums for the drift in `gradient_step`: float64 scalars on `device`, additive over a batch's parts."""
    errors = [(s - r).square().sum().double() for s, r in zip(stored, recomputed, strict=True)]
    norms = [r.square().sum().double() for r in recomputed]
    nothing = [torch.zeros((), dtype=torch.float64, device=device)]
    return {"drift_error": torch.stack(errors or nothing).sum(), "drift_norm": torch.stack(norms or nothing).sum()}


def state_drift(stored: tuple[Tensor, ...], recomputed: tuple[Tensor, ...]) -> float:
    """Relative error of the stored states against the recomputed: ||stored - new|| / ||new||; 0 for no state."""
    return _relative(*(total.item() for total in drift_sums(stored, recomputed, torch.device("cpu")).values()))


def _relative(error: float, norm: float) -> float:
    return math.sqrt(error / norm) if norm > 0 else 0.0
