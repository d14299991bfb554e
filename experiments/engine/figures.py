"""Figures in one style. Nothing here depends on a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.engine.records import load


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4), **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches and its axes; `options` are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)


def legend_of_all(figure: Any, axes: Any, **options: Any) -> None:
    """One legend for all axes, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), **options)


def draw_curves(folder: Path, arms: list[str]) -> None:
    """`curves.png` from `curves.json`: success of sampled actions against frames, a line for every seed."""
    figure, axes = panels()
    for number, arm in enumerate(arms):
        for curve in [c for c in load(folder / "curves.json") if c["agent"] == arm]:
            frames, success = zip(*curve["train_success"], strict=True)
            label = arm if curve["seed"] == 0 else None
            axes.plot(frames, success, color=f"C{number}", alpha=0.75, lw=1.3, label=label)
    axes.set(xlabel="environment frames", ylabel="success of sampled actions in training", ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.legend()
    save(figure, folder / "curves.png")
