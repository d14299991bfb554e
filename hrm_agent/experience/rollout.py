"""A buffer of T steps of N environments, and the windows that training takes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, moments
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import Observation
from hrm_agent.tensors import trees
from hrm_agent.tensors.saved import check_range, check_tensors


class Windows(NamedTuple):
    """B windows of k consecutive steps; every tensor is `[k, B, ...]` but `state`, whose tensors are `[B, ...]`.

    `state` is the carried state before the first step, `next_state` after the last, both as collected.
    """

    obs: Observation
    actions: Tensor  # int64 or float32 `[k, B, *shape]`, as the policy's distribution has them
    log_probs: Tensor
    values: Tensor
    episode_start: Tensor  # bool
    advantages: Tensor
    returns: Tensor
    state: PolicyState
    next_state: PolicyState

    def columns(self, index: Tensor | slice, next_state: bool = True) -> Windows:
        """Some of the B windows; optionally without `next_state`."""
        states = (self.state, self.next_state if next_state else ())
        return Windows(*trees.columns(self[:-2], index), *trees.rows(states, index))


class Rollout:
    """Buffers for `steps` steps of `num_envs` environments, and the carried state at every `window`-th step.

    Args:
        steps: T; must be a multiple of `window`.
        window: k, the number of consecutive steps that training unrolls.
        state: a carried state of batch `num_envs`, for shapes.
        device: of the buffers.
        action_shape, action_dtype: of one action; by default a discrete one.
    """

    def __init__(
        self,
        steps: int,
        num_envs: int,
        window: int,
        space: gym.Space,
        state: PolicyState,
        device: torch.device | str = "cpu",
        action_shape: tuple[int, ...] = (),
        action_dtype: torch.dtype = torch.int64,
    ) -> None:
        if window < 1 or steps % window:
            raise ValueError(
                f"algo.rollout_steps={steps} is not a multiple of algo.window={window}: expected windows that "
                "tile the rollout; change one of them"
            )
        self.steps, self.num_envs, self.window = steps, num_envs, window
        shape = (steps, num_envs)
        self.obs = allocate(space, shape, device)
        self.actions = torch.zeros(*shape, *action_shape, dtype=action_dtype, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.rewards = torch.zeros(shape, device=device)
        self.episode_start = torch.zeros(shape, dtype=torch.bool, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.final_values = torch.zeros(shape, device=device)  # V(final_obs) where truncated, else 0
        self.last_values = torch.zeros(num_envs, device=device)  # V of the observation after the rollout
        # Row w: carried state before step w * window; the last row: after the last step.
        self.states = trees.zeros(steps // window + 1, tuple(state), device)

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        trees_of = (value for value in vars(self).values() if isinstance(value, Tensor | Mapping | tuple))
        return sum(tensor.nbytes for tree in trees_of for tensor in trees.leaves(tree))

    def write_obs(self, t: int, obs: Observation) -> None:
        trees.set_rows(self.obs, t, obs)

    def write_state(self, row: int, state: PolicyState) -> None:
        trees.set_rows(self.states, row, state)

    def advantages(self, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Generalised advantage estimates and returns, both `[T, N]` (Schulman et al. 2015, arXiv 1506.02438).

        Where an episode was truncated, the value of its final observation is bootstrapped. Advantages do not cross
        episode boundaries.
        """
        advantages = torch.empty_like(self.rewards)
        running = torch.zeros_like(self.last_values)
        for t in reversed(range(self.steps)):
            ended = self.terminated[t] | self.truncated[t]
            following = self.values[t + 1] if t + 1 < self.steps else self.last_values
            bootstrap = torch.where(ended, self.final_values[t], following)
            delta = self.rewards[t] + gamma * bootstrap - self.values[t]
            running = delta + gamma * lam * torch.where(ended, 0.0, running)
            advantages[t] = running
        return advantages, advantages + self.values

    def windows(self, advantages: Tensor, returns: Tensor) -> Windows:
        """All windows of the rollout: B = num_envs * T / k columns, ordered by (window, environment)."""

        by_step = (
            self.obs, self.actions, self.log_probs, self.values, self.episode_start, advantages, returns
        )  # fmt: skip
        fields = (*trees.map_tensors(self.fold, by_step), *self.folded_states())
        return Windows(*fields)

    def fold(self, x: Tensor) -> Tensor:
        """`[T, N, ...]` -> `[k, T/k * N, ...]`."""
        return x.unflatten(0, (-1, self.window)).transpose(0, 1).flatten(1, 2)

    def folded_states(self) -> tuple[PolicyState, PolicyState]:
        """Carried states before the first and after the last step of every window, tensors `[T/k * N, ...]`."""
        return tuple(s[:-1].flatten(0, 1) for s in self.states), tuple(s[1:].flatten(0, 1) for s in self.states)

    def draw_minibatches(self, size: int, generator: torch.Generator, processes: Processes = SINGLE_PROCESS) -> Tensor:
        """A random partition of the windows of all processes into minibatches of `size`, see `draw_minibatches`.

        Returns the columns of this process's windows in each minibatch, int64 `[M, c]`.
        """
        num_envs, per_env = self.num_envs * processes.world_size, self.steps // self.window
        return draw_minibatches(num_envs, per_env, size, generator, processes).to(self.values.device)


