"""Videos of environments that cannot be drawn: what a video needs is said."""

from __future__ import annotations

import gymnasium as gym
import pytest

from failing_envs import Blind, Mute
from hrm_agent.evaluation.video import record_episodes
from tiny import tiny_policy


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
