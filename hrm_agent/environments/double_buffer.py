"""A vector environment made of several: each can be stepped on its own while the others wait for their actions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

SCALARS = ("seeded",)
"""Of our environments' state, what is one number for a whole vector and not one for each environment."""


class Halves(VectorEnv):
    """Vector environments side by side, as one: environment i behaves as it would in one vector of all.

    Args:
        parts: with the same spaces and autoreset mode.

    `get_state` and `set_state` are there where the parts have them, and speak the one vector's language, so that a
    checkpoint does not know how many parts there were.
    """

    def __init__(self, parts: list[VectorEnv]) -> None:
        self.parts = parts
        first = parts[0]
        self.metadata, self.spec, self.render_mode = first.metadata, first.spec, None
        self.num_envs = sum(p.num_envs for p in parts)
        edges = np.cumsum([0, *(p.num_envs for p in parts)])
        self.rows = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        self.single_observation_space = first.single_observation_space
        self.single_action_space = first.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        for name in ("batch", "envs"):  # what others ask of a vector: is it compiled, whose reward threshold
            if hasattr(first, name):
                setattr(self, name, getattr(first, name))
        if all(hasattr(p, "get_state") and hasattr(p, "set_state") for p in parts):
            self.get_state, self.set_state = self._get_state, self._set_state

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Environment i is seeded `seed` + i, or with the i-th of a list."""
        results = []
        for part, rows in zip(self.parts, self.rows, strict=True):
            own: Any = seed[rows] if isinstance(seed, list | tuple) else None if seed is None else seed + rows.start
            results.append(part.reset(seed=own, options=options))
        return self._join_obs([obs for obs, _ in results]), self._join_infos([infos for _, infos in results])

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """All parts, one after the other."""
        results = [part.step(actions[rows]) for part, rows in zip(self.parts, self.rows, strict=True)]
        obs, rewards, terminated, truncated, infos = zip(*results, strict=True)
        return (
            self._join_obs(list(obs)),
            np.concatenate(rewards),
            np.concatenate(terminated),
            np.concatenate(truncated),
            self._join_infos(list(infos)),
        )

    def close_extras(self, **kwargs: Any) -> None:
        for part in self.parts:
            part.close(**kwargs)

    def _join_obs(self, parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: self._join_obs([p[key] for p in parts]) for key in parts[0]}
        return np.concatenate(parts)

    def _join_infos(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Infos of all environments; a part without an entry has zeros there, as Gymnasium's vectors do."""
        joined: dict[str, Any] = {}
        for key in dict.fromkeys(key for part in parts for key in part):
            known = next(part[key] for part in parts if key in part)
            if isinstance(known, dict):
                joined[key] = self._join_infos([part.get(key, {}) for part in parts])
                continue
            joined[key] = np.concatenate(
                [
                    np.asarray(part[key])
                    if key in part
                    else np.zeros((env.num_envs, *np.shape(known)[1:]), np.asarray(known).dtype)
                    for part, env in zip(parts, self.parts, strict=True)
                ]
            )
        return joined

    def _get_state(self) -> dict[str, Any]:
        states = [part.get_state() for part in self.parts]  # type: ignore[attr-defined]
        return {
            name: states[0][name] if name in SCALARS else np.concatenate([s[name] for s in states])
            for name in states[0]
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        for part, rows in zip(self.parts, self.rows, strict=True):
            own = {name: value if name in SCALARS else value[rows] for name, value in state.items()}
            part.set_state(own)  # type: ignore[attr-defined]


def in_halves(build: Callable[[int], gym.vector.VectorEnv], num_envs: int) -> gym.vector.VectorEnv:
    """Two vectors as one, or a single environment as it is."""
    if num_envs < 2:
        return build(num_envs)
    first = (num_envs + 1) // 2
    return Halves([build(first), build(num_envs - first)])
