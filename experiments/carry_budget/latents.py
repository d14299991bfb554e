"""What happens inside the agents of the study: convergence, divergence, linear probes, interventions.

    python -m experiments.carry_budget.latents RUN [RUN ...] [--set KEY=VALUE ...] [--draw-only]

RUN is the folder of a training run (`.../ARM_seedN`) or of an agent. What is missing of each agent is measured on test
levels and added to `latents.json`, a list of flat records; `--set` changes the environment (a world with doors, say),
which counts as a world of its own. `convergence.png`, `divergence.png`, `probe.png` and `interventions.png` are
redrawn from the JSON, and the table of the interventions is printed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from experiments.engine import figures
from experiments.engine.records import Record, load, save
from experiments.engine.tables import table
from hrm_agent.agents.agent import Agent
from hrm_agent.evaluation.latents import INTERVENTIONS, KINDS, intervene, latent_curves
from hrm_agent.evaluation.probes import probe_cells

HERE = Path(__file__).resolve().parent
AS_TRAINED = "as trained"

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
    save(options.out, [*load(options.out), *({**about, **record} for record in found)])
    print(*name, flush=True)


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
) -> list[Record]:
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


def draw(records: list[Record], folder: Path) -> None:
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


def draw_curves(records: list[Record], measures: dict[str, str], path: Path) -> None:
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


def draw_probes(records: list[Record], path: Path) -> None:
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


def draw_interventions(records: list[Record], path: Path) -> None:
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


def interventions_table(records: list[Record]) -> str:
    """Markdown: success, and regret summed over the lags, means over seeds."""
    found = []
    for world in unique(records, "world"):
        for agent in unique(matching(records, world=world), "agent"):
            here = matching(records, world=world, agent=agent)
            rows = {name: matching(here, intervention=name) for name in COLUMNS}
            row = {
                "agent": agent if world == AS_TRAINED else f"{agent}, {world}",
                "K": str(here[0]["segments"]),
                "seeds": str(len(rows["control"])),
            }
            row |= {f"success: {c}": f"{np.mean([r['success'] for r in rows[n]]):.3f}" for n, c in COLUMNS.items()}
            row |= {f"regret: {c}": f"{np.mean([total(r['regret']) for r in rows[n]]):.2f}" for n, c in COLUMNS.items()}
            found.append(row)
    return table(found)


def total(values: list[float | None]) -> float:
    return sum(v for v in values if v is not None)


def unique(records: list[Record], key: str) -> list[Any]:
    """Values in the order of their first appearance, numbers in their own."""
    values = list(dict.fromkeys(r[key] for r in records))
    return sorted(values) if all(isinstance(v, int) for v in values) else values


def matching(records: list[Record], **values: Any) -> list[Record]:
    return [r for r in records if all(r[key] == value for key, value in values.items())]


def panels(rows: int, columns: int, height: float = 1.9) -> tuple[Any, Any]:
    size = (max(5.0, 1.2 + 2.3 * columns), 0.9 + height * rows)
    return figures.panels(rows, columns, size, sharex=True, sharey="row", squeeze=False)


def draw_lines(
    ax: Any,
    records: list[Record],
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
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=7)
    figure.supxlabel(xlabel, fontsize=9)
    figures.legend_of_all(figure, axes.flat, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
