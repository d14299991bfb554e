"""A core of our own."""

import torch
from torch import Tensor, nn

from hrm_agent.cores import Core, State


class Ring(Core):
    """Tokens stand in a ring: each hears the input, its own past and its neighbour's, and leans towards it."""

    def __init__(
        self, hidden_size: int, length: int, grid: tuple[int, int] | None = None, *, gain: float = 0.5
    ) -> None:
        super().__init__(hidden_size, length, grid)
        self.gain = gain
        self.hear = nn.Linear(3 * hidden_size, hidden_size)
        self.register_buffer("start", torch.zeros(length, hidden_size))

    def initial_state(self, batch_size: int) -> State:
        return (self.start.expand(batch_size, -1, -1),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (past,) = state
        heard = torch.tanh(self.hear(torch.cat([x, past, past.roll(1, dims=1)], dim=-1)))
        now = (1 - self.gain) * past + self.gain * heard
        return now, (now,)
