"""Videos of decisions segment by segment: where the latent changed, what a probe reads, and the policy after each."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hrm_agent.evaluation.thinking import Reader, ThinkingActor, Thought, cells_of_tokens
from hrm_agent.evaluation.video import (
    BACKGROUND,
    FAINT,
    INK,
    MARGIN,
    MAX_BARS,
    SCALE,
    Caption,
    Frame,
    draw_bars,
    draw_outcome,
    first_action,
    font_of,
    is_maze,
    picture_of,
)
from hrm_agent.policies.policy import Policy
from hrm_envs import Cell
from hrm_envs.rendering import FLOOR, FOG, render_grid

MOST_SEGMENTS = 16
"""Panels of a picture."""
COLUMNS = 4
WIDEST = 1120
"""Pixels of a row of mazes, as far as `SMALLEST_SCALE` allows."""
SMALLEST_SCALE = 18  # that numbers fit in
NARROWEST = 230
"""Pixels of a panel."""
NARROW = 520
"""Pixels of a page below which texts stand in lines of their own."""
HEADER, TITLE, LINE = 58, 24, 24

Scale = tuple[tuple[float, tuple[int, int, int]], ...]
MOVED: Scale = ((0.0, FLOOR), (0.35, (206, 186, 240)), (0.7, (138, 88, 206)), (1.0, (70, 20, 138)))
"""Colours of a cell whose latent changed little, or by as much as its norm; of the square root of the change."""
MOVED_IN_FOG: Scale = ((0.0, FOG), (0.35, (58, 48, 88)), (0.7, (104, 74, 164)), (1.0, (158, 108, 238)))
WHITE = (255, 255, 255)


class ThinkingView:
    """A row of panels for each decision, one a segment; plays the most probable action.

    A panel of a maze colours the floor by how much the latent of its tokens changed in the segment, and writes into the
    cells how many steps the probe reads there. Under it stands the policy after the segment. Of other environments
    there is one picture, and the panels hold the policy alone.

    Args:
        policy: never changed here.
        probe: reads the distances; None: none are written.

    Raises:
        ValueError: more segments than a picture has room for.
    """

    def __init__(self, policy: Policy, probe: Reader | None = None) -> None:
        rules = policy.rules
        self._most = max(rules.segments, rules.first_segments or 1)
        if self._most > MOST_SEGMENTS:
            raise ValueError(f"{self._most} segments: think=true shows {MOST_SEGMENTS} at most; set segments= to fewer")
        self._actor = ThinkingActor(policy, probe)
        self._cells = cells_of_tokens(policy)
        self._thought: Thought | None = None

    def reset(self, level: int) -> None:
        self._actor.reset(level)

    def act(self, obs: Any) -> Any:
        self._thought = self._actor.act(obs)
        return self._thought.action

    def draw(self, env: gym.Env, obs: Any, caption: Caption) -> Frame:
        """The last decision, on the maze as it is seen now."""
        assert self._thought is not None
        thought, maze = self._thought, is_maze(env)
        chosen = None if thought.probabilities.shape[1] == 0 else int(thought.action) - first_action(env)
        if maze:
            columns = _columns(self._most)
            scale = max(SMALLEST_SCALE, min(SCALE, WIDEST // (columns * obs.shape[1])))
            mazes = [self._maze(obs, thought, i, scale, caption.outcome is None) for i in range(len(thought.values))]
            blank = render_grid(obs, scale=scale)
            shown = [*mazes, *[_faded(blank)] * (self._most - len(mazes))]
            return _page(caption, thought, chosen, shown, None)
        return _page(caption, thought, chosen, [None] * self._most, picture_of(env, obs, [], None))

    def _maze(self, obs: Any, thought: Thought, segment: int, scale: int, decides: bool) -> Frame:
        """The maze after a segment; with the policy at the agent where it is still to act."""
        moved = thought.latent_change[segment]
        floor = None
        if self._cells is not None and len(moved):
            fog = obs == Cell.UNKNOWN
            floor = np.where(fog[..., None], np.array(FOG, np.uint8), np.array(FLOOR, np.uint8))
            colours, dark = colours_of(moved, MOVED), colours_of(moved, MOVED_IN_FOG)
            for token, places in enumerate(self._cells):
                for place in places:
                    floor[place] = dark[token] if fog[place] else colours[token]
        arrows = thought.probabilities[segment] if decides and thought.probabilities.shape[1] == 4 else None
        picture = render_grid(obs, scale=scale, action_probabilities=arrows, floor=floor)
        if thought.distance is None or self._cells is None:
            return picture
        return _numbered(picture, obs, self._cells, thought.distance[segment], scale)


def colours_of(moved: NDArray[np.float32], scale: Scale) -> NDArray[np.uint8]:
    """Colours uint8 `[L, 3]` of relative changes `[L]`."""
    at, stops = np.sqrt(moved.clip(0, 1)), [stop for stop, _ in scale]
    channels = [np.interp(at, stops, [colour[i] for _, colour in scale]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _numbered(
    picture: Frame, obs: NDArray, cells: list[list[tuple[int, int]]], steps: NDArray[np.float32], scale: int
) -> Frame:
    """Each token's number in the first of its cells that is open and shows neither the agent nor the goal."""
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), font_of(max(10, scale * 0.42))
    for places, number in zip(cells, steps, strict=True):
        free = [place for place in places if obs[place] in (Cell.EMPTY, Cell.UNKNOWN)]
        if free and not any(obs[place] in (Cell.AGENT, Cell.GOAL) for place in places):
            row, col = free[0]
            y, x = round((row + 0.5) * scale), round((col + 0.5) * scale)
            dark = picture[y, x].mean() < 130
            draw.text((x, y), f"{number:.0f}", WHITE if dark else INK, font, anchor="mm")
    return np.asarray(image)


