"""Our cores as features of agents of Stable-Baselines3: `CoreExtractor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from hrm_agent.cores import build_core
from hrm_agent.launch.settings import shipped_options
from hrm_agent.names.values import typed
from hrm_agent.policies.encoders import EncoderConfig, Observation, build_encoder, find_grid
from hrm_agent.policies.policy import READOUTS, agent_token
from hrm_agent.recurrence.unroll import read_token, run_segments


class CoreExtractor(BaseFeaturesExtractor):
    """Observations -> tokens -> `segments` segments of a core -> one token, float `[N, hidden_size]`.

        PPO("MlpPolicy", env, policy_kwargs=dict(
            features_extractor_class=hrm_agent.sb3.CoreExtractor,
            features_extractor_kwargs=dict(core="trm", readout="agent", encoder=dict(crop=1, patch_size=2)),
        ))

    The library's algorithms carry no core state between steps: every call starts from the core's initial state, as with
    `carry=reset`. To carry it, train with `python -m hrm_agent.train`.

    The library has turned observations into floats before they come here (one-hot numbers, pixels divided by 255,
    channels in front), which is undone, so that a grid of ids, also one of bytes up to 255 as MiniGrid's, is read as
    ids. Where the observations are a dictionary the policy is `MultiInputPolicy`. Vectors are taken as they come; the
    library's `VecNormalize` scales them.

    Args:
        observation_space: given by the library.
        core: a name that `hrm_agent.cores.build_core` knows.
        hidden_size: width of the features; None: as shipped with the core, 64.
        segments: calls of the core per observation.
        readout: the token that is given: the `agent`'s (grids only), the `mean` of all, the `first` or the `last`.
        agent_id: the id that marks the agent in a grid, for `readout=agent`.
        encoder: settings of `hrm_agent.policies.encoders.EncoderConfig` by name; `dict(crop=1, patch_size=2)` suits
            our mazes.
        core_options: changed options of the core; the others are as shipped in `configs/core`, where it is there.
        normalize_images: what the policy was given of this name (`policy_kwargs`).

    Raises:
        ValueError: an unknown core, option or setting, or one that does not suit the observations.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        core: str = "trm",
        hidden_size: int | None = None,
        segments: int = 1,
        readout: str = "mean",
        agent_id: int = 3,
        encoder: Mapping[str, Any] | None = None,
        core_options: Mapping[str, Any] | None = None,
        normalize_images: bool = True,
    ) -> None:
        if segments < 1:
            raise ValueError(f"segments={segments}: expected 1 or more")
        if readout not in READOUTS:
            raise ValueError(f"readout={readout!r}: expected one of {', '.join(READOUTS)}")
        options = {**shipped_options(core), **(core_options or {})}
        width = options.pop("hidden_size", 64) if hidden_size is None else hidden_size
        options.pop("hidden_size", None)
        super().__init__(observation_space, width)
        self.segments, self.readout, self.agent_id = segments, readout, agent_id
        self.original = _original(observation_space, normalize_images)
        settings = typed(EncoderConfig, dict(encoder or {}), "encoder")
        if settings.frames > 1:
            raise ValueError(f"encoder.frames={settings.frames}: no frames are kept here; use the library's wrappers")
        self.encoder = build_encoder(self.original.space, width, settings)
        self.core = build_core(core, hidden_size=width, length=self.encoder.length, grid=self.encoder.grid, **options)
        self._grid = find_grid(self.encoder)
        if readout == "agent" and self._grid is None:
            raise ValueError(f"readout=agent needs a grid observation, got {observation_space}; use readout=mean")

    def forward(self, observations: Observation) -> Tensor:
        obs = self.original.restore(observations)
        tokens = self.encoder(obs)
        state = self.core.initial_state(tokens.shape[0])
        output, state = run_segments(self.core, tokens, state, self.segments)
        index = None
        if self.readout == "agent" and self._grid is not None:
            index = agent_token(self._grid, obs, self.agent_id)
        return read_token(output, self.readout, index)


class _Original(NamedTuple):
    """An observation space as the environment has it, and the way back to it from the library's floats."""

    space: gym.Space
    restore: Callable[[Any], Any]


def _original(space: gym.Space, normalized: bool) -> _Original:
    """What `stable_baselines3.common.preprocessing.preprocess_obs` does to observations, backwards."""
    if isinstance(space, gym.spaces.Dict):
        parts = {key: _original(sub, normalized) for key, sub in space.spaces.items()}
        spaces = gym.spaces.Dict({key: part.space for key, part in parts.items()})
        return _Original(spaces, lambda obs: {key: part.restore(obs[key]) for key, part in parts.items()})
    if isinstance(space, gym.spaces.Discrete):
        return _Original(space, lambda obs: obs.reshape(len(obs), -1).argmax(1) + int(space.start))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return _Original(space, lambda obs: _numbers(obs, space))
    if isinstance(space, gym.spaces.MultiBinary):
        return _Original(gym.spaces.Box(0.0, 1.0, (int(np.prod(space.shape)),)), lambda obs: obs.flatten(1))
    if is_image_space(space):
        return _image(space, normalized)
    return _Original(space, lambda obs: obs)


def _numbers(one_hot: Tensor, space: gym.spaces.MultiDiscrete) -> Tensor:
    """One-hot codes one after another `[N, sum(n)]` -> numbers `[N, len(n)]`."""
    codes = one_hot.reshape(len(one_hot), -1).split([int(n) for n in space.nvec], dim=1)
    starts = torch.as_tensor(space.start, device=one_hot.device)
    return torch.stack([code.argmax(1) for code in codes], dim=1) + starts


def _image(space: gym.Space, normalized: bool) -> _Original:
    """Bytes, channels last; the library moves them to the front and divides by 255."""
    assert isinstance(space, gym.spaces.Box)
    first = is_image_space_channels_first(space)
    shape = (*space.shape[1:], space.shape[0]) if first else space.shape

    def restore(obs: Tensor) -> Tensor:
        pixels = (obs * 255.0).round() if normalized else obs  # exact for bytes: float32 has the digits
        return pixels.permute(0, 2, 3, 1) if first else pixels

    return _Original(gym.spaces.Box(0, 255, shape, np.uint8), restore)
