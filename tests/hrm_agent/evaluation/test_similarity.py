"""Linear CKA: what it must not notice, what it must, and that sums are enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hrm_agent.evaluation.similarity import LinearCKA, linear_cka


def features(seed: int, rows: int = 400, width: int = 6) -> Tensor:
    """Correlated, of different scales, and far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing + 3


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[
        0
    ]


def test_it_is_one_with_itself_and_with_whatever_is_the_same_up_to_a_similarity() -> None:
    x = features(0)
    assert linear_cka(x, x) == pytest.approx(1)
    for same in (x @ rotation(6), -2.5 * x, x + torch.arange(6.0), torch.cat([x, torch.zeros(400, 2)], 1)):
        assert linear_cka(x, same) == pytest.approx(1)


def test_it_does_not_change_under_similarities_of_either_and_is_symmetric() -> None:
    x, y = features(0), features(0)[:, :4].square() + features(1, width=4)
    value = linear_cka(x, y)
    assert 0.05 < value < 0.95
    assert linear_cka(7 * x @ rotation(6) - 1, y @ rotation(4) / 3) == pytest.approx(value)
    assert linear_cka(y, x) == pytest.approx(value)


def test_it_is_the_alignment_of_centred_kernels() -> None:
    """Eq. 1 to 3 of the paper with HSIC written out; the sums never build the N x N kernels."""
    x, y = features(2, rows=50), features(3, rows=50, width=3) + features(2, rows=50)[:, :3]
    centre = torch.eye(50, dtype=torch.float64) - 1 / 50
    hsic = [(centre @ a @ a.T @ centre * (b @ b.T)).sum() for a, b in ((x, y), (x, x), (y, y))]
    assert linear_cka(x, y) == pytest.approx(float(hsic[0] / (hsic[1] * hsic[2]).sqrt()))


def test_unrelated_features_are_not_alike_and_stretched_ones_less() -> None:
    x = features(0, rows=4000)
    assert linear_cka(x, features(1, rows=4000)) < 0.02
    stretched = x * torch.tensor([30.0, 1, 1, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.95


def test_parts_add_up_whatever_their_sizes_and_precision() -> None:
    x, y = features(4).float(), (features(4)[:, :2] + features(5, width=2)).float()
    parts = LinearCKA()
    for rows in torch.arange(400).split([1, 250, 149]):
        parts.add(x[rows], y[rows])
    assert parts.value() == pytest.approx(linear_cka(x, y), rel=1e-9)


def test_constants_have_no_likeness_and_errors_are_told() -> None:
    x = features(0)
    assert math.isnan(linear_cka(x, torch.ones(400, 3)))
    with pytest.raises(ValueError, match="0 examples"):
        LinearCKA().value()
    with pytest.raises(ValueError, match=r"\[400, 6\] and \[399, 6\]"):
        linear_cka(x, x[1:])
    cka = LinearCKA()
    cka.add(x, x)
    with pytest.raises(ValueError, match="6 and 5 features, but there were 6 and 6"):
        cka.add(x, x[:, :5])
