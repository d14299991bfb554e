"""How much of a supervised model's latent survives reinforcement learning.

    python -m experiments.rl_vs_supervised.latents [--draw-only]

For every world and seed whose runs of `run.py` are finished: the latents after one segment from the initial state, on
the same views of levels that no run was trained on, of the supervised model, of the policies that started with its
weights, of those that did not, and of random weights. Two measurements, added to `latents.json` where they are missing:
`probe`, how well a linear probe tells whether a cell is on a shortest path (AUC; cells that show agent or goal are left
out), and `cka`, linear centred kernel alignment with the supervised model's latents, cells being the examples.
Equal seeds begin with equal weights, so what did not start with the supervised weights is taken from the next seed; so
is `path_of_next_seed`, the supervised model that shows how alike training of this kind makes networks that start apart.
`input` are the tokens before thinking.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.engine.records import load, save
from experiments.engine.runner import Job
from experiments.rl_vs_supervised.run import FINISHED, HERE, Study
from hrm_agent.agents.agent import Agent
from hrm_agent.evaluation.latents import trace_segments
from hrm_agent.evaluation.probes import (
    RidgeProbe,
    auc,
    balanced_accuracy,
    fresh_policy,
    token_places,
)
from hrm_agent.evaluation.similarity import LinearCKA
from hrm_agent.policies.encoders import GridEncoder, find_grid
from hrm_agent.policies.policy import Policy
from hrm_agent.policies.tokens import token_latents
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.tasks.maze_views import MazeViewsTask, on_any_path
from hrm_envs import Cell
from hrm_envs.planners import replan

RESULTS = HERE / "latents.json"
BATCH = 500
FRESH_SEEDS = 1000
"""Of random weights: no run has such a seed."""
SUPERVISED = "path"

Read = Callable[[Tensor], Tensor]
"""Views uint8 `[N, H, W]` -> latents float `[N, L, F]` of the L tokens of the grid."""


class Views(NamedTuple):
    """Views uint8 `[N, H, W]`, and of each token whether it is on a shortest path, bool `[N, L]`, where `known`."""

    grids: NDArray[np.uint8]
    path: NDArray[np.bool_]
    known: NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs=2, default=(3000, 2000), metavar=("FIT", "TEST"))
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(HERE)
    if not options.draw_only:
        for world in study.settings["worlds"]:
            for seed in study.settings["seeds"]:
                measure(study, world, seed, *options.views)
    study.draw()


def measure(study: Study, world: str, seed: int, fit: int, test: int) -> None:
    """Add what is missing of one world and seed, as far as its runs are finished."""
    config = study.settings
    known = {(r["measurement"], r["world"], r["seed"], r["network"]) for r in load(RESULTS)}
    wanted = [n for n in networks_of(config) if ("probe", world, seed, n) not in known]
    place = study.place(Job(SUPERVISED, seed, world))
    if not wanted or not (place / FINISHED).exists():
        return
    readers = find_readers(study, world, seed)
    grid = grid_of(readers[SUPERVISED][1])
    views = held_out_views(config, world, seed, grid, fit, test)
    own = latents_of(readers[SUPERVISED][0], views[1])
    records = []
    for network in [n for n in wanted if n in readers]:
        read = readers[network][0]
        about = {"world": world, "seed": seed, "network": network, "views": [fit, test]}
        records.append({"measurement": "probe", **about, **probe(read, *views)})
        if network != SUPERVISED:
            cka = LinearCKA()
            for mine, other in zip(own, latents_of(read, views[1]), strict=True):
                cka.add(mine.flatten(0, 1), other.flatten(0, 1))
            records.append({"measurement": "cka", **about, "cka": round(cka.value(), 4)})
        print(world, seed, network, records[-1].get("cka", ""), flush=True)
    everything = [*load(RESULTS), *records]
    order = {name: number for number, name in enumerate(networks_of(config))}
    everything.sort(key=lambda r: (r["measurement"], r["world"], r["seed"], order[r["network"]]))
    save(RESULTS, everything)


def networks_of(config: dict[str, Any]) -> list[str]:
    """Names of all networks whose latents are read, the supervised one first."""
    started = [name for name, arm in config["policies"].items() if arm.get("from")]
    others = [name for name in config["policies"] if name not in started]
    return [SUPERVISED, *started, "path_of_next_seed", *others, "random", "input"]


def find_readers(study: Study, world: str, seed: int) -> dict[str, tuple[Read, Any]]:
    """Of every finished run: what reads its latents, and the network."""
    from hrm_agent.supervised import load_model

    config = study.settings
    model = load_model(study.place(Job(SUPERVISED, seed, world)))
    readers: dict[str, tuple[Read, Any]] = {SUPERVISED: (model_reader(model), model)}
    other_seed = next_seed(config["seeds"], seed)
    following = study.place(Job(SUPERVISED, other_seed, world))
    if (following / FINISHED).exists():
        other = load_model(following)
        readers["path_of_next_seed"] = (model_reader(other), other)
    policy = None
    for arm, how in config["policies"].items():
        place = study.place(Job(arm, seed if how.get("from") else other_seed, world))
        if study.is_trained(place):
            policy = Agent.load(place, best=False).policy
            readers[arm] = (policy_reader(policy), policy)
    if policy is not None:
        fresh = fresh_policy(policy, config["env"], config["worlds"][world], FRESH_SEEDS + seed)
        readers["random"] = (policy_reader(fresh), fresh)
    readers["input"] = (input_reader(model), model)
    return readers


def next_seed(seeds: list[int], seed: int) -> int:
    """The one after it, after the last the first.

    Raises:
        ValueError: there is no other.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds={seeds}: expected two or more, as networks that start apart are compared")
    return seeds[(seeds.index(seed) + 1) % len(seeds)]


