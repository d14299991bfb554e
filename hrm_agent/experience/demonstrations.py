"""Rollouts with the actions that a teacher finds optimal at every step, and the windows that imitation learns from."""

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

    `labels` bool `[k, B, A]` marks the optimal actions; a step without any has no label. `state` is what was kept
    before the first step, `next_state` after the last, both as the collector had them.
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
    """A rollout whose rewards and actions do not matter: what is learned from are the labels.

    Args:
        steps, num_envs, window, space, state, device: see `Rollout`.
        actions: A, the number of actions there are.
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
        """How many of the T * N steps have a label."""
        return int(self.labels.any(-1).sum())

    def labelled_windows(self) -> LabelledWindows:
        """All windows: B = num_envs * T / k columns, ordered by (window, environment)."""
        by_step = trees.map_tensors(self.fold, (self.obs, self.labels, self.episode_start))
        fields = (*by_step, *self.folded_states())
        return LabelledWindows(*fields)
