"""The common base of HRM and TRM: a slow and a fast latent, updated in turn by stacks of blocks."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from hrm_agent.cores.base import CYCLE_GRADIENTS, Core, State, check_at_least, check_choice, initial_latent
from hrm_agent.cores.blocks import BlockConfig, BlockStack, RotaryPositions


class TwoLatentState(NamedTuple):
    """Two latents float[B, L, D]: `z_H`, slow, the current answer, and `z_L`, fast, the reasoning behind it."""

    z_H: Tensor
    z_L: Tensor


class TwoLatentCore(Core):
    """A segment repeats `H_cycles` times: `L_cycles` updates `z_L = low(z_L + (z_H + x))`, then one update
    `z_H = high(z_H + z_L)`. Its output is `z_H`.

    Subclasses name the networks `low` and `high` (one for both in TRM), and say which updates have a gradient.

    Args:
        hidden_size, length, grid: see `Core`.
        H_cycles, L_cycles: outer cycles, and updates of z_L in each.
        positions: `rope`, `rope2d` or `none`; only attention uses them.
        cycle_gradient: `last`, as published, see `trained_updates`; `all`: every update has a gradient.
        block: see `BlockConfig`.
    """

    z_H_init: Tensor
    z_L_init: Tensor

    shares_input: ClassVar[bool] = False
    """Compute `z_H + x` once per cycle rather than once per update; gradients are then rounded in another order."""

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None,
        H_cycles: int,
        L_cycles: int,
        positions: str,
        cycle_gradient: str,
        block: BlockConfig,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        self.H_cycles = check_at_least("H_cycles", H_cycles, 1)
        self.L_cycles = check_at_least("L_cycles", L_cycles, 1)
        self.cycle_gradient = check_choice("cycle_gradient", cycle_gradient, CYCLE_GRADIENTS)
        self._block = block
        self.rotary = RotaryPositions(positions, block.mixing, hidden_size, block.num_heads, length, self.grid)

    def _stack(self, name: str, layers: int) -> BlockStack:
        check_at_least(name, layers, 1)
        return BlockStack(layers, self.hidden_size, self.length, self.grid, self._block)

    def _draw_initial_state(self) -> None:
        self.register_buffer("z_H_init", initial_latent(self.hidden_size))
        self.register_buffer("z_L_init", initial_latent(self.hidden_size))

    @property
    def low(self) -> BlockStack:
        """The network that updates z_L."""
        raise NotImplementedError

    @property
    def high(self) -> BlockStack:
        """The network that updates z_H."""
        raise NotImplementedError

    @property
    def published_updates(self) -> int:
        """How many of a segment's last updates have a gradient where `cycle_gradient=last`."""
        raise NotImplementedError

    @property
    def updates(self) -> int:
        """Updates of a segment, of either latent."""
        return self.H_cycles * (self.L_cycles + 1)

    @property
    def trained_updates(self) -> int:
        """How many of them, counted from the last, have a gradient; the one place where this rule is written."""
        return self.updates if self.cycle_gradient == "all" else min(self.published_updates, self.updates)

    @property
    def causal(self) -> bool:
        return self._block.causal

    @property
    def gradient_reaches_state(self) -> bool:
        """Through z_H, if not through z_L: the first update of z_H must have a gradient."""
        return self.updates - self.trained_updates <= self.L_cycles

    def initial_state(self, batch_size: int) -> TwoLatentState:
        shape = (batch_size, self.length, -1)
        return TwoLatentState(self.z_H_init.expand(shape), self.z_L_init.expand(shape))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, TwoLatentState]:
        z_H, z_L = state
        angles, low, high = self.rotary(), self.low, self.high
        with_gradient, untrained = torch.is_grad_enabled(), self.updates - self.trained_updates
        injected = x
        for update in range(self.updates):
            at = update % (self.L_cycles + 1)
            with torch.set_grad_enabled(with_gradient and update >= untrained):
                if at < self.L_cycles:
                    injected = injected if at and self.shares_input else z_H + x
                    z_L = low(z_L + injected, angles)
                else:
                    z_H = high(z_H + z_L, angles)
        return z_H, TwoLatentState(z_H, z_L)
