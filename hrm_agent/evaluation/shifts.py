"""One-axis shifts: how an agent does when one option of its maze changes at a time, and what would be possible.

Each point is played by the agent and by the BFS re-planner on the same levels and reported with the clairvoyant bound:
a harder maze lowers all three, and only the gap between them shows that the agent does not transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from hrm_agent.agents.agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.episodes import PolicyActor, run_in_threads
from hrm_agent.evaluation.report import (
    BATCH,
    MAZE_COLUMNS,
    Column,
    Levels,
    play,
    play_references,
    summarize,
    summarize_clairvoyant,
    table_head,
    table_row,
)
from hrm_agent.parallel.threads import Threads
from hrm_envs import MazeConfig
from hrm_envs.config import check_sides, resized

SIZE_STEP = 2
CHANGE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DOOR_PROCESSES = ("reroll", "independent", "periodic")
GOALS = (("static", 0.0), ("jump", 0.05), ("jump", 0.2), ("walk", 0.05), ("walk", 0.2))
VIEWS = ("full", 5, 4, 3, 2, 1)


@dataclass(frozen=True)
class Point:
    """One maze to play.

    Args:
        axis: one of `AXES`, or `trained` for the base maze.
        value: position on the axis, in words.
        changes: options that differ from the base maze.
        missing: why the axis has no point; None for a maze to play.
        side: of the grid of a square maze of one size; None: another maze, or not known.
    """

    axis: str
    value: str
    changes: dict[str, Any]
    missing: str | None = None
    side: int | None = None


def sizes(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """Each of the base's sizes, where it has some, then larger square mazes (`at_side`)."""
    known = [side // 2 for side in base.sizes or ()]
    first = max(known or (base.rows, base.cols)) + SIZE_STEP
    if first > max_size:
        yield Point("size", "larger mazes", {}, f"they begin at {first}x{first} cells, above max_size={max_size}")
    for cells in (*sorted(known), *range(first, max_size + 1, SIZE_STEP)):
        yield at_side(base, 2 * cells + 1)


def at_side(base: MazeConfig, side: int) -> Point:
    """A square maze with a grid of one side.

    The time limit is proportional to the number of cells (rounded up); `scatter` keeps its share of edges that are
    walls; the number of doors stays (`hrm_envs.config.resized`). A base with `sizes` or a `canvas` keeps its frame
    where the maze fits into it; a larger maze has none.
    """
    cells = side // 2
    changes: dict[str, Any] = resized(base, cells)
    if base.is_framed:
        changes = {"sizes": [side], "canvas": max(side, base.height), "size_schedule": None}
    return Point("size", f"{side}x{side}, {cells}x{cells} cells", changes, side=side)


def doors(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """No door, and two and four times as many (1, 2 and 4 where there was none)."""
    assert base.doors is not None
    own = base.doors
    for count in (0, 1, 2, 4) if own == 0 else (0, 2 * own, 4 * own):
        yield Point("doors", f"{count} doors", {"doors": count})


def change_rates(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """Other probabilities of a change at each step."""
    for rate in CHANGE_RATES:
        yield Point("p_change", f"p_change {rate:g}", {"p_change": rate})


def door_processes(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """Other door processes, at the same rate."""
    for process in DOOR_PROCESSES:
        yield Point("door_process", f"{process} doors", {"door_process": process})


def goals(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """Goals that stay, jump or walk."""
    for process, rate in GOALS:
        name = f"{process} goal" + (f", p {rate:g}" if rate else "")
        yield Point("goal", name, {"goal_process": process, "p_goal": rate})


def views(base: MazeConfig, max_size: int) -> Iterator[Point]:
    """Full view, or a radius."""
    for view in VIEWS:
        yield Point("view", "full view" if view == "full" else f"view radius {view}", {"view": view})


AXES: dict[str, Callable[[MazeConfig, int], Iterator[Point]]] = {
    "size": sizes,
    "doors": doors,
    "p_change": change_rates,
    "door_process": door_processes,
    "goal": goals,
    "view": views,
}


def list_points(base: MazeConfig, axes: list[str], max_size: int, sides: Sequence[int] | None = None) -> list[Point]:
    """The base maze, then every point of the axes that differs from it, or why there is none.

    Args:
        sides: of the grids of the axis `size`; None: see `sizes`.

    Raises:
        ValueError: no axis, an unknown one, or one given twice; or sides that are none of a maze.
    """
    known = isinstance(axes, list) and all(axis in list(AXES) for axis in axes)
    if not known or not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axes={axes}: expected a list of one or more of {', '.join(AXES)}, each once")
    if sides is not None and "size" not in axes:
        raise ValueError(f"sizes={list(sides)} with axes={axes}, which has no size; add size to the axes")
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(base).items()}
    is_square = not base.is_framed and base.rows == base.cols
    points = [Point("trained", "as trained", {}, side=base.height if is_square else None)]
    for axis in axes:
        given = axis == "size" and sides is not None
        points += [
            point
            for point in (map(partial(at_side, base), check_sides(sides)) if given else AXES[axis](base, max_size))
            if point.missing is not None or any(own[name] != value for name, value in point.changes.items())
        ]
    return points


def base_config(env_id: str, env_options: dict[str, Any]) -> MazeConfig:
    """The parameters of a maze environment.

    Raises:
        ValueError: the environment cannot be made, or is not a maze whose doors and goal can be shifted.
    """
    env = make_vector_env(env_id, 1, env_options)
    config = getattr(env.unwrapped, "config", None)
    env.close()
    if not isinstance(config, MazeConfig):
        raise ValueError(f"env={env_id}: shifts change the options of a maze such as DynamicMaze-v0")
    return config


def run_shifts(
    agent: Agent,
    env_id: str,
    env_options: dict[str, Any],
    points: list[Point],
    episodes: int,
    seed: int = 0,
    split: str = "test",
    threads: Threads | None = None,
) -> Iterator[dict[str, Any]]:
    """Play the points one after the other, yielding each record as soon as it is complete.

    Args:
        agent: plays greedily, and by actions drawn; adapted to the size of each maze (`Agent.fit`).
        env_id, env_options: the maze that the points' changes are applied to.
        points: see `list_points`.
        episodes: levels `seed ... seed + episodes - 1` at each point.
        split: `train`, `validation`, `development` or `test` levels.
        threads: threads to divide the agent's levels over.

    Yields:
        `axis`, `value`, `side` (of the grid, see `Point`), `env`, `env_options`, `skipped` (why the point cannot be
        played, or None) and, where it was played, the agent's summary and levels (`report.Played`), `sampled`,
        `bfs_replanner` and `clairvoyant`.

    Raises:
        ValueError: an agent that does not fit the first maze, fewer than one episode, or an unknown split.
    """
    base = base_config(env_id, env_options)
    _fit(agent, env_id, env_options)
    for point in points:
        options = {**env_options, **point.changes}
        place = {"axis": point.axis, "value": point.value, "side": point.side}
        described = {**place, "env": env_id, "env_options": options}
        reason = why_not(base, point)
        fitted = agent
        if reason is None:
            try:
                fitted = _fit(agent, env_id, options)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            yield {**described, "skipped": reason}
            continue
        levels = Levels(env_id, options, episodes, seed, split)
        yield {**described, "skipped": None, **_play(fitted, levels, threads)}


def why_not(base: MazeConfig, point: Point) -> str | None:
    """Why a point is skipped because nothing would change, on one line; None for a point to play."""
    if point.missing is not None:
        return point.missing
    if point.axis in ("p_change", "door_process") and base.doors == 0:
        return "the maze has no doors"
    if point.axis == "door_process" and base.p_change == 0 and base.door_process == "reroll":
        return "p_change is 0: doors stay as they were drawn"
    return None


def _fit(agent: Agent, env_id: str, options: dict[str, Any]) -> Agent:
    env = make_vector_env(env_id, 1, options)
    fitted = agent.fit(env.single_observation_space)
    fitted.check_fits(env.single_observation_space, env.single_action_space)
    env.close()
    return fitted


def _play(agent: Agent, levels: Levels, threads: Threads | None) -> dict[str, Any]:
    played = play(lambda: PolicyActor(agent.policy), levels, threads)
    draws = agent.policy.config.heads != "q"  # Q-values are no distribution to draw from
    return {
        **played.summarize(),
        "levels": played.list_levels(),
        "sampled": _sampled(agent, levels, threads) if draws else None,
        "bfs_replanner": play_references(levels, ["bfs_replanner"])["bfs_replanner"],
        "clairvoyant": summarize_clairvoyant(played.episodes),
    }


def _sampled(agent: Agent, levels: Levels, threads: Threads | None) -> dict[str, Any]:
    actor = partial(PolicyActor, agent.policy, deterministic=False)
    episodes = run_in_threads(actor, *levels, batch=BATCH, oracle=False, threads=threads)
    summary = summarize(episodes)
    return {name: summary[name] for name in ("success", "success_ci95", "spl", "by_size") if name in summary}


NAME_WIDTH = 22
COLUMNS: tuple[Column, ...] = (
    ("sampled", "sampled.success", 10, ".1%"),
    *(column for column in MAZE_COLUMNS if column[0] in ("SPL", "lost")),
    ("BFS re-planner", "bfs_replanner", 16, ".1%"),
    ("clairvoyant", "clairvoyant", 13, ".1%"),
)


def format_header() -> str:
    """The head of the table whose rows `format_point` gives."""
    return table_head(COLUMNS, NAME_WIDTH).replace(" success", "  greedy", 1)


def format_point(record: dict[str, Any]) -> str:
    """A record as one row: success of greedy actions with its interval, of sampled ones; see `report.MAZE_LEGEND`."""
    if record["skipped"] is not None:
        reason = record["skipped"]
        return f"{record['value']:22}  skipped: {reason if len(reason) <= 86 else reason[:83] + '...'}"
    bounds = {name: record[name]["success"] for name in ("bfs_replanner", "clairvoyant")}
    return table_row(record["value"], {**record, **bounds}, COLUMNS, NAME_WIDTH)
