"""Tuples and nested dictionaries become one flat dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TransformObservation

SEPARATOR = "/"  # torch allows no dots in the names of modules, and an encoder has one for each entry


class FlattenTuple(TransformObservation):
    """Tuples, wherever they are, become dictionaries: `Tuple(A, B)` -> `Dict(0: A, 1: B)`."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, _tuples_to_dicts, _without_tuples(env.observation_space))


class FlattenDict(TransformObservation):
    """A dictionary of dictionaries becomes flat: `Dict(a: Dict(b: X), c: Y)` -> `Dict(a/b: X, c: Y)`.

    A dot in a name becomes a `/` too.

    Raises:
        ValueError: two entries would have one name; or the observation is no dictionary.
    """

    def __init__(self, env: gym.Env) -> None:
        space = env.observation_space
        if not isinstance(space, gym.spaces.Dict):
            raise ValueError(f"FlattenDict: expected an observation space that is a Dict, got {space}")
        entries = list(_entries(space.spaces, gym.spaces.Dict))
        names = [name for name, _ in entries]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"FlattenDict: two entries of the observation would be called {double[0]}; rename one")
        super().__init__(env, lambda obs: dict(_entries(obs, dict)), gym.spaces.Dict(entries))


def _without_tuples(space: gym.Space) -> gym.Space:
    if isinstance(space, gym.spaces.Tuple):
        return gym.spaces.Dict({str(i): _without_tuples(sub) for i, sub in enumerate(space.spaces)})
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: _without_tuples(sub) for key, sub in space.spaces.items()})
    return space


def _tuples_to_dicts(obs: Any) -> Any:
    if isinstance(obs, tuple):
        return {str(i): _tuples_to_dicts(part) for i, part in enumerate(obs)}
    if isinstance(obs, dict):
        return {key: _tuples_to_dicts(part) for key, part in obs.items()}
    return obs


def _entries(mapping: Any, nested: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and parts that are not nested themselves, depth first."""
    for key, value in mapping.items():
        if isinstance(value, nested):
            yield from _entries(value, nested, f"{prefix}{key}{SEPARATOR}")
        else:
            yield f"{prefix}{key}".replace(".", SEPARATOR), value
