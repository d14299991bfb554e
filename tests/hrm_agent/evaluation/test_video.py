"""Videos of environments that cannot be drawn: what a video needs is said."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from hrm_agent.evaluation.video import record_episodes
from tiny import tiny_policy


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

    def render(self) -> None:
        return None


@pytest.mark.parametrize("kind", [Blind, Mute])
def test_an_environment_that_is_not_drawn_says_what_a_video_needs(
    kind: type[gym.Env], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    gym.register(f"{kind.__name__}-v0", entry_point=kind)
    policy = tiny_policy(kind.observation_space, core="gru", readout="mean", actions=kind.action_space)
    with pytest.raises(ValueError, match=r"accepts render_mode='rgb_array' and whose render\(\) gives uint8") as caught:
        record_episodes(policy, f"{kind.__name__}-v0", {}, 1)
    assert "\n" not in str(caught.value)
