"""Steps a vector environment under a policy and fills rollouts.

The collector owns the carry between rollouts. Environments run in Gymnasium's SAME_STEP autoreset mode: the
observation after an episode's end is the first of the next episode, the last one is in `infos["final_obs"]`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hrm_agent.carry import PolicyState
from hrm_agent.encoders import Observation
from hrm_agent.parallel import Shards
from hrm_agent.policy import Decision, NonFiniteNumbers, Policy, to_tensors
from hrm_agent.rollout import Rollout

RECENT_EPISODES = 512


class Collector:
    """Args:
    env: vector environment in SAME_STEP autoreset mode.
    policy: decides; never changed here.
    seed: of the sampled actions and of the environments: environment i of N gets seed * N + i, so that no two
        seeds share a stream of levels.
    shards: threads that a decision is split over.
    """

    def __init__(self, env: gym.vector.VectorEnv, policy: Policy, seed: int, shards: Shards) -> None:
        if env.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.SAME_STEP:
            raise ValueError(
                f"vector environment autoresets in mode {env.metadata.get('autoreset_mode')}: expected SAME_STEP"
            )
        self.env, self.policy, self.shards, self.seed = env, policy, shards, seed
        self.device = policy.device
        self.generator = torch.Generator().manual_seed(seed)
        self.first_action = int(getattr(env.single_action_space, "start", 0))
        obs, _ = env.reset(seed=seed * env.num_envs)
        self.obs = to_tensors(obs, self.device)
        self.state = policy.initial_state(env.num_envs)
        self.episode_start = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)
        self.frames = 0
        self.episodes: deque[tuple[float, int, bool]] = deque(maxlen=RECENT_EPISODES)  # return, length, success

    @torch.no_grad()
    def collect(self, rollout: Rollout) -> None:
        """Fill `rollout` with its T steps of every environment."""
        for t in range(rollout.steps):
            if t % rollout.window == 0:
                rollout.write_state(t // rollout.window, self.state)
            rollout.write_obs(t, self.obs)
            rollout.episode_start[t] = self.episode_start
            decision = self._decide(self.obs, self.state, self.episode_start)
            actions, log_probs = sample_actions(decision.logits, self.generator)
            rollout.actions[t], rollout.log_probs[t] = actions, log_probs
            rollout.values[t] = decision.value
            self.state = decision.state
            obs, rewards, terminated, truncated, infos = self.env.step(actions.cpu().numpy() + self.first_action)
            rollout.rewards[t] = torch.as_tensor(rewards)
            rollout.terminated[t] = torch.as_tensor(terminated)
            rollout.truncated[t] = torch.as_tensor(truncated)
            rollout.final_values[t] = self._value_of_cut_off(terminated, truncated, infos)
            self.obs = to_tensors(obs, self.device)
            self.episode_start = torch.as_tensor(terminated | truncated, device=self.device)
            self._count_episodes(infos)
        rollout.write_state(rollout.steps // rollout.window, self.state)
        # Only the value is used: the carry stays as it was, and the next rollout thinks from it.
        rollout.last_values[:] = self._decide(self.obs, self.state, self.episode_start).value
        self.frames += rollout.steps * rollout.num_envs

    def _decide(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        def part(rows: slice) -> Decision:
            with torch.no_grad():  # grad mode is per thread
                return self.policy.step(_rows(obs, rows), tuple(s[rows] for s in state), episode_start[rows])

        parts = self.shards.map(part, self.shards.slices(episode_start.shape[0]))
        if len(parts) == 1:
            return parts[0]
        logits, values, states, segments = zip(*parts, strict=True)
        kept = tuple(torch.cat(s) for s in zip(*states, strict=True))
        return Decision(torch.cat(logits), torch.cat(values), kept, torch.cat(segments))

    def _value_of_cut_off(self, terminated: np.ndarray, truncated: np.ndarray, infos: dict[str, Any]) -> Tensor:
        """V(final observation) `[N]` where an episode was truncated, from the state before the reset; else 0."""
        values = torch.zeros(truncated.shape[0], device=self.device)
        cut = np.flatnonzero(truncated & ~terminated)
        if cut.size:
            rows = torch.from_numpy(cut).to(self.device)
            final = to_tensors(stack_final_obs(infos["final_obs"], cut, self.env.single_observation_space), self.device)
            no_start = torch.zeros(cut.size, dtype=torch.bool, device=self.device)
            values[rows] = self._decide(final, tuple(s[rows] for s in self.state), no_start).value
        return values

    def _count_episodes(self, infos: dict[str, Any]) -> None:
        if "_episode" not in infos:  # wrapped environments report in the info of the episode's last step
            infos = infos.get("final_info", {})
        if "_episode" not in infos:
            return
        stats = infos["episode"]
        for i in np.flatnonzero(infos["_episode"]):
            success = bool(stats["success"][i]) if "success" in stats else float(stats["r"][i]) > 0
            self.episodes.append((float(stats["r"][i]), int(stats["l"][i]), success))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs of the collector and its environment, but for `metadata`."""
        obs = self.obs if not isinstance(self.obs, Tensor) else {"": self.obs}
        saved = {
            **{f"obs/{key}": value for key, value in obs.items()},
            **{f"state/{i}": value for i, value in enumerate(self.state)},
            "episode_start": self.episode_start,
            "generator": self.generator.get_state(),
        }
        if hasattr(self.env, "get_state"):
            saved |= {f"env/{key}": torch.as_tensor(value) for key, value in self.env.get_state().items()}
        return saved

    def metadata(self) -> dict[str, Any]:
        return {"frames": self.frames, "episodes": [list(e) for e in self.episodes]}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`.

        An environment without `get_state` cannot be put back: it begins new episodes, from seeds it has not seen.

        Raises:
            KeyError, ValueError: they belong to another policy or number of environments.
        """
        state = tuple(tensors[f"state/{i}"].to(self.device) for i in range(len(self.state)))
        shapes, expected = ([tuple(t.shape) for t in s] for s in (state, self.state))
        if shapes != expected:
            raise ValueError(f"carried state of shapes {shapes}, expected {expected}")
        self.frames = metadata["frames"]
        self.episodes.clear()
        self.episodes.extend((r, length, success) for r, length, success in metadata["episodes"])
        self.generator.set_state(tensors["generator"])
        self.state = state
        if hasattr(self.env, "set_state"):
            self.env.set_state({key[4:]: t.numpy() for key, t in tensors.items() if key.startswith("env/")})
            obs = {key[4:]: t.to(self.device) for key, t in tensors.items() if key.startswith("obs/")}
            self.obs = obs[""] if isinstance(self.obs, Tensor) else obs
            self.episode_start = tensors["episode_start"].to(self.device)
        else:
            obs, _ = self.env.reset(seed=self.seed + self.frames)
            self.obs = to_tensors(obs, self.device)
            self.episode_start = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)

    def statistics(self) -> dict[str, float]:
        """Means over the last `RECENT_EPISODES` episodes of training.

        Empty until there are as many as environments: the first to end are the short ones.
        """
        if len(self.episodes) < min(self.env.num_envs, RECENT_EPISODES):
            return {}
        returns, lengths, successes = zip(*self.episodes, strict=True)
        return {
            "return": float(np.mean(returns)),
            "length": float(np.mean(lengths)),
            "success": float(np.mean(successes)),
        }


def sample_actions(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions int64 `[B]` drawn from `softmax(logits)`, and their log-probabilities float `[B]`.

    Drawn on the CPU, whatever the device of the logits, so that one stream of numbers serves everywhere.
    """
    log_probs = logits.log_softmax(-1)
    if not torch.isfinite(log_probs).all():
        raise NonFiniteNumbers("the policy's logits are not finite")
    actions = torch.multinomial(log_probs.exp().cpu(), 1, generator=generator).to(logits.device)
    return actions.squeeze(-1), log_probs.gather(-1, actions).squeeze(-1)


def stack_final_obs(final_obs: Any, rows: np.ndarray, space: gym.Space) -> Any:
    """The final observations of `rows` as a batch, from a dense array, an object array or a dictionary."""
    if isinstance(final_obs, dict):
        return {key: stack_final_obs(value, rows, space[key]) for key, value in final_obs.items()}  # type: ignore[index]
    if final_obs.dtype != object:
        return final_obs[rows]
    if isinstance(space, gym.spaces.Dict):
        return {
            key: np.stack([np.asarray(final_obs[i][key], dtype=sub.dtype) for i in rows])
            for key, sub in space.spaces.items()
        }
    return np.stack([np.asarray(final_obs[i], dtype=space.dtype) for i in rows])


def _rows(obs: Observation, rows: slice) -> Observation:
    return obs[rows] if isinstance(obs, Tensor) else {key: value[rows] for key, value in obs.items()}
