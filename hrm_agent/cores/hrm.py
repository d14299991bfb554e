"""HRM: a slow and a fast network, updated in turn (arXiv 2506.21734)."""

from __future__ import annotations

from hrm_agent.cores.base import CycleGradient
from hrm_agent.cores.blocks import BlockConfig, BlockStack, Expansion, Mixing, Positions
from hrm_agent.cores.two_latents import TwoLatentCore, TwoLatentState
from hrm_agent.names.values import Count, Depth, Positive

HRMState = TwoLatentState


class HRM(TwoLatentCore):
    """Hierarchical Reasoning Model: `L_net` updates `z_L`, `H_net` updates `z_H`; see `TwoLatentCore`.

    Args:
        hidden_size, length, grid: see `Core`.
        H_layers, L_layers: blocks of the two networks.
        num_heads, mixing, expansion, inner_size, branch_gain, causal: see `BlockConfig`.
        H_cycles, L_cycles: outer cycles, and updates of z_L in each.
        positions: `rope`, `rope2d` or `none`; only attention uses them.
        cycle_gradient: `last`, as published: only the last update of z_L and the last of z_H have a
            gradient (a one-step approximation of the fixed point's). `all`: every update has.

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
        H_layers: Depth = 4,
        L_layers: Depth = 4,
        num_heads: Depth = 4,
        H_cycles: Depth = 2,
        L_cycles: Depth = 2,
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
        self.H_net = self._stack("H_layers", H_layers)
        self.L_net = self._stack("L_layers", L_layers)
        self._draw_initial_state()

    @property
    def low(self) -> BlockStack:
        return self.L_net

    @property
    def high(self) -> BlockStack:
        return self.H_net

    @property
    def published_updates(self) -> int:
        return 2
