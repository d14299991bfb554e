"""MiniGrid's observations are ids that it declares as bytes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformObservation

# Largest ids of object, colour and state in minigrid 3.2 (`minigrid/core/constants.py`); the state of an agent that is
# drawn into the image is its direction.
HIGHEST_IDS = (10, 5, 3)


class NarrowMiniGrid(TransformObservation):
    """The true range of MiniGrid's ids: `image: Box(0, 255, (v, v, 3), uint8)` -> `Box(0, (10, 5, 3), (v, v, 3))`.

    Only the declared range changes. It distinguishes ids from pixels, and an encoder then learns 11 embeddings for each
    position and channel rather than 256.
    """

    def __init__(self, env: gym.Env) -> None:
        space = env.observation_space
        if not has_minigrid_ids(env):
            raise ValueError(f"NarrowMiniGrid: expected MiniGrid's own observations, got {space} of {env}")
        assert isinstance(space, gym.spaces.Dict)
        shape = space["image"].shape
        assert shape is not None
        high = np.broadcast_to(np.asarray(HIGHEST_IDS, np.uint8), shape)
        narrow = gym.spaces.Box(np.zeros(shape, np.uint8), high.copy(), dtype=np.uint8)
        super().__init__(env, lambda obs: obs, gym.spaces.Dict({**space.spaces, "image": narrow}))


def has_minigrid_ids(env: gym.Env) -> bool:
    """Whether `env` is MiniGrid's and shows ids, not yet narrowed. Known by name: minigrid is an optional package."""
    if not any(kind.__name__ == "MiniGridEnv" for kind in type(env.unwrapped).__mro__):
        return False
    image = env.observation_space.spaces.get("image") if isinstance(env.observation_space, gym.spaces.Dict) else None
    view = getattr(env.unwrapped, "agent_view_size", None)
    return isinstance(image, gym.spaces.Box) and image.shape == (view, view, 3) and int(image.high.max()) == 255
