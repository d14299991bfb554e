"""Tables and figure of the study, from its JSON files alone.

Success of an arm: mean over training seeds, with a 95% interval over seeds and levels
(`hrm_agent.evaluation.statistics.crossed_interval`), greedy and sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine.comparisons import MODES, comparison_rows, outcomes
from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import crossed_interval, mean_of
from experiments.engine.tables import average, estimate, number, seconds, table


class Outcomes:
    """The JSON files of the folder."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings_of(folder)
        files = ("results", "levels", "lesions", "lesion_levels")
        self.results, self.levels, self.lesions, self.lesion_levels = (load(folder / f"{name}.json") for name in files)
        path = folder / "tuned.json"
        self.tuned: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def runs(self, arm: str) -> list[Record]:
        return [r for r in self.results if r["agent"] == arm]

    def scores(self, name: str, mode: str) -> NDArray[np.float64]:
        """Success `[seeds, levels]` of `ARM`, or of `ARM @ LESION`; empty without records."""
        arm, _, lesion = name.partition(" @ ")
        return outcomes([r for r in self.lesion_levels if r["lesion"] == lesion] if lesion else self.levels, arm, mode)


def tables(folder: Path) -> dict[str, str]:
    study = Outcomes(folder)
    makers = {"arms": arms_table, "comparisons": comparisons_table, "afterwards": afterwards_table}
    makers |= {"settings": settings_table, "rates": rates_table}
    return {f"carry_or_depth {name}": table(make(study)) for name, make in makers.items()}


def arms_table(study: Outcomes) -> list[dict[str, str]]:
    rows = []
    for arm in study.settings["arms"]:
        runs = study.runs(arm)
        if not runs:
            continue
        success = {mode: estimate(crossed_interval(study.scores(arm, mode))) for mode in MODES}
        rows.append(
            {
                "arm": arm,
                **success,
                "seeds": str(len(runs)),
                "SPL": average(runs, "spl"),
                "multiply-adds a decision": f"{round(mean_of(r['macs_per_decision'] for r in runs) or 0):,}",
                "parameters": f"{runs[0]['parameters']:,}",
                "training, median": seconds(runs),
            }
        )
    return rows


def comparisons_table(study: Outcomes) -> list[dict[str, str]]:
    return comparison_rows(study.settings["comparisons"], study.scores)


def afterwards_table(study: Outcomes) -> list[dict[str, str]]:
    """Pairs that were not chosen before the runs, corrected together with those that were."""
    chosen, after = study.settings["comparisons"], study.settings["afterwards"]
    pairs = {tuple(pair) for found in after.values() for pair in found}
    return [row for row in comparison_rows({**chosen, **after}, study.scores) if (row["a"], row["b"]) in pairs]


def settings_table(study: Outcomes) -> list[dict[str, str]]:
    """Greedy and sampled success under every other setting, and of the references."""
    rows = []
    for arm in study.settings["arms"]:
        cells = {}
        for lesion in study.settings["lesions"]:
            tried = [r for r in study.lesions if (r["agent"], r["lesion"]) == (arm, lesion)]
            if tried:
                cells[lesion] = f"{average(tried, 'success')} ({average(tried, 'sampled_success')})"
        if cells:
            rows.append({"arm, greedy (sampled)": arm, **cells})
    for name, key in (("random policy", "random"), ("BFS re-planner", "bfs_replanner"), ("clairvoyant", "clairvoyant")):
        known = {r["lesion"]: number(r[key]) for r in study.lesions if key in r}
        if known:
            rows.append({"arm, greedy (sampled)": name, **known})
    columns = ("arm, greedy (sampled)", *study.settings["lesions"])
    return [{column: row.get(column, "") for column in columns} for row in rows]


def rates_table(study: Outcomes) -> list[dict[str, str]]:
    """Of every arm, validation success by learning rate; bold the one that was taken."""
    rows = []
    rates = sorted({trial["learning_rate"] for found in study.tuned.values() for trial in found["tried"]})
    for arm, found in study.tuned.items():
        cells = dict.fromkeys([f"{rate:g}" for rate in rates], "")
        for trial in found["tried"]:
            text = f"{trial['success']:.3f} ({trial['sampled_success']:.3f})"
            if trial["seeds"] > 1:
                text += f", {trial['seeds']} seeds"
            chosen = trial["learning_rate"] == found["learning_rate"]
            cells[f"{trial['learning_rate']:g}"] = f"**{text}**" if chosen else text
        rows.append({"arm, greedy (sampled)": arm, **cells})
    return rows


def figures(folder: Path) -> None:
    study = Outcomes(folder)
    arms = [arm for arm in study.settings["arms"] if study.runs(arm)]
    if not arms:
        return
    figure, axes = panels(1, 1, (7, 0.3 * len(arms) + 1))
    for color, mode in enumerate(MODES):
        found = [crossed_interval(study.scores(arm, mode)) for arm in arms]
        middle, low, high = map(np.array, zip(*found, strict=True))
        height = np.arange(len(arms)) + (0.15 if mode == "sampled" else -0.15)
        axes.errorbar(middle, height, xerr=[middle - low, high - middle], fmt="o", ms=4, color=f"C{color}", label=mode)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="success on test levels, 95% over seeds and levels")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=8)
    save(figure, folder / "arms.png")
