"""HRM: two networks, one slow and one fast, that take turns (arXiv 2506.21734)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hrm_agent.cores.base import CYCLE_GRADIENTS, Core, State, check_at_least, check_choice, initial_latent
from hrm_agent.cores.blocks import BlockStack, RotaryPositions
from hrm_agent.kernels.cpu.window import Plan, think


class HRMState(NamedTuple):
    """Two latents float[B, L, D]: `z_H` of the high-level network and `z_L` of the low-level one."""

    z_H: Tensor
    z_L: Tensor


class HRM(Core):
    """Hierarchical Reasoning Model.

    A segment repeats `H_cycles` times: `L_cycles` updates `z_L = L_net(z_L + (z_H + x))`, then one update
    `z_H = H_net(z_H + z_L)`. Its output is `z_H`.

    Args:
        hidden_size, length, grid: see `Core`.
        H_layers, L_layers: blocks of the two networks.
        num_heads, mixing, expansion, inner_size, branch_gain: see `Block`.
        H_cycles, L_cycles: outer cycles, and updates of z_L in each.
        positions: `rope`, `rope2d` or `none`; only attention uses them.
        cycle_gradient: `last`, as published: only the last update of z_L and the last of z_H have a
            gradient (a one-step approximation of the fixed point's). `all`: every update has.

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
        H_layers: int = 4,
        L_layers: int = 4,
        num_heads: int = 4,
        H_cycles: int = 2,
        L_cycles: int = 2,
        mixing: str = "attention",
        positions: str = "rope",
        expansion: float = 4.0,
        inner_size: int | None = None,
        branch_gain: float = 1.0,
        cycle_gradient: str = "last",
    ) -> None:
        super().__init__(hidden_size, length, grid)
        check_at_least("H_layers", H_layers, 1)
        check_at_least("L_layers", L_layers, 1)
        self.H_cycles = check_at_least("H_cycles", H_cycles, 1)
        self.L_cycles = check_at_least("L_cycles", L_cycles, 1)
        self.cycle_gradient = check_choice("cycle_gradient", cycle_gradient, CYCLE_GRADIENTS)
        self.rotary = RotaryPositions(positions, mixing, hidden_size, num_heads, length, self.grid)

        def stack(layers: int) -> BlockStack:
            return BlockStack(
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

        self.H_net = stack(H_layers)
        self.L_net = stack(L_layers)
        self.register_buffer("z_H_init", initial_latent(hidden_size))
        self.register_buffer("z_L_init", initial_latent(hidden_size))

    def window_plan(self) -> Plan:
        fresh = (self.z_H_init, self.z_L_init)
        whole = self.H_cycles == self.L_cycles == 1 or self.cycle_gradient == "all"
        return Plan(self.L_net, self.H_net, self.H_cycles, self.L_cycles, self.rotary(), fresh, whole)

    def initial_state(self, batch_size: int) -> HRMState:
        shape = (batch_size, self.length, -1)
        return HRMState(self.z_H_init.expand(shape), self.z_L_init.expand(shape))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, HRMState]:
        z_H, z_L = state
        plan = self.window_plan()
        if plan.suits(x, (z_H, z_L)):
            z_H, z_L = think(plan, x, (z_H, z_L))
            return z_H, HRMState(z_H, z_L)
        angles = self.rotary()
        with_gradient = torch.is_grad_enabled()
        everywhere = with_gradient and self.cycle_gradient == "all"
        for H_cycle in range(self.H_cycles):
            last_H = H_cycle == self.H_cycles - 1
            for L_cycle in range(self.L_cycles):
                last_L = last_H and L_cycle == self.L_cycles - 1
                with torch.set_grad_enabled(everywhere or (with_gradient and last_L)):
                    z_L = self.L_net(z_L + (z_H + x), angles)
            with torch.set_grad_enabled(everywhere or (with_gradient and last_H)):
                z_H = self.H_net(z_H + z_L, angles)
        return z_H, HRMState(z_H, z_L)
