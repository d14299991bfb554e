"""TRM: one small network that updates both latents (arXiv 2510.04871)."""

from __future__ import annotations

from hrm_agent.cores.base import CycleGradient
from hrm_agent.cores.blocks import BlockConfig, BlockStack, Expansion, Mixing, Positions
from hrm_agent.cores.two_latents import TwoLatentCore, TwoLatentState
from hrm_agent.names.values import Count, Depth, Positive

TRMState = TwoLatentState


class TRM(TwoLatentCore):
    """Tiny Recursive Model: `net` updates `z_L` and `z_H`; see `TwoLatentCore`.

    Args:
        hidden_size, length, grid: see `Core`.
        layers: blocks of the network.
        num_heads, mixing, expansion, inner_size, branch_gain, causal: see `BlockConfig`.
        H_cycles, L_cycles: outer cycles, and updates of z_L in each.
        positions: `rope`, `rope2d` or `none`; only attention uses them.
        cycle_gradient: `last`, as published: only the last outer cycle has a gradient, so with more than
            one of them none reaches the incoming state. `all`: every cycle has.

    Raises:
        ValueError: a count below 1, an unknown choice, heads that do not divide the channels, or a grid
            missing where one is needed.
    """

    shares_input = True

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        layers: Depth = 2,
        num_heads: Depth = 4,
        H_cycles: Depth = 3,
        L_cycles: Depth = 6,
        mixing: Mixing = "attention",
        positions: Positions = "rope",
        expansion: Expansion = 4.0,
        inner_size: Count | None = None,
        branch_gain: Positive = 1.0,
        cycle_gradient: CycleGradient = "last",
        causal: bool = False,
    ) -> None:
        block = BlockConfig(num_heads, mixing, expansion, inner_size, branch_gain, causal)
        super().__init__(hidden_size, length, grid, H_cycles, L_cycles, positions, cycle_gradient, block)
        self.net = self._stack("layers", layers)
        self._draw_initial_state()

    @property
    def low(self) -> BlockStack:
        return self.net

    @property
    def high(self) -> BlockStack:
        return self.net

    @property
    def published_updates(self) -> int:
        return self.L_cycles + 1
