"""`python docs/draw_concepts.py`: the drawings of `concepts.md`, `docs/images/*.svg`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

WORLD, TOKENS, CORE, HEADS, CARRY = "#dfe8ee", "#e8f1dd", "#fbe5c8", "#ead9ee", "#f6c9c2"
INK, RED = "#2f3b45", "#b23a2e"
TOP, HEIGHT = 3.0, 1.1  # of the row of boxes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc=colour, ec=INK)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, lw=1.4, color=colour, connectionstyle=style)
    )


def note(axes: Axes, x: float, y: float, text: str, colour: str = INK, **how: str) -> None:
    axes.text(x, y, text, ha=how.get("ha", "center"), va=how.get("va", "center"), fontsize=8, color=colour)


def draw(axes: Axes) -> None:
    middle = TOP + HEIGHT / 2
    axes.add_patch(
        FancyBboxPatch(
            (3.75, 2.45), 5.3, 2.35, boxstyle="round,pad=0.02,rounding_size=0.15", fc="none", ec=INK, ls="--"
        )
    )
    note(axes, 6.4, 4.58, "step t: K segments, here K = 3")

    box(axes, 0.0, TOP, 1.4, HEIGHT, "observation t\n[H, W] ids", WORLD)
    box(axes, 1.9, TOP, 1.4, HEIGHT, "tokens\n[B, L, D]", TOKENS)
    for number in range(3):
        x = 4.0 + 1.7 * number
        box(axes, x, TOP, 1.4, HEIGHT, f"core\nsegment {number + 1}", CORE)
        if number:
            arrow(axes, (x - 0.3, middle), (x, middle), RED)
        arrow(axes, (2.6, TOP), (x + 0.7, TOP), bend=0.22 - 0.02 * number)
    note(axes, 5.6, 2.3, "the same tokens go into every segment")
    box(axes, 9.5, TOP, 1.4, HEIGHT, "readout,\nheads", HEADS)
    box(axes, 11.4, TOP, 1.4, HEIGHT, "action t,\nvalue", WORLD)
    arrow(axes, (1.4, middle), (1.9, middle))
    arrow(axes, (8.8, middle), (9.5, middle))
    arrow(axes, (10.9, middle), (11.4, middle))

    box(axes, 4.0, 5.4, 1.4, 0.8, "to_core_\nstate", CARRY)
    box(axes, 7.4, 5.4, 1.4, 0.8, "from_core_\nstate", CARRY)
    arrow(axes, (4.7, 5.4), (4.7, TOP + HEIGHT), RED)
    arrow(axes, (8.1, TOP + HEIGHT), (8.1, 5.4), RED)
    arrow(axes, (2.3, 5.8), (4.0, 5.8), RED)
    arrow(axes, (8.8, 5.8), (10.6, 5.8), RED)
    note(axes, 2.2, 5.8, "kept at step t-1", RED, ha="right")
    note(axes, 10.7, 5.8, "to step t+1", RED, ha="left")
    note(axes, 6.4, 6.55, "carry rule: reset, full, gate, last_token, output")
    note(axes, 3.15, 6.75, "episode_start:\nthe initial state instead", va="bottom")
    arrow(axes, (3.3, 6.7), (4.25, 6.2))
    note(axes, 6.4, 5.8, "red: the state,\nsuch as $(z_H, z_L)$", RED)

    box(axes, 4.9, 0.55, 3.0, 0.9, "environment: doors and goal move,\nwhatever the agent does", WORLD)
    arrow(axes, (12.1, TOP), (7.9, 1.0), bend=-0.3)
    arrow(axes, (4.9, 1.0), (0.7, TOP), bend=-0.3)


IMAGES = Path(__file__).parent / "images"
FRESH = "#d5dae0"
RULES: tuple[tuple[str, str, str], ...] = (
    ("reset", "the initial state", "nothing crosses the step"),
    ("full", "every latent", "the whole grid"),
    ("gate", "a learned mix, cell by cell", "by the latent and the new token"),
    ("leak", "0.88 of every latent", "the rest is the initial state"),
    ("last_token", "one position's latent", "copied to all positions"),
    ("output", "the policy's output", "mapped onto the initial state"),
)
"""Carry rule, what the next step starts from, and how."""


def latents(seed: int = 3) -> np.ndarray:
    """Colours of a grid of latents, `[4, 4, 3]`."""
    hues = plt.get_cmap("YlOrRd")(0.25 + 0.6 * np.random.default_rng(seed).random((4, 4)))
    return hues[..., :3]


def started(rule: str, kept: np.ndarray) -> np.ndarray:
    """Colours of the grid that the next step starts from."""
    fresh = np.broadcast_to(to_rgb(FRESH), kept.shape)
    share = {
        "reset": 0.0, "full": 1.0, "leak": 0.55, "output": 0.0,
        "gate": np.random.default_rng(7).choice([0.0, 0.35, 1.0], (4, 4, 1), p=[0.4, 0.2, 0.4]),
    }  # fmt: skip
    if rule == "last_token":
        return np.broadcast_to(kept[-1, -1], kept.shape)
    mixed = share[rule] * kept + (1 - np.asarray(share[rule])) * fresh
    return 0.75 * mixed + 0.25 * np.array(to_rgb("#8c6bb1")) if rule == "output" else mixed


def grid(axes: Axes, x: float, y: float, colours: np.ndarray, size: float = 0.28) -> None:
    rows, cols = colours.shape[:2]
    for i in range(rows):
        for j in range(cols):
            place = (x + j * size, y + (rows - 1 - i) * size)
            axes.add_patch(Rectangle(place, size, size, fc=colours[i, j], ec="white", lw=1.2))


def draw_rules(axes: Axes) -> None:
    kept = latents()
    for number, (rule, what, how) in enumerate(RULES):
        x, y = 6.3 * (number % 2), 4.4 - 2.1 * (number // 2)
        axes.text(x, y + 1.32, f"carry={rule}", fontsize=9, color=INK, family="monospace", va="bottom")
        grid(axes, x, y, kept)
        grid(axes, x + 2.35, y, started(rule, kept))
        arrow(axes, (x + 1.25, y + 0.56), (x + 2.25, y + 0.56), RED if rule != "reset" else FRESH)
        note(axes, x + 3.6, y + 0.72, what, ha="left")
        note(axes, x + 3.6, y + 0.38, how, "#6b7683", ha="left")
    note(axes, 0.56, 6.25, "after step t", RED)
    note(axes, 2.91, 6.25, "before step t+1", RED)
    axes.set(xlim=(-0.1, 12.6), ylim=(0.0, 6.5))


def draw_gradients(axes: Axes) -> None:
    rows = (("time_gradient=bptt", True, 2.9), ("time_gradient=detached", False, 0.6))
    for title, flows, y in rows:
        axes.text(0, y + 1.45, title, fontsize=9, color=INK, family="monospace", va="bottom")
        for step in range(4):
            x = 2.9 * step
            box(axes, x, y, 1.5, 0.9, f"step t+{step}" if step else "step t", CORE)
            note(axes, x + 0.75, y - 0.42, f"loss {step + 1}")
            arrow(axes, (x + 0.75, y - 0.3), (x + 0.75, y - 0.02), INK)
            if step < 3:
                arrow(axes, (x + 1.55, y + 0.62), (x + 2.85, y + 0.62), RED)
                if flows:
                    arrow(axes, (x + 2.85, y + 0.28), (x + 1.55, y + 0.28), INK)
                else:
                    note(axes, x + 2.2, y + 0.26, "cut")
        note(axes, -0.15, y + 0.62, "stored\nstate", RED, ha="right")
    note(axes, 2.2, 4.2, "state", RED)
    note(axes, 2.2, 2.85, "gradient", va="top")
    axes.set(xlim=(-1.1, 10.6), ylim=(-0.1, 4.9))


def draw_windows(axes: Axes) -> None:
    """A rollout of 5 environments and 16 steps, in windows of 8."""
    ends = {0: 5, 1: 12, 3: 9, 4: 2}
    for row in range(5):
        y, episode = 4 - row, 0
        for step in range(16):
            colour = (TOKENS, WORLD)[episode % 2]
            axes.add_patch(Rectangle((step, y), 1, 0.82, fc=colour, ec="white", lw=1.5))
            if ends.get(row) == step:
                axes.plot([step + 1, step + 1], [y - 0.06, y + 0.88], color=INK, lw=2.2)
                episode += 1
        for start in (0, 8):
            axes.plot(start + 0.16, y + 0.41, "o", color=RED, ms=7)
        note(axes, -0.25, y + 0.41, f"environment {row + 1}", ha="right")
    for start in (0, 8):
        shape = FancyBboxPatch((start + 0.02, -0.1), 7.96, 5.06, boxstyle="round,pad=0.02", fc="none", ec=RED, ls="--")
        axes.add_patch(shape)
    note(axes, 8, -0.55, "red: the stored state of a window of 8; bold line: an episode ends, and the state is reset")
    axes.set(xlim=(-3.1, 16.3), ylim=(-0.8, 5.2))


def draw_budget(axes: Axes) -> None:
    """Segments of five decisions, the door closing before the fourth."""
    rows = (
        ("segments=1", (1, 1, 1, 1, 1)), ("segments=4", (4, 4, 4, 4, 4)),
        ("segments=4 first_segments=8", (8, 4, 4, 4, 4)), ("segments=8 stop=latent_change", (6, 2, 1, 5, 2)),
    )  # fmt: skip
    for number, (title, counts) in enumerate(rows):
        y = 3.6 - 1.2 * number
        axes.text(-0.2, y + 0.3, title, fontsize=8.5, color=INK, family="monospace", ha="right", va="center")
        for step, count in enumerate(counts):
            for segment in range(count):
                x = 2.6 * step + 0.28 * segment
                axes.add_patch(Rectangle((x, y), 0.24, 0.6, fc=CORE, ec=INK, lw=0.8))
    axes.axvline(7.65, ymin=0.03, ymax=0.94, color=RED, ls=":", lw=1.4)
    note(axes, 7.65, 4.75, "a door closes", RED)
    for step in range(5):
        note(axes, 2.6 * step + 0.2, -0.3, f"step {step + 1}")
    axes.set(xlim=(-6.0, 13.0), ylim=(-0.5, 5.0))


def draw_overview(axes: Axes) -> None:
    axes.set(xlim=(-0.3, 13.1), ylim=(0.3, 7.5))
    draw(axes)


DRAWINGS: dict[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {
    "concepts": (draw_overview, (11, 6.2)),
    "carry_rules": (draw_rules, (10.5, 5.2)),
    "gradients": (draw_gradients, (9.5, 3.9)),
    "windows": (draw_windows, (9.5, 3.0)),
    "budget": (draw_budget, (9.5, 2.9)),
}


def main() -> None:
    for name, (drawing, size) in DRAWINGS.items():
        mpl.rcParams["svg.hashsalt"] = name  # the same file every time
        figure, axes = plt.subplots(figsize=size)
        axes.set_axis_off()
        drawing(axes)
        figure.patch.set_facecolor("white")
        figure.tight_layout(pad=0.3)
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
