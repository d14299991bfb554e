"""`python docs/draw_concepts.py`: the drawing of `concepts.md`, `docs/images/concepts.svg`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

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

    box(axes, 4.0, 5.4, 1.4, 0.8, "seed", CARRY)
    box(axes, 7.4, 5.4, 1.4, 0.8, "keep", CARRY)
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


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "concepts"  # the same file every time
    figure, axes = plt.subplots(figsize=(11, 6.2))
    axes.set_xlim(-0.3, 13.1)
    axes.set_ylim(0.3, 7.5)
    axes.set_axis_off()
    draw(axes)
    figure.patch.set_facecolor("white")
    figure.tight_layout(pad=0.3)
    out = Path(__file__).parent / "images" / "concepts.svg"
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
