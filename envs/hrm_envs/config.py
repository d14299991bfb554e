"""The parameters of a maze, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

LAYOUTS = ("scatter", "braid", "four_rooms", "sutton_rooms")
DOOR_PROCESSES = ("reroll", "independent", "periodic")
GOAL_PROCESSES = ("static", "jump", "walk")
ENDPOINTS = ("cells", "anywhere")
# The place of each is its code in a level's seed (``rng.level_seed``): never reorder. Code 2 was called ``test`` until
# 2026-11-30; its levels had by then served development.
SPLITS = ("train", "validation", "development", "test")
MAX_SIDE = 64
FRAMED_LAYOUTS = ("scatter", "braid")
MAX_STEPS = 10**6


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a one-line ``ValueError`` naming the nearest choice unless ``value`` is one of ``choices``."""
    if value in choices:
        return
    close = get_close_matches(str(value), choices, n=1, cutoff=0.0)
    raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}; did you mean {close[0]!r}?")


def check_integer(name: str, value: Any, low: int, high: int | None, advice: str) -> None:
    """Raise a one-line ``ValueError`` unless ``value`` is an integer in ``low .. high``."""
    expected = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
    integral = isinstance(value, int) or (hasattr(value, "__index__") and not hasattr(value, "__len__"))
    if isinstance(value, bool) or not integral:
        raise ValueError(f"{name}={value!r} is not {expected}; {advice}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value} is not {expected}; {advice}")


