"""Masks of legal actions become an entry of the observation (`hrm_agent.environments.action_masks`)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hrm_agent.environments.action_masks import (
    MASK,
    Mask,
    MaskError,
    check_entry,
    every_choice,
    read_mask,
    sizes_of,
)

OBSERVATION = "observation"
"""The entry of an observation that was no dictionary before, as in PettingZoo."""


class MaskInObservation(gym.Wrapper):
    """Puts the mask of legal actions into the observation, where a policy finds it.

    `X` with `info["action_mask"]` becomes `Dict(observation: X, action_mask: MultiBinary(n))`; a Dict has the entry
    added. Where an entry `action_mask` (`MultiBinary(n)`, or a Box of 0 and 1) is in the observation already, only its
    type changes. Infos have no mask any more.

    Args:
        env: gives a mask with every observation. The final observation of an episode that terminated needs none, and
            may have one that allows no action.

    Raises:
        MaskError: its actions cannot be masked, or its observation's mask is none; so do `reset` and `step`, for a mask
            of another length or type, one that allows no action, and one that is missing.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.sizes = sizes_of(env.action_space)
        self.in_observation, self.observation_space = _masked_space(env.observation_space, env.action_space)
        self._was_dict = isinstance(env.observation_space, gym.spaces.Dict)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation, info, False), _without(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info, bool(terminated)), reward, terminated, truncated, _without(info)

    def _with_mask(self, observation: Any, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        source = observation if self.in_observation else info
        if MASK in source:
            mask = read_mask(source[MASK], self.sizes, may_be_empty=terminated)
        elif terminated:
            mask = np.zeros(sum(self.sizes), np.int8)
        else:
            raise MaskError(_missing(self.in_observation))
        return {**(observation if self._was_dict else {OBSERVATION: observation}), MASK: mask}


class MaskInInfo(gym.Wrapper):
    """Takes the entry `action_mask` of an observation into the info, so that other wrappers leave it as it is."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Dict)
        check_entry(space, env.action_space)
        self.observation_space = gym.spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return _without(observation), _with(info, observation)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _without(observation), reward, terminated, truncated, _with(info, observation)


class MaskInObservationVector(VectorWrapper):
    """`MaskInObservation` for a vector environment in SAME_STEP autoreset mode.

    The mask of a final observation is expected where `MaskInObservation` expects it: in `infos["final_info"]`, or in
    the observation itself.

    Raises:
        MaskError: see `MaskInObservation`; the message names the environment by its number.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.sizes = sizes_of(env.single_action_space)
        space = env.single_observation_space
        self.in_observation, self.single_observation_space = _masked_space(space, env.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._was_dict = isinstance(space, gym.spaces.Dict)

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not yet there
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._with_masks(obs, infos), _without(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.flatnonzero(np.asarray(terminated) | np.asarray(truncated))
        seen = self._with_masks(obs, infos)
        infos = _without(infos)
        if ended.size and infos.get("final_obs") is not None:
            infos["final_obs"] = self._final(infos, ended, np.asarray(terminated))
            if isinstance(infos.get("final_info"), dict):
                infos["final_info"] = _without(infos["final_info"])
        return seen, rewards, terminated, truncated, infos

    def _with_masks(self, obs: Any, infos: dict[str, Any]) -> dict[str, Any]:
        source = obs if self.in_observation else infos
        masks = self._all_at_once(source)
        if masks is None:  # they differ in form, or one is wrong
            masks = np.stack([self._one(source, row) for row in range(self.num_envs)])
        return {**(obs if self._was_dict else {OBSERVATION: obs}), MASK: masks}

    def _all_at_once(self, source: Any) -> Mask | None:
        """The masks of an array in which nothing is wrong; else None."""
        given, known = source.get(MASK), source.get(f"_{MASK}")
        whole = isinstance(given, np.ndarray) and given.shape == (self.num_envs, sum(self.sizes))
        if not whole or given.dtype.kind not in "biuf" or not (known is None or np.all(known)):
            return None
        legal = given != 0
        right = ((given == 1) | ~legal).all() and every_choice(legal, self.sizes).all()
        return legal.astype(np.int8) if right else None

    def _one(self, source: Any, row: int, may_be_empty: bool = False) -> Mask:
        """The mask of one environment; zeros where it gives none and needs none."""
        given = _row(source, row)
        if given is None and may_be_empty:
            return np.zeros(sum(self.sizes), np.int8)
        if given is None:
            raise MaskError(f"environment {row}: {_missing(self.in_observation)}")
        try:
            return read_mask(given, self.sizes, may_be_empty)
        except MaskError as error:
            raise MaskError(f"environment {row}: {error}") from None

    def _final(self, infos: dict[str, Any], ended: NDArray[np.int64], terminated: NDArray[np.bool_]) -> dict[str, Any]:
        """Final observations as a dictionary of arrays of all environments, those of the others without a meaning."""
        final, masks = infos["final_obs"], np.zeros((self.num_envs, sum(self.sizes)), np.int8)
        if not isinstance(final, dict):
            final = _joined(final, ended) if self._was_dict else {OBSERVATION: final}
        source = final if self.in_observation else infos.get("final_info")
        for row in ended:
            masks[row] = self._one(source, row, bool(terminated[row]))
        return {**final, MASK: masks}


def _masked_space(space: gym.Space, actions: gym.Space) -> tuple[bool, gym.spaces.Dict]:
    """Whether a mask is in the observations of a space, and the space of observations with one in its form."""
    mask = gym.spaces.MultiBinary(sum(sizes_of(actions)))
    if not isinstance(space, gym.spaces.Dict):
        return False, gym.spaces.Dict({OBSERVATION: space, MASK: mask})
    found = MASK in space.spaces
    if found:
        check_entry(space, actions)
    return found, gym.spaces.Dict({**space.spaces, MASK: mask})


def _without(entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key not in (MASK, f"_{MASK}")}


def _with(info: dict[str, Any], observation: Any) -> dict[str, Any]:
    return {**info, MASK: observation[MASK]} if MASK in observation else _without(info)


def _row(source: Any, row: int) -> Any:
    """The mask of one environment; None where it gives none."""
    if not isinstance(source, dict) or MASK not in source:
        return None
    known = source.get(f"_{MASK}")
    masks = source[MASK]
    is_there = len(masks) > row and (known is None or known[row])
    return masks[row] if is_there else None


def _joined(final: Any, ended: NDArray[np.int64]) -> dict[str, Any]:
    """An object array of dictionaries as a dictionary of object arrays."""
    keys = dict.fromkeys(key for row in ended for key in final[row])
    joined = {key: np.full(len(final), None, object) for key in keys}
    for row in ended:
        for key, value in final[row].items():
            joined[key][row] = value
    return joined


def _missing(in_observation: bool) -> str:
    return f"no {MASK} in its {'observation' if in_observation else 'info'}"
