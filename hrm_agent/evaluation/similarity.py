"""How alike two networks' latents are: linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414)."""

from __future__ import annotations

import torch
from torch import Tensor


class LinearCKA:
    """Linear CKA of two sets of features of the same examples, from sums, so that no features are kept.

    With centred features X `[N, F]` and Y `[N, G]` it is `|Y'X|^2 / (|X'X| |Y'Y|)` in Frobenius norms: 1 for features
    that are each other's rotation, reflection, scaling or shift, near 0 for unrelated ones if N is much larger than F
    and G (with few examples even noise looks alike). It is symmetric, and not invariant to other linear maps.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._products: tuple[Tensor, Tensor, Tensor] | None = None  # X'X, Y'Y, X'Y

    def add(self, x: Tensor, y: Tensor) -> None:
        """Further examples: features float `[N, F]` and `[N, G]`, row i of both being of the same example.

        Raises:
            ValueError: another number of rows, or other features than before.
        """
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
            raise ValueError(f"features are {list(x.shape)} and {list(y.shape)}, expected [N, F] and [N, G] of one N")
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        sums, products = (x.sum(0), y.sum(0)), (x.T @ x, y.T @ y, x.T @ y)
        if self._sums is not None and self._products is not None:
            if [s.shape for s in sums] != [s.shape for s in self._sums]:
                raise ValueError(
                    f"{x.shape[1]} and {y.shape[1]} features, but there were {len(self._sums[0])} and "
                    f"{len(self._sums[1])} before"
                )
            sums = (sums[0] + self._sums[0], sums[1] + self._sums[1])
            a, b, c = self._products
            products = (products[0] + a, products[1] + b, products[2] + c)
        self._count += len(x)
        self._sums, self._products = sums, products

    def value(self) -> float:
        """From 0 to 1; NaN where one of the two never varies.

        Raises:
            ValueError: fewer than two examples.
        """
        if self._count < 2 or self._sums is None or self._products is None:
            raise ValueError(f"{self._count} examples: CKA needs two or more")
        (x, y), (xx, yy, xy) = self._sums, self._products
        own_x, own_y = ((p - torch.outer(s, s) / self._count).norm() for p, s in ((xx, x), (yy, y)))
        # What is left of rounding where nothing varies is no variation.
        if own_x <= 1e-12 * xx.norm() or own_y <= 1e-12 * yy.norm():
            return float("nan")
        return float((xy - torch.outer(x, y) / self._count).norm().square() / (own_x * own_y))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """`LinearCKA` of features `[N, F]` and `[N, G]`."""
    cka = LinearCKA()
    cka.add(x, y)
    return cka.value()
