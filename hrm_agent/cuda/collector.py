"""Collection that keeps a GPU busy: decisions are replayed, and one half of the environments steps meanwhile.

For PPO the host never waits for a number but the actions, and for these only when the other half's decision is on its
way already. Rewards and ends stay on the host until the rollout is full; actions are drawn on the device from uniform
numbers that were drawn on the CPU, so that a checkpoint's stream of numbers serves here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hrm_agent.cuda.core import CoreForward
from hrm_agent.environments.double_buffer import Halves
from hrm_agent.experience.collector import Collector, stack_final_obs
from hrm_agent.experience.rollout import Rollout
from hrm_agent.parallel.graphs import Capture, Replayed, Say, copy_into, leaves
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation, map_observation
from hrm_agent.policies.policy import Decision, Policy, to_tensors
from hrm_agent.tensors.gradients import NonFiniteNumbers


class CutOff(NamedTuple):
    """Episodes of M environments that a time limit ended at step `t`, to be valued when the rollout is full."""

    t: int
    rows: Tensor  # int64 [M]
    obs: Observation  # [M, ...], what they saw last
    state: PolicyState  # [M, ...], kept after the last step, before the reset


class CudaCollector(Collector):
    """Args:
    env, policy, seed, shards: see `Collector`; of `Halves` each part is stepped on its own.
    forward: the hook on the policy's core.
    capture: how decisions are recorded; None: they are not.
    say: told where that fails.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        policy: Policy,
        seed: int,
        shards: Threads,
        forward: CoreForward,
        capture: Capture | None,
        say: Say,
    ) -> None:
        super().__init__(env, policy, seed, shards)
        self.forward, self.capture, self.say = forward, capture, say
        whole = (slice(0, env.num_envs),)
        envs, rows = (env.parts, env.rows) if isinstance(env, Halves) else ([env], whole)
        self.finite = torch.ones((), device=self.device)
        self._buffers = self._own(self.obs, self.state, self.episode_start)
        self._parts = [_Part(self, part, own) for part, own in zip(envs, rows, strict=True)]
        self._judge = _Decider(self, max(part.num_envs for part in envs), "the value of a state")
        self._everybody = _Decider(self, env.num_envs, "a decision")
        self._rollout: Rollout | None = None

    def _own(self, obs: Observation, state: PolicyState, start: Tensor) -> tuple[Any, PolicyState, Tensor]:
        """Copies that stay in place, and where the collector stands from now on."""
        self.obs = map_observation(lambda value: value.detach().clone(), obs)
        self.state, self.episode_start = tuple(s.clone() for s in state), start.clone()
        return self.obs, self.state, self.episode_start

    def _settle(self) -> None:
        """Stand in the buffers that stay in place, after something else was put there."""
        now = (self.obs, self.state, self.episode_start)
        if any(a is not b for a, b in zip(leaves(now), leaves(self._buffers), strict=True)):
            copy_into(self._buffers, now)
            self.obs, self.state, self.episode_start = self._buffers

    @torch.no_grad()
    def collect(self, rollout: Rollout) -> None:
        """Fill `rollout` as `Collector.collect` does, with the same actions.

        Raises:
            NonFiniteNumbers: looked for once, when the rollout is full.
        """
        with self._stepping():
            self._collect(rollout)

    def _collect(self, rollout: Rollout) -> None:
        self._settle()
        self.forward.weights_changed()
        if rollout is not self._rollout:
            self._rollout = rollout
            for part in self._parts:
                part.bind(rollout)
        shape = (rollout.steps, self.env.num_envs)
        uniforms = torch.rand(
            *shape, self.policy.distribution.uniforms, generator=self.generator, dtype=torch.float64
        )  # the numbers that `Collector` draws step by step
        self.finite.fill_(1.0)
        for part in self._parts:
            part.begin(uniforms)
        host: dict[str, np.ndarray] = {name: np.zeros(shape, kind) for name, kind in _HOST.items()}
        cuts: list[CutOff] = []
        for part in self._parts:
            part.think(0)
        for t in range(rollout.steps):
            for part in self._parts:
                cuts += part.act(t, host)
                if t + 1 < rollout.steps:
                    part.think(t + 1)
        rollout.write_state(rollout.steps // rollout.window, self.state)
        for name, values in host.items():
            getattr(rollout, name).copy_(torch.from_numpy(values), non_blocking=True)
        self._value(rollout, cuts)
        self._look(rollout)

    def _value(self, rollout: Rollout, cuts: Sequence[CutOff]) -> None:
        """What comes after the rollout, and after the time limits in it, is worth."""
        for part in self._parts:
            own = part.rows
            obs = map_observation(lambda value, own=own: value[own], self.obs)
            state = tuple(s[own] for s in self.state)
            rollout.last_values[own] = self._judge(obs, state, self.episode_start[own]).value
        rollout.final_values.zero_()
        if not cuts:
            return
        obs = map_observation(lambda *values: torch.cat(values), *(c.obs for c in cuts))
        state = tuple(torch.cat(fields) for fields in zip(*(c.state for c in cuts), strict=True))
        steps = torch.cat([torch.full_like(c.rows, c.t) for c in cuts])
        envs = torch.cat([c.rows for c in cuts])
        for some in torch.arange(len(envs), device=self.device).split(self._judge.size):
            start = torch.zeros(len(some), dtype=torch.bool, device=self.device)
            seen = map_observation(lambda value, some=some: value[some], obs)
            value = self._judge(seen, tuple(s[some] for s in state), start).value
            rollout.final_values[steps[some], envs[some]] = value

    def _look(self, rollout: Rollout) -> None:
        """The collection's one look at numbers of the device."""
        counts = torch.stack([p.segments.double() for p in self._parts]).mean()
        finite, self.segments = torch.stack([self.finite.double(), counts]).tolist()
        if not finite:
            raise NonFiniteNumbers("the policy's logits are not finite")

    def advance(self, num_envs: int, infos: dict[str, Any]) -> None:
        """Count frames and episodes of some environments."""
        self.frames += num_envs
        self._note_episodes(infos)

    def _decide(self, obs: Observation, state: PolicyState, episode_start: Tensor) -> Decision:
        if len(episode_start) != self._everybody.size:  # a few final observations
            return super()._decide(obs, state, episode_start)
        self.forward.weights_changed()
        decision = self._everybody(obs, state, episode_start)
        kept = tuple(s.clone() for s in decision.state)
        return Decision(decision.logits.clone(), decision.value.clone(), kept, decision.segments.clone())

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        super().restore(tensors, metadata)
        self._settle()


_HOST: dict[str, type] = {"rewards": np.float32, "terminated": np.bool_, "truncated": np.bool_}


class _Decider:
    """Decisions for at most `size` rows, replayed; what is returned is overwritten by the next call."""

    def __init__(self, collector: CudaCollector, size: int, name: str) -> None:
        self.size = size
        self.policy = collector.policy
        of_all = (collector.obs, collector.state, collector.episode_start)
        obs, state, start = (_zeros(part, size) for part in of_all)
        self.obs, self.state, self.start = obs, state, start
        self.replayed = Replayed(name, self._body, collector.capture, lambda: (), collector.say)

    def _body(self) -> Decision:
        with torch.no_grad():
            return self.policy.step(self.obs, self.state, self.start)

    def __call__(self, obs: Observation, state: PolicyState, start: Tensor) -> Decision:
        count = len(start)
        for to, value in zip(leaves((self.obs, self.state, self.start)), leaves((obs, state, start)), strict=True):
            to[:count] = value
        decision = self.replayed()
        kept = tuple(s[:count] for s in decision.state)
        return Decision(decision.logits[:count], decision.value[:count], kept, decision.segments[:count])


class _Part:
    """One vector of environments with its rows of the collector's buffers."""

    def __init__(self, collector: CudaCollector, env: gym.vector.VectorEnv, rows: slice) -> None:
        self.collector, self.env, self.rows = collector, env, rows
        self.policy, self.device = collector.policy, collector.device
        self.obs = map_observation(lambda value: value[rows], collector.obs)
        self.state = tuple(s[rows] for s in collector.state)
        self.start = collector.episode_start[rows]
        self.t = torch.zeros(1, dtype=torch.int64, device=self.device)  # the step that is decided next
        self.segments = torch.zeros((), device=self.device)
        distribution, count = self.policy.distribution, env.num_envs
        pinned = self.device.type == "cuda"
        self.actions = torch.zeros(count, *distribution.shape, dtype=distribution.dtype, pin_memory=pinned)
        self.seen = map_observation(lambda value: _on_host(value, pinned), self.obs)
        self.ended = _on_host(self.start, pinned)
        self.arrived = torch.cuda.Event() if pinned else None
        self.uniforms = torch.zeros(0)

    def bind(self, rollout: Rollout) -> None:
        """Decisions are written into this rollout from now on."""
        self.rollout = rollout
        count, uniforms = self.env.num_envs, self.policy.distribution.uniforms
        self.uniforms = torch.zeros(rollout.steps, count, uniforms, dtype=torch.float64, device=self.device)
        collector = self.collector
        self.replayed = Replayed("a decision", self._body, collector.capture, self._kept, collector.say)

    def begin(self, uniforms: Tensor) -> None:
        """At the rollout's first step; `uniforms` `[T, N, R]` are all environments' uniform numbers."""
        self.t.zero_()
        self.uniforms.copy_(uniforms[:, self.rows], non_blocking=True)

    def _kept(self) -> list[Tensor]:
        return [*self.state, self.t, self.segments, self.collector.finite]

    @torch.no_grad()
    def _body(self) -> Tensor:
        """Decide, write everything into the rollout's row `t`, and go on to the next."""
        rollout, distribution = self.rollout, self.policy.distribution
        self._write(rollout.obs, self.obs)
        self._write(rollout.episode_start, self.start)
        decision = self.policy.step(self.obs, self.state, self.start)
        actions = distribution.icdf(decision.logits, self.uniforms.index_select(0, self.t)[0])
        self._write(rollout.actions, actions)
        self._write(rollout.log_probs, distribution.evaluate(decision.logits, actions)[0])
        self._write(rollout.values, decision.value)
        copy_into(self.state, decision.state)
        self.segments.copy_(decision.segments.float().mean())
        self.collector.finite.mul_(torch.isfinite(decision.logits).all())
        self.t.add_(1)
        return actions

    def _write(self, buffers: Any, values: Any) -> None:
        for buffer, value in zip(leaves(buffers), leaves(values), strict=True):
            buffer[:, self.rows].index_copy_(0, self.t, value.unsqueeze(0))

    def think(self, t: int) -> None:
        """Set the decision about step `t` going, and its actions on their way to the host."""
        if t % self.rollout.window == 0:
            for store, kept in zip(self.rollout.states, self.state, strict=True):
                store[t // self.rollout.window, self.rows] = kept
        self.actions.copy_(self.replayed(), non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def act(self, t: int, host: dict[str, np.ndarray]) -> list[CutOff]:
        """Wait for the actions of step `t`, do them, and set the new observations on their way to the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        obs, rewards, terminated, truncated, infos = self.env.step(self.policy.distribution.to_env(self.actions))
        for name, values in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            host[name][t, self.rows] = values
        cuts = self._cut_off(t, truncated & ~terminated, infos)
        # What was on its way from this memory has arrived: the actions that were waited for came after it.
        copy_into(self.seen, to_tensors(obs))
        self.ended.copy_(torch.from_numpy(terminated | truncated))
        copy_into((self.obs, self.start), (self.seen, self.ended))
        self.collector.advance(self.env.num_envs, infos)
        return cuts

    def _cut_off(self, t: int, cut: np.ndarray, infos: dict[str, Any]) -> list[CutOff]:
        rows = np.flatnonzero(cut)
        if not rows.size:
            return []
        final = stack_final_obs(infos["final_obs"], rows, self.env.single_observation_space)
        own = torch.from_numpy(rows).to(self.device, non_blocking=True)
        state = tuple(s.index_select(0, own) for s in self.state)
        return [CutOff(t, own + self.rows.start, to_tensors(final, self.device), state)]


def _zeros(tree: Any, size: int) -> Any:
    """Like a tree of tensors, but with another number of rows."""
    if isinstance(tree, tuple):
        return tuple(_zeros(part, size) for part in tree)
    return map_observation(
        lambda value: torch.zeros(size, *value.shape[1:], dtype=value.dtype, device=value.device), tree
    )


def _on_host(value: Tensor, pinned: bool) -> Tensor:
    return torch.zeros(value.shape, dtype=value.dtype, pin_memory=pinned)
