"""Observations in a form that Stable-Baselines3's networks can read."""

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
    """One-hot ids of a categorical grid; vectors and discrete observations as they are; dictionaries as one vector.

    A grid `(H, W)` of ids 0..K-1 becomes K planes of 0 and 1, uint8: `flat` `[K*H*W]`, or `planes` `[K, H, W]`;
    the C channels of a grid `(H, W, C)` one after another. Stable-Baselines3 makes floats of them without scaling,
    because their largest value is 1 and not an image's 255. A dictionary's entries, `flat`, follow each other in the
    order of their names, integers one-hot. With `raw` every array stays as it is: for networks that
    read ids (`core_extractor.CoreExtractor`) and for our own agents.

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
    if isinstance(space, gym.spaces.Dict) and layout == "flat":
        return _side_by_side({key: _as_vector(sub) for key, sub in sorted(space.spaces.items())})
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


def _as_vector(space: gym.Space) -> View:
    """An entry of a dictionary as a vector."""
    if isinstance(space, gym.spaces.Discrete):
        return _one_hots([int(space.n)], [int(space.start)])
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return _one_hots(space.nvec.tolist(), space.start.tolist())
    return build_view(space, "flat")


def _one_hots(sizes: list[int], starts: list[int]) -> View:
    """Integers `[N]` or `[N, m]` -> their one-hots one after another, uint8 `[N, sum(sizes)]`."""
    first = np.cumsum([0, *sizes[:-1]]) - np.asarray(starts)

    def show(obs: NDArray) -> NDArray[np.uint8]:
        hot = np.zeros((len(obs), sum(sizes)), np.uint8)
        np.put_along_axis(hot, obs.reshape(len(obs), -1) + first, 1, axis=1)
        return hot

    return View(gym.spaces.Box(0, 1, (sum(sizes),), np.uint8), show)


def _side_by_side(views: dict[str, View]) -> View:
    parts = [view.space for view in views.values()]
    dtype = np.result_type(*(part.dtype for part in parts)).type
    low, high = (np.concatenate([getattr(p, bound) for p in parts]).astype(dtype) for bound in ("low", "high"))

    def show(obs: dict[str, NDArray]) -> NDArray:
        return np.concatenate([view.show(obs[key]) for key, view in views.items()], axis=1).astype(dtype, copy=False)

    return View(gym.spaces.Box(low, high, dtype=dtype), show)


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
