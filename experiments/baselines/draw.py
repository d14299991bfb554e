"""Tables and figure of the page, from the records alone; part of a study is drawn too.

Success of an agent: mean over training seeds, 95% over seeds and levels, greedy and sampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.baselines.attempts import attempts_table
from experiments.engine import figures as figure_style
from experiments.engine.comparisons import MODES, comparison_rows, outcomes
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import crossed_interval, mean_of
from experiments.engine.tables import LABELS, UNTRAINED, average, estimate, median, number, success, table
from hrm_agent.algos.imitation import DAggerConfig

REFERENCES = {
    "clairvoyant": LABELS["clairvoyant"],
    "remembering_replanner": "BFS re-planner that remembers the map",
    "bfs_replanner": LABELS["bfs_replanner"],
    "random": LABELS["random"],
}
WORLDS = {"baselines fog_off": False, "baselines fog_on": True}
PAIRS = (  # of throughput.json: what is the same, ours, theirs
    ("parameters (the library's size), training settings", "gru_as_lstm", "sb3_recurrent_ppo"),
    ("parameters (our shipped GRU), training settings", "gru", "sb3_recurrent_ppo_as_gru"),
    ("parameters (our shipped TRM), training settings", "trm", "sb3_recurrent_ppo_as_trm"),
    ("multiply-adds of a decision, training settings", "trm", "sb3_recurrent_ppo"),
    ("parameters; each library's own training settings", "trm", "sb3_recurrent_ppo_as_trm_by_default"),
)
SECONDS, FRAMES = (30, 60, 120, 480), (50_000, 100_000, 200_000, 400_000, 800_000)
"""Where learning curves are read."""
DRAWN = {
    "trm": "C0", "hrm": "C4", "feedforward": "C7", "vin": "C8", "gru_flat": "C6", "drc_small_cells": "C2",
    "sb3_ppo_core": "C3", "sb3_ppo_cnn": "C1", "sb3_ppo_mlp": "C5", "sb3_recurrent_ppo": "C9",
}  # fmt: skip
"""Agents in the figure, and their colours."""


class Study:
    """The JSON files of the folder."""

    def __init__(self, folder: Path) -> None:
        self.settings, self.records, self.levels = settings_of(folder), load(folder / "results.json"), []
        if self.records:
            self.levels = load(folder / "levels.json")

    def runs(self, arm: str) -> list[Record]:
        return [r for r in self.records if r["arm"] == arm]

    def arms(self, fog: bool, long: bool = False) -> list[str]:
        """Trained in that world for as long, the most successful first: mean of greedy and sampled."""
        trained = [r for r in self.records if r["fog"] == fog and r["agent"] not in UNTRAINED]
        trained = [r for r in trained if r["arm"].endswith("_long") == long]
        known = dict.fromkeys(r["arm"] for r in trained)
        return sorted(known, key=lambda arm: -self.skill(arm))

    def skill(self, arm: str) -> float:
        """Mean of greedy and sampled success; a network of values plays greedily alone."""
        return mean_of(scores.mean() for mode in MODES if len(scores := self.scores(arm, mode))) or 0.0

    def references(self, fog: bool) -> list[Record]:
        found = {r["agent"]: r for r in self.records if r["fog"] == fog}
        return [found[name] for name in REFERENCES if name in found]

    def scores(self, arm: str, mode: str) -> NDArray[np.float64]:
        """Success `[seeds, levels]`."""
        return outcomes(self.levels, arm, mode, key="arm")


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    study = Study(folder)
    return {
        **{name: results_table(study, fog) for name, fog in WORLDS.items()},
        "baselines long": results_table(study, fog=False, long=True),
        "baselines comparisons": table(comparison_rows(study.settings["comparisons"], study.scores)),
        "baselines curves": curves_table(study),
        "baselines rates": rates_table(study, load(folder / "rates.json")),
        "baselines search": search_table(load(folder / "tuning.json")),
        "baselines recurrent": attempts_table(load(folder / "recurrent.json")),
        "baselines throughput": throughput_table(load(folder / "throughput.json")),
    }


def results_table(study: Study, fog: bool, long: bool = False) -> str:
    """One world: agents, then the policies that need no training."""
    rows = [agent_row(study, arm) for arm in study.arms(fog, long)]
    return table(rows + [reference_row(r) for r in study.references(fog)] if rows else [])


def agent_row(study: Study, arm: str) -> dict[str, str]:
    runs, drawn = study.runs(arm), study.scores(arm, "sampled")
    return {
        "agent": runs[0]["agent"],
        "greedy [95%]": estimate(crossed_interval(study.scores(arm, "greedy"))),
        "sampled [95%]": estimate(crossed_interval(drawn), bold=False) if len(drawn) else "",
        "each seed, greedy": " ".join(f"{score:.3f}" for score in study.scores(arm, "greedy").mean(axis=1)),
        "SPL": average(runs, "spl"),
        "steps lost after a change": number(mean_of(map(steps_lost, runs)), 2),
        "frames": median(runs, "frames"),
        "time to 0.9": "" if is_taught(runs[0]) else median(runs, "seconds_to_90", unit=" s"),
        "parameters": f"{runs[0]['parameters']:,}",
        "multiply-adds": f"{runs[0]['macs_per_decision']:,}",
    }


def is_taught(record: Record) -> bool:
    return record.get("algo") == "dagger"


def own_curve(record: Record) -> list[list[float]]:
    """The learning curve `[frames, seconds, success]` as far as the agent acts alone: DAgger begins as a mixture."""
    taught = DAggerConfig.beta_fraction * record["budget_seconds"] if is_taught(record) else 0.0
    return [point for point in record["curve"] if point[1] >= taught]


def reference_row(record: Record) -> dict[str, str]:
    return {
        "agent": REFERENCES[record["agent"]],
        "greedy [95%]": success(record),
        "SPL": average([record], "spl"),
        "steps lost after a change": number(steps_lost(record), 2),
    }


def steps_lost(record: Record) -> float | None:
    return (record.get("changes") or {}).get("extra_steps")


def at(curve: list[list[float]], column: int, limit: float) -> float | None:
    """Success of a learning curve `[frames, seconds, success]` at its last point up to a limit; None beyond its end."""
    if not curve or curve[-1][column] < 0.97 * limit:
        return None
    return next((success for *point, success in reversed(curve) if point[column] <= limit), None)


def curves_table(study: Study) -> str:
    """Success of actions sampled in training after equal times and after equal frames, means over seeds; fog off.

    Of an agent that has more time besides, what it reached with that.
    """
    rows, longer = [], study.arms(fog=False, long=True)
    for arm in [*longer, *(a for a in study.arms(fog=False) if f"{a}_long" not in longer)]:
        runs, row = study.runs(arm), {"agent": arm}
        for column, limits, unit in ((1, SECONDS, "{} s"), (0, FRAMES, "{:,} frames")):
            for limit in limits:
                reached = [at(own_curve(r), column, limit) for r in runs]
                row[unit.format(limit)] = number(mean_of(reached)) if None not in reached else ""
        rows.append(row)
    return table(rows)


def rates_table(study: Study, trials: list[Record]) -> str:
    """Of every agent and setting, what each learning rate reached; bold the one that was taken."""
    from experiments.baselines.run import best_trials

    best = best_trials(trials, study.settings["learnt"])
    rates, rows = sorted({t["rate"] for t in trials}), []
    for agent in dict.fromkeys((*study.settings["sb3"], *study.settings["ours"])):
        own = [t for t in trials if t["agent"] == agent]
        for tried in dict.fromkeys(tuple(t["overrides"]) for t in own):
            row = {"agent": agent, "setting": name_of(study, agent, tried)}
            known = {t["rate"]: t for t in own if tuple(t["overrides"]) == tried}
            for rate in rates:
                text, trial = "", known.get(rate)
                if trial:
                    text = (
                        f"{trial['sampled_success'] or 0:.3f} ({trial['success']:.3f}), {trial['frames'] / 1000:,.0f}k"
                    )
                    text = f"**{text}**" if trial is best[agent] else text
                row[f"{rate:g}"] = text
            rows.append(row)
    return table(rows)


def name_of(study: Study, agent: str, tried: tuple[str, ...]) -> str:
    """How the page calls a setting of theirs: `searched`, or `by hand` with the weight of the value loss."""
    given = study.settings["sb3"].get(agent)
    if not given:
        return ""
    values = dict(override.removeprefix("settings.").split("=") for override in tried)
    by_hand = [s for s in given if s != "tuned" and {k: str(v) for k, v in s.items()} == values]
    return f"by hand, vf_coef={by_hand[0]['vf_coef']}" if by_hand else "searched"


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
    """Success of sampled actions against seconds of training and against frames, fog off; means over seeds."""
    study = Study(folder)
    arms = [arm for arm in study.arms(fog=False) if arm in DRAWN]
    if not arms:
        return
    figure, panels = figure_style.panels(1, 2, (11, 4.2), sharey=True)
    for axes, column, what in zip(
        panels, (1, 0), ("processor seconds of training, one core", "frames of training"), strict=True
    ):
        for arm in arms:
            x, y = mean_curve([own_curve(r) for r in study.runs(arm)], column)
            axes.plot(x, y, "--" if arm.startswith("sb3_") else "-", color=DRAWN[arm], lw=1.4, label=arm)
        for record in study.references(fog=False):
            if record["agent"] == "clairvoyant":
                axes.axhline(record["success"], color="black", lw=1, ls=":", label=LABELS["clairvoyant"])
        axes.set(xlabel=what, ylim=(0, 1.02))
        axes.grid(alpha=0.25)
    panels[0].set(ylabel="success of sampled actions in training")
    panels[1].set(xscale="log")
    figure_style.legend_of_all(figure, panels, loc="outside right upper", fontsize=8)
    figure_style.save(figure, folder / "curves.png")


def mean_curve(curves: list[list[list[float]]], column: int) -> tuple[Any, Any]:
    """Mean over seeds at a hundred points, as far as all of them go."""
    known = [np.array(curve, float) for curve in curves if curve]
    first, last = max(c[0, column] for c in known), min(c[-1, column] for c in known)
    x = np.linspace(first, last, 100)
    return x, np.mean([np.interp(x, c[:, column], c[:, 2]) for c in known], axis=0)
