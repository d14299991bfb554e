"""Tables and figure of the page, from the records alone; part of a study is drawn too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from study import average, load, mean_interval, table

Record = dict[str, Any]
WORLDS = ("static", "dynamic", "fog")
UNTRAINED = ("clairvoyant", "bfs_replanner", "random")
LABELS = {"bfs_replanner": "BFS re-planner", "random": "random policy", "clairvoyant": "clairvoyant bound"}
NOTHING_YET = "No record yet."
CURVES = {"ppo": "C0", "dqn": "C8", "bc": "C1", "dagger": "C3", "finetune": "C2"}
LEVELS = {"path": ("C4", "-"), "bfs_replanner": ("0.4", "--")}


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    records, latents = load(folder / "results.json"), load(folder / "latents.json")
    return {
        **{f"rl_vs_supervised_{w}": results_table([r for r in records if r["world"] == w]) for w in WORLDS},
        "rl_vs_supervised_latents": latents_table(latents),
        "rl_vs_supervised_cka": cka_table(latents),
    }


def by_agent(records: list[Record]) -> dict[str, list[Record]]:
    """Runs of every agent, the most successful agent first, those that need no training last."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        groups.setdefault(r["agent"], []).append(r)
    rank = {name: (-1, UNTRAINED.index(name)) for name in UNTRAINED}
    return dict(sorted(groups.items(), key=lambda g: (*rank.get(g[0], (-2, 0)), -mean(g[1], "success"))))


def mean(runs: list[Record], name: str) -> float:
    return float(np.mean([r[name] for r in runs]))


def results_table(records: list[Record]) -> str:
    rows = [row_of(agent, runs) for agent, runs in by_agent(records).items()]
    return table(rows, tuple(max(rows, key=len))) if rows else NOTHING_YET


def row_of(agent: str, runs: list[Record]) -> dict[str, str]:
    """One agent in one world; blank where nothing is counted."""
    trained = agent not in UNTRAINED
    value, low, high = mean_interval([r["success"] for r in runs])
    if len(runs) == 1:
        low, high = runs[0]["success_ci95"]  # over levels: one seed tells nothing of others
    emphasis = "**" if trained else ""
    row = {
        "agent": LABELS.get(agent, agent),
        "success [95%]": f"{emphasis}{value:.3f}{emphasis} [{low:.3f}, {high:.3f}]",
        "each seed": " ".join(f"{r['success']:.3f}" for r in runs) if trained else "",
        "SPL": average(runs, "spl"),
        "regret": average(runs, "regret_after_material_change", 2),
        "segments per decision": average(runs, "segments_per_decision", 1) if trained else "",
    }
    if trained:
        row |= {
            "labels": counted(runs, "labels"),
            "labels used": counted(runs, "labels_used"),
            "frames": counted(runs, "frames"),
            "frames to 90%": frames_to_90(runs),
            "training": training_time(runs),
            "parameters": f"{runs[0]['parameters']:,}",
            "multiply-adds": f"{runs[0]['macs_per_decision']:,}",
        }
    return row


def counted(runs: list[Record], name: str) -> str:
    """Median over seeds; nothing where there is none."""
    values = [r[name] for r in runs if r[name] is not None]
    return f"{np.median(values):,.0f}" if values and any(values) else ""


def frames_to_90(runs: list[Record]) -> str:
    """Median over seeds, of those whose training episodes show their own actions."""
    if runs[0]["algo"] not in ("ppo", "dqn"):
        return ""
    value = float(np.median([np.inf if r["frames_to_90"] is None else r["frames_to_90"] for r in runs]))
    return "never" if value == np.inf else f"{value:,.0f}"


def training_time(runs: list[Record]) -> str:
    """Processor seconds, median over seeds; those of the supervised run that it started with come first."""
    before, own = (float(np.median([r[name] for r in runs])) for name in ("seconds_before", "seconds"))
    return f"{before:.0f} + {own:.0f} s" if before else f"{own:.0f} s"


def latents_table(records: list[Record]) -> str:
    """What a linear probe reads of the path, by world and network; means over seeds."""
    probes = [r for r in records if r["measurement"] == "probe"]
    networks = list(dict.fromkeys(r["network"] for r in probes))
    rows = []
    for network in networks:
        row = {"latents of": network}
        for world in WORLDS:
            row[world] = average([r for r in probes if (r["network"], r["world"]) == (network, world)], "path_auc")
        rows.append(row)
    return table(rows) if rows else NOTHING_YET


def cka_table(records: list[Record]) -> str:
    """Likeness with the latents of the supervised model, by world and network; means over seeds."""
    likeness = [r for r in records if r["measurement"] == "cka"]
    rows = []
    for network in dict.fromkeys(r["network"] for r in likeness):
        row = {"latents of": network}
        for world in WORLDS:
            here = [r for r in likeness if (r["network"], r["world"]) == (network, world)]
            row[world] = average(here, "cka")
        rows.append(row)
    return table(rows) if rows else NOTHING_YET


def figures(folder: Path) -> None:
    """Greedy success on validation levels against processor time of training, one panel a world."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = load(folder / "results.json")
    figure, axes = plt.subplots(1, len(WORLDS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for ax, world in zip(axes, WORLDS, strict=True):
        here = [r for r in records if r["world"] == world]
        for agent, colour in CURVES.items():
            for number, r in enumerate(r for r in here if r["agent"] == agent and r["curve"]):
                _, seconds, success = zip(*r["curve"], strict=True)
                ax.plot(seconds, success, color=colour, alpha=0.75, lw=1.3, label=None if number else agent)
        for agent, (colour, style) in LEVELS.items():
            known = [r for r in here if r["agent"] == agent]
            if known:
                ax.axhline(mean(known, "success"), color=colour, ls=style, lw=1.3, label=LABELS.get(agent, agent))
        ax.set(title=world, xlabel="processor seconds of training", ylim=(0, 1.02))
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("greedy success")
    handles = {name: h for ax in axes for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)
