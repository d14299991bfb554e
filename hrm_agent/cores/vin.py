"""Baseline: a value-iteration network, VIN (Tamar et al. 2016, arXiv 1602.02867)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, linear, truncated_normal_
from hrm_agent.names.values import Count, Depth


class VINState(NamedTuple):
    """The value of every cell, float[B, rows * cols, 1]: what the iterations of a step pass on."""

    value: Tensor


class VIN(Core):
    """`Q = W_r * r + W_v * V` (3x3 convolutions), `V = max over channels of Q`, `iterations` times per segment.

    The reward map `r` is computed from the tokens by a 3x3 convolution and a layer on it. The output of a cell is a
    linear map of its Q-values, so that with `readout=agent` the policy sees those of the agent's cell and nothing else.
    Values are passed between the segments of a step, which so makes `segments * iterations` iterations; `carry=auto`
    is `reset`, as published, and with `carry=full` a step begins with the values of the step before.

    Information moves one cell an iteration: as many are needed as the longest way has cells. Walls must be cells of
    their own (`env.encoder.patch_size=1`), since all cells share one transition model. Prefix tokens are not on the
    grid: their mean is added to every cell, and they are returned unchanged.

    Args:
        hidden_size, length, grid: see `Core`; the grid is needed.
        iterations: k, of value iteration per segment.
        q_channels: channels of Q, the abstract actions.
        inner_size: channels between the tokens and the reward; the tokens' where it is None.

    Raises:
        ValueError: a count below 1, or no grid.
    """

    carries: ClassVar[bool] = False

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        iterations: Depth = 20,
        q_channels: Count = 10,
        inner_size: Count | None = None,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        if self.grid is None:
            raise ValueError("core=vin needs a grid but grid=None; give rows and columns")
        self.rows, self.cols = self.grid
        self.prefix = length - self.rows * self.cols
        self.iterations = check_at_least("iterations", iterations, 1)
        count = check_at_least("q_channels", q_channels, 1)
        inner = check_at_least("inner_size", hidden_size if inner_size is None else inner_size, 1)
        self.inner = nn.Conv2d(hidden_size, inner, 3, padding=1)
        truncated_normal_(self.inner.weight, (9 * hidden_size) ** -0.5)
        self.reward = nn.Conv2d(inner, 1, 1)
        self.q_of_reward = nn.Conv2d(1, count, 3, padding=1, bias=False)
        self.q_of_value = nn.Conv2d(1, count, 3, padding=1, bias=False)
        for conv in (self.q_of_reward, self.q_of_value):
            truncated_normal_(conv.weight, 0.2)  # the maximum of ten Q-values is then about as large as the values
        self.out = linear(count, hidden_size)

    def initial_state(self, batch_size: int) -> VINState:
        return VINState(self.out.weight.detach().new_zeros(batch_size, self.rows * self.cols, 1))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, VINState]:
        (value,) = state
        cells = x[:, self.prefix :]
        if self.prefix:
            cells = cells + x[:, : self.prefix].mean(dim=1, keepdim=True)
        image = cells.transpose(1, 2).unflatten(2, (self.rows, self.cols))
        from_reward = self.q_of_reward(self.reward(F.relu(self.inner(image))))
        v = value.transpose(1, 2).unflatten(2, (self.rows, self.cols))
        for _ in range(self.iterations):
            q = from_reward + self.q_of_value(v)
            v = q.amax(dim=1, keepdim=True)
        read = self.out(q.flatten(2).transpose(1, 2))
        return torch.cat([x[:, : self.prefix], read], dim=1), VINState(v.flatten(2).transpose(1, 2))
