"""Tables and figure of the page, from the records alone; part of a study is drawn too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.baselines.attempts import attempts_table
from experiments.engine import figures as figure_style
from experiments.engine.records import Record, load
from experiments.engine.statistics import NEVER, mean_of, median_of, success_interval
from experiments.engine.tables import (
    LABELS,
    REFERENCES,
    average,
    by_agent,
    each_seed,
    estimate,
    median,
    seconds,
    success,
    table,
)

WORLDS = {"baselines_fog_off": False, "baselines_fog_on": True}
UNFAIR = ("sb3_recurrent_ppo",)  # trained for too little to be compared; its trials are in the tables of the search
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
    records = compared(load(folder / "results.json"))
    return {
        **{name: results_table([r for r in records if r["fog"] == fog]) for name, fog in WORLDS.items()},
        "baselines_race": race_table(records),
        "baselines_search": search_table(load(folder / "tuning.json")),
        "baselines_trials": trials_table(load(folder / "tuning.json")),
        "baselines_recurrent": attempts_table(load(folder / "recurrent.json")),
        "baselines_throughput": throughput_table(load(folder / "throughput.json")),
    }


def compared(records: list[Record]) -> list[Record]:
    return [r for r in records if r["agent"] not in UNFAIR]


def counted(value: float, unit: str = "") -> str:
    return "never" if value == NEVER else f"{value:,.0f}{unit}"


def results_table(records: list[Record]) -> str:
    """One world: agents, then the policies that need no training."""
    rows = [reference_row(a, r[0]) if a in REFERENCES else agent_row(a, r) for a, r in by_agent(records).items()]
    return table(rows)


def agent_row(agent: str, runs: list[Record]) -> dict[str, str]:
    return {
        "agent": agent,
        "success [95%]": estimate(success_interval(runs)),
        "each seed": each_seed(runs),
        "SPL": average(runs, "spl"),
        "regret": average(runs, "regret_after_material_change", 2),
        "frames to 90%": median(runs, "frames_to_90"),
        "time to 90%": median(runs, "seconds_to_90", unit=" s"),
        "frames": median(runs, "frames"),
        "time": seconds(runs),
        "steps/s": median(runs, "steps_per_second"),
        "parameters": f"{runs[0]['parameters']:,}",
        "multiply-adds": f"{runs[0]['macs_per_decision']:,}",
        "ms": median(runs, "ms_per_decision", 2),
    }


def reference_row(name: str, record: Record) -> dict[str, str]:
    return {
        "agent": LABELS[name],
        "success [95%]": success(record),
        "SPL": average([record], "spl"),
        "regret": average([record], "regret_after_material_change", 2),
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
        groups = by_agent([r for r in records if r["fog"] == fog and r["agent"] not in REFERENCES])
        theirs = [a for a in groups if a.startswith("sb3_")]
        if not theirs:
            continue
        best = groups[theirs[0]]
        sampled = [r for r in best if r["sampled_success"] is not None]
        finals = mean_of(r["success"] for r in best), mean_of(r["sampled_success"] for r in sampled)
        target = max(value for value in finals if value is not None)
        own = [reached(r["curve"], r["sampled_success"] - NEARLY) for r in sampled]
        same = {"fog": fog, "best": theirs[0], "target": target, "whole": median_of(r["seconds"] for r in best)}
        for agent in groups.keys() - set(theirs):
            times = {
                "sampled": median_of(reached(r["curve"], target) for r in groups[agent]),
                "validation": median_of(reached(r["validation_curve"], target) for r in groups[agent]),
            }
            entries.append({**same, "agent": agent, "first": median_of(own), **times})
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
    return table(rows)


def share(ours: float, theirs: float) -> str:
    return "" if NEVER in (ours, theirs) else f"{ours / theirs:.2f}"


def best_of(trials: list[Record], chosen: dict[str, int] | None = None) -> dict[str, Record]:
    """Of every agent the `chosen` trial, or the best: validation success, sampled success, then the earlier one."""

    def worth(trial: Record) -> tuple[bool, float, float, int]:
        is_chosen = trial["trial"] == (chosen or {}).get(trial["agent"])
        return is_chosen, trial["success"], trial["sampled_success"] or 0.0, -trial["trial"]

    agents = sorted({trial["agent"] for trial in trials})
    return {agent: max((t for t in trials if t["agent"] == agent), key=worth) for agent in agents}


def search_table(trials: list[Record]) -> str:
    """The winner of every agent beside its default."""
    rows = []
    for agent, best in best_of(trials).items():
        own = [r for r in trials if r["agent"] == agent]
        default = next((r for r in own if r["trial"] == 0), None)
        changed = ", ".join(f"{k}={v}" for k, v in best["settings"].items())
        rows.append(
            {
                "agent": agent,
                "trials": str(len(own)),
                "default": f"{default['success']:.3f}" if default else "",
                "best": f"**{best['success']:.3f}** (trial {best['trial']})",
                "its settings": changed or "the defaults",
            }
        )
    return table(rows)


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
    return table(rows)


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
    return table(rows)


def versus(pair: tuple[Record, Record], name: str) -> str:
    return " : ".join(f"{r[name]:,.0f}" for r in pair)


def figures(folder: Path) -> None:
    """Success of sampled actions against seconds of training, one panel a world."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    records = compared(load(folder / "results.json"))
    figure, panels = figure_style.panels(1, 2, (11, 4.2), sharex=True, sharey=True)
    for axes, fog in zip(panels, (False, True), strict=True):
        draw_world(axes, [r for r in records if r["fog"] == fog])
        axes.set(title=f"fog {'on' if fog else 'off'}", xlabel="processor seconds of training, one core")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set(ylabel="success of sampled actions in training", ylim=(0, 1.02))
    figure_style.legend_of_all(figure, panels, loc="outside right upper", fontsize=8)
    figure_style.save(figure, folder / "curves.png")


def draw_world(axes: Any, records: list[Record]) -> None:
    for agent, runs in by_agent(records).items():
        if agent == "bfs_replanner":
            axes.axhline(runs[0]["success"], color="black", lw=1, ls=":", label=LABELS[agent])
        if agent in REFERENCES:
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
