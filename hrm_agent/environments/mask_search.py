"""Does an environment give masks of legal actions in its infos? One of it is made, reset and closed to find out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hrm_agent.environments.action_masks import MASK, read_mask, sizes_of
from hrm_agent.environments.sources import wrap_by_source

_known: dict[tuple[str, str, bool], tuple[EnvSpec, bool]] = {}  # by id, options and kind; with the spec then registered


def gives_masks(name: str, options: dict[str, Any], vector: bool = False) -> bool:
    """Whether an environment's first info has a mask; remembered for this process.

    An environment that fails here gives none: it fails again where it is used, and is reported there.

    Args:
        name: a registered id.
        options: keyword arguments of the environment.
        vector: ask its own vector implementation.

    Raises:
        MaskError: the mask does not fit the actions.
    """
    spec, key = gym.spec(name), (name, repr(sorted(options.items())), vector)
    known = _known.get(key)
    if known is None or known[0] is not spec:
        known = _known[key] = spec, _search(name, options, vector)
    return known[1]


def _search(name: str, options: dict[str, Any], vector: bool) -> bool:
    own = {option: value for option, value in options.items() if option != "render_mode"}  # no window for this
    make: Callable[[], gym.Env | VectorEnv] = partial(_make_vector if vector else _make, name, own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again with the environment that is used
        env = make()
        try:
            info = env.reset(seed=0)[1]
        except (Exception, SystemExit):
            return False
        finally:
            with suppress(Exception, SystemExit):
                env.close()
    if MASK not in info:
        return False
    actions = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    given = info[MASK]
    read_mask(given[0] if isinstance(env, VectorEnv) and np.ndim(given) else given, sizes_of(actions))
    return True


def _make(name: str, options: dict[str, Any]) -> gym.Env:
    return wrap_by_source(gym.make(name, **options), name)


def _make_vector(name: str, options: dict[str, Any]) -> VectorEnv:
    return gym.make_vec(name, num_envs=1, vectorization_mode="vector_entry_point", **options)
