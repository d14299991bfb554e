"""Masks of legal actions: the form in which policies get them, and what is accepted from environments.

An environment gives a mask in `info["action_mask"]`, as Gymnasium's own do, or as an entry `action_mask` of a Dict
observation. `hrm_agent.environments.wrappers.MaskInObservation` makes both an entry of the observation that is
`MultiBinary`; an entry of that name in any other space is an observation like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

MASK = "action_mask"
"""The key, in infos and in observations."""
SETTING = "action_masks"
"""An option of every environment, which `make_env` and `make_vector_env` take out: one of `CHOICES`."""
AUTO, IGNORE = CHOICES = ("auto", "ignore")

Mask = NDArray[np.int8]


class MaskError(ValueError):
    """A mask that is none, in words that follow the environment's name; one line."""


def sizes_of(space: gym.Space) -> list[int]:
    """The numbers of choices that a mask of this action space covers, one after another.

    Raises:
        MaskError: actions that cannot be masked.
    """
    if isinstance(space, gym.spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return [int(n) for n in space.nvec]
    raise MaskError(f"it gives an {MASK}, which needs actions that are Discrete or MultiDiscrete (n,), not {space}")


def has_mask(space: gym.Space) -> bool:
    """Whether observations of this space hold a mask in the form that policies get."""
    return isinstance(space, gym.spaces.Dict) and isinstance(space.spaces.get(MASK), gym.spaces.MultiBinary)


def without_mask(space: gym.Space) -> gym.Space:
    """The space of observations without their mask: of a single entry that is left, that entry alone."""
    if not has_mask(space):
        return space
    assert isinstance(space, gym.spaces.Dict)
    rest = {key: part for key, part in space.spaces.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else gym.spaces.Dict(rest)


def split_setting(options: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """An environment's own options, and whether masks are used.

    Raises:
        ValueError: another value of `SETTING` than `CHOICES`.
    """
    own = dict(options or {})
    chosen = own.pop(SETTING, AUTO)
    if chosen not in CHOICES:
        raise ValueError(f"{SETTING}={chosen!r}: expected {' or '.join(CHOICES)}")
    return own, chosen == AUTO


def check_entry(space: gym.spaces.Dict, actions: gym.Space) -> None:
    """Check the entry `MASK` of an observation.

    Raises:
        MaskError: its space is not one of masks of these actions, or there is no other entry.
    """
    count, entry = sum(sizes_of(actions)), space[MASK]
    bits = isinstance(entry, gym.spaces.MultiBinary) or (
        isinstance(entry, gym.spaces.Box) and bool((entry.low >= 0).all() and (entry.high <= 1).all())
    )
    if not bits or entry.shape != (count,):
        raise MaskError(
            f"the entry {MASK} of its observation is {entry}; expected MultiBinary({count}) or Box(0, 1, ({count},)), "
            f"a bit for each action of {actions}"
        )
    if len(space.spaces) == 1:
        raise MaskError(f"its observation is nothing but an {MASK}; expected another entry, to decide by")


def read_mask(given: Any, sizes: list[int], may_be_empty: bool = False) -> Mask:
    """A mask as int8 `[sum(sizes)]` of 0 and 1.

    Args:
        given: an array of 0 and 1 of that length; or a tuple of one for each of several choices, as Gymnasium's
            `MultiDiscrete.sample` takes them.
        sizes: see `sizes_of`.
        may_be_empty: no action need be legal, as after an episode's end.

    Raises:
        MaskError: it is none, or leaves no action.
    """
    if isinstance(given, tuple) and [np.shape(part) for part in given] == [(size,) for size in sizes]:
        given = np.concatenate(given)
    try:
        array = np.asarray(given)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    count = sum(sizes)
    if array.shape != (count,) or array.dtype.kind not in "biuf":
        raise MaskError(f"its {MASK} is {array.dtype}{list(array.shape)}; expected 0 or 1 for each of {count} actions")
    legal = array != 0
    if not ((array == 1) | ~legal).all():
        raise MaskError(f"its {MASK} holds {array[legal & (array != 1)][0]}; expected 0 or 1 for each action")
    if not may_be_empty and not every_choice(legal, sizes).all():
        raise MaskError(f"its {MASK} allows no action; only an episode that has terminated may end so")
    return legal.astype(np.int8)


def every_choice(legal: NDArray[np.bool_], sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each of several choices has a legal one, bool `[..., C]`, of `legal`, bool `[..., sum(sizes)]`."""
    return np.stack([part.any(-1) for part in _by_choice(legal, sizes)], -1)


def idle_actions(env: VectorEnv, observations: Any) -> NDArray:
    """Some legal action for each environment, `[N, *shape]`, for those whose episode does not count any more.

    It is the first legal one of each choice, or the one nearest to 0.
    """
    space = env.single_action_space
    if isinstance(space, gym.spaces.Box):
        action = np.zeros(space.shape, space.dtype).clip(space.low, space.high)
    elif not has_mask(env.single_observation_space):
        action = np.asarray(getattr(space, "start", 0), np.int64)
    else:
        first = [part.argmax(-1) for part in _by_choice(np.asarray(observations[MASK]) != 0, sizes_of(space))]
        return np.asarray((np.stack(first, -1) if space.shape else first[0]) + space.start, np.int64)  # type: ignore[attr-defined]
    return np.repeat(action[None], env.num_envs, axis=0)


def _by_choice(masks: NDArray, sizes: Sequence[int]) -> list[NDArray]:
    return np.split(masks, np.cumsum(sizes)[:-1], axis=-1)


def sample_action(actions: gym.Space, observation: Any, masked: bool) -> Any:
    """A random action of the space, by its own generator; a legal one where observations hold a mask."""
    if not masked:
        return actions.sample()
    mask = np.asarray(observation[MASK], np.int8)
    if isinstance(actions, gym.spaces.Discrete):
        return actions.sample(mask=mask)
    return actions.sample(mask=tuple(_by_choice(mask, sizes_of(actions))))
