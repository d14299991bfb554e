"""What happens inside the agents of the study: convergence, divergence, linear probes, interventions.

    python experiments/carry_budget/latents.py RUN [RUN ...] [--set KEY=VALUE ...] [--draw-only]

RUN is the folder of a training run (`.../ARM_seedN`) or of an agent. What is missing of each agent is measured on test
levels and added to `latents.json`, a list of flat records; `--set` changes the environment (a world with doors, say),
which counts as a world of its own. `convergence.png`, `divergence.png`, `probe.png` and `interventions.png` are
redrawn from the JSON, and the table of the interventions is printed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from hrm_agent.agent import Agent
from hrm_agent.carry import PolicyState
from hrm_agent.checkpoint import write_atomically
from hrm_agent.cores import State
from hrm_agent.encoders import GridEncoder, find_grid
from hrm_agent.environments import make_vector_env
from hrm_agent.evaluation.latents import (
    INTERVENTIONS,
    KINDS,
    Followed,
    as_list,
    distances_from,
    intervene,
    latent_curves,
    play,
    think_on,
)
from hrm_agent.policy import Policy
from hrm_envs import Cell

HERE = Path(__file__).resolve().parent
AS_TRAINED = "as trained"

TASKS = ("path", "distance")
"""What is read from a token: is its cell on a shortest path (yes or no), and how far it is from the goal."""

FEATURES = ("latent", "random", "input", "input_3x3")
RIDGE = 1e-3

CONVERGENCE = {"mse_to_last": "MSE to the last segment", "relative_change": "relative change"}
DIVERGENCE = {"mse_to_first": "MSE to the first segment", "mse_to_previous": "MSE to the decision before"}
METRICS = {
    "path_auc": "on a shortest path: AUC",
    "path_balanced_accuracy": "on a shortest path: balanced accuracy",
    "distance_r2": "distance to the goal: R\u00b2",
}
COLUMNS = {"control": "untouched", **{name: name.replace("_", " ") for name in INTERVENTIONS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=HERE / "latents.json", help="records; figures go beside it")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changed environment options")
    parser.add_argument("--episodes", type=int, default=500, help="test levels for curves and interventions")
    parser.add_argument("--probe-levels", type=int, nargs=2, default=(400, 200), metavar=("TRAIN", "TEST"))
    parser.add_argument("--segments", type=int, default=8, help="how long an agent thinks on")
    parser.add_argument("--at", type=int, default=4, help="decision just before which an intervention happens")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # runs may be measured side by side
    if not options.draw_only:
        for run in options.runs:
            add_run(run, options)
    draw(load(options.out), options.out.parent)


def add_run(run: Path, options: argparse.Namespace) -> None:
    """Measure one agent and add its records, unless they are there."""
    changes = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in options.set)}
    agent = Agent.load(run)
    about = describe(run, agent, changes)
    name = tuple(about[key] for key in ("agent", "seed", "world"))
    if any(tuple(r[key] for key in ("agent", "seed", "world")) == name for r in load(options.out)):
        return
    found = measure(agent, changes, options.episodes, tuple(options.probe_levels), options.segments, options.at)
    # Read again: another process may have added its own meanwhile.
    records = [*load(options.out), *({**about, **record} for record in found)]
    text = "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
    write_atomically(options.out, text.encode())
    print(*name, flush=True)


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def describe(run: Path, agent: Agent, changes: dict[str, Any]) -> dict[str, Any]:
    """What every record of an agent begins with; runs of a study have the arm and the seed in their names."""
    config, info = agent.policy.config, agent.info
    named = [match for part in run.resolve().parts if (match := re.fullmatch(r"(.+)_seed(\d+)", part))]
    return {
        "agent": named[-1][1] if named else f"{config.core}-{label_of(config.__dict__)}-{config.segments}",
        "seed": int(named[-1][2]) if named else info.get("seed"),
        "world": " ".join(f"{key}={value}" for key, value in changes.items()) or AS_TRAINED,
        "env": info["env"],
        "core": config.core,
        "carry": config.carry,
        "time_gradient": config.time_gradient,
        "segments": config.segments,
        "frames": info.get("frames"),
    }


def label_of(record: dict[str, Any]) -> str:
    """The line in a figure that an agent belongs to."""
    carry = record["carry"]
    return carry if carry == "reset" else f"{carry}, {record['time_gradient']}"


def measure(
    agent: Agent, changes: dict[str, Any], episodes: int, probe_levels: tuple[int, int], segments: int, at: int
) -> list[dict[str, Any]]:
    """All records of one agent, each with its `measurement`: `curves` by kind, `probe` by features, `intervention`."""
    policy, env_id = agent.policy, agent.info["env"]
    options = {**(agent.info.get("env_options") or {}), **changes}
    segments = max(segments, policy.segments)
    curves = latent_curves(policy, env_id, options, episodes, segments)
    probes = probe_cells(policy, env_id, options, *probe_levels, segments)
    meddled = intervene(policy, env_id, options, episodes, at)
    return [
        *({"measurement": "curves", **record} for record in curves),
        *({"measurement": "probe", **record} for record in probes),
        *({"measurement": "intervention", **record} for record in meddled),
    ]


class CellTargets(NamedTuple):
    """What each of L grid tokens of M maps should tell; `known` says where the target means something."""

    path: NDArray[np.bool_]  # [M, L] on a shortest path from the agent to the goal
    path_known: NDArray[np.bool_]  # [M, L]
    distance: NDArray[np.float64]  # [M, L] log(1 + steps to the goal)
    distance_known: NDArray[np.bool_]  # [M, L]


def cell_targets(maps: NDArray[np.uint8], grid: GridEncoder) -> CellTargets:
    """Targets of the first open position of each token's patch, on the maps as they stand.

    Tokens without an open position are left out, and so are those that show the agent or the goal, where the input
    gives the answer away; `path` also on maps that cut the agent off from the goal, `distance` on cells cut off.

    Args:
        maps: `[M, H, W]` without fog.
        grid: the encoder that makes the tokens.
    """
    slots, inside = _token_slots(grid)
    flat, rows = maps.reshape(len(maps), -1), np.arange(len(maps))
    to_goal, to_agent = (distances_from(maps, cell).reshape(flat.shape) for cell in (Cell.GOAL, Cell.AGENT))
    patches = flat[:, slots]  # [M, L, places]
    is_open = (patches != Cell.WALL) & (patches != Cell.DOOR) & inside
    tells = ((patches == Cell.AGENT) | (patches == Cell.GOAL)) & inside
    usable = is_open.any(-1) & ~tells.any(-1)
    first = slots[np.arange(len(slots)), is_open.argmax(-1)]  # [M, L]
    ahead, behind = (np.take_along_axis(distance, first, 1) for distance in (to_goal, to_agent))
    length = to_goal[rows, (flat == Cell.AGENT).argmax(1)][:, None]
    on_path = (ahead >= 0) & (behind >= 0) & (ahead + behind == length)
    return CellTargets(on_path, usable & (length >= 0), np.log1p(np.maximum(ahead, 0)), usable & (ahead >= 0))


def _token_slots(grid: GridEncoder) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Flat grid positions `[L, places]` of each token's patch, and which of them lie inside the grid."""
    (height, width), (rows, cols), p = grid.shape[:2], grid.grid or (0, 0), grid.patch_size
    token_row, token_col = (axis.reshape(-1, 1) for axis in np.divmod(np.arange(rows * cols), cols))
    place_row, place_col = np.divmod(np.arange(p * p), p)
    row, col = grid.crop + token_row * p + place_row, grid.crop + token_col * p + place_col
    inside = (row < height - grid.crop) & (col < width - grid.crop)
    return np.where(inside, row * width + col, 0), inside