def _faded(picture: Frame) -> Frame:
    """Of a segment that was not run."""
    return (picture * 0.15 + np.array(BACKGROUND) * 0.85).astype(np.uint8)


def _page(
    caption: Caption, thought: Thought, chosen: int | None, mazes: list[Frame] | list[None], picture: Frame | None
) -> Frame:
    """Header, panels in rows of `COLUMNS`, and what the colours mean."""
    maze = mazes[0]
    height, width = (0, 0) if maze is None else maze.shape[:2]
    bars = LINE * min(thought.probabilities.shape[1], MAX_BARS)
    row_height = TITLE + height + (8 if height else 0) + bars + MARGIN
    panel, columns = max(width, NARROWEST), _columns(len(mazes))
    if picture is not None:  # panels below each other, as far as they reach
        columns = -(-len(mazes) // max(1, picture.shape[0] // row_height))
    rows = -(-len(mazes) // columns)
    left = MARGIN if picture is None else 2 * MARGIN + picture.shape[1]
    wide = left + columns * (panel + MARGIN)
    narrow = wide < NARROW
    top = MARGIN + HEADER + 40 * narrow
    tall = max(rows * row_height, 0 if picture is None else picture.shape[0] + MARGIN)
    legend = [] if maze is None else _legend(thought.distance is not None, narrow)
    image = Image.new("RGB", (wide, top + tall + 18 * len(legend) + 8 * bool(legend)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_header(draw, wide, caption, narrow)
    if picture is not None:
        image.paste(Image.fromarray(picture), (MARGIN, top))
    for i, one in enumerate(mazes):
        x, y = left + (i % columns) * (panel + MARGIN), top + (i // columns) * row_height
        used = i < len(thought.values)
        _draw_title(draw, x, y, panel, i, thought if used else None)
        if one is not None:
            image.paste(Image.fromarray(one), (x + (panel - width) // 2, y + TITLE))
        if used and bars:
            last = i == len(thought.values) - 1
            y += TITLE + height + (8 if height else 0)
            draw_bars(draw, x, y, thought.probabilities[i], chosen if last else None, panel)
    _draw_legend(draw, MARGIN, top + tall - 4, legend)
    return np.asarray(image)


def _columns(panels: int) -> int:
    """Of rows that are as equal as can be."""
    rows = -(-panels // COLUMNS)
    return -(-panels // rows)


def _draw_header(draw: ImageDraw.ImageDraw, width: int, caption: Caption, narrow: bool) -> None:
    normal, large = font_of(13), font_of(19)
    draw.text((MARGIN, MARGIN), caption.step, INK, large)
    if caption.outcome is not None:
        after = MARGIN + round(draw.textlength(caption.step, large)) + 16
        draw_outcome(draw, after, MARGIN, caption.outcome)
    draw.text((MARGIN, MARGIN + 28), caption.note, FAINT, normal)
    for line, text in enumerate((caption.title, caption.episode)):
        if narrow:
            draw.text((MARGIN, MARGIN + 48 + 20 * line), text, FAINT, normal)
        else:
            draw.text((width - MARGIN, MARGIN + 4 + 24 * line), text, FAINT, normal, anchor="ra")


def _draw_title(
    draw: ImageDraw.ImageDraw, left: int, top: int, width: int, segment: int, thought: Thought | None
) -> None:
    font = font_of(13)
    draw.text((left, top + 2), f"segment {segment + 1}", FAINT if thought is None else INK, font)
    facts = "not run"
    if thought is not None:
        facts = f"value {thought.values[segment]:.2f}"
        if thought.change[segment] > 0:
            facts = f"moved {thought.change[segment]:.0%}, {facts}"
    draw.text((left + width, top + 2), facts, FAINT, font, anchor="ra")


def _legend(numbered: bool, narrow: bool) -> list[str]:
    """Lines of it; the first stands beside the colours."""
    if narrow:
        return ["moved 0 to 100%", *["numbers: steps to the goal, by a probe"] * numbered]
    probed = "; numbers: steps to the goal, as a linear probe reads them"
    return ["0 to 100%: how far the segment moved the latent" + probed * numbered]


def _draw_legend(draw: ImageDraw.ImageDraw, left: int, top: int, lines: list[str]) -> None:
    font = font_of(12)
    for line, text in enumerate(lines):
        draw.text((left + 68 * (line == 0), top + 18 * line), text, FAINT, font)
    for x, colour in enumerate(colours_of(np.linspace(0, 1, 60, dtype=np.float32), MOVED) if lines else ()):
        draw.line((left + x, top + 4, left + x, top + 13), tuple(map(int, colour)))
