"""The optimizer step that all algorithms share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hrm_agent.algos.optim import SignSGD, adamw
from hrm_agent.algos.update import Part, add_parts, gradient_step
from hrm_agent.tensors.gradients import NonFiniteNumbers, clip_gradients


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def part(*gradients: Tensor | None, **measured: float) -> Part:
    return Part(gradients, {name: torch.tensor(value) for name, value in measured.items()})


def test_parts_add_up_and_what_no_part_depends_on_has_no_gradient() -> None:
    one, two = torch.ones(2), torch.tensor([2.0, 4.0])
    total = add_parts([part(one, None, None, loss=1.5), part(two, None, one, loss=2.0)])
    assert total.gradients[0].tolist() == [3.0, 5.0]  # type: ignore[union-attr]
    assert total.gradients[1] is None
    assert total.gradients[2] is one
    assert (total.measured["loss"].item(), total.measured["loss"].dtype) == (3.5, torch.float64)


def test_a_step_clips_and_says_what_the_norm_was() -> None:
    weight = parameter(0.0, 0.0)
    measured = gradient_step(
        [weight],
        [torch.optim.SGD([weight], 1.0)],
        [part(torch.tensor([3.0, 4.0]), loss=1.0, drift_error=1.0, drift_norm=4.0)],
        1.0,
    )
    assert measured == {"loss": 1.0, "state_drift": 0.5, "gradient_norm": 5.0}
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    gradient_step([weight], [torch.optim.SGD([weight], 1.0)], [part(torch.tensor([3.0, 4.0]), loss=1.0)], 0.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-3.6, -4.8]))


def test_sparse_gradients_are_not_clipped_but_must_be_finite() -> None:
    dense, table = parameter(0.0), nn.Parameter(torch.zeros(3, 2))
    for value in (10.0, math.nan):
        rows = torch.sparse_coo_tensor([[1]], [[value] * 2], (3, 2), check_invariants=False)
        optimizers = [adamw([dense], 0.1), SignSGD([table], 0.5)]
        if math.isnan(value):
            with pytest.raises(NonFiniteNumbers, match="the gradient of the puzzle embeddings is not finite"):
                gradient_step([dense, table], optimizers, [part(torch.ones(1), rows, loss=0.0)], 1.0)
        else:
            assert gradient_step([dense, table], optimizers, [part(torch.ones(1), rows, loss=0.0)], 1.0) == {
                "loss": 0.0,
                "gradient_norm": 1.0,
            }
    assert table.tolist() == [[0.0, 0.0], [-0.5, -0.5], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_refused(bad: float) -> None:
    weight = parameter(1.0)
    weight.grad = torch.tensor([bad])
    with pytest.raises(NonFiniteNumbers, match=f"gradient norm is {bad}"):
        clip_gradients([weight], 0.0)
