"""Vector environments for training and evaluation, from a Gymnasium id."""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

import hrm_envs


def check_env_id(env_id: str) -> None:
    """Raises: ValueError, with the nearest registered name, if `env_id` is not registered."""
    hrm_envs.register_envs()
    if ":" in env_id or env_id in gym.registry:
        return
    near = difflib.get_close_matches(env_id, gym.registry, n=1, cutoff=0.0)
    raise ValueError(f"env={env_id}: no such environment; did you mean {near[0]}?")


def make_vector_env(env_id: str, num_envs: int, options: dict[str, Any] | None = None) -> VectorEnv:
    """A vector of `num_envs` environments in SAME_STEP autoreset mode.

    Environments that bring a vector implementation in that mode use it; others are stepped one by one. Keyword
    arguments of the environment come from `options`.

    Raises:
        ValueError: an unknown id, or an option that the environment does not take or that is out of range.
    """
    check_env_id(env_id)
    try:
        if ":" not in env_id and gym.spec(env_id).vector_entry_point is not None:
            env = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **(options or {}))
            if env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
                return env
            env.close()
        make = [lambda: _with_statistics(gym.make(env_id, **(options or {})))] * num_envs
        return SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
    except TypeError as error:
        raise ValueError(f"env={env_id}: {error}") from None


def episode_success(env: VectorEnv, infos: dict[str, Any], returns: NDArray) -> NDArray[np.bool_]:
    """Which episodes were successes, bool `[N]`; only the entries of those that have just ended mean anything.

    As the environment says (`success` beside its episode statistics, or `is_success` in its last info); else where the
    return `[N]` reaches the reward threshold that the environment was registered with; else where it is above 0.
    """
    last = infos.get("final_info", {})
    for said in (infos.get("episode", {}), last.get("episode", {})):
        if "success" in said:
            return np.asarray(said["success"], bool)
    for key in ("is_success", "success"):
        if key in last:
            return np.asarray(last[key], bool)
    single = getattr(env, "envs", [env])[0]
    threshold = getattr(single.spec, "reward_threshold", None)
    return returns > 0 if threshold is None else returns >= threshold


def _with_statistics(env: gym.Env) -> gym.Env:
    return gym.wrappers.RecordEpisodeStatistics(env)
