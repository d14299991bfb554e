"""Tables and figure of the page, from the records alone; part of a study is drawn too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from study import load, mean_interval, table

Record = dict[str, Any]
WORLDS = {"baselines_fog_off": False, "baselines_fog_on": True}
UNTRAINED = ("clairvoyant", "bfs_replanner", "random")
LABELS = {"bfs_replanner": "BFS re-planner", "random": "random policy", "clairvoyant": "clairvoyant bound"}
NEVER = float("inf")
NEARLY = 0.01  # below its final success an agent counts as having reached it: the last episodes are a sample
PAIRS = (  # of throughput.json: what is the same, ours, theirs
    ("parameters (the library's size), training settings", "gru_as_lstm", "sb3_recurrent_ppo"),
    ("parameters (our shipped GRU), training settings", "gru", "sb3_recurrent_ppo_as_gru"),
    ("parameters (our shipped TRM), training settings", "trm", "sb3_recurrent_ppo_as_trm"),
    ("multiply-adds of a decision, training settings", "trm", "sb3_recurrent_ppo"),
    ("parameters; each library's own training settings", "trm", "sb3_recurrent_ppo_as_trm_by_default"),
)
COLOURS = {
    "trm": "C0", "trm_tuned": "C9", "hrm": "C4", "drc": "C2", "gru": "C6", "feedforward": "C7",
    "sb3_recurrent_ppo": "C3", "sb3_ppo_cnn": "C1", "sb3_ppo_mlp": "C5", "sb3_dqn": "C8",
}  # fmt: skip


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    records = load(folder / "results.json")
    return {
        **{name: results_table([r for r in records if r["fog"] == fog]) for name, fog in WORLDS.items()},
        "baselines_race": race_table(records),
        "baselines_search": search_table(load(folder / "tuning.json")),
        "baselines_trials": trials_table(load(folder / "tuning.json")),
        "baselines_throughput": throughput_table(load(folder / "throughput.json")),
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


def median(values: list[float | None]) -> float:
    """Of all runs; one that never came there took longer than any other."""
    return float(np.median([NEVER if v is None else v for v in values])) if values else NEVER


def counted(value: float, unit: str = "") -> str:
    return "never" if value == NEVER else f"{value:,.0f}{unit}"


def results_table(records: list[Record]) -> str:
    """One world: agents, then who needs no training."""
    rows = [reference_row(a, r[0]) if a in UNTRAINED else agent_row(a, r) for a, r in by_agent(records).items()]
    return table(rows, COLUMNS) if rows else ""


def agent_row(agent: str, runs: list[Record]) -> dict[str, str]:
    value, low, high = mean_interval([r["success"] for r in runs])
    if len(runs) == 1:
        low, high = runs[0]["success_ci95"]  # over levels: one seed tells nothing of others
    regrets = [r for r in runs if r["regret_after_material_change"] is not None]
    return {
        "agent": agent,
        "success [95%]": f"**{value:.3f}** [{low:.3f}, {high:.3f}]",
        "each seed": " ".join(f"{r['success']:.3f}" for r in runs),
        "SPL": f"{mean(runs, 'spl'):.3f}",
        "regret": f"{mean(regrets, 'regret_after_material_change'):.2f}" if regrets else "",
        "frames to 90%": counted(median([r["frames_to_90"] for r in runs])),
        "time to 90%": counted(median([r["seconds_to_90"] for r in runs]), " s"),
        "frames": f"{np.median([r['frames'] for r in runs]):,.0f}",
        "time": f"{np.median([r['seconds'] for r in runs]):.0f} s",
        "steps/s": f"{np.median([r['steps_per_second'] for r in runs]):,.0f}",
        "parameters": f"{runs[0]['parameters']:,}",
        "multiply-adds": f"{runs[0]['macs_per_decision']:,}",
        "ms": f"{np.median([r['ms_per_decision'] for r in runs]):.2f}",
    }


COLUMNS = (
    "agent", "success [95%]", "each seed", "SPL", "regret", "frames to 90%", "time to 90%", "frames", "time",
    "steps/s", "parameters", "multiply-adds", "ms",
)  # fmt: skip


def reference_row(name: str, record: Record) -> dict[str, str]:
    low, high = record["success_ci95"]
    regret = record.get("regret_after_material_change")
    return {
        "agent": LABELS[name],
        "success [95%]": f"{record['success']:.3f} [{low:.3f}, {high:.3f}]",
        "SPL": f"{record['spl']:.3f}",
        "regret": "" if regret is None else f"{regret:.2f}",
    }


def reached(curve: list[list[float]], success: float) -> float | None:
    """Seconds of training until a learning curve is first at least that high."""
    return next((seconds for _, seconds, value in curve if value >= success), None)


def race(records: list[Record]) -> list[Record]:
    """When ours reach the final success of the best agent of Stable-Baselines3, in each world.

    That success is the larger of its greedy one on test levels and its sampled one at the end of training, means over
    seeds. Times are medians over seeds: `sampled` and `validation` of ours, by either curve; `whole` is all the time
    that agent trained, `first` until it came within `NEARLY` of its own final sampled success.
    """
    entries = []
    for fog in (False, True):
        groups = by_agent([r for r in records if r["fog"] == fog and r["agent"] not in UNTRAINED])
        theirs = [a for a in groups if a.startswith("sb3_")]
        if not theirs:
            continue
        best = groups[theirs[0]]
        sampled = [r for r in best if r["sampled_success"] is not None]
        target = max([mean(best, "success"), *([mean(sampled, "sampled_success")] if sampled else [])])
        own = [reached(r["curve"], r["sampled_success"] - NEARLY) for r in sampled]
        same = {"fog": fog, "best": theirs[0], "target": target, "whole": median([r["seconds"] for r in best])}
        for agent in groups.keys() - set(theirs):
            times = {
                "sampled": median([reached(r["curve"], target) for r in groups[agent]]),
                "validation": median([reached(r["validation_curve"], target) for r in groups[agent]]),
            }
            entries.append({**same, "agent": agent, "first": median(own), **times})
    return sorted(entries, key=lambda e: (e["fog"], e["sampled"], e["validation"], e["agent"]))


def race_table(records: list[Record]) -> str:
    rows = [
        {
            "fog": "on" if e["fog"] else "off",
            "agent": e["agent"],
            "success to reach": f"{e['target']:.3f} ({e['best']})",
            "sampled, after": counted(e["sampled"], " s"),
            "greedy on validation levels, after": counted(e["validation"], " s"),
            "the whole training of that one": f"{e['whole']:.0f} s",
            "ratio": share(e["sampled"], e["whole"]),
            "that one came there after": counted(e["first"], " s"),
            "ratio to that": share(e["sampled"], e["first"]),
        }
        for e in race(records)
    ]
    return table(rows) if rows else ""


def share(ours: float, theirs: float) -> str:
    return "" if NEVER in (ours, theirs) else f"{ours / theirs:.2f}"


def best_trials(trials: list[Record]) -> list[Record]:
    """By validation success, then sampled success, then the earlier one, as `tune.best_of`."""
    ranked = sorted(trials, key=lambda r: (r["agent"], -r["success"], -(r["sampled_success"] or 0.0), r["trial"]))
    return [r for i, r in enumerate(ranked) if i == 0 or ranked[i - 1]["agent"] != r["agent"]]


def search_table(trials: list[Record]) -> str:
    """The winner of every agent beside its default."""
    rows = []
    for best in best_trials(trials):
        own = sorted((r for r in trials if r["agent"] == best["agent"]), key=lambda r: r["trial"])
        default = next((r for r in own if r["trial"] == 0), None)
        changed = ", ".join(f"{k}={v}" for k, v in best["settings"].items())
        rows.append(
            {
                "agent": best["agent"],
                "trials": str(len(own)),
                "default": f"{default['success']:.3f}" if default else "",
                "best": f"**{best['success']:.3f}** (trial {best['trial']})",
                "its settings": changed or "the defaults",
            }
        )
    return table(rows) if rows else ""


def trials_table(trials: list[Record]) -> str:
    """Success on validation levels of every trial, and what it had seen by then."""
    numbers = sorted({r["trial"] for r in trials})
    rows = []
    for agent in sorted({r["agent"] for r in trials}):
        known = {r["trial"]: r for r in trials if r["agent"] == agent}
        row = {"agent": agent}
        for number in numbers:
            r = known.get(number)
            row[f"trial {number}"] = f"{r['success']:.3f} ({r['frames'] / 1000:,.0f}k)" if r else ""
        rows.append(row)
    return table(rows) if rows else ""


def throughput_table(records: list[Record]) -> str:
    """Training speed of ours beside sb3-contrib's, in pairs that have something in common."""
    known, rows = {r["agent"]: r for r in records}, []
    for same, mine, other in PAIRS:
        if mine not in known or other not in known:
            continue
        pair = (known[mine], known[other])
        rows.append(
            {
                "the same": same,
                "ours": mine,
                "sb3-contrib": f"LSTMs of {pair[1]['size']['lstm_size']}",
                "parameters": versus(pair, "parameters"),
                "multiply-adds a decision": versus(pair, "macs_per_decision"),
                "steps/s, median": versus(pair, "steps_per_second"),
                "each round": " : ".join(" ".join(f"{x:,.0f}" for x in r["rounds"]) for r in pair),
                "ours is": f"**{pair[0]['steps_per_second'] / pair[1]['steps_per_second']:.2f}** times as fast",
            }
        )
    return table(rows) if rows else ""


