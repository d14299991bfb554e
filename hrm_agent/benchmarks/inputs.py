"""Fresh valid input: observations after random steps, and states and targets drawn at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.benchmarks.networks import RunParts
from hrm_agent.environments.make import make_vector_env
from hrm_agent.experience.rollout import Windows
from hrm_agent.policies.carry import PolicyState


def observations(parts: RunParts, steps: int, rows: int, seed: int) -> Tensor:
    """Consecutive observations of a run's grid environment under random actions, ids `[steps, rows, H, W]`."""
    env = make_vector_env(parts.trainer.env, rows, parts.trainer.made_with)
    random = np.random.default_rng(seed)
    seen = [env.reset(seed=seed)[0].copy()]
    for _ in range(steps + 2):
        seen.append(env.step(random.integers(0, 4, rows))[0].copy())
    env.close()
    return torch.from_numpy(np.stack(seen[-steps:]))


def state(parts: RunParts, rows: int, seed: int, dtype: torch.dtype) -> PolicyState:
    """Carried states of unit variance, as norms leave them, in the shapes of the policy's own."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s.shape, generator=generator).to(dtype) for s in parts.policy.initial_state(rows))


def starts(*shape: int, seed: int) -> Tensor:
    """Episode starts: bool, true for one in eight."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.125


def windows(parts: RunParts, rows: int, seed: int, dtype: torch.dtype) -> Windows:
    """A minibatch of PPO, of `rows` windows."""
    steps = parts.ppo.window
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(4, steps, rows, generator=generator).to(dtype)
    kept = state(parts, rows, seed, dtype)
    return Windows(
        obs=observations(parts, steps, rows, seed),
        actions=torch.randint(4, (steps, rows), generator=generator),
        # Near those of an untrained policy, whose actions are about equally likely.
        log_probs=0.1 * numbers[0] - np.log(4),
        values=numbers[1],
        episode_start=starts(steps, rows, seed=seed),
        advantages=numbers[2],
        returns=numbers[3],
        state=kept,
        next_state=kept,
    )


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a network's weights."""
    return next(module.parameters()).dtype
