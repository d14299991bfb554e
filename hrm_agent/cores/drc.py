"""Baseline: DRC(D, N) as published, with its own readout (Guez et al. 2019, arXiv 1901.03559)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm_agent.cores.base import check_at_least, check_choice, linear
from hrm_agent.cores.convlstm import ConvLSTM
from hrm_agent.cores.norm import rms_norm
from hrm_agent.names.values import Count, Depth, one_of

READS = ("flatten", "cells")


class DRC(ConvLSTM):
    """`ConvLSTM` (D stacked layers, N ticks, top-down skip, pool-and-inject, boundary plane) read as in the paper.

    The top layer's output and the observation are flattened together and read by one layer of `features`; every
    output token is that vector. Gates are those of an LSTM.

    Args:
        hidden_size, length, grid: see `ConvLSTM`.
        num_layers: ConvLSTM layers D.
        repeats: ticks N per segment.
        reads: `flatten` as published; `cells` keeps an output of every cell's own, as `core=convlstm` does.
        features: size of the layer that reads the flattened grid.

    Raises:
        ValueError: a count below 1, an unknown choice, or no grid.
    """

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        num_layers: Depth = 3,
        repeats: Depth = 3,
        reads: Annotated[str, one_of(READS)] = "flatten",
        features: Count = 256,
    ) -> None:
        super().__init__(hidden_size, length, grid, layers=num_layers, ticks=repeats)
        self.reads = check_choice("reads", reads, READS)
        if reads == "flatten":
            size = (length + self.rows * self.cols) * hidden_size
            self.features = linear(size, check_at_least("features", features, 1), bias=True)
            self.out = linear(features, hidden_size)

    def answer(self, x: Tensor, top: Tensor) -> Tensor:
        if self.reads == "cells":
            return super().answer(x, top)
        read = F.relu(self.features(torch.cat([x.flatten(1), top.flatten(1)], dim=1)))
        return rms_norm(self.out(read))[:, None].expand_as(x)
