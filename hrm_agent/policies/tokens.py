"""Which latents of a core's state belong to which token."""

from __future__ import annotations

import torch
from torch import Tensor

from hrm_agent.cores import State
from hrm_agent.policies.policy import Policy


def token_latents(state: State, before: int = 0) -> Tensor:
    """All latents of each grid token side by side: `[B, L, F]`; the first `before` tokens are not of the grid.

    Raises:
        ValueError: a core whose latents do not belong to tokens.
    """
    # Per token [B, L, D], or per layer and cell [B, layers, H, W, D].
    fields = [s[:, before:] if s.dim() == 3 else s.movedim(1, 3).flatten(3).flatten(1, 2) for s in state if s.dim() > 2]
    if not fields:
        raise ValueError("the core has no latent per token, so cells cannot be probed; use a core over a grid")
    return torch.cat(fields, -1)


def latents_of_tokens(policy: Policy, state: State) -> Tensor | None:
    """`token_latents` of a policy's grid, or of all its tokens where it has none: `[B, L, F]`.

    None where a field of the state has another number of vectors than there are tokens, or is no field of vectors.
    """
    encoder = policy.encoder
    count = encoder.length if encoder.grid is None else encoder.grid[0] * encoder.grid[1]
    sizes = [(s.shape[1],) if s.dim() == 3 else (s.shape[2] * s.shape[3],) if s.dim() == 5 else () for s in state]
    if not state or any(size not in ((count,), (encoder.length,)) for size in sizes):
        return None
    return torch.cat([token_latents((s,))[:, -count:] for s in state], -1)
