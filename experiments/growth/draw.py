"""Tables and figures of this page, from results.json, lesions.json and cost.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.figures import panels, save
from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of
from experiments.engine.tables import number, success, table

KINDS = {"decision": "decision_ms", "training frame": "training_frame_ms"}
SHOWN = (9, 25, 49, 101)
"""Sides whose milliseconds are in the table; the figure has all."""

FITTED_FROM = 33
"""Side from which the exponents are fitted: below it a call costs what its launches cost."""

NAMES = {"mlp_published": "mlp, published width"}
MARKERS = {"attention": "s", "mlp": "^", "mlp_published": "v", "conv": "o", "sweep": "D"}


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    cost = json.loads((folder / "cost.json").read_text())
    return {"growth": table(cost_rows(cost)), "sizes": table(size_rows(folder))}


def lines_of(cost: dict[str, Any]) -> dict[str, list[Record]]:
    """Records of each mixing, by size."""
    found: dict[str, list[Record]] = {}
    for record in cost["records"]:
        found.setdefault(record["mixing"], []).append(record)
    return found


def exponent(line: list[Record], key: str) -> float | None:
    """Slope of log(figure) over log(tokens) by least squares, from `FITTED_FROM` on; None with fewer than 3 sizes."""
    fitted = [r for r in line if r["side"] >= FITTED_FROM]
    if len(fitted) < 3:
        return None
    return float(np.polyfit(np.log([r["tokens"] for r in fitted]), np.log([r[key] for r in fitted]), 1)[0])


def cost_rows(cost: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for mixing, line in lines_of(cost).items():
        by_side = {r["side"]: r for r in line}
        row = {"mixing": NAMES.get(mixing, mixing)}
        for kind, key in KINDS.items():
            at = [f"{by_side[s][key]:.3g}" if s in by_side else "-" for s in SHOWN]
            row[f"ms a {kind}, " + ", ".join(f"{s}x{s}" for s in SHOWN)] = " / ".join(at)
            slope = exponent(line, key)
            row[f"exponent, {kind}"] = number(slope, 2)
        slope, last = exponent(line, "macs_per_decision"), line[-1]
        row["exponent, multiply-adds"] = number(slope, 2)
        row["largest"] = f"{last['side']}x{last['side']}"
        row["multiply-adds there"] = f"{last['macs_per_decision'] / 1e6:,.0f} M"
        row["kept for the backward pass there, a frame"] = f"{last['kept_bytes_per_training_frame'] / 2**20:,.1f} MiB"
        row["ended by"] = cost["ended"].get(mixing, "")
        rows.append(row)
    return rows


def successes(folder: Path) -> dict[str, dict[int, list[Record]]]:
    """Records of each arm by the maze cells of a side that it was tested on, one a seed."""
    found: dict[str, dict[int, list[Record]]] = {}
    for r in load(folder / "results.json"):
        found.setdefault(r["agent"], {}).setdefault(4, []).append({**r, "bfs": r["bfs_replanner"]["success"]})
    for r in load(folder / "lesions.json"):
        rows = r["options"]["env_options"]["rows"]
        found.setdefault(r["agent"], {}).setdefault(rows, []).append({**r, "bfs": r["bfs_replanner"]})
    return {arm: dict(sorted(sizes.items())) for arm, sizes in found.items()}


def size_rows(folder: Path) -> list[dict[str, str]]:
    arms = successes(folder)
    rows = []
    for cells in sorted({c for sizes in arms.values() for c in sizes}):
        row = {"tested on": f"{2 * cells + 1}x{2 * cells + 1}", "side": f"{cells / 4:g}x"}
        for arm, sizes in arms.items():
            runs = sizes.get(cells, [])
            if not runs:
                continue
            row[f"{arm}, mean"] = f"**{number(mean_of(r['success'] for r in runs))}**"
            row[f"{arm}, each seed [95% over levels]"] = ", ".join(success(r) for r in runs)
            row["BFS re-planner"] = f"{runs[0]['bfs']:.3f}"
        rows.append(row)
    return rows


def figures(folder: Path) -> None:
    cost = json.loads((folder / "cost.json").read_text())
    figure, three = panels(1, 3, (13, 4.2))
    panels_of = zip(three, [*KINDS.values(), "macs_per_decision"], strict=True)
    titles = ["ms a decision, batch 1", "ms a training frame, forward and backward", "multiply-adds a decision"]
    for (axes, key), title in zip(panels_of, titles, strict=True):
        for place, (mixing, line) in enumerate(lines_of(cost).items()):
            tokens, values = [r["tokens"] for r in line], [r[key] for r in line]
            style = {"color": f"C{place}", "marker": MARKERS[mixing], "ms": 4, "lw": 1.3}
            axes.plot(tokens, values, label=NAMES.get(mixing, mixing), **style)
            if mixing in cost["ended"]:
                axes.plot(tokens[-1:], values[-1:], "x", color="black", ms=9)
        axes.set(xscale="log", yscale="log", xlabel="tokens, one for each maze cell", title=title)
        sides = sorted({(r["tokens"], r["side"]) for r in cost["records"]})
        axes.set_xticks([t for t, _ in sides], [f"{t:,}\n{s}x{s}" for t, s in sides], fontsize=6.5)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    three[0].legend(fontsize=8)
    save(figure, folder / "growth.png")

    figure, axes = panels(size=(6, 4))
    for place, (arm, sizes) in enumerate(successes(folder).items()):
        for seed in range(max(map(len, sizes.values()))):
            runs = {c: r[seed]["success"] for c, r in sizes.items() if len(r) > seed}
            label = arm if seed == 0 else None
            axes.plot([2 * c + 1 for c in runs], list(runs.values()), "o-", color=f"C{place}", alpha=0.8, label=label)
    axes.set(xlabel="side of the maze (trained on 9)", ylabel="greedy success, test levels", ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.legend()
    save(figure, folder / "sizes.png")
