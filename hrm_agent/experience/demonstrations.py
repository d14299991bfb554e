"""Rollouts with a teacher's optimal actions at every step, and the windows that imitation trains on."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from hrm_agent.experience.rollout import Rollout
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.tensors import trees


class LabelledWindows(NamedTuple):
    """B windows of k consecutive steps; every tensor is `[k, B, ...]` but `state`, whose tensors are `[B, ...]`.

    `labels` bool `[k, B, A]` marks the optimal actions; a step without any has no label. `state` is the carried state
    before the first step, `next_state` after the last, both as collected.
    """

    obs: Observation
    labels: Tensor
    episode_start: Tensor  # bool
    state: PolicyState
    next_state: PolicyState

    def columns(self, index: Tensor | slice) -> LabelledWindows:
        """Some of the B windows."""
        return LabelledWindows(*trees.columns(self[:-2], index), *trees.rows(self[-2:], index))


class Demonstrations(Rollout):
    """A rollout with labels; its rewards and actions are not used in training.

    Args:
        steps, num_envs, window, space, state, device: see `Rollout`.
        actions: A, the number of actions.
    """

    def __init__(
        self,
        steps: int,
        num_envs: int,
        window: int,
        space: gym.Space,
        state: PolicyState,
        device: torch.device | str,
        actions: int,
    ) -> None:
        super().__init__(steps, num_envs, window, space, state, device)
        self.labels = torch.zeros(steps, num_envs, actions, dtype=torch.bool, device=device)

    @property
    def labelled_steps(self) -> int:
        """Number of the T * N steps that have a label."""
        return int(self.labels.any(-1).sum())

    def labelled_windows(self) -> LabelledWindows:
        """All windows: B = num_envs * T / k columns, ordered by (window, environment)."""
        by_step = trees.map_tensors(self.fold, (self.obs, self.labels, self.episode_start))
        fields = (*by_step, *self.folded_states())
        return LabelledWindows(*fields)
