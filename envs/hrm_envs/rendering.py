"""Pictures of a maze: numpy drawing with antialiased edges, and plain text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import ACTION_NAMES, DOOR, GOAL, MOVES, UNKNOWN, WALL, Cell

Colour = tuple[int, int, int]

FLOOR: Colour = (246, 244, 238)
FLOOR_LINE: Colour = (228, 224, 214)
WALL_FACE: Colour = (58, 66, 84)
WALL_EDGE: Colour = (38, 44, 58)
FOG: Colour = (24, 27, 36)
FOG_MARK: Colour = (34, 38, 50)
DOOR_CLOSED: Colour = (240, 128, 34)
DOOR_SHADE: Colour = (176, 82, 12)
DOOR_OPEN: Colour = (250, 204, 150)
GOAL_FACE: Colour = (38, 166, 106)
AGENT_FACE: Colour = (44, 104, 222)
TRAIL: Colour = (108, 160, 246)
ARROW: Colour = (214, 40, 118)
WHITE: Colour = (255, 255, 255)

# Steps after which a trail has faded completely.
_TRAIL_MEMORY = 30
_SYMBOLS = {
    Cell.EMPTY: "  ",
    Cell.WALL: "██",
    Cell.DOOR: "╳╳",
    Cell.AGENT: "◖◗",
    Cell.GOAL: "◆ ",
    Cell.UNKNOWN: "░░",
}


def render_ansi(grid: NDArray[np.uint8]) -> str:
    """A grid uint8 [H, W] as text, two characters per position; doors orange, goal green, agent blue."""
    colours = {Cell.DOOR: "33", Cell.AGENT: "1;34", Cell.GOAL: "1;32", Cell.UNKNOWN: "90"}
    lines = []
    for row in grid:
        parts = []
        for value in row:
            cell = Cell(int(value))
            colour = colours.get(cell)
            parts.append(f"\x1b[{colour}m{_SYMBOLS[cell]}\x1b[0m" if colour else _SYMBOLS[cell])
        lines.append("".join(parts))
    return "\n".join(lines) + "\n"


class Canvas:
    """An RGB picture addressed in grid units: position (r, c) covers [r, r + 1] x [c, c + 1]."""

    def __init__(self, height: int, width: int, scale: int) -> None:
        self.scale = scale
        self.pixels = np.empty((height * scale, width * scale, 3), np.float32)
        self.pixels[:] = FLOOR

    def rectangle(self, top: float, left: float, bottom: float, right: float, colour: Colour) -> None:
        """Fill a rectangle, to the nearest pixel."""
        t, le, b, r = (round(edge * self.scale) for edge in (top, left, bottom, right))
        self.pixels[t:b, le:r] = colour

    def blend(self, box: tuple[float, float, float, float], distance: Any, colour: Colour, alpha: float = 1.0) -> None:
        """Paint where ``distance(y, x)`` (signed, grid units) is negative; edges are one pixel soft."""
        height, width = self.pixels.shape[:2]
        top, left = (max(int(np.floor(v * self.scale)) - 1, 0) for v in box[:2])
        bottom = min(int(np.ceil(box[2] * self.scale)) + 1, height)
        right = min(int(np.ceil(box[3] * self.scale)) + 1, width)
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) / self.scale
        x = (np.arange(left, right, dtype=np.float32)[None, :] + 0.5) / self.scale
        cover = np.clip(0.5 - distance(y, x) * self.scale, 0.0, 1.0) * alpha
        patch = self.pixels[top:bottom, left:right]
        patch += cover[..., None] * (np.array(colour, np.float32) - patch)

    def disc(self, y: float, x: float, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        box = (y - radius, x - radius, y + radius, x + radius)
        self.blend(box, lambda v, u: np.hypot(v - y, u - x) - radius, colour, alpha)

    def capsule(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radius: float,
        colour: Colour,
        alpha: float,
    ) -> None:
        """A thick line with round ends."""
        (y0, x0), (y1, x1) = start, end
        dy, dx = y1 - y0, x1 - x0
        length = max(dy * dy + dx * dx, 1e-9)

        def distance(y: NDArray, x: NDArray) -> NDArray:
            along = np.clip(((y - y0) * dy + (x - x0) * dx) / length, 0.0, 1.0)
            return np.hypot(y - y0 - along * dy, x - x0 - along * dx) - radius

        box = (min(y0, y1) - radius, min(x0, x1) - radius, max(y0, y1) + radius, max(x0, x1) + radius)
        self.blend(box, distance, colour, alpha)

    def rounded(self, box: tuple[float, float, float, float], corner: float, colour: Colour) -> None:
        """A rectangle with round corners."""
        cy, cx = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        hy, hx = (box[2] - box[0]) / 2 - corner, (box[3] - box[1]) / 2 - corner

        def distance(y: NDArray, x: NDArray) -> NDArray:
            dy, dx = np.maximum(np.abs(y - cy) - hy, 0.0), np.maximum(np.abs(x - cx) - hx, 0.0)
            return np.hypot(dy, dx) - corner

        self.blend(box, distance, colour)

    def image(self) -> NDArray[np.uint8]:
        return np.clip(self.pixels + 0.5, 0, 255).astype(np.uint8)


def _draw_ground(canvas: Canvas, grid: NDArray[np.uint8], floor: NDArray[np.uint8] | None) -> None:
    """Floor, in given colours [H, W, 3] if any, walls with a darker rim towards the floor, and fog."""
    height, width = grid.shape
    line, rim = 1.0 / canvas.scale, 2.0 / canvas.scale
    solid = np.pad(np.isin(grid, (WALL, UNKNOWN)), 1, constant_values=True)
    for r in range(height):
        for c in range(width):
            kind = grid[r, c]
            if kind == WALL:
                canvas.rectangle(r, c, r + 1, c + 1, WALL_FACE)
                for (dr, dc), side in zip(MOVES, _SIDES, strict=True):
                    if not solid[r + 1 + dr, c + 1 + dc]:
                        top, left, bottom, right = side(r, c, rim)
                        canvas.rectangle(top, left, bottom, right, WALL_EDGE)
            elif kind == UNKNOWN:
                canvas.rectangle(r, c, r + 1, c + 1, FOG if floor is None else _colour(floor[r, c]))
                canvas.disc(r + 0.5, c + 0.5, 0.07, FOG_MARK)
            else:
                edge = FLOOR_LINE
                if floor is not None:
                    canvas.rectangle(r, c, r + 1, c + 1, _colour(floor[r, c]))
                    edge = _colour(floor[r, c] * 0.8 + np.array(FLOOR_LINE) * 0.2)
                canvas.rectangle(r, c, r + line, c + 1, edge)
                canvas.rectangle(r, c, r + 1, c + line, edge)


def _colour(values: NDArray) -> Colour:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue


_SIDES = (
    lambda r, c, w: (r, c, r + w, c + 1),
    lambda r, c, w: (r, c + 1 - w, r + 1, c + 1),
    lambda r, c, w: (r + 1 - w, c, r + 1, c + 1),
    lambda r, c, w: (r, c, r + 1, c + w),
)


def _draw_door(canvas: Canvas, grid: NDArray[np.uint8], r: int, c: int, closed: bool) -> None:
    """A closed door as a bar across the passage, an open one as two stubs at its jambs."""
    neighbours = grid[r, max(c - 1, 0)], grid[r, min(c + 1, grid.shape[1] - 1)]
    horizontal = all(value in (WALL, UNKNOWN, DOOR) for value in neighbours)
    if closed:
        for near, colour in ((0.24, DOOR_SHADE), (0.30, DOOR_CLOSED)):
            across, along = (near, 1 - near), (0.0 if near < 0.3 else 0.05, 1.0 if near < 0.3 else 0.95)
            rows, cols = (across, along) if horizontal else (along, across)
            canvas.rounded((r + rows[0], c + cols[0], r + rows[1], c + cols[1]), 0.08, colour)
        knob = (r + 0.5, c + 0.76) if horizontal else (r + 0.76, c + 0.5)
        canvas.disc(*knob, 0.07, WHITE, 0.9)
        return
    for start, end in ((0.0, 0.2), (0.8, 1.0)):
        across, along = (0.30, 0.70), (start, end)
        rows, cols = (across, along) if horizontal else (along, across)
        canvas.rounded((r + rows[0], c + cols[0], r + rows[1], c + cols[1]), 0.05, DOOR_OPEN)


def _draw_trail(canvas: Canvas, trail: Sequence[int], width: int) -> None:
    """The agent's past positions, fading with age."""
    points = [(p // width + 0.5, p % width + 0.5) for p in trail]
    # Oldest first, so that the newest is drawn on top.
    for age in range(min(len(points) - 1, 400), 0, -1):
        start, end = points[-age - 1], points[-age]
        if start == end:
            continue
        fresh = max(1.0 - (age - 1) / _TRAIL_MEMORY, 0.0)
        canvas.capsule(start, end, 0.06 + 0.08 * fresh, TRAIL, 0.22 + 0.6 * fresh)


def _draw_goal(canvas: Canvas, r: int, c: int) -> None:
    y, x = r + 0.5, c + 0.5
    canvas.disc(y, x, 0.42, GOAL_FACE, 0.25)
    for radius, colour in ((0.34, GOAL_FACE), (0.22, WHITE), (0.12, GOAL_FACE)):
        canvas.disc(y, x, radius, colour)


def _draw_arrows(canvas: Canvas, r: int, c: int, probabilities: NDArray[np.float64]) -> None:
    """Four wedges around the agent, each as long as its action is probable."""
    base = 0.40
    for (dr, dc), probability in zip(MOVES, probabilities, strict=True):
        if probability < 0.01:
            continue
        tip = 0.46 + 0.84 * float(probability)
        half = 0.16 + 0.14 * float(probability)

        def distance(
            y: NDArray, x: NDArray, dr: int = dr, dc: int = dc, tip: float = tip, half: float = half
        ) -> NDArray:
            along = (y - r - 0.5) * dr + (x - c - 0.5) * dc
            aside = np.abs((y - r - 0.5) * dc + (x - c - 0.5) * dr)
            slope = half / (tip - base)
            edge = (aside - (tip - along) * slope) / np.hypot(1.0, slope)
            return np.maximum(edge, base - along)

        canvas.blend((r - 1.0, c - 1.0, r + 2.0, c + 2.0), distance, ARROW, 0.55 + 0.4 * float(probability))


def _draw_agent(canvas: Canvas, r: int, c: int) -> None:
    y, x = r + 0.5, c + 0.5
    for radius, colour, alpha in ((0.42, WHITE, 0.95), (0.36, AGENT_FACE, 1.0)):
        canvas.disc(y, x, radius, colour, alpha)
    canvas.disc(y - 0.11, x - 0.11, 0.10, WHITE, 0.55)


def render_grid(
    grid: NDArray[np.uint8],
    trail: Sequence[int] | None = None,
    scale: int = 24,
    action_probabilities: Any = None,
    doors: Sequence[int] | None = None,
    floor: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Draw an observation.

    Args:
        grid: uint8 [H, W] of ``Cell`` ids.
        trail: flat grid positions (row * W + column) the agent has stood on, oldest first.
        scale: pixels per grid position, 4 or more.
        action_probabilities: [4], N E S W, drawn as wedges at the agent.
        doors: flat positions of known doors; open ones are drawn light.
        floor: uint8 [H, W, 3], colours of the floor and of fog.

    Returns:
        uint8 [H * scale, W * scale, 3], RGB.

    Raises:
        ValueError: values that are not ``Cell`` ids, a scale below 4, or a wrong number of probabilities or colours.
    """
    grid = np.asarray(grid)
    if grid.ndim != 2 or grid.size == 0 or grid.min() < 0 or grid.max() > UNKNOWN:
        raise ValueError(f"grid of shape {list(grid.shape)} is not an [H, W] array of Cell ids; give ids from 0 to 5")
    if scale < 4:
        raise ValueError(f"scale={scale} is below 4 pixels per grid position; give a larger scale")
    if floor is not None and floor.shape != (*grid.shape, 3):
        raise ValueError(
            f"floor has shape {list(floor.shape)}, expected {[*grid.shape, 3]}; give a colour per position"
        )
    canvas = Canvas(grid.shape[0], grid.shape[1], scale)
    width = grid.shape[1]
    _draw_ground(canvas, grid, floor)
    for position in doors or ():
        if grid[position // width, position % width] not in (DOOR, UNKNOWN, WALL):
            _draw_door(canvas, grid, position // width, position % width, closed=False)
    _draw_trail(canvas, trail or (), width)
    for r, c in np.argwhere(grid == DOOR):
        _draw_door(canvas, grid, int(r), int(c), closed=True)
    for r, c in np.argwhere(grid == GOAL):
        _draw_goal(canvas, int(r), int(c))
    for r, c in np.argwhere(grid == Cell.AGENT):
        if action_probabilities is not None:
            probabilities = np.asarray(action_probabilities, np.float64)
            if probabilities.shape != (len(ACTION_NAMES),):
                shape = list(probabilities.shape)
                raise ValueError(f"action_probabilities has shape {shape}, expected [4]; give one for each action")
            _draw_arrows(canvas, int(r), int(c), probabilities)
        _draw_agent(canvas, int(r), int(c))
    return canvas.image()
