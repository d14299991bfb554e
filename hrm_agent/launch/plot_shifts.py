"""The figure of `python -m hrm_agent.shifts`: success over each axis, beside the re-planner and the bound."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrm_agent.evaluation.shifts import AXES
from hrm_agent.files.writing import check_output
from hrm_agent.launch.plot import SUFFIXES

Record = dict[str, Any]

PLAYERS = (
    ("agent, greedy", None, {"color": "C0", "marker": "o"}),
    ("agent, sampled", "sampled", {"color": "C1", "marker": "s"}),
    ("BFS re-planner", "bfs_replanner", {"color": "0.35", "marker": "^", "linestyle": "--"}),
    ("clairvoyant bound", "clairvoyant", {"color": "0.6", "marker": "v", "linestyle": ":"}),
)
"""Label, key of the player's summary in a record (None: the record itself), and style of the curve."""


def check_figure(path: str) -> None:
    """Raises: ValueError for a file that cannot be written, or a name that is none of a figure."""
    check_output(path, "figure")
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"figure={path}: expected a name that ends in {', '.join(SUFFIXES)}")


def draw_shifts(records: Sequence[Record], path: str) -> bytes:
    """A panel for each axis with points that were played; the maze that the agent was trained on is part of all.

    Args:
        records: of `evaluation.shifts.run_shifts`.
        path: whose suffix says which kind of file.

    Raises:
        ValueError: the trained maze was not played.
    """
    from matplotlib.figure import Figure  # which nothing else here needs

    played = [record for record in records if record["skipped"] is None]
    trained = [record for record in played if record["axis"] == "trained"]
    if not trained:
        raise ValueError("there is no point to draw: the maze that the agent was trained on was not played")
    axes = [axis for axis in AXES if any(record["axis"] == axis for record in played)]
    figure = Figure(figsize=(1 + 4.5 * max(len(axes), 1), 4), layout="constrained")
    panels = figure.subplots(1, max(len(axes), 1), squeeze=False)[0]
    for panel, axis in zip(panels, axes or ["trained"], strict=True):
        _draw_axis(panel, axis, [record for record in played if record["axis"] in ("trained", axis)])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.suptitle(str(trained[0]["env"]).replace("$", r"\$"))
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(panels) == 1 else 4, fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format=Path(path).suffix[1:], dpi=120)
    return file.getvalue()


def _draw_axis(panel: Any, axis: str, records: Sequence[Record]) -> None:
    """Sizes at the side of their grid (a trained maze without one side is left out), all else side by side."""
    if axis == "size":
        records = sorted((r for r in records if r["side"] is not None), key=lambda record: record["side"])
        at = [record["side"] for record in records]
        panel.set(xlabel="side of the grid", xticks=at)
    else:
        at = list(range(len(records)))
        panel.set_xticks(at, [record["value"] for record in records], rotation=30, ha="right", fontsize="small")
    for label, key, style in PLAYERS:
        own = [record if key is None else record[key] for record in records]
        known = [(x, one["success"], *one["success_ci95"]) for x, one in zip(at, own, strict=True) if one is not None]
        if not known:
            continue
        x, success, low, high = zip(*known, strict=True)
        below = [max(s - edge, 0.0) for s, edge in zip(success, low, strict=True)]
        above = [max(edge - s, 0.0) for s, edge in zip(success, high, strict=True)]
        panel.errorbar(x, success, (below, above), label=label, lw=1.4, ms=4, capsize=2.5, **style)
    panel.set(ylabel="success", ylim=(0, 1.02), title=axis)
    panel.grid(alpha=0.25)
