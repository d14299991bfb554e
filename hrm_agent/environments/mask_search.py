"""Does an environment give masks of legal actions in its infos? One is reset to find out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hrm_agent.environments.action_masks import MASK, read_mask, sizes_of

_known: dict[tuple[str, str, bool], tuple[EnvSpec, bool]] = {}  # by id, options and kind; with the spec then registered


def gives_masks(env: gym.Env | VectorEnv, name: str, options: dict[str, Any]) -> bool:
    """Whether the info of an environment's reset has a mask; remembered for all of this id with these options.

    One that fails here has none: it fails again where it is used, and is reported there.

    Args:
        env: is reset, without a seed, where it is not known.
        name: the id that it was made by.
        options: keyword arguments that it was made with.

    Raises:
        MaskError: the mask does not fit the actions.
    """
    own = sorted((option, value) for option, value in options.items() if option != "render_mode")
    spec, key = gym.spec(name), (name, repr(own), isinstance(env, VectorEnv))
    known = _known.get(key)
    if known is not None and known[0] is spec:
        return known[1]
    try:
        info = env.reset()[1]
    except (Exception, SystemExit):
        return False
    found = MASK in info
    if found:
        actions = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
        given = info[MASK]
        read_mask(given[0] if isinstance(env, VectorEnv) and np.ndim(given) else given, sizes_of(actions))
    _known[key] = spec, found
    return found
