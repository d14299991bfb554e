"""Numbers in shapes, types or ranges that no encoder takes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hrm_agent.environments.wrappers.parts import Convert, PartsWrapper

MAX_ID = 255  # of a categorical grid or of an image; beyond it an integer is taken for a quantity
LINEAR_RANGE = 2**16


class BinaryToVector(PartsWrapper):
    """Bits become numbers 0 and 1: `MultiBinary(n)` and `Box(bool, (n,))` -> `Box(0, 1, (n,), float32)`.

    Bits on a grid, `MultiBinary((H, W))` or `(H, W, C)`, become ids 0 and 1 on a grid: `Box(0, 1, (H, W), uint8)`.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, binary_to_vector)


class ScaleIntegers(PartsWrapper):
    """Integers that are quantities become a vector of floats: `Box(int, any shape)` -> `Box(-1, 1, (n,), float32)`.

    Ids and pixels (0 to 255 in two or three dimensions) are left alone. A finite range of up to 65,536 is scaled to
    -1 ... 1; a wider one is compressed by `sign(x) * log(1 + |x|)` (symlog, arXiv 2301.04104), as counters
    without a bound have values from 0 to millions.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, scale_integers)


class FlattenFloats(PartsWrapper):
    """Floats of any shape become a vector: `Box(float, ())` -> `(1,)`, `Box(float, (a, b))` -> `(a*b,)`.

    Three dimensions are left alone: images.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, flatten_floats)


class FlattenMultiDiscrete(PartsWrapper):
    """A table of choices becomes a row: `MultiDiscrete([[2, 3], [4, 5]])` -> `MultiDiscrete([2, 3, 4, 5])`."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, flatten_multi_discrete)


def binary_to_vector(space: gym.Space) -> tuple[gym.Space, Convert] | None:
    is_bits = isinstance(space, gym.spaces.MultiBinary) or (isinstance(space, gym.spaces.Box) and space.dtype == bool)
    if not is_bits:
        return None
    shape = space.shape or ()
    if len(shape) in (2, 3):
        return gym.spaces.Box(0, 1, shape, np.uint8), lambda obs: np.asarray(obs, np.uint8)
    return gym.spaces.Box(0, 1, (_size(shape),), np.float32), _to_vector


def scale_integers(space: gym.Space) -> tuple[gym.Space, Convert] | None:
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.integer):
        return None
    if len(space.shape) in (2, 3) and space.low.min() >= 0 and space.high.max() <= MAX_ID:
        return None
    low, high = (np.asarray(x, np.float64).reshape(-1) for x in (space.low, space.high))
    narrow = high - low <= LINEAR_RANGE
    width = np.where(narrow, np.maximum(high - low, 1), 1)
    scaled_low, scaled_high = (np.where(narrow, edge, _symlog(x)) for edge, x in ((-1.0, low), (1.0, high)))

    def scale(obs: Any) -> NDArray[np.float32]:
        x = np.asarray(obs, np.float64).reshape(-1)
        return np.where(narrow, 2 * (x - low) / width - 1, _symlog(x)).astype(np.float32)

    # A hair wider than the values, because they are rounded to single precision.
    bound_low = np.nextafter(scaled_low.astype(np.float32), np.float32(-np.inf))
    bound_high = np.nextafter(scaled_high.astype(np.float32), np.float32(np.inf))
    return gym.spaces.Box(bound_low, bound_high, dtype=np.float32), scale


def flatten_floats(space: gym.Space) -> tuple[gym.Space, Convert] | None:
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return None
    if len(space.shape) in (1, 3):
        return None
    low, high = (x.reshape(-1).astype(np.float32) for x in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=np.float32), _to_vector


def flatten_multi_discrete(space: gym.Space) -> tuple[gym.Space, Convert] | None:
    if not isinstance(space, gym.spaces.MultiDiscrete) or len(space.shape) == 1:
        return None
    flat = gym.spaces.MultiDiscrete(space.nvec.reshape(-1), dtype=space.dtype, start=space.start.reshape(-1))
    return flat, lambda obs: np.asarray(obs).reshape(-1)


def _to_vector(obs: Any) -> NDArray[np.float32]:
    return np.asarray(obs, np.float32).reshape(-1)


def _symlog(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(x) * np.log1p(np.abs(x))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