def versus(pair: tuple[Record, Record], name: str) -> str:
    return " : ".join(f"{r[name]:,.0f}" for r in pair)


def figures(folder: Path) -> None:
    """Success of sampled actions against seconds of training, one panel a world."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    records = load(folder / "results.json")
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained")
    for axes, fog in zip(panels, (False, True), strict=True):
        draw_world(axes, [r for r in records if r["fog"] == fog])
        axes.set(title=f"fog {'on' if fog else 'off'}", xlabel="processor seconds of training, one core")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set(ylabel="success of sampled actions in training", ylim=(0, 1.02))
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


def draw_world(axes: Any, records: list[Record]) -> None:
    for agent, runs in by_agent(records).items():
        if agent == "bfs_replanner":
            axes.axhline(runs[0]["success"], color="black", lw=1, ls=":", label=LABELS[agent])
        if agent in UNTRAINED:
            continue
        for number, r in enumerate(runs):
            if not r["curve"]:
                continue
            _, seconds, success = zip(*r["curve"], strict=True)
            style = "--" if agent.startswith("sb3_") else "-"
            label = agent if number == 0 else None
            axes.plot(seconds, success, style, color=COLOURS.get(agent), lw=1.2, alpha=0.8, label=label)
    axes.set_xscale("log")
    axes.grid(alpha=0.25)
