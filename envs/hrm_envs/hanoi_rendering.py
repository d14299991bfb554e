"""Pictures of the Towers of Hanoi: the disks on their pegs, and above them, smaller, where they are to go."""

import numpy as np
from numpy.typing import NDArray

from hrm_envs.hanoi_rules import NO_DISK, PEGS
from hrm_envs.rendering import FLOOR, FLOOR_LINE, GOAL_FACE, WALL_EDGE, WALL_FACE, WHITE, Canvas, Colour

# From the smallest disk to the largest.
_PALETTE: tuple[Colour, ...] = (
    (236, 72, 92),
    (247, 148, 62),
    (244, 198, 74),
    (64, 178, 124),
    (46, 126, 222),
    (98, 76, 190),
)
_SPACING, _SMALLEST, _LARGEST = 5.0, 1.2, 4.6
_THICK, _GAP = 0.62, 0.06
_PANEL = 0.42
"""Size of the goal's panel beside the scene."""
_PANEL_COLOUR: Colour = (236, 240, 234)
_SHADE = 0.72


def disk_colour(size: float) -> Colour:
    """The colour of a disk, from 0, the smallest, to 1, the largest."""
    at = size * (len(_PALETTE) - 1)
    low = min(int(at), len(_PALETTE) - 2)
    mixed = np.array(_PALETTE[low]) * (low + 1 - at) + np.array(_PALETTE[low + 1]) * (at - low)
    red, green, blue = (round(value) for value in mixed.tolist())
    return red, green, blue


def _shaded(colour: Colour) -> Colour:
    red, green, blue = (round(value * _SHADE) for value in colour)
    return red, green, blue


class _Scene:
    """Three pegs on a board, drawn into a part of a canvas: ``factor`` units of the canvas to one of the scene."""

    def __init__(self, canvas: Canvas, top: float, left: float, factor: float, disks: int) -> None:
        self.canvas, self.top, self.left, self.factor, self.disks = canvas, top, left, factor, disks

    def box(self, top: float, left: float, bottom: float, right: float) -> tuple[float, float, float, float]:
        f = self.factor
        return self.top + top * f, self.left + left * f, self.top + bottom * f, self.left + right * f

    def rounded(self, top: float, left: float, bottom: float, right: float, corner: float, colour: Colour) -> None:
        self.canvas.rounded(self.box(top, left, bottom, right), corner * self.factor, colour)

    def draw(
        self, pegs: NDArray[np.int64], settled: NDArray[np.bool_], lifted: tuple[int, float, float] | None
    ) -> None:
        """The pegs, then the disks int [n], those that are ``settled`` with a pip; see ``render_hanoi``."""
        floor = scene_height(self.disks) - 0.6
        for peg in range(PEGS):
            x = (peg + 0.5) * _SPACING
            self.rounded(0.5, x - 0.14, floor, x + 0.14, 0.13, WALL_FACE)
        self.rounded(floor, 0.1, floor + 0.34, PEGS * _SPACING - 0.1, 0.12, WALL_EDGE)
        self.rounded(floor, 0.1, floor + 0.24, PEGS * _SPACING - 0.1, 0.12, WALL_FACE)
        height = [0] * PEGS
        for disk, peg in enumerate(pegs.tolist()):
            if lifted is not None and lifted[0] == disk:
                self._disk(disk, lifted[1] * _SPACING, 0.5 + lifted[2], bool(settled[disk]))
                continue
            self._disk(disk, (peg + 0.5) * _SPACING, floor - height[peg] * _THICK, bool(settled[disk]))
            height[peg] += 1

    def _disk(self, disk: int, x: float, bottom: float, settled: bool) -> None:
        size = 1.0 if self.disks == 1 else 1 - disk / (self.disks - 1)
        half = (_SMALLEST + (_LARGEST - _SMALLEST) * size) / 2
        colour, top = disk_colour(size), bottom - _THICK + _GAP
        self.rounded(top, x - half, bottom, x + half, 0.22, _shaded(colour))
        self.rounded(top, x - half, bottom - 0.09, x + half, 0.22, colour)
        if settled:
            y, across = self.top + (top + bottom - 0.09) / 2 * self.factor, self.left + x * self.factor
            self.canvas.disc(y, across, 0.1 * self.factor, WHITE, 0.95)


def scene_height(disks: int) -> float:
    """Units from the top of the pegs' scene to its bottom."""
    return max(disks, 3) * _THICK + 2.0


def render_hanoi(
    pegs: NDArray, goals: NDArray, scale: int = 24, lifted: tuple[int, float, float] | None = None
) -> NDArray[np.uint8]:
    """Draw a state and its goal.

    Args:
        pegs, goals: int [n], the pegs of the disks, the largest first.
        scale: pixels per unit, 4 or more; the picture is 15 units wide.
        lifted: a disk that is on its way: its number, and its middle, from 0 (left) to 3 (right) in distances between
            pegs, and how far below the tops of the pegs its lower edge is, in units. None: all disks lie.

    Returns:
        uint8 [h, w, 3], RGB. A disk on the peg where it is to go has a white pip.

    Raises:
        ValueError: other pegs than 0, 1 and 2, no disk, or a scale below 4.
    """
    pegs, goals = np.asarray(pegs, np.int64), np.asarray(goals, np.int64)
    if pegs.ndim != 1 or not len(pegs) or pegs.shape != goals.shape:
        raise ValueError(f"pegs of shape {list(pegs.shape)} and goals of {list(goals.shape)}: expected [n] for both")
    if min(pegs.min(), goals.min()) <= NO_DISK or max(pegs.max(), goals.max()) >= PEGS:
        raise ValueError("pegs and goals: expected 0, 1 or 2 for every disk")
    if scale < 4:
        raise ValueError(f"scale={scale} is below 4 pixels per unit; give a larger scale")
    disks, width = len(pegs), PEGS * _SPACING
    inset = scene_height(disks) * _PANEL
    panel = inset + 0.6
    canvas = Canvas(int(np.ceil(panel + 0.5 + scene_height(disks))), int(width), scale)
    left = (width - width * _PANEL) / 2
    canvas.rounded((0.2, left - 1.6, panel, left + width * _PANEL + 0.4), 0.3, FLOOR_LINE)
    canvas.rounded((0.25, left - 1.55, panel - 0.05, left + width * _PANEL + 0.35), 0.28, _PANEL_COLOUR)
    for radius, colour in ((0.44, GOAL_FACE), (0.29, FLOOR), (0.15, GOAL_FACE)):
        canvas.disc(panel / 2 + 0.1, left - 0.85, radius, colour)
    nowhere = np.zeros(disks, np.bool_)
    _Scene(canvas, 0.3, left, _PANEL, disks).draw(goals, nowhere, None)
    _Scene(canvas, panel + 0.3, 0.0, 1.0, disks).draw(pegs, pegs == goals, lifted)
    return canvas.image()
