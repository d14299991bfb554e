"""A corridor with a door at either end, one of which is right."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

EMPTY, WALKER, DOOR = range(3)
CELLS = 7


class Corridor(gym.Env):
    """The walker starts in the middle, and is told which door is the right one.

    Observations are a dictionary: `cells`, uint8 ids `(1, 7)`, and `hint`, float32 `(2,)`, one entry for each door.
    Actions: 0 left, 1 right. Through the right door the reward is 1 and the episode a success, through the wrong one
    it ends without. Twelve steps are the limit. There is nothing to render.
    """

    def __init__(self, hint: float = 1.0) -> None:
        self.observation_space = gym.spaces.Dict(
            {
                "cells": gym.spaces.Box(0, DOOR, (1, CELLS), np.uint8),
                "hint": gym.spaces.Box(0.0, np.inf, (2,), np.float32),
            }
        )
        self.action_space = gym.spaces.Discrete(2)
        self.hint = hint
        self.at, self.right_door = CELLS // 2, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.right_door = CELLS // 2, int(self.np_random.integers(2))
        return self.observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at += 1 if action == 1 else -1
        ended = self.at in (0, CELLS - 1)
        success = ended and (self.at > 0) == bool(self.right_door)
        return self.observe(), float(success), ended, False, {"is_success": success}

    def observe(self) -> dict[str, np.ndarray]:
        cells, hint = np.zeros((1, CELLS), np.uint8), np.zeros(2, np.float32)
        cells[0, [0, -1]] = DOOR
        cells[0, self.at] = WALKER
        hint[self.right_door] = self.hint
        return {"cells": cells, "hint": hint}


def register_envs() -> None:
    """Make `Corridor-v0` known to Gymnasium; `second_project:Corridor-v0` imports the package, which calls this."""
    if "Corridor-v0" not in gym.registry:
        gym.register("Corridor-v0", entry_point="second_project.envs:Corridor", max_episode_steps=12)
