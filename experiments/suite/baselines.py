"""Measure what can be done on the levels of the suite without learning, and redraw the suite's table.

    python -m experiments.suite.baselines [LEVEL ...] [--draw-only]

Of every level (or of those named): a random policy, the BFS re-planner, the same re-planner with patience or with a
memory where the level gives ground for it, and the clairvoyant bound, all on the same 1,000 test levels. The figures
go to `baselines.json`, the bound's arrival on each level to `arrivals.json`; the tables between the marks in
`README.md` are redrawn from them and from the records of trained agents in `results.json`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.engine.machine import commit_of_code
from experiments.engine.pages import draw, settings_of
from experiments.engine.records import load, save
from hrm_agent.evaluation.episodes import Episodes, RandomActor, ReplanActor, run_episodes
from hrm_agent.evaluation.report import summarize, summarize_clairvoyant
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_envs import Cell

HERE = Path(__file__).resolve().parent
NAME = "suite"
LEVELS = 1000
FIRST_LEVEL = 0
UNLIMITED = 1000
"""Steps after which even an episode without a time limit ends; no reference but the memoryless one needs them."""

LIMIT_FACTOR = 3
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
        super().__init__(remembers)
        self.waits = waits

    def known(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grid = super().known(obs)
        return np.where(grid == Cell.DOOR, np.uint8(Cell.EMPTY), grid) if self.waits else grid


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
            record, arrivals = measure(name)
            store("baselines.json", record)
            store("arrivals.json", {"level": name, "arrivals": arrivals})
            print(f"measured {name}", flush=True)
    draw(HERE)


def level_names() -> list[str]:
    """The levels in the order of the study."""
    return list(settings_of(HERE)["levels"])


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


def measure(name: str) -> tuple[dict[str, Any], list[int]]:
    """The record of a level in `baselines.json`, and the bound's arrival on each test level in steps (-1: never)."""
    world = load_world(name)
    random = run_episodes(RandomActor(), *world, LEVELS, FIRST_LEVEL)
    actors = references(world.options)
    played = {label: run_episodes(make(), *world, LEVELS, FIRST_LEVEL) for label, make in actors.items()}
    summaries = {label: describe(episodes) for label, episodes in played.items()}
    best = max(summaries, key=lambda label: summaries[label]["spl"])
    assert random.clairvoyant is not None
    record = {
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
        "commit": commit_of_code(),
        "command": f"python -m experiments.suite.baselines {name}",
    }
    return record, random.clairvoyant.tolist()


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
    tens. The quickest reference, not the bound: under fog no policy is as quick as one that knows the map.
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


def store(file: str, record: dict[str, Any]) -> None:
    """Put a record into a file in place of the level's former one, in the order of the study."""
    known = {r["level"]: r for r in load(HERE / file)} | {record["level"]: record}
    save(HERE / file, [known[name] for name in level_names() if name in known])


if __name__ == "__main__":
    main()
