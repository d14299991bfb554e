"""Measure what can be done on the levels of the suite without learning, and redraw the suite's table.

    python experiments/suite/baselines.py [LEVEL ...] [--draw-only]

Of every level (or of those named): a random policy, the BFS re-planner, the same re-planner with patience or with a
memory where the level gives ground for it, and the clairvoyant bound, all on the same 1,000 test levels. The figures
go to `baselines.json`; the table between the marks in `README.md` is redrawn from them and, beside them, from the
records of trained agents in `results.json`, where there are any.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))

from study import average, fill, load, mean_interval, table

from hrm_agent.evaluation.episodes import Episodes, RandomActor, ReplanActor, run_episodes
from hrm_agent.evaluation.report import summarize, summarize_clairvoyant
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_envs import Cell

HERE = Path(__file__).resolve().parent
NAME = "suite"
MACHINE = "2-core x86-64 server CPU"
LEVELS = 1000
FIRST_LEVEL = 0
UNLIMITED = 1000
"""Steps after which even an episode without a time limit ends; no reference but the memoryless one needs them."""

LIMIT_FACTOR = 3
AGENT_COLUMNS = ("ours [95%]", "our SPL", "frames", "training")
KEPT = ("success", "success_ci95", "spl", "excess_steps", "episode_length")


class World(NamedTuple):
    """The environment of a level, as `make_vector_env` takes it."""

    env_id: str
    options: dict[str, Any]


class ReferenceActor(ReplanActor):
    """The BFS re-planner, with a memory or with patience.

    Args:
        remembers: plans on all that it has seen in the episode, each position as it was seen last.
        waits: plans as if all doors were open, and bumps into a closed one until it opens.
    """

    def __init__(self, remembers: bool = False, waits: bool = False) -> None:
        super().__init__()
        self.remembers, self.waits = remembers, waits
        self.seen: NDArray[np.uint8] | None = None

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.seen = None

    def act(self, obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Actions int64 `[N]` for observations uint8 `[N, H, W]`."""
        grid = self._remember(obs) if self.remembers else obs
        return super().act(np.where(grid == Cell.DOOR, np.uint8(Cell.EMPTY), grid) if self.waits else grid)

    def keep(self, rows: NDArray[np.int64]) -> None:
        if self.seen is not None:
            self.seen = self.seen[rows]

    def _remember(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.seen is None:
            self.seen = np.full_like(obs, Cell.UNKNOWN)
        goal_in_sight = (obs == Cell.GOAL).any((1, 2))
        self.seen[(self.seen == Cell.GOAL) & goal_in_sight[:, None, None]] = Cell.EMPTY
        self.seen = np.where(obs == Cell.UNKNOWN, self.seen, obs)
        return self.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help="measure these alone")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    names = level_names()
    unknown = [name for name in options.levels if name not in names]
    if unknown:
        parser.error(f"{unknown[0]}: no such level; expected one of {', '.join(names)}")
    if not options.draw_only:
        for name in options.levels or names:
            store(measure(name))
            print(f"measured {name}", flush=True)
    draw()


def level_names() -> list[str]:
    """The levels in the order of the study."""
    return list(yaml.safe_load((HERE / "study.yaml").read_text())["arms"])


def load_world(name: str) -> World:
    """The environment that `+experiment=suite/NAME` trains on."""
    env = resolve(compose_config([f"+experiment={NAME}/{name}"], "train"))["env"]
    return World(env["id"], env["options"])


def references(options: dict[str, Any]) -> dict[str, Callable[[], ReferenceActor]]:
    """The re-planners that differ from one another in a world: doors make patience matter, fog makes memory matter."""
    doors, fog = options["doors"] > 0, options.get("view", "full") != "full"
    found = {"BFS": partial(ReferenceActor)}
    if doors and not fog:
        found["waits"] = partial(ReferenceActor, waits=True)
    if fog:
        found["remembers"] = partial(ReferenceActor, remembers=True)
    if doors and fog:
        found["remembers, waits"] = partial(ReferenceActor, remembers=True, waits=True)
    return found


