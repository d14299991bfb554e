"""Optimizers: AdamW in one fused operation, and two that torch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from hrm_agent.names.values import one_of
from hrm_agent.tensors.saved import check_moments

OPTIMIZERS = ("adamw", "adam_atan2")
"""Names that `build_optimizer` accepts."""
OptimizerName = Annotated[str, one_of(OPTIMIZERS)]


def build_optimizer(
    name: str,
    parameters: list[Parameter],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-8,
    fused: bool = True,
) -> Optimizer:
    """One of `OPTIMIZERS`; `eps` and `fused` are of AdamW."""
    if name == "adam_atan2":
        return AdamATan2(parameters, lr, betas, weight_decay)
    return adamw(parameters, lr, betas, eps, weight_decay, fused)


def adamw(
    parameters: list[Parameter],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    fused: bool = True,
) -> Optimizer:
    """AdamW in one fused operation: `FusedAdamW` on a CPU, torch's own elsewhere; or torch's that is not fused."""
    if fused and all(p.device.type == "cpu" for p in parameters):
        return FusedAdamW(parameters, lr, betas, eps, weight_decay)
    return torch.optim.AdamW(parameters, lr, betas, eps, weight_decay, fused=fused or None)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class FusedAdamW:
    """`torch.optim.AdamW(fused=True)` on a CPU, bit for bit, with state and groups of the same names.

    `torch.optim` imports torch's whole compiler with the first optimizer, two seconds of every start.

    Args:
        parameters: leaves of one dtype, in one group.
        lr, betas, eps, weight_decay: as for `torch.optim.AdamW`.
    """

    def __init__(
        self, parameters: list[Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), **settings}]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(p) for p in parameters]
            steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters, [p.grad for p in parameters], means, squares, [], steps,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            first = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
            self.state[parameter] = {**first, "exp_avg_sq": torch.zeros_like(parameter)}
        return self.state[parameter]

    def state_dict(self) -> dict[str, Any]:
        """As in `torch.optim`: `state` by the index of the parameter, and `param_groups` with these indices."""
        numbers = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[p]: s for p, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        if [len(group["params"]) for group in saved["param_groups"]] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("loaded state dict contains a parameter group that doesn't match the size of the group")
        for group, given in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in given.items() if name != "params"})
        self.state = {
            parameters[number]: {
                name: value.clone() if name == "step" else value.to(parameters[number], copy=True)
                for name, value in state.items()
            }
            for number, state in saved["state"].items()
        }


Optimizer: TypeAlias = FusedAdamW | torch.optim.Optimizer


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
            state["step"] = torch.tensor(0.0)  # a tensor on the CPU, as in torch's own optimizers
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class SignSGD(torch.optim.Optimizer):
    """`p *= 1 - lr * weight_decay`, then `p -= lr * sign(gradient)`, on the rows that have a gradient.

    The optimizer of HRM's and TRM's puzzle embeddings: the step size does not depend on how rarely a puzzle is seen,
    there are no moments, and rows of puzzles outside the batch do not change.

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
    """Call a closure as `torch.optim` does, with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter state as named tensors; parameters are numbered."""

    def entries() -> Iterator[tuple[str, Tensor]]:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                yield f"{index}/{name}", torch.as_tensor(value)

    return dict(entries())


def load_optimizer_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; the parameter groups' settings stay those of `optimizer`.

    Raises:
        ValueError: they belong to other parameters; then nothing has changed.
    """
    check_moments([p for group in optimizer.param_groups for p in group["params"]], tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
