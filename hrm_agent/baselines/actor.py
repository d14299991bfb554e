"""A model of Stable-Baselines3 as an actor for our evaluation, and the cost of its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution
from torch import nn

from hrm_agent.baselines.observations import View
from hrm_agent.evaluation.cost import count_operations, decision_cost
from hrm_agent.evaluation.draws import LevelRNG


class SB3Actor:
    """Decisions of a model of Stable-Baselines3 or sb3-contrib (`evaluation.episodes.Actor`).

    Args:
        model: unchanged, except that its network is left in evaluation mode.
        view: converts the environment's observations to the model's.
        first_action: the environment's first action; the model counts from 0.
        deterministic: the most probable action, or one drawn from the policy's distribution; each level has random
            numbers of its own, as in `evaluation.episodes.PolicyActor`.

    Raises:
        ValueError: actions are to be drawn, and the model has no distribution to draw from (`has_distribution`).
    """

    def __init__(self, model: BaseAlgorithm, view: View, first_action: int = 0, deterministic: bool = True) -> None:
        if not deterministic and not has_distribution(model):
            raise ValueError(f"{type(model).__name__}: has no distribution to draw discrete actions from")
        self.policy: Any = model.policy
        self.view, self.first_action, self.deterministic = view, first_action, deterministic

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.state: tuple[NDArray, ...] | None = None  # of an LSTM: [layers, N, units] each
        self.episode_start = np.ones(len(seeds), bool)
        self.rng = None if self.deterministic else LevelRNG(seeds)

    def act(self, obs: Any) -> NDArray[np.int64]:
        shown = self.view.show(obs)
        if self.rng is None:
            actions, self.state = self.policy.predict(shown, self.state, self.episode_start, True)
        else:
            edges = self._probabilities(shown).cumsum(1)[:, :-1]
            actions = (self.rng.draw()[:, None] >= edges).sum(1)
        self.episode_start = np.zeros_like(self.episode_start)
        return actions.astype(np.int64) + self.first_action

    @torch.no_grad()
    def _probabilities(self, shown: NDArray) -> NDArray[np.float32]:
        """Of the actions, `[N, A]`; an LSTM's state goes on."""
        self.policy.set_training_mode(False)
        obs, _ = self.policy.obs_to_tensor(shown)
        shape = getattr(self.policy, "lstm_hidden_state_shape", None)
        if shape is None:
            distribution = self.policy.get_distribution(obs)
        else:
            zeros = np.zeros((shape[0], len(shown), shape[2]), np.float32)
            states = tuple(torch.as_tensor(part) for part in self.state or (zeros, zeros))
            starts = torch.as_tensor(self.episode_start, dtype=torch.float32)
            distribution, states = self.policy.get_distribution(obs, states, starts)
            self.state = tuple(part.numpy() for part in states)
        return distribution.distribution.probs.numpy()

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.episode_start = self.episode_start[rows]
        if self.state is not None:
            self.state = tuple(part[:, rows] for part in self.state)
        if self.rng is not None:
            self.rng.keep(rows)


def has_distribution(model: BaseAlgorithm) -> bool:
    """Whether decisions are drawn from probabilities of discrete actions; Q-values are none."""
    return isinstance(getattr(model.policy, "action_dist", None), CategoricalDistribution)


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
