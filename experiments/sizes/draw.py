"""Success over the side of the maze: a table greedy and sampled, one of what a decision costs, and a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.engine.comparisons import outcomes
from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import crossed_interval, mean_of
from experiments.engine.tables import estimate, levels_line, number, table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    settings, results, levels = settings_of(folder), load(folder / "results.json"), load(folder / "levels.json")
    arms = [arm for arm in settings["arms"] if any(r["agent"] == arm for r in results)]
    sides = settings["played"]["sides"]
    rows = [success_row(arm, sides, results, levels) for arm in arms]
    return {
        "sizes success": table([*rows, *reference_rows(sides, results)] if rows else []),
        "sizes levels": levels_line(results),
        "sizes cost": table([cost_row(arm, sides, results) for arm in arms]),
    }


def of_size(results: list[Record], arm: str | None, side: int) -> list[Record]:
    """Records of one size, of an arm or of all; without those that could not be played."""
    own = [record for record in results if arm in (None, record["agent"])]
    return [at for record in own for at in record["sizes"] if at["side"] == side and at["success"] is not None]


def success_row(arm: str, sides: list[int], results: list[Record], levels: list[Record]) -> dict[str, str]:
    """Greedy success with its interval over seeds and levels, and the mean of sampled success, at every size."""
    runs = [r for r in results if r["agent"] == arm]
    row = {"agent": arm, "seeds": str(len(runs)), "frames": number(mean_of(r["frames"] for r in runs), 0)}
    for side in sides:
        scores = outcomes([r for r in levels if r["side"] == side], arm, "greedy")
        drawn = mean_of(at["sampled"]["success"] for at in of_size(results, arm, side))
        row[f"{side}x{side}"] = f"{estimate(crossed_interval(scores))} ({number(drawn)})" if len(scores) else ""
    return row


def reference_rows(sides: list[int], results: list[Record]) -> list[dict[str, str]]:
    rows = []
    for name, label in (("bfs_replanner", "BFS re-planner"), ("clairvoyant", "clairvoyant bound")):
        cells = {f"{s}x{s}": number(mean_of(at[name] for at in of_size(results, None, s))) for s in sides}
        rows.append({"agent": label, **cells})
    return rows


def cost_row(arm: str, sides: list[int], results: list[Record]) -> dict[str, str]:
    runs = [r for r in results if r["agent"] == arm]
    row = {
        "agent": arm,
        "segments": str(runs[0]["segments"]),
        "training": f"{mean_of(r['seconds'] for r in runs):.0f} s",
    }
    for side in sides:
        known = of_size(results, arm, side)
        row[f"{side}x{side}, multiply-adds"] = f"{known[0]['macs_per_decision']:,}" if known else ""
    return row


def figures(folder: Path) -> None:
    """Greedy success over the side, with intervals over seeds and levels."""
    settings, levels = settings_of(folder), load(folder / "levels.json")
    if not levels:
        return
    figure, axes = panels(1, 1, (7.5, 4.2))
    for color, arm in enumerate(settings["arms"]):
        known = [
            (s, outcomes([r for r in levels if r["side"] == s], arm, "greedy")) for s in settings["played"]["sides"]
        ]
        found = [(side, crossed_interval(scores)) for side, scores in known if len(scores)]
        if found:
            middle, low, high = (np.array(values) for values in zip(*(each for _, each in found), strict=True))
            bars = [middle - low, high - middle]
            axes.errorbar([s for s, _ in found], middle, bars, fmt="o-", ms=4, capsize=2, color=f"C{color}", label=arm)
    axes.set(xlabel="side of the grid", ylabel="greedy success, 95% over seeds and levels", ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    save(figure, folder / "sizes.png")
