"""Steps a vector environment under a policy and fills rollouts or a replay.

The collector owns the carried state between rollouts. Environments run in Gymnasium's SAME_STEP autoreset mode: the
observation after an episode's end is the first of the next episode, the final one is in `infos["final_obs"]`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hrm_agent.environments.checked import EPISODE_LIMIT
from hrm_agent.environments.make import episode_statistics, episode_success
from hrm_agent.experience.demonstrations import Demonstrations
from hrm_agent.experience.replay import Replay
from hrm_agent.experience.rollout import Rollout
from hrm_agent.experience.saved import CollectorMetadata, check_observations
from hrm_agent.experience.truncation import CutOff, Outcome, stack_final_obs, truncated_episodes, write_final_values
from hrm_agent.parallel.graphs import Wrap
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Decision, Policy
from hrm_agent.tensors import trees
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.tensors.saved import check_generator, check_tensor, check_tensors, converted

RECENT_EPISODES = 512


class Collector:
    """Args:
    env: vector environment in SAME_STEP autoreset mode; with several processes, this one's share.
    policy: not changed here.
    seed: of the sampled actions and of the environments: environment i of N gets seed * N + i, so that no two
        seeds share a stream of levels.
    threads: over which a batch of decisions is divided.
    processes: the processes over which the environments are divided. Actions are those of a single process.
    wrap: puts a CUDA graph around the decisions.

    Attributes:
        num_envs: N, over all processes.
        frames: collected so far, over all environments.
        episodes: the last episodes that ended, over all environments: return, length, success. Until each environment
            has ended one, only its first counts: short episodes end first, and where an early end is a success, or a
            failure, all that had ended would be one.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        policy: Policy,
        seed: int,
        threads: Threads,
        processes: Processes = SINGLE_PROCESS,
        wrap: Wrap | None = None,
    ) -> None:
        if env.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.SAME_STEP:
            raise ValueError(
                f"vector environment autoresets in mode {env.metadata.get('autoreset_mode')}: expected SAME_STEP"
            )
        self.env, self.policy, self.threads, self.seed, self.processes = env, policy, threads, seed, processes
        self.wrap = wrap
        self.decide, self.act = self._decide, self._act
        if wrap is not None:
            self.decide, self.act = wrap("a decision", self._decide), wrap("a decision", self._act)
        self.num_envs = env.num_envs * processes.world_size
        self.device = policy.device
        self.generator = torch.Generator().manual_seed(seed)
        self.first_env = processes.local_slice(self.num_envs).start
        obs, infos = env.reset(seed=seed * self.num_envs + self.first_env)
        self.obs = trees.to_tensors(obs, self.device)
        self.optimal = self._optimal_actions(infos)  # bool [N, A] at `obs`, where the environment gives it
        self.state = policy.initial_state(env.num_envs)
        self.episode_start = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)
        self.frames = 0
        self.segments = 0.0  # per decision, at the last step
        self.episodes: deque[tuple[float, int, bool]] = deque(maxlen=max(RECENT_EPISODES, self.num_envs))
        self._in_first_episode = set(range(self.num_envs))
        self._ended: list[tuple[int, int, float, int, bool]] = []  # frame, environment, return, length, success

    @contextmanager
    def _stepping(self) -> Iterator[None]:
        """Share events of the body with all processes at its end: non-finite numbers, ended episodes."""
        with self.processes.raising_together():
            yield
        ended = torch.tensor(self._ended, dtype=torch.float64).view(-1, 5)
        self._ended = []
        # In the order of one process: by step, then by environment.
        for _, env, reward, length, success in sorted(self.processes.all_gather_rows(ended).tolist()):
            if not self._in_first_episode or env in self._in_first_episode:
                self.episodes.append((reward, int(length), bool(success)))
            self._in_first_episode.discard(int(env))
        if self.frames > EPISODE_LIMIT * self.num_envs:
            self._in_first_episode.clear()  # some have no end
        self.segments = (
            self.processes.all_reduce(torch.tensor(self.segments, dtype=torch.float64)).item()
            / self.processes.world_size
        )

    @torch.no_grad()
    def collect(self, rollout: Rollout) -> None:
        """Fill `rollout` with its T steps of every environment, actions drawn from the policy.

        Raises:
            NonFiniteNumbers: the policy's logits are not finite, in this process or another.
        """
        with self._stepping():
            self._collect(rollout)

    def _collect(self, rollout: Rollout) -> None:
        rollout.final_values[:] = 0
        cut_off: list[CutOff] = []
        for t in range(rollout.steps):
            if t % rollout.window == 0:
                rollout.write_state(t // rollout.window, self.state)
            rollout.write_obs(t, self.obs)
            rollout.episode_start[t] = self.episode_start
            uniforms = self._draw_uniforms()
            decision, actions, log_probs = self.act(self.obs, self.state, self.episode_start, uniforms)
            if not torch.isfinite(decision.logits).all():
                raise NonFiniteNumbers("the policy's logits are not finite")
            rollout.actions[t], rollout.log_probs[t] = actions, log_probs
            rollout.values[t] = decision.value
            outcome = self._advance(actions, decision)
            rollout.rewards[t], rollout.terminated[t] = outcome.rewards, outcome.terminated
            rollout.truncated[t] = outcome.truncated
            cut_off += truncated_episodes(t, outcome, self.state)
        if cut_off:
            write_final_values(rollout, cut_off, self.policy, self._decide)
        rollout.write_state(rollout.steps // rollout.window, self.state)
        # Only the value is used: the carried state is not changed, and the next rollout starts from it.
        rollout.last_values[:] = self.act(self.obs, self.state, self.episode_start, uniforms)[0].value

    def _draw_uniforms(self) -> Tensor:
        """Uniform numbers `[n, u]` that choose the actions of this process's environments.

        Each process draws those of all: they are few, and do not depend on the policy.
        """
        # On the CPU whatever the device, so that all devices use the same random numbers.
        shape = (self.num_envs, self.policy.distribution.uniforms)
        uniforms = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return self.processes.local_rows(uniforms).to(self.device)

    @torch.no_grad()
    def explore(self, replay: Replay, steps: int, epsilon: float) -> None:
        """Add `steps` steps of every environment to `replay`, each action random with probability `epsilon`.

        Raises:
            NonFiniteNumbers: the Q-values are not finite.
        """
        with self._stepping():
            self._explore(replay, steps, epsilon)

    def _explore(self, replay: Replay, steps: int, epsilon: float) -> None:
        for _ in range(steps):
            # Copied: the environment may write its next observations into the same memory.
            obs, state, episode_start = trees.clone(self.obs), self.state, self.episode_start
            decision = self.decide(obs, state, episode_start)
            actions = epsilon_greedy(decision.logits, epsilon, self.generator, self.policy.legal(obs))
            outcome = self._advance(actions, decision)
            replay.add(
                obs,
                state,
                episode_start,
                actions,
                outcome.rewards,
                outcome.terminated,
                outcome.truncated,
                outcome.ended_rows,
                outcome.final_obs,
            )

    @torch.no_grad()
    def demonstrate(self, demonstrations: Demonstrations, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Fill `demonstrations` with T steps of every environment and the actions that are optimal there.

        The policy is run at every step, whoever acts, so the carried states are its own.

        Args:
            choose: from labels bool `[N, A]`, all false where there are none, and the policy's parameters `[N, P]` to
                the actions int64 `[N]`. N counts the environments of all processes; rows of other processes are zero.
                Labels of actions that are not legal are left out.

        Raises:
            NonFiniteNumbers: the policy's logits are not finite, in this process or another.
        """
        with self._stepping():
            self._demonstrate(demonstrations, choose)

    def _demonstrate(self, demonstrations: Demonstrations, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
        for t in range(demonstrations.steps):
            if t % demonstrations.window == 0:
                demonstrations.write_state(t // demonstrations.window, self.state)
            demonstrations.write_obs(t, self.obs)
            demonstrations.episode_start[t] = self.episode_start
            labels = demonstrations.labels[t]
            labels[:] = False if self.optimal is None else self.optimal
            legal = self.policy.legal(self.obs)
            if legal is not None:
                labels &= legal
            decision = self.decide(self.obs, self.state, self.episode_start)
            if not torch.isfinite(decision.logits).all():
                raise NonFiniteNumbers("the policy's logits are not finite")
            actions = choose(self.processes.pad_to_global(labels), self.processes.pad_to_global(decision.logits))
            self._advance(self.processes.local_rows(actions), decision)
        demonstrations.write_state(demonstrations.steps // demonstrations.window, self.state)

    def _optimal_actions(self, infos: dict[str, Any]) -> Tensor | None:
        mask = infos.get("optimal_actions")
        return None if mask is None else torch.as_tensor(mask, dtype=torch.bool, device=self.device)

    def _advance(self, actions: Tensor, decision: Decision) -> Outcome:
        """Step the environments and move on to the new observations."""
        self.state = decision.state if self.wrap is None else trees.clone(decision.state)
        self.segments = decision.segments.double().mean().item()
        obs, rewards, terminated, truncated, infos = self.env.step(self.policy.distribution.to_env(actions))
        ended = np.flatnonzero(terminated | truncated)
        final_obs = None
        if ended.size:
            stacked = stack_final_obs(infos["final_obs"], ended, self.env.single_observation_space)
            final_obs = trees.to_tensors(stacked, self.device)
        self.obs = trees.to_tensors(obs, self.device)
        self.optimal = self._optimal_actions(infos)
        self.episode_start = torch.as_tensor(terminated | truncated, device=self.device)
        self.frames += self.num_envs
        self._note_episodes(infos)
        return Outcome(
            torch.as_tensor(rewards, dtype=torch.float32, device=self.device),
            torch.as_tensor(terminated, device=self.device),
            torch.as_tensor(truncated, device=self.device),
            torch.from_numpy(ended).to(self.device),
            final_obs,
        )

    def _act(
        self, obs: Observation, state: PolicyState, episode_start: Tensor, uniforms: Tensor
    ) -> tuple[Decision, Tensor, Tensor]:
        """A decision, actions `[n, *shape]` sampled from it with uniform numbers, and their log-probabilities `[n]`."""
        decision, distribution = self._decide(obs, state, episode_start), self.policy.distribution
        actions = distribution.icdf(decision.logits, uniforms)
        return decision, actions, distribution.evaluate(decision.logits, actions)[0]

    def _decide(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        def part(rows: slice) -> Decision:
            with torch.no_grad():  # grad mode is per thread
                return self.policy.step(*trees.rows((obs, state, episode_start), rows))

        parts = self.threads.map(part, self.policy.slices(self.threads, episode_start.shape[0]))
        joined: Decision = parts[0] if len(parts) == 1 else trees.cat(parts)
        return joined

    def _note_episodes(self, infos: dict[str, Any]) -> None:
        reported = episode_statistics(infos)
        if reported is None:
            return
        stats, ended = reported
        success = episode_success(self.env, infos, np.asarray(stats["r"]))
        for i in np.flatnonzero(ended):
            own = float(stats["r"][i]), int(stats["l"][i]), bool(success[i])
            self._ended.append((self.frames, self.first_env + int(i), *own))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, of the collector and its environment; see also `metadata`.

        On rank 0 they are those of all processes, as a single process would have them; on others they must not be
        used. In an environment's own state every array with a first dimension of `num_envs` is per environment.
        """
        by_env = {
            **trees.flatten("obs", {"": self.obs} if isinstance(self.obs, Tensor) else self.obs),
            **trees.flatten("state", self.state),
            "episode_start": self.episode_start,
        }
        common = {"generator": self.generator.get_state()}
        if self.optimal is not None:
            by_env["optimal_actions"] = self.optimal
        if hasattr(self.env, "get_state"):
            for key, value in self.env.get_state().items():
                kind = by_env if np.shape(value)[:1] == (self.env.num_envs,) else common
                kind[f"env/{key}"] = torch.as_tensor(value)
        return {**{key: self.processes.gather_rows(value) for key, value in by_env.items()}, **common}

    def metadata(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "episodes": [list(e) for e in self.episodes],
            "in_first_episode": sorted(self._in_first_episode),
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Inverse of `tensors` and `metadata`, whatever the number of processes that wrote them.

        An environment without `get_state` cannot be restored: it begins new episodes, with new seeds.

        Raises:
            ValueError: they belong to another policy or number of environments, or are none that a run can have saved;
                then nothing has changed.
        """
        restored = self.check(tensors, metadata)
        generator = tensors["generator"]
        by_env = {key: tensors[key] for key in tensors if tensors[key].shape[:1] == (self.num_envs,)}
        tensors = {**tensors, **{key: self.processes.local_rows(t) for key, t in by_env.items()}}
        if hasattr(self.env, "set_state"):  # before anything else is changed, since it may refuse
            self.env.set_state({key: t.numpy() for key, t in trees.unflatten("env", tensors).items()})
        self.frames = restored.frames
        self.episodes.clear()
        self.episodes.extend(restored.episodes)
        self._in_first_episode = set(restored.in_first_episode)
        self.generator.set_state(generator)
        self.state = tuple(tensors[f"state/{i}"].to(self.device) for i in range(len(self.state)))
        if hasattr(self.env, "set_state"):
            obs = trees.to(trees.unflatten("obs", tensors), self.device)
            self.obs = obs[""] if isinstance(self.obs, Tensor) else obs
            self.episode_start = tensors["episode_start"].to(self.device)
            optimal = tensors.get("optimal_actions")
            self.optimal = None if optimal is None else optimal.to(self.device)
        else:
            obs, infos = self.env.reset(seed=_seed_after(self.seed, self.frames) + self.first_env)
            self.obs = trees.to_tensors(obs, self.device)
            self.optimal = self._optimal_actions(infos)
            self.episode_start = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)

    def check(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> CollectorMetadata:
        """Whether `restore` would accept them, up to the environment's own state; changes nothing.

        Raises:
            ValueError: see `restore`.
        """
        restored = converted("collector", metadata, CollectorMetadata)
        start = tensors.get("episode_start", self.episode_start)
        if len(start) != self.num_envs:
            raise ValueError(f"{len(start)} environments, expected {self.num_envs}")
        if restored.frames % self.num_envs:
            raise ValueError(f"frames={restored.frames}: expected a multiple of the {self.num_envs} environments")
        if any(env >= self.num_envs for env in restored.in_first_episode):
            raise ValueError(f"in_first_episode: expected numbers of the {self.num_envs} environments")
        own = {name: t for name, t in tensors.items() if name.split("/")[0] in ("episode_start", "state")}
        expected = {"episode_start": self.episode_start, **trees.flatten("state", self.state)}
        check_tensors("collector", own, expected, self.num_envs)
        check_generator("collector generator", tensors.get("generator"))
        if "optimal_actions" in tensors:
            actions = self.episode_start.new_empty(1, self.policy.distribution.outputs)
            check_tensor("collector optimal_actions", tensors["optimal_actions"], actions, self.num_envs)
        if hasattr(self.env, "set_state"):
            plain = isinstance(self.obs, Tensor)
            seen = {"obs" if plain else f"obs/{k}": t for k, t in trees.unflatten("obs", tensors).items()}
            check_observations("collector", seen, self.obs, self.env.single_observation_space, self.num_envs)
        return restored

    def statistics(self) -> dict[str, float]:
        """Means over the last `RECENT_EPISODES` episodes of training, or one of each environment where there are more;
        `segments` is the mean of the last step alone.

        Empty until every environment has ended an episode, since short episodes end first; and in a run that earlier
        versions began, until there are as many episodes as environments.
        """
        if self._in_first_episode or len(self.episodes) < min(self.num_envs, RECENT_EPISODES):
            return {}
        returns, lengths, successes = zip(*self.episodes, strict=True)
        return {
            "return": float(np.mean(returns)),
            "length": float(np.mean(lengths)),
            "success": float(np.mean(successes)),
            "segments": self.segments,
        }


def _seed_after(seed: int, frames: int) -> int:
    """First seed of a resumed run's levels: far from those of other seeds and of other numbers of frames."""
    # Below 2^28, where evaluation's seeds begin, also after the index of an environment is added.
    return int(np.random.SeedSequence([seed, frames]).generate_state(1)[0]) % (2**28 - 2**20)


def epsilon_greedy(q_values: Tensor, epsilon: float, generator: torch.Generator, legal: Tensor | None = None) -> Tensor:
    """Actions int64 `[B]`: with probability `epsilon` uniformly random, else those of the largest Q-value.

    Drawn on the CPU whatever the device, so that all devices use the same random numbers.

    Args:
        legal: bool `[B, A]`, the actions to draw from; `q_values` are `MASKED` elsewhere. None: all.
    """
    if not torch.isfinite(q_values).all():
        raise NonFiniteNumbers("the Q-values are not finite")
    size, count = q_values.shape
    explores = torch.rand(size, generator=generator) < epsilon
    if legal is None:
        anything = torch.randint(count, (size,), generator=generator)
    else:
        anything = torch.multinomial(legal.cpu().float(), 1, generator=generator).squeeze(-1)
    return torch.where(explores.to(q_values.device), anything.to(q_values.device), q_values.argmax(-1))
