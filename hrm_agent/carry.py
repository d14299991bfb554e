"""Carry rules: what of the state after environment step t becomes the state before step t+1.

A rule turns a core's state into what is *kept* (a tuple of tensors, each with the batch first, possibly empty)
and builds the next state from it. What is kept is all that crosses a step: it is what the collector holds, the
rollout stores and a checkpoint saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hrm_agent.cores import Core

PolicyState = tuple[Tensor, ...]


class Carry(nn.Module):
    """Base class of carry rules; `core` gives the initial state."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = [core]  # in a list: the core is the policy's child, not ours

    @property
    def core(self) -> Core:
        return self._core[0]

    def initial(self, batch_size: int) -> PolicyState:
        """What is kept before the first step of an episode."""
        raise NotImplementedError

    def seed(self, kept: PolicyState, episode_start: Tensor) -> Any:
        """The core's state to think from; fresh where `episode_start` (bool `[B]`) is true."""
        raise NotImplementedError

    def keep(self, state: Any) -> PolicyState:
        """What of the state after thinking is kept for the next step."""
        raise NotImplementedError


class Reset(Carry):
    """Nothing is carried: every step thinks from the initial state ("Reset Z", arXiv 2510.22832)."""

    def initial(self, batch_size: int) -> PolicyState:
        return ()

    def seed(self, kept: PolicyState, episode_start: Tensor) -> Any:
        return self.core.initial_state(episode_start.shape[0])

    def keep(self, state: Any) -> PolicyState:
        return ()


class Full(Carry):
    """The whole latent grid is carried."""

    def initial(self, batch_size: int) -> PolicyState:
        return tuple(t.contiguous() for t in self.core.initial_state(batch_size))

    def seed(self, kept: PolicyState, episode_start: Tensor) -> Any:
        fresh = self.core.initial_state(episode_start.shape[0])
        return type(fresh)(*(_choose(episode_start, f, k) for f, k in zip(fresh, kept, strict=True)))

    def keep(self, state: Any) -> PolicyState:
        return tuple(state)


class LastToken(Carry):
    """Only the last position's latent is carried, and broadcast over all positions (the original HRM-Agent)."""

    def initial(self, batch_size: int) -> PolicyState:
        return tuple(t[:, -1].contiguous() for t in self._token_state(batch_size))

    def seed(self, kept: PolicyState, episode_start: Tensor) -> Any:
        fresh = self._token_state(episode_start.shape[0])
        return type(fresh)(
            *(_choose(episode_start, f, k.unsqueeze(1).expand_as(f)) for f, k in zip(fresh, kept, strict=True))
        )

    def keep(self, state: Any) -> PolicyState:
        return tuple(t[:, -1] for t in state)

    def _token_state(self, batch_size: int) -> Any:
        state = self.core.initial_state(batch_size)
        if any(t.dim() != 3 for t in state):
            raise ValueError(
                f"carry=last_token: {type(self.core).__name__} has no latent per token; use carry=full or reset"
            )
        return state


def _choose(where: Tensor, fresh: Tensor, kept: Tensor) -> Tensor:
    return torch.where(where.view(-1, *[1] * (fresh.dim() - 1)), fresh, kept)


CARRY_RULES: dict[str, type[Carry]] = {"reset": Reset, "full": Full, "last_token": LastToken}


def build_carry(name: str, core: Core) -> Carry:
    """Raises: ValueError if `name` is not a carry rule or does not suit the core."""
    if name not in CARRY_RULES:
        raise ValueError(f"carry={name!r}: expected one of {', '.join(CARRY_RULES)}")
    carry = CARRY_RULES[name](core)
    carry.initial(1)
    return carry
