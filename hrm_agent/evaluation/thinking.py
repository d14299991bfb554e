"""A decision segment by segment: the policy after each, where the latent changed, and what a probe reads from it.

For pictures and for pages on which an agent is watched. `ThinkingActor` takes the actions of
`evaluation.episodes.PolicyActor`, one environment at a time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.cores import State
from hrm_agent.evaluation.draws import LevelRNG
from hrm_agent.evaluation.latents import first_state
from hrm_agent.evaluation.probes import token_places
from hrm_agent.parallel.threads import one_thread
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.distributions import Categorical
from hrm_agent.policies.encoders import Observation, find_grid
from hrm_agent.policies.policy import Policy, Segment
from hrm_agent.policies.tokens import latents_of_tokens
from hrm_agent.recurrence import may_stop, relative_change
from hrm_agent.tensors.trees import to_tensors


class Reader(Protocol):
    """A linear probe of the distance to the goal."""

    def read(self, latents: Tensor, segment: int) -> Tensor:
        """Steps to the goal, float `[...]`, from the latents of tokens `[..., F]` after segment 1, 2, ..."""


class Thought(NamedTuple):
    """One decision of one environment, K segments long. L counts the tokens of the grid, or all without a grid.

    Attributes:
        action: as the environment takes it: an int, or an array where the action space is not Discrete.
        probabilities: float32 `[K, A]`, the policy after every segment; of Q-values their softmax, which shows their
            order but is no policy. `[K, 0]` where actions are not one of a finite number.
        values: float32 `[K]`.
        change: float32 `[K]`, `||z_i - z_(i-1)|| / ||z_i||` of the whole latent; before segment 1 z is the state that
            it starts from. Zeros for a core without latent.
        latent_change: float32 `[K, L]`, the same for each token; `[K, 0]` for a core without a latent per token.
        distance: float32 `[K, L]`, steps to the goal that the probe reads after every segment, 0 or more; None without
            a probe.
    """

    action: Any
    probabilities: NDArray[np.float32]
    values: NDArray[np.float32]
    change: NDArray[np.float32]
    latent_change: NDArray[np.float32]
    distance: NDArray[np.float32] | None


class ThinkingActor:
    """A policy in one environment, which shows every segment of its decisions.

    Its actions are those of `PolicyActor`, with the policy's own rules: `first_segments` at the first decision, and
    `stop`.

    Args:
        policy: never changed here.
        probe: reads distances from the latents; ignored for a core without a latent per token.
        deterministic: the most probable action, or one drawn. Q-values always give the best.
        seed: of the draws.

    Attributes:
        state: the carried state before the next decision.
        starts: whether the next observation begins an episode.
    """

    def __init__(self, policy: Policy, probe: Reader | None = None, deterministic: bool = True, seed: int = 0) -> None:
        self.policy, self.probe, self.seed = policy, probe, seed
        self.deterministic = deterministic or policy.config.heads == "q"
        self.reset()

    def reset(self, level: int = 0) -> None:
        """The next observation begins an episode; draws depend on the number of its level."""
        self.state: PolicyState = self.policy.initial_state(1)
        self.starts = True
        self._rng = LevelRNG(np.array([level]), self.seed)
        self._uniforms: Tensor | None = None
        self._next: PolicyState | None = None

    def think(self, obs: Any) -> Thought:
        """The decision on an observation; the carried state stays until `advance`."""
        thought, self._next = self._decide(obs)
        return thought

    def advance(self) -> None:
        """Continue from the decision that `think` showed last: the next observation of the episode is expected."""
        assert self._next is not None
        self.state, self._next = self._next, None
        self.starts, self._uniforms = False, None

    def act(self, obs: Any) -> Thought:
        """`think` and `advance`."""
        thought = self.think(obs)
        self.advance()
        return thought

    @torch.no_grad()
    def _decide(self, obs: Any) -> tuple[Thought, PolicyState]:
        with one_thread():  # of one row, several threads only wait for each other
            before, segments = self._segments(to_tensors(batch_of_one(obs), self.policy.device))
            return self._thought(before, segments), segments[-1].decision.state

    def _segments(self, obs: Observation) -> tuple[State, list[Segment]]:
        """The core's state before the first segment, and the segments until the policy's rules say to stop."""
        policy, rules = self.policy, self.policy.rules
        start = torch.tensor([self.starts], device=policy.device)
        first = rules.first_segments if self.starts else None
        found: list[Segment] = []
        before = origin = first_state(policy, obs, self.state, start)
        policies = None
        for segment in policy.segment_by_segment(obs, self.state, start, first):
            found.append(segment)
            now = segment.decision.logits
            if rules.stop != "fixed" and may_stop(before, segment.state, policies, now, rules)[0]:
                break
            before, policies = segment.state, now
        return origin, found

    def _thought(self, before: State, segments: list[Segment]) -> Thought:
        policy, count = self.policy, len(segments)
        states = [before, *(segment.state for segment in segments)]
        logits = torch.cat([segment.decision.logits for segment in segments])
        values = torch.cat([segment.decision.value for segment in segments])
        finite = isinstance(policy.distribution, Categorical)
        tokens = [latents_of_tokens(policy, state) for state in states]
        moved, distance = torch.zeros(count, 0), None
        if tokens[0] is not None:
            latents = torch.cat([t for t in tokens if t is not None])  # [K + 1, L, F]
            moved = torch.stack([relative_change((latents[i],), (latents[i + 1],)) for i in range(count)])
            if self.probe is not None:
                read = [self.probe.read(latents[i + 1], i + 1) for i in range(count)]
                distance = _array(torch.stack(read).clamp_min(0))
        return Thought(
            action=self._action(logits[-1:]),
            probabilities=_array(logits.float().softmax(-1)) if finite else np.zeros((count, 0), np.float32),
            values=_array(values),
            change=_array(torch.cat([_whole_change(a, b) for a, b in pairwise(states)])),
            latent_change=_array(moved),
            distance=distance,
        )

    def _action(self, logits: Tensor) -> Any:
        distribution = self.policy.distribution
        if self.deterministic:
            action = distribution.to_env(distribution.best(logits))[0]
        else:
            if self._uniforms is None:  # one draw, however often this observation is shown
                self._uniforms = torch.from_numpy(
                    np.stack([self._rng.draw() for _ in range(distribution.uniforms)], -1)
                )
            action = distribution.to_env(distribution.icdf(logits.cpu(), self._uniforms))[0]
        return int(action) if np.ndim(action) == 0 else action


def cells_of_tokens(policy: Policy) -> list[list[tuple[int, int]]] | None:
    """The grid positions (row, column) that each of the L tokens of `Thought` covers; none cover those cropped off.

    None for a policy whose observations hold no grid of ids.
    """
    found = find_grid(policy.encoder)
    if found is None:
        return None
    grid = found[0]
    places, inside = token_places(grid)
    return [
        [divmod(int(place), grid.shape[1]) for place in own[known]] for own, known in zip(places, inside, strict=True)
    ]


def batch_of_one(obs: Any) -> Any:
    """A single environment's observation with a leading dimension of 1."""
    return {k: np.asarray(v)[None] for k, v in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]


def _whole_change(before: State, after: State) -> Tensor:
    return relative_change(before, after) if len(after) else torch.zeros(1)


def _array(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array
