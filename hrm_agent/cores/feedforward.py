"""Baseline: the blocks of HRM and TRM in a plain stack, with no state and so no memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hrm_agent.cores.base import Core, State, check_at_least
from hrm_agent.cores.blocks import BlockConfig, BlockStack, Expansion, Mixing, Positions, RotaryPositions
from hrm_agent.names.values import Count, Depth, Positive


class FeedForwardState(NamedTuple):
    """Empty."""


class FeedForward(Core):
    """`y = blocks(x)`; a second segment computes the same again.

    Args:
        hidden_size, length, grid: see `Core`.
        layers: number of blocks.
        num_heads, mixing, expansion, inner_size, branch_gain, causal: see `BlockConfig`.
        positions: `rope`, `rope2d` or `none`; only attention uses them.

    Raises:
        ValueError: a count below 1, an unknown choice, heads that do not divide the channels, or a grid
            missing where one is needed.
    """

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        layers: Depth = 4,
        num_heads: Depth = 4,
        mixing: Mixing = "attention",
        positions: Positions = "rope",
        expansion: Expansion = 4.0,
        inner_size: Count | None = None,
        branch_gain: Positive = 1.0,
        causal: bool = False,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        check_at_least("layers", layers, 1)
        self.rotary = RotaryPositions(positions, mixing, hidden_size, num_heads, length, self.grid)
        block = BlockConfig(num_heads, mixing, expansion, inner_size, branch_gain, causal)
        self.blocks = BlockStack(layers, hidden_size, length, self.grid, block)

    @property
    def causal(self) -> bool:
        return self.blocks.config.causal

    def initial_state(self, batch_size: int) -> FeedForwardState:
        return FeedForwardState()

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, FeedForwardState]:
        return self.blocks(x, self.rotary()), FeedForwardState()
