"""Whether experience in a checkpoint is of its space, and the JSON part of what is saved of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import gymnasium as gym
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.policies.encoders import Observation
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import Total, check_tensors


class CollectorMetadata(Struct):
    """The JSON part of a collector: frames so far; return, length and success of the last episodes; environments whose
    first episode has not ended.
    """

    frames: Total
    episodes: list[tuple[float, Total, bool]]
    in_first_episode: list[Total] = []


class ReplayMetadata(Struct):
    """The JSON part of a replay; see its attributes, and the ids of the final observations that are kept."""

    added: Total
    whole: bool
    max_priority: Annotated[float, Meta(gt=0, le=3.4e38)]
    final_ids: tuple[Total, Total]


def check_observations(
    what: str, given: Mapping[str, Tensor], expected: Observation, space: gym.Space, rows: int
) -> None:
    """Check the observations of a checkpoint, by the names that `trees.flatten("obs", expected)` gives.

    Args:
        what: they are, for messages.
        given: tensors `[rows, ...]` of a file.
        expected: tensors of these dtypes, and of these shapes but for the first dimension.
        space: of one observation; ids outside it have no embedding.
        rows: observations, or steps of some.

    Raises:
        ValueError: another structure, dtype or shape, NaN or infinity, or an integer outside the space.
    """
    check_tensors(what, given, trees.flatten("obs", expected), rows)
    spaces = _by_name("obs", space)
    for name, tensor in given.items():
        if name in spaces and tensor.numel():
            _check_bounds(f"{what} {name}", tensor.numpy(), spaces[name])


def _by_name(name: str, space: gym.Space) -> dict[str, gym.Space]:
    if not isinstance(space, gym.spaces.Dict):
        return {name: space}
    return {key: part for sub in space for key, part in _by_name(f"{name}/{sub}", space[sub]).items()}


def _check_bounds(what: str, given: NDArray, space: gym.Space) -> None:
    bounds = _bounds(space)
    if bounds is None:
        return
    rows = given.reshape(-1, *(space.shape or ()))
    for extreme, bound, beyond in ((rows.min(0), bounds[0], np.less), (rows.max(0), bounds[1], np.greater)):
        wrong = beyond(extreme, bound)
        if np.any(wrong):
            at = tuple(np.argwhere(wrong)[0].tolist())
            low, high = (np.broadcast_to(each, np.shape(wrong))[at] for each in bounds)
            raise ValueError(f"{what}: {np.asarray(extreme)[at]} is not from {low} to {high}, as of its space")


def _bounds(space: gym.Space) -> tuple[NDArray, NDArray] | None:
    """Least and largest value of a space of integers; None of any other."""
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.integer):
        return space.low, space.high
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
    if isinstance(space, gym.spaces.MultiBinary):
        return np.asarray(0), np.asarray(1)
    return None
