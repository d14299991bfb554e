"""Gymnasium spaces to and from JSON, and whether an agent's spaces fit an environment's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def space_to_dict(space: gym.Space) -> dict[str, Any]:
    """Raises: ValueError for an unsupported space."""
    if isinstance(space, gym.spaces.Box):
        low, high = np.asarray(space.low), np.asarray(space.high)
        plain = (low == low.flat[0]).all() and (high == high.flat[0]).all()
        return {
            "type": "Box",
            "dtype": str(space.dtype),
            "shape": list(space.shape),
            "low": _number(low.flat[0]) if plain else [_number(x) for x in low.flat],
            "high": _number(high.flat[0]) if plain else [_number(x) for x in high.flat],
        }
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, gym.spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_dict(sub) for key, sub in space.spaces.items()}}
    raise ValueError(f"space {space}: expected Box, Discrete, MultiDiscrete or Dict")


def space_from_dict(values: dict[str, Any]) -> gym.Space:
    """Inverse of `space_to_dict`."""
    kind = values["type"]
    if kind == "Box":
        shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"])
        low, high = (np.asarray(values[k], dtype=np.float64) for k in ("low", "high"))
        return gym.spaces.Box(
            np.broadcast_to(low.reshape(shape) if low.ndim else low, shape).astype(dtype),
            np.broadcast_to(high.reshape(shape) if high.ndim else high, shape).astype(dtype),
            dtype=dtype.type,
        )
    if kind == "Discrete":
        return gym.spaces.Discrete(values["n"], start=values["start"])
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(np.asarray(values["nvec"]), start=np.asarray(values["start"]))
    if kind == "Dict":
        return gym.spaces.Dict({key: space_from_dict(sub) for key, sub in values["spaces"].items()})
    raise ValueError(f"space of type {kind!r}: expected Box, Discrete, MultiDiscrete or Dict")


def _number(value: Any) -> float | int:
    return float(value) if np.issubdtype(type(value), np.floating) else int(value)
