"""The policy: observation -> tokens -> K segments of a core -> readout -> heads.

The state is always passed in and out. `step` decides for one environment step; `unroll` replays a window of
consecutive steps, and gives the same numbers as that many calls of `step`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn

from hrm_agent.carry import PolicyState, build_carry
from hrm_agent.cores import build_core
from hrm_agent.encoders import EncoderConfig, Observation, build_encoder, find_grid

READOUTS = ("agent", "mean", "first", "last")


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that, with the spaces, defines a policy.

    Args:
        core: name of the core (`hrm_agent.cores.build_core`).
        core_options: its options, without `hidden_size`, `length` and `grid`.
        hidden_size: width D of tokens and latents.
        carry: carry rule (`hrm_agent.carry.CARRY_RULES`).
        segments: K, calls of the core per environment step.
        time_gradient: `bptt` lets the gradient flow through the state between the steps of a window, `detached`
            cuts it at every step.
        readout: the token the heads read: the `agent`'s, the `mean` of all, the `first` or the `last`.
        agent_id: the id that marks the agent in a grid observation, for `readout=agent`.
        encoder: how observations become tokens.
    """

    core: str = "trm"
    core_options: dict[str, Any] = field(default_factory=dict)
    hidden_size: int = 32
    carry: str = "full"
    segments: int = 1
    time_gradient: str = "bptt"
    readout: str = "agent"
    agent_id: int = 3
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ValueError(f"core.hidden_size={self.hidden_size}: expected 1 or more")
        if type(self.segments) is not int or self.segments < 1:
            raise ValueError(
                f"segments={self.segments!r}: a policy thinks for at least 1 segment per step; give an integer"
            )
        if self.time_gradient not in ("bptt", "detached"):
            raise ValueError(f"time_gradient={self.time_gradient!r}: expected 'bptt' or 'detached'")
        if self.readout not in READOUTS:
            raise ValueError(f"readout={self.readout!r}: expected one of {', '.join(READOUTS)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        return cls(**{**values, "encoder": EncoderConfig(**values["encoder"])})


class NonFiniteNumbers(RuntimeError):
    """NaN or infinity where numbers were expected; training cannot go on."""


class Decision(NamedTuple):
    """logits float `[B, A]` (or Q-values), value float `[B]`, state: what is kept for the next step."""

    logits: Tensor
    value: Tensor
    state: PolicyState


class Policy(nn.Module):
    """A recurrent policy over a discrete action space. No state lives on the module."""

    def __init__(self, config: PolicyConfig, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        if not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(f"action space {action_space}: expected Discrete")
        self.config = config
        self.segments = config.segments
        self.encoder = build_encoder(observation_space, config.hidden_size, config.encoder)
        self.core = build_core(
            config.core,
            hidden_size=config.hidden_size,
            length=self.encoder.length,
            grid=self.encoder.grid,
            **config.core_options,
        )
        self.carry = build_carry(config.carry, self.core)
        self._check_gradient_path()
        self._grid = find_grid(self.encoder)
        if config.readout == "agent" and self._grid is None:
            raise ValueError(f"readout=agent needs a grid observation, got {observation_space}; use readout=mean")
        self.policy_head = nn.Linear(config.hidden_size, int(action_space.n))
        self.value_head = nn.Linear(config.hidden_size, 1)
        # Small policy logits at the start: near-uniform actions (Andrychowicz et al. 2021, arXiv 2006.05990).
        nn.init.normal_(self.policy_head.weight, std=0.01)
        nn.init.zeros_(self.policy_head.bias)
        nn.init.zeros_(self.value_head.bias)

    def _check_gradient_path(self) -> None:
        """Cycles without gradient cut the path from the state that comes in: nothing would flow through time."""
        cycles = getattr(self.core, "H_cycles", 1)
        cut = cycles > 1 and getattr(self.core, "cycle_gradient", "all") == "last"
        if cut and self.config.time_gradient == "bptt" and self.config.carry != "reset":
            raise ValueError(
                f"time_gradient=bptt with core.cycle_gradient=last and core.H_cycles={cycles}: no gradient reaches "
                "the carried state; use core.cycle_gradient=all, core.H_cycles=1 or time_gradient=detached"
            )

    @property
    def device(self) -> torch.device:
        return self.policy_head.weight.device

    def initial_state(self, batch_size: int) -> PolicyState:
        """What is kept before any step. `episode_start` replaces it, so it only has to have the right shapes."""
        return self.carry.initial(batch_size)

    def step(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """One environment step: obs `[B, ...]`, episode_start bool `[B]`."""
        latent, state = self._think(self.encoder(obs), state, episode_start)
        read = self._read(latent, self._readout_index(obs))
        return Decision(self.policy_head(read), self.value_head(read).squeeze(-1), state)

    def unroll(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        """A window of k steps: obs `[k, B, ...]`, episode_start `[k, B]`, state before the first step.

        Returns logits `[k, B, A]`, value `[k, B]` and the state after the last step.
        """
        tokens = self.encoder(obs)
        index = self._readout_index(obs)
        detached = self.config.time_gradient == "detached"
        reads = []
        # unbind, not tokens[t]: its backward stacks the steps' gradients once, instead of adding k zero-padded ones.
        for t, step_tokens in enumerate(tokens.unbind(0)):
            if detached:
                state = tuple(s.detach() for s in state)
            latent, state = self._think(step_tokens, state, episode_start[t])
            reads.append(self._read(latent, None if index is None else index[t]))
        read = torch.stack(reads)
        return Decision(self.policy_head(read), self.value_head(read).squeeze(-1), state)

    def _think(self, tokens: Tensor, kept: PolicyState, episode_start: Tensor) -> tuple[Tensor, PolicyState]:
        state = self.carry.seed(kept, episode_start)
        latent = tokens
        for _ in range(self.segments):
            latent, state = self.core(tokens, state)
        return latent, self.carry.keep(state)

    def _readout_index(self, obs: Observation) -> Tensor | None:
        if self.config.readout != "agent" or self._grid is None:
            return None
        grid, key, before = self._grid
        cells = obs if isinstance(obs, Tensor) else obs[key or ""]
        return grid.token_of(cells, self.config.agent_id) + before

    def _read(self, latent: Tensor, index: Tensor | None) -> Tensor:
        if index is not None:
            return latent.take_along_dim(index.view(-1, 1, 1), dim=1).squeeze(1)
        if self.config.readout == "mean":
            return latent.mean(1)
        return latent[:, 0] if self.config.readout == "first" else latent[:, -1]


def to_tensors(obs: Any, device: torch.device | str = "cpu") -> Observation:
    """Arrays of a vector environment -> tensors; dictionaries entry by entry."""
    if isinstance(obs, dict):
        return {key: torch.as_tensor(value, device=device) for key, value in obs.items()}
    return torch.as_tensor(obs, device=device)
