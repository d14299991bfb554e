"""What every recurrent core has in common: its call, its state, and checks of its arguments.

A core is a subclass of `Core`, under a name in the registry `CORES` of `hrm_agent/cores/__init__.py`: ours stand there,
others are added by `register_core`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import one_of
from hrm_agent.tensors.trees import map_tensors

State = tuple[Tensor, ...]
"""A core's latent: a NamedTuple of tensors whose first dimension is the batch; possibly without fields."""

CYCLE_GRADIENTS = ("last", "all")
"""Which of a segment's cycles have a gradient: the last, as published, or all."""
CycleGradient = Annotated[str, one_of(CYCLE_GRADIENTS)]

TRUNCATION = 2.0
TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal truncated at +-2: divided out, so that `std` is the true one."""


class Core(nn.Module):
    """One segment over a sequence of tokens; the state is passed in and returned.

    The tokens are a prefix of `length - rows * cols` tokens (observations without a position, puzzle slots)
    followed by the cells of a grid `(rows, cols)` in row-major order. Without a grid there are no positions.

    Args:
        hidden_size: channels D of every token.
        length: number of tokens L, prefix included.
        grid: rows and columns of the token grid, or None.

    Raises:
        ValueError: a size below 1, or a grid with more cells than there are tokens.
    """

    carries: ClassVar[bool] = True
    """Whether its state is meant to outlive an environment step: `carry=auto` is `reset` where it is not."""

    def __init__(self, hidden_size: int, length: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.hidden_size = check_at_least("hidden_size", hidden_size, 1)
        self.length = check_at_least("length", length, 1)
        self.grid = check_grid(grid, length)

    @property
    def causal(self) -> bool:
        """Whether no output depends on a token that comes after it."""
        return False

    @property
    def gradient_reaches_state(self) -> bool:
        """Whether the gradient reaches the state that a segment starts from."""
        return True

    def initial_state(self, batch_size: int) -> State:
        """The state before the first segment: fixed values, the same for every row; treat it as read-only."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one segment.

        Args:
            x: float[B, L, D], the tokens of the observation.
            state: what `initial_state` or an earlier call returned; it is not modified.

        Returns:
            float[B, L, D], the output tokens, and the state after the segment.
        """
        raise NotImplementedError


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply a function field by field: `map_state(Tensor.detach, state)` is a state of the same type."""
    made: State = map_tensors(function, *states)
    return made


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill in place from a normal truncated at two sigmas and rescaled to have exactly this deviation."""
    sigma = std / TRUNCATED_STD
    bound = TRUNCATION * sigma
    return nn.init.trunc_normal_(tensor, std=sigma, a=-bound, b=bound)


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear layer with truncated-normal LeCun weights (variance 1 / inputs) and, with `bias`, a bias of zeros."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    truncated_normal_(layer.weight, inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def initial_latent(size: int) -> Tensor:
    """float[size], drawn once from the unit truncated normal; to be registered as a buffer, so never trained."""
    return truncated_normal_(torch.empty(size), 1.0)


def check_at_least(name: str, value: int, minimum: int) -> int:
    """Return the value, or raise ValueError where it is not an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} is not an integer of at least {minimum}; give one of {minimum} or more")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the value, or raise ValueError naming the nearest of the choices."""
    if value in choices:
        return value
    raise ValueError(f"{name}={value}: no such {name}{did_you_mean(value, choices)}")


def check_grid(grid: tuple[int, int] | None, length: int) -> tuple[int, int] | None:
    """Return the grid as two integers, or raise ValueError where its cells exceed the tokens."""
    if grid is None:
        return None
    if len(grid) != 2:
        raise ValueError(f"grid={grid!r} has {len(grid)} entries; give two: rows and columns")
    rows = check_at_least("grid rows", grid[0], 1)
    cols = check_at_least("grid cols", grid[1], 1)
    if rows * cols > length:
        raise ValueError(
            f"grid={rows}x{cols} has {rows * cols} cells but length={length} tokens; give at least one each"
        )
    return rows, cols
