"""A model of Stable-Baselines3 as an actor for our evaluation, and the cost of its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from hrm_agent.baselines.observations import View
from hrm_agent.evaluation.cost import count_operations, decision_cost


class SB3Actor:
    """Greedy decisions of a model of Stable-Baselines3 or sb3-contrib (`evaluation.episodes.Actor`).

    Args:
        model: unchanged, except that its network is left in evaluation mode.
        view: converts the environment's observations to the model's.
        first_action: the environment's first action; the model counts from 0.
    """

    def __init__(self, model: BaseAlgorithm, view: View, first_action: int = 0) -> None:
        self.policy, self.view, self.first_action = model.policy, view, first_action

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.state: tuple[NDArray, ...] | None = None  # of an LSTM: [layers, N, units] each
        self.episode_start = np.ones(len(seeds), bool)

    def act(self, obs: Any) -> NDArray[np.int64]:
        actions, self.state = self.policy.predict(self.view.show(obs), self.state, self.episode_start, True)
        self.episode_start = np.zeros_like(self.episode_start)
        return actions.astype(np.int64) + self.first_action

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.episode_start = self.episode_start[rows]
        if self.state is not None:
            self.state = tuple(part[:, rows] for part in self.state)


def network_of(model: BaseAlgorithm) -> nn.Module:
    """The trained network, without DQN's target network."""
    return getattr(model.policy, "q_net", model.policy)


def count_parameters(model: BaseAlgorithm) -> int:
    """Trainable parameters, those of the value network included."""
    return sum(p.numel() for p in network_of(model).parameters() if p.requires_grad)


def measure_cost(model: BaseAlgorithm, view: View, batch: int = 256) -> dict[str, Any]:
    """What one greedy decision costs; see `evaluation.cost.decision_cost`.

    `macs_per_decision` counts matrix products and convolutions on the way to the action, not the value network. The
    times are those of the network alone, with observations that are tensors already.
    """
    # The fused LSTM of oneDNN is one operation, of which no count is known.
    with torch.backends.mkldnn.flags(enabled=False):
        macs = count_operations(_decision(model, view, 1)) // 2
    return decision_cost(lambda rows: _decision(model, view, rows), macs, batch)


def _decision(model: BaseAlgorithm, view: View, rows: int) -> Callable[[], None]:
    """A call that decides, in mid-episode, on `rows` copies of an observation."""
    policy, options = model.policy, {}
    policy.set_training_mode(False)
    view.space.seed(0)
    obs, _ = policy.obs_to_tensor(np.stack([np.asarray(view.space.sample())] * rows))
    shape = getattr(policy, "lstm_hidden_state_shape", None)
    if shape is not None:
        zeros = torch.zeros(shape[0], rows, shape[2])
        options = {"lstm_states": (zeros, zeros), "episode_starts": torch.zeros(rows)}

    @torch.no_grad()
    def decide() -> None:
        policy._predict(obs, deterministic=True, **options)

    return decide
