"""Environments that misbehave in a way that is chosen: `failing_envs:Failing-v0`, and a vector of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

SPACES = gym.spaces.Dict(place=gym.spaces.Discrete(50), speed=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32))
FAULTS = {
    "not_a_number": {"place": 1, "speed": np.array([0, np.nan], np.float32)},
    "infinite": {"place": 1, "speed": np.array([-np.inf, 0], np.float32)},
    "range": {"place": 50, "speed": np.zeros(2, np.float32)},
    "shape": {"place": 1, "speed": np.zeros(3, np.float32)},
    "type": {"place": 1.5, "speed": np.zeros(2, np.float32)},
    "missing": {"place": 1},
}
"""Observations that are not of `SPACES`."""


def broken_gadget() -> None:
    """What an environment of another package calls."""
    raise ZeroDivisionError("the gadget is \x1b[31mbroken")


class Failing(gym.Env):
    """Walks on; goes wrong at step `at` of an episode of a seed from `seeds` on, in the way that `fault` names.

    Args:
        fault: one of `FAULTS`, of the rewards `nan_reward` or `no_reward`, or the method that raises: `reset`,
            `step`, `close`, `render`, `constructor`, `exit`, `interrupt`.
        length: steps of an episode; 0: it does not end.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self, fault: str = "", at: int = 3, seeds: int = 0, length: int = 6, render_mode: str | None = None
    ) -> None:
        self.observation_space, self.action_space = SPACES, gym.spaces.Discrete(2)
        self.fault, self.at, self.seeds, self.length, self.render_mode = fault, at, seeds, length, render_mode
        self.seed, self.steps = 0, 0
        if fault == "constructor":
            broken_gadget()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.seed, self.steps = self.seed if seed is None else seed, 0
        if self.fault == "reset" and self.seed >= self.seeds:
            broken_gadget()
        return self._see(), {}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        self.steps += 1
        reward: Any = 0.5
        if self._wrong:
            match self.fault:
                case "step":
                    broken_gadget()
                case "exit":
                    raise SystemExit(0)
                case "interrupt":
                    raise KeyboardInterrupt
                case "nan_reward":
                    reward = float("nan")
                case "no_reward":
                    reward = None
        return self._see(), reward, self.steps == self.length, False, {}

    def close(self) -> None:
        if self.fault == "close":
            broken_gadget()

    def render(self) -> NDArray[np.uint8]:
        if self.fault == "render":
            broken_gadget()
        return np.zeros((20, 20, 3), np.uint8)

    @property
    def _wrong(self) -> bool:
        return self.steps == self.at and self.seed >= self.seeds

    def _see(self) -> dict[str, Any]:
        if self._wrong and self.fault in FAULTS:
            return dict(FAULTS[self.fault])
        return {"place": self.steps % 50, "speed": np.full(2, self.steps / 10, np.float32)}


class Numbers(VectorEnv):
    """A vector of its own, `fault` of which is wrong at step 2: a shape, a type, its infos, a final observation."""

    def __init__(self, num_envs: int, fault: str = "", max_episode_steps: int | None = None) -> None:
        self.num_envs, self.fault = num_envs, fault
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.steps = 0

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        self.steps += 1
        obs, rewards = np.zeros((self.num_envs, 2), np.float32), np.zeros(self.num_envs)
        ended, wrong = np.full(self.num_envs, self.steps == 2), self.fault if self.steps == 2 else ""
        final = np.zeros((self.num_envs - (wrong == "few_finals"), 2), np.float32)
        if wrong == "nan_final":
            final[1, 0] = np.nan
        if wrong == "raises":
            broken_gadget()
        if wrong == "rewards":
            rewards = rewards[1:]
        if wrong == "shape":
            obs = obs[:, :1]
        if wrong == "text":
            obs = np.full(obs.shape, "x")
        if self.fault == "double":
            obs = obs.astype(np.float64)
        infos = {} if not ended.any() or wrong == "no_finals" else {"final_obs": final}
        return obs, rewards, ended, np.zeros(self.num_envs, bool), infos


gym.register("Failing-v0", entry_point="failing_envs:Failing")
gym.register("FailingNumbers-v0", vector_entry_point="failing_envs:Numbers")


class Blind(gym.Env):
    """It takes no `render_mode`."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, True, False, {}


class Mute(Blind):
    """It takes one, and draws nothing."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return None
