"""Linear probes of the token of each cell: is the cell on a shortest path, and how far is the goal?

Alain and Bengio 2016 (Understanding intermediate layers using linear classifier probes, arXiv 1610.01644), on the
latents of a policy after each segment. As controls, the same probes on a network with random weights and on the
encoder's tokens: what they can decode too was not learned, or not computed by the core.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.agents.probe import DistanceProbe, identify
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.latents import Followed, as_list, distances_from, play, trace_segments
from hrm_agent.policies.carry import PolicyState
from hrm_agent.policies.encoders import GridEncoder, find_grid
from hrm_agent.policies.policy import Policy
from hrm_agent.policies.tokens import token_latents
from hrm_envs import Cell

TASKS = ("path", "distance")
"""Targets decoded from a token: whether its cell is on a shortest path, and how far it is from the goal."""

FEATURES = ("latent", "random", "input", "input_3x3")
RIDGE = 1e-3

SCORES = ("path_auc", "path_balanced_accuracy", "distance_r2")


class CellTargets(NamedTuple):
    """Targets of L grid tokens on M maps; `known` marks where a target is defined."""

    path: NDArray[np.bool_]  # [M, L] on a shortest path from the agent to the goal
    path_known: NDArray[np.bool_]  # [M, L]
    distance: NDArray[np.float64]  # [M, L] log(1 + steps to the goal)
    distance_known: NDArray[np.bool_]  # [M, L]


def cell_targets(maps: NDArray[np.uint8], grid: GridEncoder) -> CellTargets:
    """Targets of the first open position of each token's patch, on the current maps.

    Tokens without an open position are left out, and so are those that show the agent or the goal, where the input
    reveals the target; `path` is undefined also on maps where the agent
    cannot reach the goal, `distance` on cells from which it cannot be reached.

    Args:
        maps: `[M, H, W]` without fog.
        grid: the encoder that makes the tokens.
    """
    slots, inside = token_places(grid)
    flat, rows = maps.reshape(len(maps), -1), np.arange(len(maps))
    to_goal, to_agent = (distances_from(maps, cell).reshape(flat.shape) for cell in (Cell.GOAL, Cell.AGENT))
    patches = flat[:, slots]  # [M, L, places]
    is_open = (patches != Cell.WALL) & (patches != Cell.DOOR) & inside
    revealed = ((patches == Cell.AGENT) | (patches == Cell.GOAL)) & inside
    usable = is_open.any(-1) & ~revealed.any(-1)
    first = slots[np.arange(len(slots)), is_open.argmax(-1)]  # [M, L]
    ahead, behind = (np.take_along_axis(distance, first, 1) for distance in (to_goal, to_agent))
    length = to_goal[rows, (flat == Cell.AGENT).argmax(1)][:, None]
    on_path = (ahead >= 0) & (behind >= 0) & (ahead + behind == length)
    return CellTargets(on_path, usable & (length >= 0), np.log1p(np.maximum(ahead, 0)), usable & (ahead >= 0))


def token_places(grid: GridEncoder) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Flat grid positions `[L, places]` of each token's patch, and which of them lie inside the grid."""
    (height, width), (rows, cols), p = grid.shape[:2], grid.grid or (0, 0), grid.patch_size
    token_row, token_col = (axis.reshape(-1, 1) for axis in np.divmod(np.arange(rows * cols), cols))
    place_row, place_col = np.divmod(np.arange(p * p), p)
    row, col = grid.crop + token_row * p + place_row, grid.crop + token_col * p + place_col
    inside = (row < height - grid.crop) & (col < width - grid.crop)
    return np.where(inside, row * width + col, 0), inside


class RidgeProbe:
    """Ridge regression, fitted in closed form from sums of products, so that no examples are stored.

    Args:
        balanced: give all values of the target the same total weight, however rare (for classes).
        ridge: penalty on the weights of features scaled to unit variance.
    """

    def __init__(self, balanced: bool = False, ridge: float = RIDGE) -> None:
        self.balanced, self.ridge = balanced, ridge
        self._products: dict[float | None, Tensor] = {}  # value of the target -> sums of [x, 1, y] times itself

    def add(self, x: Tensor, y: Tensor) -> None:
        """Examples: features `[N, F]`, targets `[N]`."""
        full = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64), y.double()[:, None]], 1)
        for value in y.double().unique().tolist() if self.balanced else [None]:
            part = full if value is None else full[full[:, -1] == value]
            self._products[value] = self._products.get(value, 0) + part.T @ part

    def fit(self) -> tuple[Tensor, Tensor]:
        """Weights float64 `[F]` and intercept. Raises: ValueError without examples."""
        if not self._products:
            raise ValueError("the probe has seen no example; give it more episodes")
        moments = torch.stack([product / product[-2, -2] for product in self._products.values()]).mean(0)
        mean = moments[-2]
        covariance = moments - torch.outer(mean, mean)
        variance = covariance.diagonal()[:-2]
        # A constant feature must not be scaled up: the reset state is the same vector everywhere.
        scale = variance.clamp_min(1e-6 * float(variance.max()) + 1e-9)
        weights = torch.linalg.solve(covariance[:-2, :-2] + self.ridge * scale.diag(), covariance[:-2, -1])
        return weights, mean[-1] - mean[:-2] @ weights