class RidgeProbe:
    """Linear regression with a penalty, fitted in closed form from sums, so that no data are kept.

    Args:
        balanced: all values of the target weigh the same together, however rare (for classes).
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
        # A feature that never varies must not blow up: the reset state is the same vector everywhere.
        scale = variance.clamp_min(1e-6 * float(variance.max()) + 1e-9)
        weights = torch.linalg.solve(covariance[:-2, :-2] + self.ridge * scale.diag(), covariance[:-2, -1])
        return weights, mean[-1] - mean[:-2] @ weights


def auc(scores: NDArray, labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; NaN without both."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def balanced_accuracy(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> float:
    """Mean of the two classes' shares that are predicted right; NaN without both."""
    if labels.all() or not labels.any():
        return float("nan")
    return float((predicted[labels].mean() + (~predicted[~labels]).mean()) / 2)


def r_squared(predicted: NDArray, target: NDArray) -> float:
    """Share of the target's variance that is explained; NaN where it does not vary."""
    spread = np.square(target - target.mean()).sum() if target.size else 0.0
    return float(1 - np.square(target - predicted).sum() / spread) if spread > 0 else float("nan")


class _CellProbes:
    """One probe for each task, kind of features and segment."""

    def __init__(self) -> None:
        self.probes: dict[tuple[str, str, int], RidgeProbe] = {}
        self.weights: dict[tuple[str, str, int], tuple[Tensor, Tensor]] = {}
        self.scores: dict[tuple[str, str, int], list[NDArray]] = {}
        self.targets: dict[str, list[NDArray]] = {task: [] for task in TASKS}
        self.trained_on = dict.fromkeys(TASKS, 0)

    def see(self, features: dict[str, list[Tensor]], targets: CellTargets, learn: bool) -> None:
        """Features `[M, L, F]` by kind and segment: fit to them, or be tested on them."""
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
) -> list[dict[str, Any]]:
    """What linear probes read from each token: is its cell on a shortest path, and how far is the goal?

    Probes are fitted on levels of the train band and tested on the test band, along the agent's own greedy episodes.

    Args:
        policy, env_id, env_options, seed, batch: see `play`.
        train_episodes, test_episodes: levels for fitting and for testing.
        segments: probed one by one, and segment 0, the state that is thought from.
        every: take every such decision of an episode; neighbouring ones are nearly the same.
        fresh_seed: of the network with random weights.

    Returns:
        One JSON-able record for each of `FEATURES`: `latent` (all latents of the token) and `random` (those of the
        same architecture with fresh weights, carrying its own state through the same observations) with
        segments + 1 numbers a metric, `input` (the token before thinking) and `input_3x3` (with its eight
        neighbours) with one. `path_auc`, `path_balanced_accuracy`, `distance_r2` (of log(1 + steps)), and
        `path_cells`, `distance_cells`: examples fitted and tested. None where undefined.

    Raises:
        ValueError: a core without a latent per token, counts below 1, or see `play`.
    """
    if every < 1 or segments < 1:
        raise ValueError(f"every={every}, segments={segments}: expected 1 or more of each")
    found = find_grid(policy.encoder)
    assert found is not None  # mazes are grids, which `play` checks
    grid, _, before = found
    fresh, probes, followed = fresh_policy(policy, env_id, env_options, fresh_seed), _CellProbes(), Followed()
    for band, episodes in (("train", train_episodes), ("test", test_episodes)):
        for moment in play(policy, env_id, env_options, episodes, seed, band, batch):
            obs, start = torch.as_tensor(moment.obs, device=policy.device), moment.episode_start
            kept = fresh.initial_state(len(obs)) if moment.number == 0 else followed.take(moment.episodes)
            if moment.number % every == 0:
                features = {"latent": _by_segment(policy, obs, moment.state, start, segments, before)}
                features["random"] = _by_segment(fresh, obs, kept, start, segments, before)
                with torch.no_grad():
                    tokens = policy.encoder(obs)[:, before:]
                features |= {"input": [tokens], "input_3x3": [with_neighbours(tokens, grid)]}
                probes.see(features, cell_targets(moment.maps, grid), learn=band == "train")
            with torch.no_grad():
                followed.put(moment.episodes, fresh.step(obs, kept, start).state)
    return probes.records()


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
    """Latents of the grid's tokens `[B, L, F]` before thinking and after each segment."""
    return [token_latents(s, before) for s in think_on(policy, obs, state, start, segments)[0]]


