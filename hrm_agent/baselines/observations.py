"""What Stable-Baselines3 gets to see: the same observations, in a form that its networks can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("flat", "planes", "raw")
MAX_IDS = 32


class View(NamedTuple):
    """Observations of an environment in another form.

    Attributes:
        space: of one observation in this form.
        show: a batch `[N, ...]` of the environment's observations -> a batch `[N, ...]` of `space`, freshly allocated.
    """

    space: gym.Space
    show: Callable[[Any], NDArray]


def build_view(space: gym.Space, layout: str) -> View:
    """One-hot ids of a categorical grid; vectors and discrete observations as they are.

    A grid `(H, W)` of ids 0..K-1 becomes K planes of 0 and 1, uint8: `flat` `[K*H*W]`, or `planes` `[K, H, W]`;
    the C channels of a grid `(H, W, C)` one after another. Stable-Baselines3 makes floats of them without scaling,
    because their largest value is 1 and not an image's 255. With `raw` every array stays as it is: for networks that
    read ids (`hrm_agent.sb3.CoreExtractor`) and for our own agents.

    Args:
        space: of one observation of the environment.
        layout: one of `LAYOUTS`.

    Raises:
        ValueError: no such form of this space.
    """
    assert layout in LAYOUTS
    if layout == "raw":
        if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
            raise ValueError(f"observation space {space}: expected one array; use Stable-Baselines3's own environments")
        return View(space, np.array)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.integer) and len(space.shape) in (2, 3):
        return _one_hot(space, layout)
    if layout == "planes":
        raise ValueError(f"observation space {space}: expected a grid of ids (H, W) for a network with convolutions")
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return View(space, np.array)
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return View(space, np.array)
    raise ValueError(
        f"observation space {space}: expected a grid of ids (H, W) or (H, W, C), a vector (n,) or Discrete; "
        "wrap the environment"
    )


def _one_hot(space: gym.spaces.Box, layout: str) -> View:
    count = int(space.high.max()) + 1
    if space.low.min() < 0 or count > MAX_IDS:
        raise ValueError(f"observation space {space}: expected ids in 0..{MAX_IDS - 1}; wrap the environment")
    height, width, channels = (*space.shape, 1)[:3]
    ids = np.arange(count, dtype=space.dtype)[:, None, None]
    shape = (channels * count, height, width)
    if layout == "flat":
        shape = (channels * count * height * width,)  # type: ignore[assignment]

    def show(obs: NDArray) -> NDArray[np.uint8]:
        grids = obs[:, None, None] if channels == 1 and obs.ndim == 3 else np.moveaxis(obs, 3, 1)[:, :, None]
        return (grids == ids).view(np.uint8).reshape(len(obs), *shape)

    return View(gym.spaces.Box(0, 1, shape, np.uint8), show)
