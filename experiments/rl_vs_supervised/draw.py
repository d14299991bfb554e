"""Tables and figure of the page, from the records alone; part of a study is drawn too."""

from __future__ import annotations

from pathlib import Path

from experiments.engine import figures as figure_style
from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of, median_of, success_interval
from experiments.engine.tables import LABELS, REFERENCES, average, by_agent, each_seed, estimate, median, table

WORLDS = ("static", "dynamic", "fog")
CURVES = {"ppo": "C0", "dqn": "C8", "bc": "C1", "dagger": "C3", "finetune": "C2"}
LEVELS = {"path": ("C4", "-"), "bfs_replanner": ("0.4", "--")}


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    records, latents = load(folder / "results.json"), load(folder / "latents.json")
    return {
        **{f"rl_vs_supervised_{w}": results_table([r for r in records if r["world"] == w]) for w in WORLDS},
        "rl_vs_supervised_latents": latents_table(latents, "probe", "path_auc"),
        "rl_vs_supervised_cka": latents_table(latents, "cka", "cka"),
    }


def results_table(records: list[Record]) -> str:
    rows = [row_of(agent, runs) for agent, runs in by_agent(records).items()]
    return table(rows, tuple(max(rows, key=len, default={})))


def row_of(agent: str, runs: list[Record]) -> dict[str, str]:
    """One agent in one world; blank where nothing is counted."""
    trained = agent not in REFERENCES
    row = {
        "agent": LABELS.get(agent, agent),
        "success [95%]": estimate(success_interval(runs), trained),
        "each seed": each_seed(runs) if trained else "",
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
    return median(runs, name) if any(run[name] for run in runs) else ""


def frames_to_90(runs: list[Record]) -> str:
    """Median over seeds, of those whose training episodes show their own actions."""
    if runs[0]["algo"] not in ("ppo", "dqn"):
        return ""
    return median(runs, "frames_to_90")


def training_time(runs: list[Record]) -> str:
    """Processor seconds, median over seeds; those of the supervised run that it started with come first."""
    before, own = (median_of(r[name] for r in runs) for name in ("seconds_before", "seconds"))
    return f"{before:.0f} + {own:.0f} s" if before else f"{own:.0f} s"


def latents_table(records: list[Record], measurement: str, field: str) -> str:
    """A measurement of the latents by network and world; means over seeds."""
    found = [r for r in records if r["measurement"] == measurement]
    rows = []
    for network in dict.fromkeys(r["network"] for r in found):
        by_world = {w: [r for r in found if (r["network"], r["world"]) == (network, w)] for w in WORLDS}
        rows.append({"latents of": network, **{world: average(runs, field) for world, runs in by_world.items()}})
    return table(rows)


def figures(folder: Path) -> None:
    """Greedy success on validation levels against processor time of training, one panel a world."""
    records = load(folder / "results.json")
    figure, axes = figure_style.panels(1, len(WORLDS), (11, 3.6), sharey=True)
    for ax, world in zip(axes, WORLDS, strict=True):
        here = [r for r in records if r["world"] == world]
        for agent, colour in CURVES.items():
            for number, r in enumerate(r for r in here if r["agent"] == agent and r["curve"]):
                _, seconds, success = zip(*r["curve"], strict=True)
                ax.plot(seconds, success, color=colour, alpha=0.75, lw=1.3, label=None if number else agent)
        for agent, (colour, style) in LEVELS.items():
            known = [r for r in here if r["agent"] == agent]
            if known:
                ax.axhline(
                    mean_of(r["success"] for r in known), color=colour, ls=style, lw=1.3, label=LABELS.get(agent, agent)
                )
        ax.set(title=world, xlabel="processor seconds of training", ylim=(0, 1.02))
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("greedy success")
    figure_style.legend_of_all(figure, axes, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure_style.save(figure, folder / "curves.png")