def model_reader(model: PuzzleModel) -> Read:
    def read(grids: Tensor) -> Tensor:
        identifiers = torch.zeros(len(grids), dtype=torch.int32)
        batch = {"inputs": grids.int().flatten(1), "puzzle_identifiers": identifiers}
        return token_latents(model(model.initial_state(len(grids)), batch)[0], model.prefix)

    return read


def input_reader(model: PuzzleModel) -> Read:
    def read(grids: Tensor) -> Tensor:
        identifiers = torch.zeros(len(grids), dtype=torch.int32)
        return model.embed({"inputs": grids.int().flatten(1), "puzzle_identifiers": identifiers})[:, model.prefix :]

    return read


def policy_reader(policy: Policy) -> Read:
    found = find_grid(policy.encoder)
    assert found is not None  # mazes are grids
    before = found[2]

    def read(grids: Tensor) -> Tensor:
        start = torch.ones(len(grids), dtype=torch.bool)
        states, _ = trace_segments(policy, grids, policy.initial_state(len(grids)), start, 1)
        return token_latents(states[1], before)

    return read


def grid_of(model: PuzzleModel) -> GridEncoder:
    """How the model's tokens lie on the grid, which is how those of the policies do."""
    if model.patches is None:
        raise SystemExit("error: the supervised model has a token for every position; policies have one for every cell")
    return model.patches.encoder


def held_out_views(
    config: dict[str, Any], world: str, seed: int, grid: GridEncoder, fit: int, test: int
) -> tuple[Views, Views]:
    """Views of validation levels to fit probes to, and of test levels, none of them in the supervised training pool."""
    task = MazeViewsTask(config["env"], config["worlds"][world], seed=seed)

    def views(split: str, count: int) -> Views:
        grids = task.examples(split, count).inputs.reshape(count, *grid.shape[:2]).astype(np.uint8)
        return Views(grids, *path_tokens(grids, grid))

    return views("validation", fit), views("test", test)


def path_tokens(grids: NDArray[np.uint8], grid: GridEncoder) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of every token, whether its first open cell is on a shortest path as the re-planner sees it; and where that asks.

    It does not where the token has no open cell, or shows the agent, the goal or something unknown, which may be the
    goal: there the input gives the answer away.

    Returns:
        Two arrays bool `[N, L]`.
    """
    on_path = on_any_path(grids, replan(grids)).reshape(len(grids), -1)
    places, inside = token_places(grid)
    patches = grids.reshape(len(grids), -1)[:, places]
    is_open = (patches == Cell.EMPTY) & inside
    tells = np.isin(patches, (Cell.AGENT, Cell.GOAL, Cell.UNKNOWN)) & inside
    first = places[np.arange(len(places)), is_open.argmax(-1)]
    return np.take_along_axis(on_path, first, 1), is_open.any(-1) & ~tells.any(-1)


@torch.no_grad()
def latents_of(read: Read, views: Views) -> list[Tensor]:
    """Batches `[B, L, F]`."""
    return [read(grids) for grids in torch.from_numpy(views.grids).split(BATCH)]


def probe(read: Read, fit: Views, test: Views) -> dict[str, Any]:
    """Scores of a linear probe on the test views."""
    ridge = RidgeProbe(balanced=True)
    for latents, path, known in _batches(read, fit):
        ridge.add(latents[known], path[known])
    weights, intercept = ridge.fit()
    scores = [(x[known].double() @ weights + intercept).numpy() for x, _, known in _batches(read, test)]
    predicted, right = np.concatenate(scores), test.path[test.known]
    return {
        "path_auc": round(auc(predicted, right), 4),
        "path_balanced_accuracy": round(balanced_accuracy(predicted > 0.5, right), 4),
        "path_cells": [int(fit.known.sum()), int(test.known.sum())],
    }


def _batches(read: Read, views: Views) -> list[tuple[Tensor, Tensor, Tensor]]:
    path, known = (torch.from_numpy(a).split(BATCH) for a in (views.path, views.known))
    return list(zip(latents_of(read, views), path, known, strict=True))


if __name__ == "__main__":
    main()
