"""What truncated episodes bootstrap from: the value of their final observation, with the state before the reset.

A time limit ends an episode that would have gone on, so its return is cut off, not over. Terminated episodes do not
bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hrm_agent.experience.rollout import Rollout
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Decision, Policy
from hrm_agent.recurrence import without_compile
from hrm_agent.tensors import trees


class Outcome(NamedTuple):
    """The outcome of one step of N environments.

    Attributes:
        rewards: float32 `[N]`.
        terminated, truncated: bool `[N]`.
        ended_rows: int64 `[M]`, the environments whose episode ended.
        final_obs: `[M, ...]`, their final observations; None where there are none.
    """

    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    ended_rows: Tensor
    final_obs: Observation | None


class CutOff(NamedTuple):
    """The M episodes that were truncated at one step of a rollout: final observations, and states before the reset."""

    steps: Tensor  # int64 [M], that step
    rows: Tensor  # int64 [M], environments
    obs: Observation  # [M, ...]
    state: PolicyState  # tensors [M, ...]


def truncated_episodes(step: int, outcome: Outcome, state: PolicyState) -> list[CutOff]:
    """The episodes that were truncated at a step: a list of at most one entry.

    Args:
        state: that the policy carried out of the step, of all environments, before any reset.
    """
    rows = outcome.ended_rows
    cut = (outcome.truncated & ~outcome.terminated)[rows]
    if not cut.any():
        return []
    assert outcome.final_obs is not None
    # A mask copies: the environment may write its next final observations into the same memory.
    final = trees.rows(outcome.final_obs, cut)
    return [CutOff(torch.full_like(rows[cut], step), rows[cut], final, trees.rows(state, rows[cut]))]


def write_final_values(
    rollout: Rollout, cut_off: list[CutOff], policy: Policy, decide: Callable[..., Decision]
) -> None:
    """V(final observation) of a rollout's truncated episodes, in one call of the policy."""
    steps, rows, final, state = trees.cat(cut_off)
    with without_compile(policy):  # the size of the batch varies, and every size would be compiled
        decision = decide(final, state, torch.zeros_like(rows, dtype=torch.bool))
    rollout.final_values[steps, rows] = decision.value


def stack_final_obs(final_obs: Any, rows: np.ndarray, space: gym.Space) -> Any:
    """The final observations of `rows` as a batch, from a dense array, an object array or a dictionary."""
    if isinstance(final_obs, dict):
        return {key: stack_final_obs(value, rows, space[key]) for key, value in final_obs.items()}  # type: ignore[index]
    if final_obs.dtype != object:
        return final_obs[rows]
    if isinstance(space, gym.spaces.Dict):
        return {
            key: np.stack([np.asarray(final_obs[i][key], dtype=sub.dtype) for i in rows])
            for key, sub in space.spaces.items()
        }
    return np.stack([np.asarray(final_obs[i], dtype=space.dtype) for i in rows])