def token_latents(state: State, before: int = 0) -> Tensor:
    """All latents of each grid token side by side: `[B, L, F]`; `before` tokens stand before the grid.

    Raises:
        ValueError: a core whose latents do not belong to tokens.
    """
    fields = [s[:, before:] if s.dim() == 3 else s.movedim(1, 3).flatten(3).flatten(1, 2) for s in state if s.dim() > 2]
    if not fields:
        raise ValueError("the core has no latent per token, so cells cannot be probed; use a core over a grid")
    return torch.cat(fields, -1)


def with_neighbours(tokens: Tensor, grid: GridEncoder) -> Tensor:
    """Each token `[B, L, D]` with the eight around it, zeros outside: `[B, L, 9 * D]`."""
    image = tokens.transpose(1, 2).unflatten(2, grid.grid or (1, -1))
    return torch.nn.functional.unfold(image, 3, padding=1).transpose(1, 2)


def draw(records: list[dict[str, Any]], folder: Path) -> None:
    """All figures and the table, from the records alone."""
    curves = [r for r in records if r["measurement"] == "curves"]
    if not curves:
        return
    draw_curves(curves, CONVERGENCE, folder / "convergence.png")
    draw_curves(curves, DIVERGENCE, folder / "divergence.png")
    draw_probes([r for r in records if r["measurement"] == "probe"], folder / "probe.png")
    meddled = [r for r in records if r["measurement"] == "intervention"]
    draw_interventions(meddled, folder / "interventions.png")
    print(interventions_table(meddled))