def auc(scores: NDArray, labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; NaN without both classes."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def balanced_accuracy(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> float:
    """Mean of the two classes' recalls; NaN without both classes."""
    if labels.all() or not labels.any():
        return float("nan")
    return float((predicted[labels].mean() + (~predicted[~labels]).mean()) / 2)


def r_squared(predicted: NDArray, target: NDArray) -> float:
    """Coefficient of determination; NaN where the target is constant."""
    spread = np.square(target - target.mean()).sum() if target.size else 0.0
    return float(1 - np.square(target - predicted).sum() / spread) if spread > 0 else float("nan")


class CellProbes:
    """One probe for each task, kind of features and segment."""

    def __init__(self) -> None:
        self.probes: dict[tuple[str, str, int], RidgeProbe] = {}
        self.weights: dict[tuple[str, str, int], tuple[Tensor, Tensor]] = {}
        self.scores: dict[tuple[str, str, int], list[NDArray]] = {}
        self.targets: dict[str, list[NDArray]] = {task: [] for task in TASKS}
        self.trained_on = dict.fromkeys(TASKS, 0)

    def see(self, features: dict[str, list[Tensor]], targets: CellTargets, learn: bool) -> None:
        """Features `[M, L, F]` by kind and segment: fit the probes to them, or test them."""
        for task, target, known in zip(TASKS, targets[::2], targets[1::2], strict=True):
            mask, y = torch.from_numpy(known), torch.from_numpy(target[known])
            if learn:
                self.trained_on[task] += len(y)
            else:
                self.targets[task].append(target[known])
            for name, by_segment in features.items():
                for i, x in enumerate(by_segment):
                    self._see((task, name, i), x.cpu()[mask], y, learn)

    def _see(self, key: tuple[str, str, int], x: Tensor, y: Tensor, learn: bool) -> None:
        if learn:
            self.probes.setdefault(key, RidgeProbe(balanced=key[0] == "path")).add(x, y)
            return
        if key not in self.weights:
            self.weights[key] = self.probes[key].fit()
        weights, intercept = self.weights[key]
        self.scores.setdefault(key, []).append((x.double() @ weights + intercept).numpy())

    def records(self) -> list[dict[str, Any]]:
        path, distance = (np.concatenate(self.targets[task]) for task in TASKS)
        found = []
        for name in FEATURES:
            count = sum(key[:2] == ("path", name) for key in self.scores)
            on_path = [np.concatenate(self.scores["path", name, i]) for i in range(count)]
            away = [np.concatenate(self.scores["distance", name, i]) for i in range(count)]
            found.append(
                {
                    "features": name,
                    "path_auc": as_list(np.array([auc(s, path) for s in on_path])),
                    "path_balanced_accuracy": as_list(np.array([balanced_accuracy(s > 0.5, path) for s in on_path])),
                    "distance_r2": as_list(np.array([r_squared(s, distance) for s in away])),
                    "path_cells": [self.trained_on["path"], len(path)],
                    "distance_cells": [self.trained_on["distance"], len(distance)],
                }
            )
        return found


def probe_cells(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    train_episodes: int,
    test_episodes: int,
    segments: int = 8,
    every: int = 2,
    seed: int = 0,
    batch: int = 256,
    fresh_seed: int = 0,
    split: str = "test",
) -> list[dict[str, Any]]:
    """Fit and test linear probes of each token: is its cell on a shortest path, and how far is the goal?

    Probes are fitted on levels of the train split and tested on held-out ones, along the agent's own greedy episodes.

    Args:
        policy, env_id, env_options, seed, batch: see `play`.
        train_episodes, test_episodes: levels for fitting and for testing.
        segments: probed one by one, and segment 0, the state before the first.
        every: probe every n-th decision of an episode; neighbouring ones are nearly the same.
        fresh_seed: of the network with random weights.
        split: of the levels for testing.

    Returns:
        One JSON-able record for each of `FEATURES`: `latent` (all latents of the token) and `random` (those of the
        same architecture with fresh weights, carrying its own state through the same observations) with
        segments + 1 numbers a metric, `input` (the encoder's token) and `input_3x3` (with its eight
        neighbours) with one. `path_auc`, `path_balanced_accuracy`, `distance_r2` (of log(1 + steps)), and
        `path_cells`, `distance_cells`: examples fitted and tested. None where undefined.

    Raises:
        ValueError: a core without a latent per token, counts below 1, or see `play`.
    """
    levels = (("train", train_episodes), (split, test_episodes))
    return _fit_and_test(policy, env_id, env_options, levels, segments, every, seed, batch, fresh_seed).records()


def fit_distance_probe(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    train_episodes: int = 400,
    episodes: int = 200,
    segments: int = 8,
    seed: int = 0,
) -> tuple[DistanceProbe, dict[str, Any]]:
    """A probe to keep beside an agent's weights, and how well it reads on validation levels.

    Args:
        policy, env_id, env_options, seed: see `play`.
        train_episodes, episodes: levels for fitting and for testing.
        segments: fitted one by one; at least the policy's own number are.

    Returns:
        The probe, and JSON-able facts for the agent's card: the environment, `levels`, `train_levels`, `cells`
        (examples fitted and tested), and the coefficients of determination of log(1 + steps), `r2` (after each
        segment) and its controls (see `probe_cells`) `random` (after each segment), `input` and `input_3x3`.

    Raises:
        ValueError: a core without a latent per token, counts below 1, or see `play`.
    """
    segments = max(segments, policy.segments, policy.config.first_segments or 0)
    levels = (("train", train_episodes), ("validation", episodes))
    probes = _fit_and_test(policy, env_id, env_options, levels, segments, seed=seed)
    fitted = [probes.weights["distance", "latent", number] for number in range(1, segments + 1)]
    probe = DistanceProbe(
        weights=torch.stack([weights for weights, _ in fitted]).float(),
        intercepts=torch.stack([intercept for _, intercept in fitted]).float(),
        policy=identify(policy),
    )
    r2 = {record["features"]: record["distance_r2"] for record in probes.records()}
    facts = {
        "env": str(env_id),
        "env_options": env_options,
        "split": "validation",
        "first_level": seed,
        "levels": episodes,
        "train_levels": train_episodes,
        "cells": [probes.trained_on["distance"], sum(map(len, probes.targets["distance"]))],
        "r2": r2["latent"][1:],  # segment 0 is the state before the first
        "random": r2["random"][1:],
        "input": r2["input"][0],
        "input_3x3": r2["input_3x3"][0],
    }
    return probe, facts


def _fit_and_test(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    levels: tuple[tuple[str, int], tuple[str, int]],
    segments: int,
    every: int = 2,
    seed: int = 0,
    batch: int = 256,
    fresh_seed: int = 0,
) -> CellProbes:
    """Probes fitted on the first of two splits, each with its number of levels, and tested on the second."""
    if every < 1 or segments < 1:
        raise ValueError(f"every={every}, segments={segments}: expected 1 or more of each")
    found = find_grid(policy.encoder)
    assert found is not None  # mazes are grids, which `play` checks
    grid, _, before = found
    fresh, probes, followed = fresh_policy(policy, env_id, env_options, fresh_seed), CellProbes(), Followed()
    for split, episodes in levels:
        for moment in play(policy, env_id, env_options, episodes, seed, split, batch):
            obs, start = torch.as_tensor(moment.obs, device=policy.device), moment.episode_start
            kept = fresh.initial_state(len(obs)) if moment.number == 0 else followed.take(moment.episodes)
            if moment.number % every == 0:
                features = {"latent": _by_segment(policy, obs, moment.state, start, segments, before)}
                features["random"] = _by_segment(fresh, obs, kept, start, segments, before)
                with torch.no_grad():
                    tokens = policy.encoder(policy.stacked(obs, moment.state, start)[0])[:, before:]
                features |= {"input": [tokens], "input_3x3": [with_neighbours(tokens, grid)]}
                probes.see(features, cell_targets(moment.maps, grid), learn=split == "train")
            with torch.no_grad():
                followed.put(moment.episodes, fresh.step(obs, kept, start).state)
    return probes


def fresh_policy(policy: Policy, env_id: str, env_options: dict[str, Any], seed: int) -> Policy:
    """The same architecture with weights drawn anew from `seed`; torch's own random stream is left alone."""
    env = make_vector_env(env_id, 1, env_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Policy(policy.config, env.single_observation_space, env.single_action_space)
    env.close()
    fresh.segments = policy.segments
    return fresh.to(policy.device).eval()


def _by_segment(
    policy: Policy, obs: Tensor, state: PolicyState, start: Tensor, segments: int, before: int
) -> list[Tensor]:
    """Latents of the grid's tokens `[B, L, F]` before the first segment and after each."""
    return [token_latents(s, before) for s in trace_segments(policy, obs, state, start, segments)[0]]


def with_neighbours(tokens: Tensor, grid: GridEncoder) -> Tensor:
    """Each token `[B, L, D]` with the eight around it, zeros outside: `[B, L, 9 * D]`."""
    image = tokens.transpose(1, 2).unflatten(2, grid.grid or (1, -1))
    return torch.nn.functional.unfold(image, 3, padding=1).transpose(1, 2)
