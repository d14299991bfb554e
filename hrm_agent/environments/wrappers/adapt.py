"""Which wrappers an environment needs."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym

from hrm_agent.environments.action_masks import without_mask
from hrm_agent.environments.wrappers.containers import FlattenDict, FlattenTuple
from hrm_agent.environments.wrappers.minigrid import NarrowMiniGrid, has_minigrid_ids
from hrm_agent.environments.wrappers.numbers import (
    BinaryToVector,
    FlattenFloats,
    FlattenMultiDiscrete,
    ScaleIntegers,
    binary_to_vector,
    flatten_floats,
    flatten_multi_discrete,
    scale_integers,
)
from hrm_agent.environments.wrappers.parts import ConvertSpace
from hrm_agent.environments.wrappers.text import EncodeMission, EncodeText, encode_mission, encode_text

WRAPPERS: tuple[tuple[Callable[[gym.Env], gym.Env], ConvertSpace], ...] = (
    (EncodeText, encode_text),
    (EncodeMission, encode_mission),
    (BinaryToVector, binary_to_vector),
    (ScaleIntegers, scale_integers),
    (FlattenFloats, flatten_floats),
    (FlattenMultiDiscrete, flatten_multi_discrete),
)
READABLE = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)


def adapt(env: gym.Env) -> gym.Env:
    """`env` in the wrappers that its observations need; itself where they need none.

    Raises:
        ValueError: a part of the observations has no sensible encoding (graphs, sequences).
    """
    if has_minigrid_ids(env):
        env = NarrowMiniGrid(env)
    if _has_tuple(env.observation_space):
        env = FlattenTuple(env)
    if isinstance(env.observation_space, gym.spaces.Dict) and _is_nested(env.observation_space):
        env = FlattenDict(env)
    for wrapper, convert_space in WRAPPERS:
        if any(convert_space(part) is not None for part in _parts(env.observation_space).values()):
            env = wrapper(env)
    for name, part in _parts(env.observation_space).items():
        if not isinstance(part, READABLE):
            raise ValueError(
                f"{name}: no encoding for {type(part).__name__} observations; expected Box, Discrete, MultiDiscrete, "
                "MultiBinary, Text, or a Dict or Tuple of these; leave it out by gymnasium.wrappers.FilterObservation"
            )
    return env


def is_adapted(space: gym.Space) -> bool:
    """Whether encoders support this space without wrappers; a mask of legal actions in it is not theirs to read."""
    space = without_mask(space)
    if _has_tuple(space) or (isinstance(space, gym.spaces.Dict) and _is_nested(space)):
        return False
    parts = list(_parts(space).values())
    needed = any(convert_space(part) is not None for part in parts for _, convert_space in WRAPPERS)
    return not needed and all(isinstance(part, READABLE) for part in parts)


def _parts(space: gym.Space) -> dict[str, gym.Space]:
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"observation": space}


def _is_nested(space: gym.spaces.Dict) -> bool:
    return any(isinstance(sub, gym.spaces.Dict) or "." in key for key, sub in space.spaces.items())


def _has_tuple(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_has_tuple(sub) for sub in space.spaces.values())
    return isinstance(space, gym.spaces.Tuple)
