"""Baseline: a GRU over the pooled tokens, whose memory has no places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores.base import Core, State, check_at_least, initial_latent, linear
from hrm_agent.cores.norm import rms_norm
from hrm_agent.kernels.cpu.gru import pool_tokens, run_gru
from hrm_agent.kernels.cpu.window import Rule, Thinking, Thought
from hrm_agent.kernels.paths import Accelerated


class GRUState(NamedTuple):
    """One vector float[B, memory_size]."""

    h: Tensor


class GRUCore(Core, Accelerated):
    """A GRU cell reads the mean and the maximum of the tokens; its memory is handed to every token.

    One update per segment, then `y = norm(x + W_out silu(W_x x + W_h h))`.

    Args:
        hidden_size, length, grid: see `Core`; only the channels matter here.
        memory_size: size of the memory vector; the channels where it is None.
        inner_size: inner channels of the output network; twice the channels where it is None.

    Raises:
        ValueError: a size below 1.
    """

    h_init: Tensor

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        memory_size: int | None = None,
        inner_size: int | None = None,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        memory = check_at_least("memory_size", hidden_size if memory_size is None else memory_size, 1)
        inner = check_at_least("inner_size", 2 * hidden_size if inner_size is None else inner_size, 1)
        self.cell = nn.GRUCell(2 * hidden_size, memory)
        self.from_token = linear(hidden_size, inner)
        self.from_memory = linear(memory, inner, bias=True)
        self.out = linear(inner, hidden_size)
        self.register_buffer("h_init", initial_latent(memory))

    def initial_state(self, batch_size: int) -> GRUState:
        return GRUState(self.h_init.repeat(batch_size, 1))

    def forward(  # type: ignore[override]  # a core's; what else has kernels is a stack of blocks
        self, x: Tensor, state: State
    ) -> tuple[Tensor, GRUState]:
        (h,) = state
        h = self.cell(torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1), h)
        return self.answer(x, h[:, None]), GRUState(h)

    def answer(self, x: Tensor, h: Tensor) -> Tensor:
        """Tokens float[..., D] after the memory float[..., M] was handed to them."""
        hidden = F.silu(self.from_token(x) + self.from_memory(h))
        return rms_norm(x + self.out(hidden))

    def window_plan(self) -> GRUPlan:
        return GRUPlan(self)

    @property
    def has_kernels(self) -> bool:
        return True

    def runs_kernels(self, x: Tensor) -> bool:
        if not self.path.startswith("fused") or x.dtype != torch.float32 or x.device.type != "cpu":
            return False
        elsewhere = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing()
        return not elsewhere


@dataclass(frozen=True)
class GRUPlan:
    """The GRU over a window: its inputs for all steps in one product, its answer at the token that is read only."""

    core: GRUCore
    settles = False
    divides = False

    def suits(self, x: Tensor, state: Sequence[Tensor]) -> bool:
        return self.core.runs_kernels(x) and all(s.dtype == x.dtype for s in state)

    def think(self, tokens: Tensor, state: tuple[Tensor, ...], segments: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        no_start = torch.zeros(1, len(tokens), dtype=torch.bool)
        h = self._memories(pool_tokens(tokens[None], None)[0], state[0], no_start, Thinking(segments))[0]
        return self.core.answer(tokens, h[:, None]), (h,)

    def run(
        self,
        rule: Rule,
        thinking: Thinking,
        tokens: Tensor,
        state: tuple[Tensor, ...],
        episode_start: Tensor,
        read: Tensor | None,
    ) -> Thought:
        """See `hrm_agent.kernels.cpu.window.run_window`; rules are `full` and `reset`, and all segments are thought."""
        carries = rule.kind == "full"
        before = state[0] if carries else self.core.initial_state(tokens.shape[1]).h
        starts = episode_start if carries else torch.ones_like(episode_start)
        pooled, token = pool_tokens(tokens, None if read is None else read % tokens.shape[2])
        memories = self._memories(pooled, before, starts, thinking)  # [k, B, M]
        if token is None:
            reads = self.core.answer(tokens, memories[:, :, None]).mean(2)
        else:
            reads = self.core.answer(token, memories)
        after = (memories[-1],) if carries else ()
        return Thought(reads, after, torch.full(tokens.shape[:2], thinking.segments))

    def _memories(self, pooled: Tensor, before: Tensor, starts: Tensor, thinking: Thinking) -> Tensor:
        cell = self.core.cell
        inputs = F.linear(pooled, cell.weight_ih, cell.bias_ih)
        return run_gru(
            inputs, before, starts, self.core.h_init, cell.weight_hh, cell.bias_hh,
            segments=thinking.segments, cut=thinking.cut,
        )  # fmt: skip
