"""An environment, a core and settings as a program brings them to `hrm_agent.learn`."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from hrm_agent.cores import Core, State


class Recall(gym.Env):
    """The first observation holds a sign; the action after `delay` further ones must name it."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, delay: int = 3, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Dict(
            {"sign": gym.spaces.Discrete(4), "time": gym.spaces.Box(0.0, 1.0, (1,), np.float32)}
        )
        self.action_space = gym.spaces.Discrete(3)
        self.delay, self.render_mode = delay, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.sign = 0, int(self.np_random.integers(3))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps > self.delay
        right = ended and int(action) == self.sign
        return self._observe(), float(right), ended, False, {"is_success": right} if ended else {}

    def _observe(self) -> dict[str, Any]:
        shown = self.sign if self.steps == 0 else 3
        return {"sign": np.int64(shown), "time": np.array([self.steps / self.delay], np.float32)}

    def render(self) -> Any:
        return np.full((8, 8, 3), 10 * self.steps, np.uint8)


class RingState(NamedTuple):
    z: Tensor


class Ring(Core):
    """Every token is updated from its neighbours on a ring."""

    def __init__(self, hidden_size: int, length: int, grid: tuple[int, int] | None = None, *, rounds: int = 2) -> None:
        super().__init__(hidden_size, length, grid)
        self.rounds = rounds
        self.mix = nn.Linear(4 * hidden_size, hidden_size)

    def initial_state(self, batch_size: int) -> RingState:
        return RingState(self.mix.weight.new_zeros(batch_size, self.length, self.hidden_size))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, RingState]:
        (z,) = state
        for _ in range(self.rounds):
            z = self.mix(torch.cat([x, z, z.roll(1, dims=1), z.roll(-1, dims=1)], dim=-1)).tanh()
        return z, RingState(z)


LEARNED: dict[str, Any] = {
    "segments": 1,
    "algo": {"num_envs": 8, "rollout_steps": 4, "window": 4, "minibatch_windows": 4, "epochs": 2},
    "total_steps": 256,
    "checkpoint_every": 64,
    "log_every": 32,
    "eval_every": 0,
    "eval_episodes": 4,
    "test_episodes": 0,
    "threads": 1,
}
"""With `SMALL_CORE`, `commands.TINY_RUN` but for its maze."""
SMALL_CORE: dict[str, Any] = {"name": "trm", "hidden_size": 8, "inner_size": 8}
