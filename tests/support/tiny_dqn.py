"""A tiny DQN with a replay of what its policy did, shared by the tests of loss and update."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrm_agent.algos.dqn import DQN, DQNConfig
from hrm_agent.experience.replay import Replay, Sequences
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from tiny import ACTIONS, GRID, QUICK, grids, tiny_policy

SMALL = {
    "num_envs": 3, "capacity": 96, "learning_starts": 0, "updates": 1, "batch_sequences": 16, "burn_in": 4,
    "train_steps": 4, "n_step": 2, "stride": 4, "learning_rate": 1e-2, "anneal": False,
}  # fmt: skip
SEGMENTS = {"burn_in": 0, "train_steps": 1, "n_step": 1, "stride": 1, "each_segment": True}
PAPER = {
    **SEGMENTS, "double_q": False, "loss": "mse", "optimizer": "adam_atan2", "max_grad_norm": 0.0,
    "stored_bootstrap": True,
}  # fmt: skip


class Filled(NamedTuple):
    """An algorithm and a replay of what its policy did, with the Q-values that it had then."""

    algo: DQN
    replay: Replay
    q: Tensor  # [T, N, A]
    final_q: dict[tuple[int, int], Tensor]  # (step, environment) -> [A], of the final observation


def make(policy: dict[str, Any] | None = None, threads: int = 1, seed: int = 0, **changes: Any) -> DQN:
    config = DQNConfig(**{**SMALL, **changes})
    options = {"core_options": QUICK, "segments": 2, **(policy or {})}
    return DQN(tiny_policy(heads="q", **options), config, Threads(threads), seed)


@torch.no_grad()
def fill(algo: DQN, steps: int = 28, seed: int = 0) -> Filled:
    """Random observations, actions, rewards and ends of episodes; the states are the policy's own."""
    count, policy = algo.config.num_envs, algo.policy
    state = policy.initial_state(count)
    replay = Replay(algo.config.capacity, count, GRID, state, algo.config.stride)
    random = torch.Generator().manual_seed(seed)
    obs, final = grids(steps, count, seed=seed), grids(steps, count, seed=seed + 1)
    start, qs, final_q = torch.ones(count, dtype=torch.bool), [], {}
    for t in range(steps):
        decision = policy.step(obs[t], state, start)
        draws = torch.rand(2, count, generator=random)
        terminated, truncated = draws[0] < 0.1, draws[1] < 0.1
        ended = terminated | truncated
        actions = torch.randint(int(ACTIONS.n), (count,), generator=random)
        rewards = torch.randn(count, generator=random)
        last = final[t][ended] if ended.any() else None
        replay.add(obs[t], state, start, actions, rewards, terminated, truncated, ended, last)
        after = policy.step(final[t], decision.state, torch.zeros_like(start)).logits
        final_q.update({(t, n): after[n] for n in range(count)})
        qs.append(decision.logits)
        state, start = decision.state, ended
    return Filled(algo, replay, torch.stack(qs), final_q)


def sample(filled: Filled, batch: int = 24, seed: int = 1) -> Sequences:
    c = filled.algo.config
    return filled.replay.sample(batch, c.burn_in, c.train_steps, c.n_step, torch.Generator().manual_seed(seed))


def perturb(policy: Policy, scale: float = 0.1, seed: int = 9) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn_like(p))


def weights(algo: DQN) -> list[Tensor]:
    return [p.detach().clone() for p in algo.parameters]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
