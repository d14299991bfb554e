"""Carry rules: what of the state after environment step t becomes the state before step t+1.

A rule turns a core's state into the *carried state* (a tuple of tensors, each with the batch first, possibly empty)
and builds the next core state from it. Nothing else crosses a step: the carried state is what the collector holds, the
rollout stores and a checkpoint saves. The weights of a rule, if any, are the policy's, under `carry.`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_agent.cores import Core, map_state

PolicyState = tuple[Tensor, ...]

CARRY_WEIGHTS = "carry."
"""Prefix of the names of a rule's weights among its policy's."""

OPEN_GATE = 2.0
"""Initial bias of the gates: sigmoid(2) = 0.88 of the state is carried, nearly as with `full`."""


class Carry(nn.Module):
    """Base class of carry rules.

    Args:
        core: gives the initial state.
        outputs: size A of the policy's output.
    """

    from_output = False
    """Whether `from_core_state` reads the policy's output, which is then computed at every step of a window."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"to_core_state", "from_core_state", "gates"} & vars(cls).keys() and "window_rule" not in vars(cls):
            cls.window_rule = Carry.window_rule  # type: ignore[method-assign]  # the parent's kernel does not apply

    def __init__(self, core: Core, outputs: int) -> None:
        super().__init__()
        self._core = [core]  # in a list: the core is a submodule of the policy, not of the rule

    @property
    def core(self) -> Core:
        return self._core[0]

    def initial(self, batch_size: int) -> PolicyState:
        """The carried state before the first step of an episode."""
        raise NotImplementedError

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        """The state that the core starts from; initial where `episode_start` (bool `[B]`) is true.

        `tokens` float `[B, L, D]` are those of the new observation.
        """
        raise NotImplementedError

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        """The carried state for the next step, from the core's last state or from the policy's output `[B, A]`.

        The output (action probabilities or Q-values) is passed to rules with `from_output` only.
        """
        raise NotImplementedError

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]] | None:
        """The rule's name in the kernels, and its weights; None where the kernels do not support it."""
        return None

    def _token_state(self, batch_size: int) -> Any:
        """The initial state, which must have a latent vector per token."""
        state = self.core.initial_state(batch_size)
        if any(t.dim() != 3 for t in state):
            raise ValueError(
                f"this carry rule needs a latent per token, which {type(self.core).__name__} does not have; "
                "use carry=full or reset"
            )
        return state


class Reset(Carry):
    """Nothing is carried: every step starts from the initial state ("Reset Z", arXiv 2510.22832)."""

    def initial(self, batch_size: int) -> PolicyState:
        return ()

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        return self.core.initial_state(episode_start.shape[0])

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        return ()

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]]:
        return "reset", ()


class Full(Carry):
    """The whole latent grid is carried."""

    def initial(self, batch_size: int) -> PolicyState:
        return tuple(t.contiguous() for t in self.core.initial_state(batch_size))

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        fresh = self.core.initial_state(episode_start.shape[0])
        return map_state(lambda f, k: _choose(episode_start, f, k), fresh, carried)

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        return tuple(state)

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]]:
        return "full", ()


class LastToken(Carry):
    """The last position's latent alone is carried, and broadcast over all positions (the original HRM-Agent)."""

    def initial(self, batch_size: int) -> PolicyState:
        return tuple(t[:, -1].contiguous() for t in self._token_state(batch_size))

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        fresh = self._token_state(episode_start.shape[0])
        return map_state(lambda f, k: _choose(episode_start, f, k.unsqueeze(1).expand_as(f)), fresh, carried)

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        return tuple(t[:, -1] for t in state)


class Gate(Carry):
    """The whole latent grid is carried, and every position mixes it with the initial state by a learned gate.

    `g * carried + (1 - g) * initial`, one g in (0, 1) per position and latent: a sigmoid of a linear map of the
    position's carried latents and its new token, so that a position can drop its state where the environment changed.
    """

    def __init__(self, core: Core, outputs: int) -> None:
        super().__init__(core, outputs)
        fields = len(self._token_state(1))
        self._make_gate(fields, core.hidden_size)

    def _make_gate(self, fields: int, size: int) -> None:
        self.gate = _open_gate((fields + 1) * size, fields)

    def gates(self, carried: PolicyState, tokens: Tensor) -> Tensor:
        """Logits of the gates, float `[B, L, fields]`."""
        logits: Tensor = self.gate(torch.cat([*carried, tokens], dim=-1))
        return logits

    def initial(self, batch_size: int) -> PolicyState:
        return tuple(t.contiguous() for t in self._token_state(batch_size))

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        fresh = self._token_state(episode_start.shape[0])
        gates = self.gates(carried, tokens).sigmoid()
        mixed = (f + g.unsqueeze(-1) * (k - f) for f, k, g in zip(fresh, carried, gates.unbind(-1), strict=True))
        return map_state(lambda f, m: _choose(episode_start, f, m), fresh, tuple(mixed))

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        return tuple(state)

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]]:
        return "gate", (self.gate.weight, self.gate.bias)


