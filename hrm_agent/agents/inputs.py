"""What `Agent.predict` is given, checked against the spaces of the agent and the format of its policy's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.environments.action_masks import MASK, every_choice
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.policy import Policy

WRAPPED = "agent.make_env() makes its environment in the wrappers of training"
LARGEST_FLOAT = 8
"""Bytes of the largest float that torch has; longer ones are converted."""


@dataclass(frozen=True)
class Part:
    """An observation, or one entry of a dictionary.

    Args:
        shape: without the batch.
        low, high: bounds of integers, numbers or arrays of this shape; None: numbers without bounds, but not NaN.
        key: in the dictionary; None: it is the observation itself.
    """

    shape: tuple[int, ...]
    low: Any
    high: Any
    key: str | None = None

    @property
    def name(self) -> str:
        return "observation" if self.key is None else f"observation[{self.key!r}]"

    def read(self, given: Any) -> NDArray[Any]:
        """As an array of numbers.

        Raises:
            ValueError: it is none, of another shape, or holds values that are outside the space.
        """
        try:
            array = np.asarray(given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: no array ({error})") from None
        kind, lead = array.dtype.kind, array.ndim - len(self.shape)
        if kind not in "biuf":
            raise ValueError(f"{self.name} of type {array.dtype}: this agent expects numbers; {WRAPPED}")
        if not array.dtype.isnative or array.dtype.itemsize > LARGEST_FLOAT:
            array = array.astype(np.float64 if array.dtype.itemsize > LARGEST_FLOAT else array.dtype.newbyteorder("="))
        if lead not in (0, 1) or array.shape[lead:] != self.shape:
            raise ValueError(f"{self.name} of shape {array.shape}: this agent expects {self.shape}, or a batch of them")
        if self.low is None:
            if kind == "f" and np.isnan(array).any():
                raise ValueError(f"{self.name}: NaN, which is no element of the agent's observation space")
        elif array.size and not self._holds(array):
            raise ValueError(
                f"{self.name}: values from {array.min()} to {array.max()}; this agent expects integers from "
                f"{np.min(self.low)} to {np.max(self.high)}"
            )
        return array

    def _holds(self, array: NDArray[Any]) -> bool:
        if array.dtype.kind == "f" and not (array % 1 == 0).all():
            return False
        if isinstance(self.low, int):
            if array.dtype.kind in "iu":
                held = np.iinfo(array.dtype)
                if self.low <= held.min and held.max <= self.high:
                    return True  # bytes of a picture: every one of them is in the space
            return bool(self.low <= array.min() and array.max() <= self.high)
        return bool(((self.low <= array) & (array <= self.high)).all())


def parts_of(space: gym.Space) -> list[Part]:
    """The arrays that an observation consists of."""
    if isinstance(space, gym.spaces.Dict):
        return [_part(sub, key) for key, sub in space.spaces.items()]
    return [_part(space, None)]


def _part(space: gym.Space, key: str | None) -> Part:
    shape = tuple(space.shape or ())
    if isinstance(space, gym.spaces.Discrete):
        return Part(shape, int(space.start), int(space.start + space.n - 1), key)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return Part(shape, space.start, space.start + space.nvec - 1, key)
    if isinstance(space, gym.spaces.MultiBinary):
        return Part(shape, 0, 1, key)
    if isinstance(space, gym.spaces.Box) and space.dtype is not None and space.dtype.kind in "iu":
        low, high = np.asarray(space.low), np.asarray(space.high)
        if low.size and low.min() == low.max() and high.min() == high.max():
            return Part(shape, int(low.min()), int(high.min()), key)
        return Part(shape, low, high, key)
    return Part(shape, None, None, key)


def read_observation(parts: list[Part], observation: Any) -> tuple[Any, int, bool]:
    """Arrays with a batch in front, its size, and whether it was given as a batch.

    Raises:
        ValueError: the observation is no element of the space, nor a batch of them.
    """
    if parts[0].key is None:
        array = parts[0].read(observation)
        batched = array.ndim > len(parts[0].shape)
        return (array if batched else array[None]), (len(array) if batched else 1), batched
    if not hasattr(observation, "keys") or any(part.key not in observation for part in parts):
        names = ", ".join(str(part.key) for part in parts)
        raise ValueError(f"observation: this agent expects a dictionary with {names}; {WRAPPED}")
    arrays = {part.key: part.read(observation[part.key]) for part in parts}
    sizes = {a.shape[0] if a.ndim > len(p.shape) else None for p, a in zip(parts, arrays.values(), strict=True)}
    if len(sizes) > 1:
        raise ValueError("observation: its entries are not all single, nor batches of one size")
    size = sizes.pop()
    if size is None:
        return {key: array[None] for key, array in arrays.items()}, 1, False
    return arrays, size, True


def check_masks(observations: Any, sizes: Sequence[int]) -> None:
    """Check the masks of a batch of observations; `sizes` are those of the choices that an action consists of.

    Raises:
        ValueError: one allows no action.
    """
    stuck = np.flatnonzero(~every_choice(observations[MASK] != 0, sizes).all(-1))
    if len(stuck):
        raise ValueError(f"observation[{MASK!r}]: row {stuck[0]} allows no action; expected one or more to choose from")


class StateReader:
    """Checks states against what a policy carries, which depends on its dtype and on nothing else that may change."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._of: torch.dtype | None = None
        self._formats: list[tuple[tuple[int, ...], torch.dtype]] = []

    def read(self, state: Any, size: int) -> PolicyState:
        """The state as tensors on the policy's device.

        Raises:
            ValueError: it is not one that `predict` returned for a batch of this size.
        """
        formats, device = self._expected(), self.policy.device
        try:
            tensors = tuple(torch.as_tensor(part, device=device) for part in state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"state: no tuple of arrays ({' '.join(str(error).split())})") from None
        if [(t.shape, t.dtype) for t in tensors] != [((size, *shape), dtype) for shape, dtype in formats]:
            expected = [(size, *shape) for shape, _ in formats]
            raise ValueError(
                f"state of {_shown([tuple(t.shape) for t in tensors], [t.dtype for t in tensors])}: this agent expects "
                f"{_shown(expected, [dtype for _, dtype in formats])}, what predict returned for the same rows"
            )
        return tensors

    def _expected(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        dtype = self.policy.policy_head.weight.dtype
        if dtype is not self._of:
            initial: tuple[Tensor, ...] = self.policy.initial_state(1)
            self._formats, self._of = [(tuple(t.shape[1:]), t.dtype) for t in initial], dtype
        return self._formats


def _shown(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> str:
    arrays = [f"{str(dtype).removeprefix('torch.')}{list(shape)}" for shape, dtype in zip(shapes, dtypes, strict=True)]
    return ", ".join(arrays) or "no array"


def read_episode_start(given: Any, size: int) -> NDArray[np.bool_]:
    """bool `[size]`; None: false.

    Raises:
        ValueError: neither a bool nor one for each row.
    """
    if given is None:
        return np.zeros(size, bool)
    try:
        array = np.atleast_1d(given)
    except ValueError:  # rows of different lengths
        array = np.zeros(0, object)
    if array.dtype.kind not in "biuf" or array.shape not in ((1,), (size,)):
        raise ValueError(f"episode_start of shape {array.shape}: expected a bool, or one for each of {size} rows")
    return np.broadcast_to(array.astype(bool), (size,)).copy()
