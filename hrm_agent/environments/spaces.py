"""Gymnasium spaces to and from JSON, and whether an agent's spaces fit an environment's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import gymnasium as gym
import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from hrm_agent.names.values import shown

MOST_ENTRIES = 2**23
"""Numbers in one observation, or in one action: a video frame of 1080p in colour has 6.2 million."""
DEEPEST = 8
LARGEST = 2**62

Side = Annotated[int, Meta(ge=1, le=MOST_ENTRIES)]
Size = Annotated[int, Meta(ge=1, le=2**31)]
DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
]  # fmt: skip


class _Box(Struct, tag_field="type", tag="Box"):
    dtype: DType
    shape: Annotated[list[Side], Meta(max_length=8)]
    low: int | float | list[int | float]
    high: int | float | list[int | float]


class _Discrete(Struct, tag_field="type", tag="Discrete"):
    n: Size
    start: Annotated[int, Meta(ge=-LARGEST, le=LARGEST)] = 0


class _MultiDiscrete(Struct, tag_field="type", tag="MultiDiscrete"):
    nvec: list[Any]
    start: list[Any]


class _MultiBinary(Struct, tag_field="type", tag="MultiBinary"):
    n: Side


class _Dict(Struct, tag_field="type", tag="Dict"):
    spaces: Annotated[dict[str, _Box | _Discrete | _MultiDiscrete | _MultiBinary | _Dict], Meta(min_length=1)]


_Record = _Box | _Discrete | _MultiDiscrete | _MultiBinary | _Dict


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
    if isinstance(space, gym.spaces.MultiBinary) and len(space.shape) == 1:
        return {"type": "MultiBinary", "n": space.shape[0]}
    if isinstance(space, gym.spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_dict(sub) for key, sub in space.spaces.items()}}
    raise ValueError(f"space {space}: expected Box, Discrete, MultiDiscrete, MultiBinary or Dict")


def space_from_dict(values: Any) -> gym.Space:
    """Inverse of `space_to_dict`, for values that may come from a stranger.

    Raises:
        ValueError: no description of a space, or of one with more than `MOST_ENTRIES` numbers; nothing large is made.
    """
    try:
        record: _Record = msgspec.convert(values, _Record)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a space: {str(error).replace('`', '')}") from None
    except RecursionError:
        raise ValueError("not a space: nested too deeply") from None
    entries = sum(_entries(record, DEEPEST))
    if entries > MOST_ENTRIES:
        raise ValueError(f"a space of {entries:,} numbers; expected {MOST_ENTRIES:,} at most")
    return _build(record)


def _entries(record: _Record, depth: int) -> Iterator[int]:
    if isinstance(record, _Box):
        yield math.prod(record.shape)
    elif isinstance(record, _MultiBinary):
        yield record.n
    elif isinstance(record, _Dict):
        if depth == 0:
            raise ValueError(f"not a space: dictionaries nested more than {DEEPEST} deep")
        for key, sub in record.spaces.items():
            if not key.isprintable():
                raise ValueError(f"not a space: its part {shown(key)} has control characters in its name")
            yield from _entries(sub, depth - 1)
    else:
        yield len(record.nvec) if isinstance(record, _MultiDiscrete) else 1


def _build(record: _Record) -> gym.Space:
    if isinstance(record, _Box):
        dtype, shape = np.dtype(record.dtype), tuple(record.shape)
        low, high = (_bounds(bounds, shape, dtype) for bounds in (record.low, record.high))
        if not (low <= high).all():
            raise ValueError("not a space: low is above high")
        return gym.spaces.Box(low, high, dtype=dtype.type)
    if isinstance(record, _Discrete):
        return gym.spaces.Discrete(record.n, start=record.start)
    if isinstance(record, _MultiDiscrete):
        nvec, start = _integers(record.nvec), _integers(record.start)
        if nvec.shape != start.shape or not ((nvec >= 1) & (nvec <= 2**31) & (abs(start) <= LARGEST)).all():
            raise ValueError("not a space: MultiDiscrete needs as many sizes, 1 or more, as starts")
        return gym.spaces.MultiDiscrete(nvec, start=start)
    if isinstance(record, _MultiBinary):
        return gym.spaces.MultiBinary(record.n)
    return gym.spaces.Dict({key: _build(sub) for key, sub in record.spaces.items()})


def _bounds(values: Any, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    """One bound for every entry, or a list of them: an array of this shape."""
    several = isinstance(values, list)
    if several and len(values) != math.prod(shape):
        raise ValueError(f"not a space: {len(values):,} bounds for {math.prod(shape):,} numbers")
    if dtype.kind != "f" and any(isinstance(each, float) for each in (values if several else [values])):
        values = [_whole(each) for each in values] if several else _whole(values)
    try:
        with np.errstate(over="ignore"):  # beyond the largest float16: no bound
            array = np.array(values, np.float64).astype(dtype) if dtype.kind == "f" else np.array(values, dtype)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"not a space: {error}") from None
    return np.broadcast_to(array.reshape(shape) if several else array, shape).copy()


def _whole(number: float) -> int:
    if not float(number).is_integer():
        raise ValueError(f"not a space: the bound {number} of integers")
    return int(number)


def _integers(values: list[Any]) -> NDArray[np.int64]:
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.zeros(0)
    if array.dtype.kind != "i" or not 1 <= array.size <= MOST_ENTRIES:
        raise ValueError("not a space: MultiDiscrete needs lists of integers")
    return array.astype(np.int64)


def _number(value: Any) -> float | int:
    return float(value) if np.issubdtype(type(value), np.floating) else int(value)
