"""A model of Stable-Baselines3 under our evaluator, and what its decisions cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hrm_agent.baselines.observations import View
from hrm_agent.evaluation.report import median_ms


class SB3Actor:
    """Greedy decisions of a model of Stable-Baselines3 or sb3-contrib (`evaluation.episodes.Actor`).

    Args:
        model: never changed here, but that its network is left in evaluation mode.
        view: from the environment's observations to the model's.
        first_action: number of the environment's first action; the model counts from 0.
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
    """The weights that are trained: without the copy that DQN's targets come from."""
    return getattr(model.policy, "q_net", model.policy)


def count_parameters(model: BaseAlgorithm) -> int:
    """Numbers that training changes, those of the value's network included."""
    return sum(p.numel() for p in network_of(model).parameters() if p.requires_grad)


def measure_cost(model: BaseAlgorithm, view: View, batch: int = 256) -> dict[str, Any]:
    """What one greedy decision costs; the fields of `evaluation.report.measure_cost`.

    `macs_per_decision` counts matrix products and convolutions on the way to the action; the value's network takes no
    part in it. The times are those of the network alone, observations already being tensors.
    """
    one, many = _Decision(model.policy, view, 1), _Decision(model.policy, view, batch)
    return {
        "macs_per_decision": one.count_macs(),
        "ms_per_decision": median_ms(one),
        "ms_per_decision_batched": median_ms(many) / batch,
        "batch": batch,
    }


class _Decision:
    """A call that decides, in mid-episode, for `batch` copies of an observation."""

    def __init__(self, policy: BasePolicy, view: View, batch: int) -> None:
        policy.set_training_mode(False)
        view.space.seed(0)
        obs = np.stack([np.asarray(view.space.sample())] * batch)
        self.policy, self.options = policy, {}
        self.obs, _ = policy.obs_to_tensor(obs)
        shape = getattr(policy, "lstm_hidden_state_shape", None)
        if shape is not None:
            zeros = torch.zeros(shape[0], batch, shape[2])
            self.options = {"lstm_states": (zeros, zeros), "episode_starts": torch.zeros(batch)}

    @torch.no_grad()
    def __call__(self) -> None:
        self.policy._predict(self.obs, deterministic=True, **self.options)

    def count_macs(self) -> int:
        # The fused LSTM of oneDNN is one operation that the counter does not know.
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() // 2
