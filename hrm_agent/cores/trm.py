"""TRM: one small network that updates both latents (arXiv 2510.04871)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hrm_agent.cores.base import CYCLE_GRADIENTS, Core, State, check_at_least, check_choice, initial_latent
from hrm_agent.cores.blocks import BlockStack, RotaryPositions
from hrm_agent.kernels.cpu.window import Plan, think


class TRMState(NamedTuple):
    """Two latents float[B, L, D]: `z_H`, the current answer, and `z_L`, the reasoning behind it."""

    z_H: Tensor
    z_L: Tensor


class TRM(Core):
    """Tiny Recursive Model.

    A segment repeats `H_cycles` times: `L_cycles` updates `z_L = net(z_L + z_H + x)`, then one update
    `z_H = net(z_H + z_L)`. Its output is `z_H`.

    Args:
        hidden_size, length, grid: see `Core`.
        layers: blocks of the network.
        num_heads, mixing, expansion, inner_size, branch_gain: see `Block`.
        H_cycles, L_cycles: outer cycles, and updates of z_L in each.
        positions: `rope`, `rope2d` or `none`; only attention uses them.
        cycle_gradient: `last`, as published: only the last outer cycle has a gradient, so with more than
            one of them none reaches the incoming state. `all`: every cycle has.

    Raises:
        ValueError: a count below 1, an unknown choice, heads that do not divide the channels, or a grid
            missing where one is needed.
    """

    z_H_init: Tensor
    z_L_init: Tensor

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        layers: int = 2,
        num_heads: int = 4,
        H_cycles: int = 3,
        L_cycles: int = 6,
        mixing: str = "attention",
        positions: str = "rope",
        expansion: float = 4.0,
        inner_size: int | None = None,
        branch_gain: float = 1.0,
        cycle_gradient: str = "last",
    ) -> None:
        super().__init__(hidden_size, length, grid)
        check_at_least("layers", layers, 1)
        self.H_cycles = check_at_least("H_cycles", H_cycles, 1)
        self.L_cycles = check_at_least("L_cycles", L_cycles, 1)
        self.cycle_gradient = check_choice("cycle_gradient", cycle_gradient, CYCLE_GRADIENTS)
        self.rotary = RotaryPositions(positions, mixing, hidden_size, num_heads, length, self.grid)
        self.net = BlockStack(
            layers,
            hidden_size=hidden_size,
            length=length,
            grid=self.grid,
            num_heads=num_heads,
            mixing=mixing,
            expansion=expansion,
            inner_size=inner_size,
            branch_gain=branch_gain,
        )
        self.register_buffer("z_H_init", initial_latent(hidden_size))
        self.register_buffer("z_L_init", initial_latent(hidden_size))

    def window_plan(self) -> Plan:
        fresh = (self.z_H_init, self.z_L_init)
        whole = self.H_cycles == 1 or self.cycle_gradient == "all"
        return Plan(self.net, self.net, self.H_cycles, self.L_cycles, self.rotary(), fresh, whole)

    def initial_state(self, batch_size: int) -> TRMState:
        shape = (batch_size, self.length, -1)
        return TRMState(self.z_H_init.expand(shape), self.z_L_init.expand(shape))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, TRMState]:
        z_H, z_L = state
        plan = self.window_plan()
        if plan.suits(x, (z_H, z_L)):
            z_H, z_L = think(plan, x, (z_H, z_L))
            return z_H, TRMState(z_H, z_L)
        with_gradient = torch.is_grad_enabled()
        for cycle in range(self.H_cycles):
            last = cycle == self.H_cycles - 1
            with torch.set_grad_enabled(with_gradient and (last or self.cycle_gradient == "all")):
                z_H, z_L = self._recursion(x, z_H, z_L)
        return z_H, TRMState(z_H, z_L)

    def _recursion(self, x: Tensor, z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.rotary()
        seen = z_H + x
        for _ in range(self.L_cycles):
            z_L = self.net(z_L + seen, angles)
        return self.net(z_H + z_L, angles), z_L
