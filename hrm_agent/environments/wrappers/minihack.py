"""NetHack (NLE, MiniHack) with Gymnasium's contract: seeding by `reset`, and truncation by time limits."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class RepeatableNetHack(gym.Wrapper):
    """A task of NLE or MiniHack with correct seeding, time limit and final observation.

    NLE 1.3 ignores `reset(seed=...)` and seeds itself from the operating system; reports its time limit as a
    termination, from which a learner would not bootstrap; quits the game before returning the final observation, which
    is then blank; and returns its buffers, which the next step overwrites. Here games are a function of the seed given
    to `reset`, the time limit is a truncation, and observations are copies of what the player saw.

    Args:
        env: whose `unwrapped` is an `nle.env.NLE`.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._dice = np.random.default_rng()
        # The next reset begins a new game either way; only a recording of the game would miss its last keys.
        self.unwrapped._quit_game = lambda observation, done: None  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new game: the first of `seed`, or the next one if None."""
        if seed is not None:
            self._dice = np.random.default_rng(seed)
        core, display = (int(number) for number in self._dice.integers(2**31, size=2))
        self.unwrapped.seed(core, display, reseed=False)  # type: ignore[attr-defined]
        observation, info = self.env.reset(seed=seed, options=options)
        return _copied(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One key."""
        observation, reward, ended, truncated, info = self.env.step(action)
        aborted = info["end_status"] == self.unwrapped.StepStatus.ABORTED  # type: ignore[attr-defined]
        truncated = bool(truncated or (ended and aborted))
        return _copied(observation), reward, bool(ended and not truncated), truncated, info


def _copied(observation: Any) -> Any:
    return {key: np.array(value) for key, value in observation.items()}