def draw_curves(records: list[dict[str, Any]], measures: dict[str, str], path: Path) -> None:
    """One row for each measure and K, one column for each world and kind of change that was met."""
    met = [r for r in records if r["decisions"]]
    places = [(w, k) for w in unique(met, "world") for k in KINDS if any(matching(met, world=w, kind=k))]
    budgets = unique(met, "segments")
    figure, axes = panels(len(measures) * len(budgets), len(places))
    for row, (budget, measure) in enumerate((b, m) for b in budgets for m in measures):
        for column, (world, kind) in enumerate(places):
            ax = axes[row][column]
            draw_lines(ax, matching(met, segments=budget, world=world, kind=kind), measure)
            ax.axvline(budget, color="0.6", lw=0.8, ls=":")  # where the agent acts
            ax.set_yscale("log", nonpositive="mask")  # the last segment is at 0 from itself
            if row == 0:
                ax.set_title(kind if world == AS_TRAINED else f"{kind}\n{world}", fontsize=9)
            if column == 0:
                ax.set_ylabel(f"K = {budget}\n{measures[measure]}", fontsize=8)
    finish(figure, axes, "segment of one decision (0: the state that is thought from)", path)


def draw_probes(records: list[dict[str, Any]], path: Path) -> None:
    """One row for each metric, one column for each K and world; controls in grey, averaged over the agents."""
    places = [(b, w) for b in unique(records, "segments") for w in unique(records, "world")]
    places = [(b, w) for b, w in places if any(matching(records, segments=b, world=w))]
    figure, axes = panels(len(METRICS), len(places), height=2.6)
    for row, metric in enumerate(METRICS):
        for column, (budget, world) in enumerate(places):
            ax, here = axes[row][column], matching(records, segments=budget, world=world)
            draw_lines(ax, matching(here, features="latent"), metric)
            draw_lines(ax, matching(here, features="random"), metric, lambda _: "random network", "0.5")
            for features, style in (("input", ":"), ("input_3x3", "--")):
                level = band_of([r[metric] for r in matching(here, features=features)])[0][0]
                ax.axhline(level, color="0.4", ls=style, lw=1, label=features.replace("_", " "))
            if row == 0:
                ax.set_title(f"K = {budget}" + ("" if world == AS_TRAINED else f"\n{world}"), fontsize=9)
            if column == 0:
                ax.set_ylabel(METRICS[metric], fontsize=8)
    finish(figure, axes, "segment of one decision (0: the state that is thought from)", path)