class ReturnScaler:
    """Divides rewards by the running standard deviation of the discounted return, so that values are of order 1.

    Engstrom et al. 2020, arXiv 2005.12729, section 3; the mean is not subtracted, which would change the task.

    Args:
        num_envs: N, of this process.
        gamma: of the return.
        processes: over which the deviation is computed.
    """

    def __init__(self, num_envs: int, gamma: float, processes: Processes = SINGLE_PROCESS) -> None:
        self.gamma, self.processes = gamma, processes
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.moments = torch.zeros(3, dtype=torch.float64)  # count, mean, sum of squared deviations

    def scale(self, rollout: Rollout) -> None:
        """Update the deviation with a new rollout, and divide its rewards in place."""
        seen = []
        for reward, ended in zip(rollout.rewards, rollout.terminated | rollout.truncated, strict=True):
            self.returns = self.gamma * self.returns + reward.double().cpu()
            seen.append(self.returns)
            self.returns = torch.where(ended.cpu(), 0.0, self.returns)
        new, new_mean, new_squares = moments(torch.stack(seen).view(-1, 1), self.processes)
        count, mean, squares = self.moments.unbind()
        total, moved = count + new, new_mean[0] - mean
        squares = squares + new_squares[0] + moved.square() * count * new / total
        self.moments = torch.stack([total, mean + moved * new / total, squares])
        deviation = float((squares / total).sqrt())
        if deviation > 0:
            rollout.rewards /= deviation

    def tensors(self) -> dict[str, Tensor]:
        return {"returns": self.processes.gather_rows(self.returns), "moments": self.moments}

    def restore(self, tensors: dict[str, Tensor], same_episodes: bool = True) -> None:
        """Inverse of `tensors`; where the environments begin new episodes, returns begin at 0.

        Raises:
            ValueError: they are of another number of environments, or none that a run can have saved.
        """
        self.check(tensors)
        self.returns, self.moments = (
            self.processes.local_rows(tensors["returns"]) * same_episodes,
            tensors["moments"].clone(),
        )

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Whether `restore` would accept them; changes nothing. Raises: ValueError; see there."""
        every = self.returns.new_empty(len(self.returns) * self.processes.world_size)
        check_tensors("scaler", tensors, {"returns": every, "moments": self.moments})
        check_range("scaler moments", tensors["moments"][::2], 0, float("inf"))


def draw_minibatches(
    num_envs: int, per_env: int, size: int, generator: torch.Generator, processes: Processes = SINGLE_PROCESS
) -> Tensor:
    """A random partition of all windows into M minibatches: columns of this process's windows in each, `[M, c]`.

    Stratified: the environments are divided into the largest number of equal blocks that divides a minibatch, and
    every minibatch holds equally many windows of each block, in the order of the blocks. So minibatches vary less than
    with a plain shuffle, and processes that hold whole blocks have equal work, on the same minibatches as one process.

    Args:
        num_envs, per_env: environments of all processes, and windows of each.
        size: windows in a minibatch, of all processes; divides their number.
        generator: the same everywhere.
    """
    blocks = math.gcd(num_envs, size)
    each = num_envs // blocks  # environments of a block
    # Per block a permutation of its windows; of window w of environment e the number is w * each + e.
    order = processes.local_rows(
        torch.rand(blocks, each * per_env, generator=generator, dtype=torch.float64).argsort(1)
    )
    window, env = order // each, order % each + each * torch.arange(len(order)).unsqueeze(1)
    columns = window * (len(order) * each) + env
    return columns.unflatten(1, (-1, size // blocks)).transpose(0, 1).flatten(1)


def allocate(space: gym.Space, shape: tuple[int, ...], device: torch.device | str) -> Any:
    """Zeros for observations of `space` with leading dimensions `shape`; a dictionary for Dict spaces."""
    if isinstance(space, gym.spaces.Dict):
        return {key: allocate(sub, shape, device) for key, sub in space.spaces.items()}
    dtype = torch.from_numpy(np.zeros(1, dtype=space.dtype)).dtype
    return torch.zeros(*shape, *(space.shape or ()), dtype=dtype, device=device)
