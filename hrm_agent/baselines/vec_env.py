"""Our vector environments as Stable-Baselines3's: `SB3VecEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from hrm_agent.baselines.observations import View, build_view
from hrm_agent.environments.make import episode_statistics, episode_success
from hrm_agent.experience.truncation import stack_final_obs


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment in SAME_STEP autoreset mode, for Stable-Baselines3.

    Where an episode ended, the environment's info holds

    - `terminal_observation`: the final observation, in the form of `observation_space`;
    - `TimeLimit.truncated`: the episode was truncated, not terminated, so Stable-Baselines3 bootstraps;
    - `episode`: `r` (return, undiscounted) and `l` (steps), for the logger, where the environment reports them;
    - `is_success`: whether the episode was a success (`environments.episode_success`), where there is `episode`.

    `seed(s)` gives environment i of N the seed `s * N + i` at the next reset, as our own training does, so that no
    two seeds share levels (Stable-Baselines3's own environments take `s + i`).

    Args:
        env: the vector environment; closed with this one.
        layout: `flat`, `planes` or `raw`, see `observations.build_view`.

    Raises:
        ValueError: another autoreset mode, or spaces that Stable-Baselines3's networks cannot have.
    """

    def __init__(self, env: gym.vector.VectorEnv, layout: str = "flat") -> None:
        if env.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.SAME_STEP:
            raise ValueError(
                f"vector environment autoresets in mode {env.metadata.get('autoreset_mode')}: expected SAME_STEP"
            )
        self.env = env
        self.view: View = build_view(env.single_observation_space, layout)
        actions = env.single_action_space
        self.first_action = int(getattr(actions, "start", 0))
        if isinstance(actions, gym.spaces.Discrete):
            actions = gym.spaces.Discrete(int(actions.n))  # Stable-Baselines3 counts from 0
        super().__init__(env.num_envs, self.view.space, actions)
        self._actions: NDArray | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds for the next reset, see the class; None draws one."""
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        self._seeds = [seed * self.num_envs + i for i in range(self.num_envs)]
        return self._seeds

    def reset(self) -> NDArray:
        """First observations `[N, ...]`; without a `seed` before, of each environment's next episode."""
        obs, _ = self.env.reset(seed=self._seeds[0])  # environment i takes this seed + i
        self._reset_seeds()
        self._reset_options()
        return self.view.show(obs)

    def step_async(self, actions: NDArray) -> None:
        self._actions = actions + self.first_action if self.first_action else actions

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if ended.size:
            self._describe_ends(each, ended, truncated & ~terminated, infos)
        # Copied: Stable-Baselines3 adds the value of cut-off episodes to the rewards that it is given.
        return self.view.show(obs), np.array(rewards, np.float32), dones, each

    def _describe_ends(
        self, each: list[dict[str, Any]], ended: NDArray[np.int64], cut_off: NDArray[np.bool_], infos: dict[str, Any]
    ) -> None:
        final = self.view.show(stack_final_obs(infos["final_obs"], ended, self.env.single_observation_space))
        reported = episode_statistics(infos)
        statistics = None if reported is None else reported[0]
        success = None if statistics is None else episode_success(self.env, infos, np.asarray(statistics["r"]))
        for row, i in enumerate(ended):
            info = each[i]
            info["terminal_observation"] = final[row]
            info["TimeLimit.truncated"] = bool(cut_off[i])
            if statistics is not None and success is not None:
                info["episode"] = {"r": float(statistics["r"][i]), "l": int(statistics["l"][i])}
                info["is_success"] = bool(success[i])

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("a batch of environments shares its attributes; make the environment with others")

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list:
        raise NotImplementedError("environments of a batch have no methods of their own; use `env`")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """False: nothing wraps one environment of a batch, so `evaluate_policy` counts episodes by itself."""
        return [False for _ in self._get_indices(indices)]