class StateGate(Gate):
    """`gate` without the new token: the gate sees the position's carried latents alone."""

    def _make_gate(self, fields: int, size: int) -> None:
        self.gate = _open_gate(fields * size, fields)

    def gates(self, carried: PolicyState, tokens: Tensor) -> Tensor:
        logits: Tensor = self.gate(torch.cat(carried, dim=-1))
        return logits

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]]:
        return "gate", (F.pad(self.gate.weight, (0, self.core.hidden_size)), self.gate.bias)


class ScalarGate(Gate):
    """`gate` without any input: one learned number per latent, the same at all positions and steps."""

    bias: Tensor
    zeros: Tensor

    def _make_gate(self, fields: int, size: int) -> None:
        self.bias = nn.Parameter(torch.full((fields,), OPEN_GATE))
        # For the kernels, whose gate has an input.
        self.register_buffer("zeros", torch.zeros(fields, (fields + 1) * size), persistent=False)

    def gates(self, carried: PolicyState, tokens: Tensor) -> Tensor:
        return self.bias.expand(*tokens.shape[:2], -1)

    def window_rule(self) -> tuple[str, tuple[Tensor, ...]]:
        return "gate", (self.zeros, self.bias)


class Leak(ScalarGate):
    """`gate` that stays as the others begin: 0.88 of every latent is carried, and nothing of the rule is learned."""

    def _make_gate(self, fields: int, size: int) -> None:
        super()._make_gate(fields, size)
        del self.bias
        self.register_buffer("bias", torch.full((fields,), OPEN_GATE), persistent=False)


class Output(Carry):
    """The policy's output alone is carried: a learned linear map of it is added to the initial state everywhere."""

    from_output = True

    def __init__(self, core: Core, outputs: int) -> None:
        super().__init__(core, outputs)
        self.outputs = outputs
        fields = len(self._token_state(1))
        self.embed = nn.Linear(outputs, fields * core.hidden_size, bias=False)

    def initial(self, batch_size: int) -> PolicyState:
        return (self.embed.weight.new_zeros(batch_size, self.outputs),)

    def to_core_state(self, carried: PolicyState, episode_start: Tensor, tokens: Tensor) -> Any:
        fresh = self._token_state(episode_start.shape[0])
        embedded = self.embed(carried[0]).chunk(len(fresh), dim=-1)  # one [B, D] a latent
        return map_state(lambda f, t: _choose(episode_start, f, f + t.unsqueeze(1)), fresh, tuple(embedded))

    def from_core_state(self, state: Any, output: Tensor | None) -> PolicyState:
        assert output is not None
        return (output,)


def _open_gate(inputs: int, fields: int) -> nn.Linear:
    gate = nn.Linear(inputs, fields)
    nn.init.normal_(gate.weight, std=0.1 * inputs**-0.5)
    nn.init.constant_(gate.bias, OPEN_GATE)
    return gate


def _choose(where: Tensor, fresh: Tensor, carried: Tensor) -> Tensor:
    return torch.where(where.view(-1, *[1] * (fresh.dim() - 1)), fresh, carried)


CARRY_RULES: dict[str, type[Carry]] = {
    "reset": Reset,
    "full": Full,
    "last_token": LastToken,
    "gate": Gate,
    "gate_state": StateGate,
    "gate_scalar": ScalarGate,
    "leak": Leak,
    "output": Output,
}


def resolve_carry(name: str, core: Core) -> str:
    """`auto` is `reset` where the core is not meant to carry, `gate` where it has a latent for every token, else
    `full`."""
    if name != "auto":
        return name
    if not core.carries:
        return "reset"
    state = core.initial_state(1)
    tokens = (1, core.length, core.hidden_size)
    return "gate" if len(state) and all(t.shape == tokens for t in state) else "full"


def build_carry(name: str, core: Core, outputs: int) -> Carry:
    """Raises: ValueError if `name` is not a carry rule or the core does not support it."""
    if name not in CARRY_RULES:
        raise ValueError(f"carry={name!r}: expected auto or one of {', '.join(CARRY_RULES)}")
    try:
        carry = CARRY_RULES[name](core, outputs)
        carry.initial(1)
    except ValueError as error:
        raise ValueError(f"carry={name}: {error}") from None
    return carry
