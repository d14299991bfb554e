"""The reference player of the Towers of Hanoi."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrm_envs.hanoi import shortest_actions


class HanoiReplanActor:
    """An optimal move to the goal as it is; an actor for `hrm_agent.evaluation.episodes.run_episodes`."""

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """It remembers nothing."""

    def act(self, obs: dict[str, NDArray]) -> NDArray[np.int64]:
        """Actions int64 `[N]` for observations of `Hanoi-v0`."""
        return shortest_actions(obs["disks"])

    def keep(self, rows: NDArray[np.int64]) -> None:
        """It remembers nothing."""