def draw_interventions(records: list[dict[str, Any]], path: Path) -> None:
    """Regret of the decisions after each intervention; the dashed lines are the untouched agents."""
    places = [(b, w) for b in unique(records, "segments") for w in unique(records, "world")]
    places = [(b, w) for b, w in places if any(matching(records, segments=b, world=w))]
    figure, axes = panels(len(places), len(INTERVENTIONS))
    for row, (budget, world) in enumerate(places):
        here = matching(records, segments=budget, world=world)
        for column, name in enumerate(INTERVENTIONS):
            ax = axes[row][column]
            draw_lines(ax, matching(here, intervention=name), "regret")
            draw_lines(ax, matching(here, intervention="control"), "regret", ls="--", label=False)
            if row == 0:
                ax.set_title(COLUMNS[name], fontsize=9)
            if column == 0:
                world_name = "" if world == AS_TRAINED else f"\n{world}"
                ax.set_ylabel(f"K = {budget}{world_name}\nregret (steps)", fontsize=8)
    finish(figure, axes, "decisions since the intervention (dashed: untouched)", path)


def interventions_table(records: list[dict[str, Any]]) -> str:
    """Markdown: success, and regret summed over the lags, means over seeds."""
    names = [*(f"success: {c}" for c in COLUMNS.values()), *(f"regret: {c}" for c in COLUMNS.values())]
    lines = ["| " + " | ".join(["agent", "K", "seeds", *names]) + " |", "|" + "---|" * (len(names) + 3)]
    for world in unique(records, "world"):
        for agent in unique(matching(records, world=world), "agent"):
            here = matching(records, world=world, agent=agent)
            rows = {name: matching(here, intervention=name) for name in COLUMNS}
            success = [f"{np.mean([r['success'] for r in rows[name]]):.3f}" for name in COLUMNS]
            regret = [f"{np.mean([total(r['regret']) for r in rows[name]]):.2f}" for name in COLUMNS]
            title = agent if world == AS_TRAINED else f"{agent}, {world}"
            cells = [title, str(here[0]["segments"]), str(len(rows["control"])), *success, *regret]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def total(values: list[float | None]) -> float:
    return sum(v for v in values if v is not None)


def unique(records: list[dict[str, Any]], key: str) -> list[Any]:
    """Values in the order of their first appearance, numbers in their own."""
    values = list(dict.fromkeys(r[key] for r in records))
    return sorted(values) if all(isinstance(v, int) for v in values) else values


def matching(records: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def panels(rows: int, columns: int, height: float = 1.9) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (max(5.0, 1.2 + 2.3 * columns), 0.9 + height * rows)
    return plt.subplots(rows, columns, figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained")


def draw_lines(
    ax: Any,
    records: list[dict[str, Any]],
    measure: str,
    label_by: Callable[[dict[str, Any]], str] = label_of,
    color: str | None = None,
    ls: str = "-",
    label: bool = True,
) -> None:
    """A line for each label: the mean over agents, and between which values their seeds lie."""
    for name in sorted({label_by(r) for r in records}):
        mean, low, high = band_of([r[measure] for r in records if label_by(r) == name])
        shown = {"color": color or color_of(name), "ls": ls}
        x = np.arange(len(mean))
        ax.plot(x, mean, lw=1.4, label=name if label else None, **shown)
        ax.fill_between(x, low, high, color=shown["color"], alpha=0.15, lw=0)


def color_of(name: str) -> str:
    """The same colour for the same kind of agent in every figure; unknown ones share a grey."""
    known = ("full, bptt", "reset", "full, detached", "gate, bptt", "output, bptt", "last_token, bptt")
    return f"C{known.index(name)}" if name in known else "0.3"


def band_of(rows: list[list[float | None]]) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, smallest and largest of each column; NaN where nothing is known."""
    length = max(len(row) for row in rows)  # agents with a larger K think on for longer
    values = np.array([[*row, *[None] * (length - len(row))] for row in rows], np.float64)
    known = ~np.isnan(values)
    count = known.sum(0)
    mean = np.where(count, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
    low, high = np.where(known, values, np.inf).min(0), np.where(known, values, -np.inf).max(0)
    return mean, np.where(count, low, np.nan), np.where(count, high, np.nan)


def finish(figure: Any, axes: Any, xlabel: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    handles: dict[str, Any] = {}
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=7)
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.supxlabel(xlabel, fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
