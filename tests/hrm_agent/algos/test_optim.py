"""AdamATan2 against its formula in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hrm_agent.algos.optim import AdamATan2

SHAPES = [(3, 4), (5,), ()]


def gradients(step: int, scale: float = 1.0) -> list[Tensor]:
    random = torch.Generator().manual_seed(step)
    return [scale * torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(12345)
    return [torch.randn(s, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for s in SHAPES]


def run(optimizer: AdamATan2, params: list[Tensor], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        for p, g in zip(params, gradients(step, scale), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


def reference(steps: int, lr: float, betas: tuple[float, float], decay: float) -> list[Tensor]:
    params = [p.detach() for p in parameters(torch.float64)]
    mean, square = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t - 1)):
            mean[i] = betas[0] * mean[i] + (1 - betas[0]) * g
            square[i] = betas[1] * square[i] + (1 - betas[1]) * g * g
            root = square[i].sqrt() / (1 - betas[1] ** t) ** 0.5
            params[i] = params[i] * (1 - lr * decay)
            params[i] = params[i] - lr / (1 - betas[0] ** t) * torch.atan2(mean[i], root)
    return params


@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.999), 0.0), ((0.9, 0.95), 0.1), ((0.0, 0.5), 1.0)])
def test_a_hundred_steps_equal_the_formula(betas: tuple[float, float], decay: float) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        params = parameters(dtype)
        run(AdamATan2(params, 0.01, betas, decay), params, range(100))
        for mine, exact in zip(params, reference(100, 0.01, betas, decay), strict=True):
            torch.testing.assert_close(mine.detach().double(), exact, rtol=tolerance, atol=tolerance)


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    ends = []
    for scale in (1.0, 1e-6):
        params = parameters(torch.float64)
        run(AdamATan2(params, 0.01), params, range(10), scale)
        ends.append(params)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_going_on_from_a_state_dict_changes_nothing() -> None:
    whole = parameters()
    run(AdamATan2(whole, 0.01, weight_decay=0.1), whole, range(10))
    params = parameters()
    first = AdamATan2(params, 0.01, weight_decay=0.1)
    run(first, params, range(5))
    second = AdamATan2(params, 1.0)
    second.load_state_dict(first.state_dict())
    run(second, params, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


def test_a_parameter_without_gradient_is_left_alone_and_counts_its_own_steps() -> None:
    params = parameters()
    optimizer = AdamATan2(params, 0.01, weight_decay=0.1)
    before = params[0].detach().clone()
    for p, g in list(zip(params, gradients(0), strict=True))[1:]:
        p.grad = g.float()
    optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state
    run(optimizer, params, range(1))
    assert [float(optimizer.state[p]["step"]) for p in params] == [1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0: expected 0 or more"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"betas": (0.9, 1.0)}, "betas=.*below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamATan2(parameters(), **settings)
