"""Optimizers that torch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdamATan2(torch.optim.Optimizer):
    """Adam with `atan2(m, sqrt(v))` in place of `m / (sqrt(v) + eps)`: bounded steps, and no eps to choose.

    Everett et al. 2024, arXiv 2407.05872; HRM, TRM and HRM-Agent were trained with it. Weight decay is
    decoupled (AdamW). With t counted from 1:
    `p *= 1 - lr * weight_decay`, then `p -= lr / (1 - beta1^t) * atan2(m, sqrt(v) / sqrt(1 - beta2^t))`.

    Args:
        params: parameters or groups of parameters.
        lr, betas, weight_decay: as for `torch.optim.AdamW`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        _check_not_negative(lr=lr, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: expected two numbers from 0 to below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returned."""
        loss = _value_of(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group["lr"], group["betas"], group["weight_decay"])
        return loss

    def _update(self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        states = [self._state_of(p) for p in parameters]
        grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(means, grads, 1 - betas[0])
        torch._foreach_mul_(squares, betas[1])
        torch._foreach_addcmul_(squares, grads, grads, 1 - betas[1])
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        counts = [s.item() for s in steps]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - betas[1] ** t) for t in counts])
        for parameter, mean, root, t in zip(parameters, means, roots, counts, strict=True):
            parameter.sub_(torch.atan2(mean, root), alpha=lr / (1 - betas[0] ** t))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)  # a tensor on the CPU, as torch's own optimizers keep it
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class SignSGD(torch.optim.Optimizer):
    """`p *= 1 - lr * weight_decay`, then `p -= lr * sign(gradient)`, on the rows that have a gradient.

    What HRM and TRM train their puzzle embeddings with: a step has one size however rarely a puzzle is seen, no moments
    are kept, and rows of puzzles that are not in the batch are left alone.

    Args:
        params: parameters or groups; one with a sparse gradient (`torch.nn.Embedding(sparse=True)`) is changed only in
            its rows.
        lr, weight_decay: see above.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        _check_not_negative(lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` returned."""
        loss = _value_of(closure)
        for group in self.param_groups:
            keep = 1 - group["lr"] * group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    gradient = p.grad.coalesce()  # one row a puzzle, the sum over the batch
                    rows = gradient.indices()[0]
                    p[rows] = p[rows] * keep - group["lr"] * gradient.values().sign()
                else:
                    p.mul_(keep).sub_(p.grad.sign(), alpha=group["lr"])
        return loss


def _check_not_negative(**settings: float) -> None:
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: expected 0 or more")


def _value_of(closure: Callable[[], Any] | None) -> Any:
    """What a closure, as `torch.optim` knows it, returns with gradients on; None where there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