def measure(name: str) -> dict[str, Any]:
    """The record of a level in `baselines.json`."""
    world = load_world(name)
    random = run_episodes(RandomActor(), *world, LEVELS, FIRST_LEVEL)
    actors = references(world.options)
    played = {label: run_episodes(make(), *world, LEVELS, FIRST_LEVEL) for label, make in actors.items()}
    summaries = {label: describe(episodes) for label, episodes in played.items()}
    best = max(summaries, key=lambda label: summaries[label]["spl"])
    return {
        "level": name,
        "env": world.env_id,
        "env_options": world.options,
        "time_limit_by_rule": time_limit(world),
        "random": describe(random),
        "bfs_replanner": summaries["BFS"],
        "references": summaries,
        "best_reference": best,
        "clairvoyant": summarize_clairvoyant(random),
        **describe_changes(played[best]),
        "split": random.split,
        "levels": {"first": FIRST_LEVEL, "count": LEVELS},
        "machine": MACHINE,
        "command": f"python experiments/suite/baselines.py {name}",
    }


def describe(episodes: Episodes) -> dict[str, Any]:
    summary = summarize(episodes)
    return {key: summary[key] for key in KEPT}


def describe_changes(episodes: Episodes) -> dict[str, float | None]:
    """How often the world changes under an actor, and the share of these changes that are material."""
    assert episodes.totals is not None
    _, immaterial, material = episodes.totals.decisions_by_change.sum(0).tolist()
    changes = immaterial + material
    return {
        "changes_per_episode": changes / len(episodes),
        "material_changes_per_episode": material / len(episodes),
        "material_share": material / changes if changes else None,
    }


def time_limit(world: World) -> int:
    """The rule for `max_episode_steps`, on validation levels.

    `LIMIT_FACTOR` times the mean number of steps of the quickest reference when time is not limited, rounded up to
    tens. The quickest reference, not the bound: under fog nobody can be as quick as who knows the map.
    """
    free = {**world.options, "max_episode_steps": UNLIMITED}
    makers = references(world.options)
    if free.get("view", "full") != "full":
        makers.pop("BFS")  # without a memory it wanders until the time is up
    quickest = min(
        run_episodes(make(), world.env_id, free, LEVELS, FIRST_LEVEL, "validation", oracle=False).steps.mean()
        for make in makers.values()
    )
    return 10 * math.ceil(LIMIT_FACTOR * float(quickest) / 10)


def store(record: dict[str, Any]) -> None:
    """Put a record into `baselines.json` in place of the level's former one, in the order of the study."""
    known = {r["level"]: r for r in load(HERE / "baselines.json")} | {record["level"]: record}
    lines = [json.dumps(known[name]) for name in level_names() if name in known]
    (HERE / "baselines.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def draw() -> None:
    (HERE / "README.md").write_text(filled(HERE / "README.md"))


def filled(page: Path) -> str:
    """What a page should say, with the suite's table in it."""
    return fill(page.read_text(), NAME, suite_table())


def suite_table() -> str:
    return table(rows_of(load(HERE / "baselines.json"), load(HERE / "results.json")))


def rows_of(baselines: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One row a level; the columns of agents are there if any agent has a record."""
    rows = []
    for level in baselines:
        row = row_of(level)
        if results:
            row |= agent_columns([r for r in results if r["agent"] == level["level"]])
        rows.append(row)
    return rows


def row_of(level: dict[str, Any]) -> dict[str, str]:
    bfs, bound, best = level["bfs_replanner"], level["clairvoyant"], level["best_reference"]
    reference, share = level["references"][best], level["material_share"]
    return {
        "level": level["level"],
        "time limit": str(level["env_options"]["max_episode_steps"]),
        "random": f"{level['random']['success']:.3f}",
        "BFS re-planner": f"{bfs['success']:.3f}",
        "SPL": f"{bfs['spl']:.3f}",
        "best reference": best,
        "success": f"{reference['success']:.3f}",
        "its SPL": f"{reference['spl']:.3f}",
        "clairvoyant bound": f"{bound['success']:.3f}",
        "arrival": f"{bound['steps']:.1f}",
        "changes an episode": f"{level['changes_per_episode']:.1f}",
        "material": "" if share is None else f"{share:.2f}",
    }


def agent_columns(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Our agents on one level: Wilson's interval of a single run, Student's over seeds of several."""
    if not runs:
        return dict.fromkeys(AGENT_COLUMNS, "")
    mean = float(np.mean([r["success"] for r in runs]))
    low, high = runs[0]["success_ci95"] if len(runs) == 1 else mean_interval([r["success"] for r in runs])[1:]
    seconds = float(np.median([r["seconds"] for r in runs]))
    return {
        "ours [95%]": f"**{mean:.3f}** [{low:.3f}, {high:.3f}]",
        "our SPL": average(runs, "spl"),
        "frames": f"{runs[0]['frames']:,}",
        "training": f"{seconds:.0f} s",
    }


if __name__ == "__main__":
    main()