def whole(value: Any) -> Any:
    """A float that is a whole number, such as ``1e3``, as an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_fraction(name: str, value: Any) -> None:
    """Raise a one-line ``ValueError`` unless ``value`` is a number in ``[0, 1]``."""
    number = isinstance(value, int | float) or hasattr(value, "__float__")
    try:
        fits = not isinstance(value, bool | str) and number and 0.0 <= float(value) <= 1.0
    except OverflowError:  # an integer beyond the largest float
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} is not a number from 0 to 1; give a probability or fraction")


@dataclass(frozen=True)
class MazeConfig:
    """The parameters that define a distribution of mazes.

    Attributes:
        rows, cols: cells of the maze; the grid has ``2 * rows + 1`` by ``2 * cols + 1`` positions.
        walls: fixed walls among the edges of a ``scatter`` maze. ``None`` takes 5 of every 24 edges (5 on
            4x4 cells, 10 on 5x6). ``braid`` and ``four_rooms`` have their own walls: use ``None`` or 0.
        doors: number of doors: those closed at any time under ``reroll``, all doors under the other processes.
            ``None`` takes 3, or 1 for ``four_rooms``.
        layout: ``scatter`` (random walls, which never separate start and goal), ``braid`` (a
            spanning tree drawn by random depth-first search), ``four_rooms`` or ``sutton_rooms`` (the one map of
            four rooms and four doorways of Sutton, Precup and Singh 1999, on 6x6 cells).
        endpoints: where start and goal are drawn from: ``cells``, or ``anywhere`` that is not a wall, passages
            included, which then are no doors (``scatter`` and ``sutton_rooms``).
        loops: fraction of the tree's dead ends that ``braid`` opens.
        door_process: ``reroll`` (with probability ``p_change`` a step, all closed doors are redrawn among the
            edges that are not walls), ``independent`` (each of a fixed set of doors flips with probability
            ``p_change``; closed at first with probability 1/2) or ``periodic`` (each of a fixed set of doors
            is open and closed for fixed spans, each uniform in ``[0.5, 1.5] / p_change`` steps, at least 1, and a
            random phase; with ``p_change=0`` it never changes).
        p_change: see ``door_process``.
        goal_process: ``static``, ``jump`` (with probability ``p_goal`` a step the goal moves to a random
            other cell that walls do not cut off) or ``walk`` (the same, to a neighbouring cell, not through walls).
        p_goal: see ``goal_process``.
        view: ``"full"``, or the radius (Chebyshev, in grid positions) beyond which positions are ``UNKNOWN``.
        oracle: add the oracle's values to ``info``.
        max_episode_steps: steps after which an episode is truncated.
        split: ``train``, ``validation``, ``development`` or ``test``: disjoint sets of levels.
        sizes: odd sides of the grid: every level is square and has one of them, drawn from its own seed.
            The ``rows`` x ``cols`` cells are then the maze that ``walls`` and ``max_episode_steps`` are given
            for: another size has the same share of edges that are walls, and a time limit in proportion to its cells
            (``resized``). Needs ``scatter`` or ``braid``.
        canvas: odd side of the square that is observed. The maze lies in it at a place drawn from the level's seed,
            cells on cells, and all around it is wall. ``None`` takes the largest of ``sizes``; without both, the
            maze is the whole picture. Needs ``scatter`` or ``braid``.
        size_schedule: which sizes the ``train`` split draws, by how many episodes the environment has begun before:
            rows ``[episodes, weight, ...]`` with a weight for each of ``sizes``, the first row for 0 episodes;
            between two rows the weights change in equal steps, after the last they stay. ``None`` and all other splits
            draw every size alike.

    Raises:
        ValueError: a value out of range. The message is one line: what was given, what is expected, what to do.
    """

    rows: int = 4
    cols: int = 4
    walls: int | None = None
    doors: int | None = None
    layout: str = "scatter"
    loops: float = 0.0
    door_process: str = "reroll"
    p_change: float = 0.05
    goal_process: str = "static"
    p_goal: float = 0.0
    endpoints: str = "cells"
    view: int | str = "full"
    oracle: bool = False
    max_episode_steps: int = 60
    split: str = "train"
    sizes: tuple[int, ...] | None = None
    canvas: int | None = None
    size_schedule: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "walls", "doors", "view", "max_episode_steps", "canvas"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("door_process", self.door_process, DOOR_PROCESSES)
        check_choice("goal_process", self.goal_process, GOAL_PROCESSES)
        check_choice("split", self.split, SPLITS)
        check_choice("endpoints", self.endpoints, ENDPOINTS)
        smallest = 2 if self.layout == "four_rooms" else 1
        for name in ("rows", "cols"):
            check_integer(name, getattr(self, name), smallest, MAX_SIDE, "choose another maze size")
        if self.rows * self.cols < 2:
            raise ValueError("rows=1, cols=1 leaves no cell for the goal; give at least two cells")
        for name in ("loops", "p_change", "p_goal"):
            check_fraction(name, getattr(self, name))
        check_integer("max_episode_steps", self.max_episode_steps, 1, MAX_STEPS, "choose another time limit")
        if self.view != "full":
            check_integer("view", self.view, 1, None, "give 'full' or a radius in grid positions")
        if not isinstance(self.oracle, bool):
            raise ValueError(f"oracle={self.oracle!r} is not a bool; give True or False")
        if self.loops > 0 and self.layout != "braid":
            raise ValueError(f"loops={self.loops} needs layout='braid', not {self.layout!r}; set loops=0")
        self._settle_sizes()
        if self.layout == "sutton_rooms" and (self.rows, self.cols) != (6, 6):
            raise ValueError(
                f"rows={self.rows}, cols={self.cols} with layout='sutton_rooms', which is one map; give rows=6, cols=6"
            )
        if self.endpoints != "cells" and self.layout not in ("scatter", "sutton_rooms"):
            raise ValueError(f"endpoints={self.endpoints!r} does not apply to layout={self.layout!r}; leave it out")
        self._settle_walls_and_doors()
        if self.is_framed:
            self.each_size()  # raises where walls or doors do not fit into one of them

    def _settle_walls_and_doors(self) -> None:
        """Set the defaults that depend on the layout, and check that walls and doors fit on the edges."""
        auto_walls = int(self.edges * 5 / 24 + 0.5) if self.layout == "scatter" else 0
        auto_doors = 1 if self.layout in ("four_rooms", "sutton_rooms") else 3
        # The dataclass is frozen, but this is still its construction.
        object.__setattr__(self, "walls", auto_walls if self.walls is None else self.walls)
        object.__setattr__(self, "doors", auto_doors if self.doors is None else self.doors)
        assert self.walls is not None
        assert self.doors is not None
        if self.layout != "scatter" and self.walls != 0:
            raise ValueError(f"walls={self.walls!r} does not apply to layout={self.layout!r}; leave it out")
        check_integer("walls", self.walls, 0, max(self.edges - 1, 0), "a maze needs one edge without a wall")
        check_integer("doors", self.doors, 0, None, "choose another number of doors")
        if self.is_framed:
            return  # doors have to fit into each size
        ends = 2 if self.endpoints == "anywhere" else 0  # start and goal may take two passages
        if self.layout == "scatter" and self.walls + self.doors > self.edges - ends:
            raise ValueError(
                f"walls={self.walls} and doors={self.doors} do not fit on the {self.edges - ends} edges of a "
                f"{self.rows}x{self.cols} maze{' beside start and goal' if ends else ''}; use fewer, or a larger maze"
            )
        room = {"scatter": self.edges, "braid": self.rows * self.cols - 1}.get(self.layout, 4) - ends
        if self.doors > room:
            raise ValueError(
                f"doors={self.doors} is more than the {room} places a {self.rows}x{self.cols} "
                f"{self.layout} maze has for doors; use fewer"
            )

    def _settle_sizes(self) -> None:
        """Check ``sizes``, ``canvas`` and ``size_schedule``, and set them as tuples and integers."""
        if self.sizes is not None:
            object.__setattr__(self, "sizes", check_sides(self.sizes))
        if self.size_schedule is not None:
            object.__setattr__(self, "size_schedule", check_schedule(self.size_schedule, self.sizes))
        if not self.is_framed:
            return
        if self.layout not in FRAMED_LAYOUTS:
            raise ValueError(f"sizes and canvas do not apply to layout={self.layout!r}; leave them out")
        if self.canvas is None:
            return
        least = max(self.sizes or (2 * self.rows + 1, 2 * self.cols + 1))
        check_integer("canvas", self.canvas, least, 2 * MAX_SIDE + 1, "give the odd side of the observed square")
        if self.canvas % 2 == 0:
            raise ValueError(f"canvas={self.canvas} is even; give an odd side, such as {self.canvas + 1}")

    @property
    def is_framed(self) -> bool:
        """Whether the maze lies somewhere in a larger grid, or has one of several sizes."""
        return self.sizes is not None or self.canvas is not None

    def each_size(self) -> tuple[MazeConfig, ...]:
        """The mazes that levels are drawn from, each as it is alone: without a frame and of one size."""
        alone: dict[str, Any] = {"sizes": None, "canvas": None, "size_schedule": None}
        if self.sizes is None:
            return (replace(self, **alone),) if self.is_framed else (self,)
        return tuple(replace(self, **alone, **resized(self, side // 2)) for side in self.sizes)

    @property
    def longest_episode(self) -> int:
        """The largest time limit of a level."""
        return max(each.max_episode_steps for each in self.each_size())

    @property
    def height(self) -> int:
        """Rows of the grid that is observed."""
        return self._frame_side or 2 * self.rows + 1

    @property
    def width(self) -> int:
        """Columns of the grid that is observed."""
        return self._frame_side or 2 * self.cols + 1

    @property
    def _frame_side(self) -> int | None:
        return max(self.sizes) if self.canvas is None and self.sizes is not None else self.canvas

    @property
    def edges(self) -> int:
        """Number of pairs of neighbouring cells of the ``rows`` x ``cols`` cells."""
        return self.rows * (self.cols - 1) + self.cols * (self.rows - 1)


def resized(config: MazeConfig, cells: int) -> dict[str, Any]:
    """The parameters by which a square maze of ``cells`` x ``cells`` cells differs from the maze of a configuration.

    The time limit is in proportion to the number of cells, rounded up (at most ``MAX_STEPS``); ``scatter`` keeps its
    share of edges that are walls; the number of doors stays.
    """
    limit = -(-config.max_episode_steps * cells * cells // (config.rows * config.cols))
    changes: dict[str, Any] = {"rows": cells, "cols": cells, "max_episode_steps": min(limit, MAX_STEPS)}
    if config.layout == "scatter" and config.edges:
        assert config.walls is not None
        changes["walls"] = round(config.walls * 2 * cells * (cells - 1) / config.edges)
    return changes


def check_sides(sizes: Any) -> tuple[int, ...]:
    """``sizes`` as a tuple of odd sides of the grid, each once; ``ValueError`` for anything else."""
    advice = "give odd sides of the grid (2 * cells + 1), such as [9, 11, 13]"
    given = [whole(side) for side in sizes] if isinstance(sizes, list | tuple) else []
    if not given:
        raise ValueError(f"sizes={sizes!r} is not a list of sides; {advice}")
    for side in given:
        check_integer("sizes: a side", side, 5, 2 * MAX_SIDE + 1, advice)
        if side % 2 == 0:
            raise ValueError(f"sizes={sizes!r}: {side} is even; {advice}")
    if len(set(given)) < len(given):
        raise ValueError(f"sizes={sizes!r} has a side twice; {advice}")
    return tuple(int(side) for side in given)


def check_schedule(schedule: Any, sizes: tuple[int, ...] | None) -> tuple[tuple[float, ...], ...]:
    """``size_schedule`` as a tuple of rows; ``ValueError`` unless each has a weight for each of ``sizes``."""
    if sizes is None:
        raise ValueError("size_schedule needs sizes; give both, or none")
    wanted = f"rows [episodes, {', '.join(f'weight of {side}' for side in sizes)}]"
    rows: Any = schedule if isinstance(schedule, list | tuple) and schedule else [None]
    last = -1
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 1 + len(sizes):
            raise ValueError(f"size_schedule={schedule!r} is not a list of {wanted}")
        first, weights = whole(row[0]), row[1:]
        check_integer("size_schedule: episodes", first, 0, 2**53, "give how many episodes have been begun before")
        numbers = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w <= 1e6 for w in weights)
        if not numbers or not any(weights):
            raise ValueError(
                f"size_schedule: {row!r} has no weights from 0 to a million, one of them above 0; {wanted}"
            )
        if first <= last or (last < 0 and first):
            raise ValueError(f"size_schedule: {first} episodes in row {row!r}; begin with 0, and let them grow")
        last = first
    return tuple((int(whole(row[0])), *(float(weight) for weight in row[1:])) for row in rows)
