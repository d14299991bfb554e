"""Base class of wrappers that convert some parts of an observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TransformObservation

Convert = Callable[[Any], Any]
ConvertSpace = Callable[[gym.Space], tuple[gym.Space, Convert] | None]


class PartsWrapper(TransformObservation):
    """Converts every part of the observation that `convert_space` supports: the whole of it, or entries of a Dict.

    Args:
        env: its observations may be Dicts of Dicts.
        convert_space: from a part's space to its new space and the function from old to new observation; None where
            the part is not converted.
    """

    def __init__(self, env: gym.Env, convert_space: ConvertSpace) -> None:
        space, convert = _convert(env.observation_space, convert_space)
        super().__init__(env, convert or (lambda obs: obs), space)


def _convert(space: gym.Space, convert_space: ConvertSpace) -> tuple[gym.Space, Convert | None]:
    if not isinstance(space, gym.spaces.Dict):
        return convert_space(space) or (space, None)
    parts = {key: _convert(sub, convert_space) for key, sub in space.spaces.items()}
    changed = {key: function for key, (_, function) in parts.items() if function is not None}
    if not changed:
        return space, None
    return (
        gym.spaces.Dict({key: sub for key, (sub, _) in parts.items()}),
        lambda obs: {key: changed[key](value) if key in changed else value for key, value in obs.items()},
    )
