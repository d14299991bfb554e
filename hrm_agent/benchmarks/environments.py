"""Suite `env`: environment steps, one environment at a time against a vector of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import torch

from hrm_agent.benchmarks.cases import Case, Competitor, Options, Outputs
from hrm_agent.environments.make import make_env, make_vector_env

ENVIRONMENTS = ("DynamicMaze-v0", "PaperMaze-v0")
SINGLE, VECTOR = "single", "vector"
STEPS = 50
CHECKED_ENVS = 3


def env(options: Options) -> Iterator[Case]:
    """Steps under random actions with automatic resets; environment i of a vector is a single one of seed s + i."""
    count = 32 if options.quick else 256
    for name in ENVIRONMENTS:
        yield Case(
            "env",
            f"{name}, {count} environments",
            _competitors(name, count),
            (SINGLE, VECTOR),
            0,
            count * STEPS,
            "steps",
            tolerance=0.0,
        )


def _competitors(name: str, count: int) -> Callable[[str], Competitor]:
    actions = np.random.default_rng(0).integers(0, 4, (STEPS, count))

    def make(path: str) -> Competitor:
        if path == SINGLE:
            single = make_env(name)
            single.reset(seed=0)
            # A vector steps each of its environments once; a single environment takes all these steps.
            return Competitor(lambda: _step_singly(single, actions.ravel()), lambda seed: _single_outputs(name, seed))
        many = make_vector_env(name, count)
        many.reset(seed=0)
        return Competitor(lambda: [many.step(action) for action in actions], lambda seed: _vector_outputs(name, seed))

    return make


def _step_singly(env: gym.Env, actions: np.ndarray) -> None:
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def _single_outputs(name: str, seed: int) -> Outputs:
    """Outputs of environments that are stepped one at a time, reset where an episode ends."""
    actions = _actions(seed)
    seen = []
    for i in range(CHECKED_ENVS):
        env = make_env(name)
        rows = [(env.reset(seed=seed + i)[0].copy(), 0.0, False, False)]
        for action in actions[:, i]:
            obs, reward, terminated, truncated, _ = env.step(action)
            obs = env.reset()[0] if terminated or truncated else obs
            rows.append((obs.copy(), float(reward), terminated, truncated))
        seen.append([np.stack(column) for column in zip(*rows, strict=True)])
        env.close()
    return _by_name([np.stack(columns, axis=1) for columns in zip(*seen, strict=True)])


def _vector_outputs(name: str, seed: int) -> Outputs:
    env = make_vector_env(name, CHECKED_ENVS)
    nothing = np.zeros(CHECKED_ENVS)
    rows = [(env.reset(seed=seed)[0].copy(), nothing, nothing, nothing)]
    for action in _actions(seed):
        obs, *outcome, _ = env.step(action)
        rows.append((obs.copy(), *(np.copy(value) for value in outcome)))
    env.close()
    return _by_name([np.stack(column) for column in zip(*rows, strict=True)])


def _actions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (4 * STEPS, CHECKED_ENVS))


def _by_name(columns: list[np.ndarray]) -> Outputs:
    """float64 `[steps, environments, ...]`; rewards are rounded to float32, as a vector gives them."""
    names = ("observations", "rewards", "terminated", "truncated")
    return {n: torch.from_numpy(c.astype(np.float32).astype(np.float64)) for n, c in zip(names, columns, strict=True)}
