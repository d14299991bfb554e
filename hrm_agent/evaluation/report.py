"""Episodes -> numbers with intervals -> JSON-able records and a table for the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hrm_agent import __version__
from hrm_agent.agents.agent import Agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation import metrics
from hrm_agent.evaluation.change import HORIZON, Pairs, list_pairs, summarize_pairs
from hrm_agent.evaluation.counterfactual import has_pairs, play_pairs
from hrm_agent.evaluation.episodes import Actor, Episodes, PolicyActor, RandomActor, ReplanActor, run_in_threads
from hrm_agent.evaluation.hanoi import HanoiReplanActor
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.stopping import CheckStop, Stopped, never
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.policy import Policy
from hrm_envs import HanoiVectorEnv, MazeVectorEnv

BATCH = 256
"""Environments stepped together in a comparison."""
REFERENCES = ("random", "bfs_replanner", "remembering_replanner")
"""Players that need no training, by their entries in a report."""


class Levels(NamedTuple):
    """What is played: the levels `seed ... seed + episodes - 1` of a split, the first episode of each."""

    env_id: str
    env_options: dict[str, Any]
    episodes: int
    seed: int = 0
    split: str = "test"


class Played(NamedTuple):
    """What a player did on some levels."""

    episodes: Episodes
    pairs: Pairs | None  # None where the environment is no maze of `hrm_envs`

    def summarize(self) -> dict[str, Any]:
        """`summarize` of the episodes, with `change.summarize_pairs` as `changes`."""
        changes = None if self.pairs is None else summarize_pairs(self.pairs, len(self.episodes))
        return {**summarize(self.episodes), "changes": changes}

    def list_levels(self) -> dict[str, Any]:
        """`list_levels` of the episodes, with `change.list_pairs` as `pairs`."""
        return {**list_levels(self.episodes), "pairs": None if self.pairs is None else list_pairs(self.pairs)}


def play(make_actor: Callable[[], Actor], levels: Levels, threads: Threads | None = None) -> Played:
    """Play levels, and again, with and without it, from each level's first change that makes a plan wrong.

    Args:
        make_actor: makes the actor; one for each thread.
        levels: what is played.
        threads: threads to divide the levels over.
    """
    episodes = run_in_threads(make_actor, *levels, batch=BATCH, threads=threads)
    if episodes.replaced is None or not has_pairs(levels.env_id, levels.env_options):
        return Played(episodes, None)
    chosen = episodes.seeds[episodes.replaced]
    pairs = play_pairs(make_actor, levels.env_id, levels.env_options, chosen, levels.split, BATCH, threads)
    return Played(episodes, pairs)


def summarize(episodes: Episodes) -> dict[str, Any]:
    """The metrics of some episodes; None where the environment does not define one.

    `success_ci95` is Wilson's interval; `spl` and `excess_steps` are against the clairvoyant arrival; means
    are over episodes, those by `metrics.CHANGE_KINDS` over the decisions right after such a step. Levels of several
    sizes (`Episodes.sides`) have `by_size` too: a list of `side`, `episodes`, `success`, `success_ci95` and `spl`.
    """
    n, successes = len(episodes), int(episodes.success.sum())
    shortest, totals = episodes.clairvoyant, episodes.totals
    measured: dict[str, Any] = {
        "success": successes / n,
        "success_ci95": list(metrics.wilson_interval(successes, n)),
        "episodes": n,
        "return": float(episodes.returns.mean()),
        "episode_length": float(episodes.steps.mean()),
        "spl": None,
        "excess_steps": None,
        "material_changes": None,
        "regret_by_change": None,
        "decisions_by_change": None,
        "segments_by_change": None,
        "segments_per_decision": None,
    }
    if shortest is not None:
        excess = metrics.excess_steps(episodes.success, episodes.steps, shortest)
        measured["spl"] = float(metrics.spl(episodes.success, episodes.steps, shortest).mean())
        measured["excess_steps"] = metrics.mean_or_none(excess)
    if totals is not None:
        measured["material_changes"] = int(totals.decisions_by_change[:, metrics.CHANGE_KINDS.index("material")].sum())
        measured["regret_by_change"] = metrics.regret_by_change(totals)
        measured["decisions_by_change"] = metrics.decisions_by_change(totals)
        measured["segments_by_change"] = metrics.segments_by_change(totals)
    if episodes.segments is not None:
        measured["segments_per_decision"] = float(episodes.segments.sum() / episodes.steps.sum())
    if episodes.sides is not None:
        spl = None if shortest is None else metrics.spl(episodes.success, episodes.steps, shortest)
        measured["by_size"] = by_size(episodes.success, episodes.sides, spl)
    return measured


def by_size(
    success: NDArray[np.bool_], sides: NDArray[np.int64], spl: NDArray[np.float64] | None = None
) -> list[dict[str, Any]]:
    """Success at each size, in increasing order, with Wilson's intervals; and the mean of `spl`, where it is given.

    Args:
        success, sides, spl: `[E]`.
    """
    found = []
    for side in np.unique(sides):
        own = sides == side
        n, successes = int(own.sum()), int(success[own].sum())
        ci95 = list(metrics.wilson_interval(successes, n))
        found.append({"side": int(side), "episodes": n, "success": successes / n, "success_ci95": ci95})
        if spl is not None:
            found[-1]["spl"] = float(spl[own].mean())
    return found


def list_levels(episodes: Episodes) -> dict[str, Any]:
    """The outcome on every level, in the order of the levels, for statistics over levels and training seeds.

    Returns:
        `success`, a string of one `0` or `1` a level; `steps`; `regret`, the mean regret of the level's scored
        decisions to four digits, None where it has none (all None without an oracle).
    """
    n = len(episodes)
    regret = np.full(n, np.nan) if episodes.totals is None else metrics.regret_per_decision(episodes.totals)
    return {
        "success": "".join("1" if success else "0" for success in episodes.success),
        "steps": episodes.steps.tolist(),
        "regret": [None if np.isnan(value) else round(value, 4) for value in regret.tolist()],
    }


def describe_agent(agent: Agent, run: str | None, agent_id: str | None = None) -> dict[str, Any]:
    """Which agent was evaluated: its folder or registered id, settings, training, and the version of this package."""
    config = agent.policy.config
    names = ("core", "carry", "segments", "first_segments", "stop", "stop_threshold", "time_gradient")
    return {
        "run": None if run is None else str(run),
        "agent": agent_id,
        **{name: getattr(config, name) for name in names},
        "parameters": sum(p.numel() for p in agent.policy.parameters()),
        "frames": agent.info.get("frames"),
        "seconds": agent.info.get("seconds"),
        "training_seed": agent.info.get("seed"),
        "hrm_agent_version": __version__,
    }


def to_json(record: dict[str, Any]) -> bytes:
    """Indented JSON with lists of numbers on one line each: a thousand levels are not a thousand lines."""
    text = json.dumps(record, indent=2)
    # A string holds no raw line break, so nothing inside one is touched.
    flat = re.sub(r"\[\n([^\[\]{}\"]*)\n\s*\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    return (flat + "\n").encode()


def summarize_clairvoyant(episodes: Episodes) -> dict[str, Any] | None:
    """The clairvoyant bound on these levels; None where it is not known."""
    if episodes.clairvoyant is None:
        return None
    arrives = episodes.clairvoyant >= 0
    successes = int(arrives.sum())
    sizes = {} if episodes.sides is None else {"by_size": by_size(arrives, episodes.sides)}
    return {
        "success": successes / len(episodes),
        "success_ci95": list(metrics.wilson_interval(successes, len(episodes))),
        "steps": metrics.mean_or_none(episodes.clairvoyant[arrives]),
        **sizes,
    }


def play_references(levels: Levels, names: Sequence[str] = REFERENCES) -> dict[str, dict[str, Any] | None]:
    """The summary of each of `REFERENCES`; None for those not named.

    Outside mazes and the Towers of Hanoi the re-planners are None, and so is the one that remembers where nothing is
    hidden. In Hanoi the first takes an optimal move to the goal as it is.
    """
    env = make_vector_env(levels.env_id, 1, levels.env_options)
    actions, observations, maze = env.single_action_space, env.single_observation_space, env.unwrapped
    env.close()
    actors: dict[str, Callable[[], Actor]] = {"random": lambda: RandomActor(actions, 0, observations)}
    if isinstance(maze, MazeVectorEnv):
        actors["bfs_replanner"] = ReplanActor
        if getattr(maze.config, "view", "full") != "full":  # a cue maze has no view
            actors["remembering_replanner"] = partial(ReplanActor, remembers=True)
    elif isinstance(maze, HanoiVectorEnv):
        actors["bfs_replanner"] = HanoiReplanActor
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(REFERENCES)
    for name in set(names) & set(actors):
        found[name] = play(actors[name], levels).summarize()
    return found


def compare(
    actor: Callable[[], Actor],
    levels: Levels,
    cost: Callable[[float | None], dict[str, Any]],
    others: Mapping[str, Callable[[], Actor] | None] | None = None,
    references: Sequence[str] = REFERENCES,
    threads: Threads | None = None,
) -> dict[str, Any]:
    """An actor and the reference players on the same levels.

    Args:
        actor: makes the actor; one for each thread.
        levels: played by all.
        cost: from the actor's mean segments per decision (None: it counts none) to the cost of its decisions, see
            `hrm_agent.evaluation.cost.decision_cost`.
        others: actors reported under their names, with their levels; None: entries that stay empty.
        references: which of `REFERENCES` play; the entries of the rest are None.
        threads: threads to divide the levels of `actor` and `others` over.

    Returns:
        The actor's summary, its cost and its `levels` (`Played.list_levels`); `others`, `REFERENCES`
        (see `play_references`); `clairvoyant`; and what was played: `seeds`, `split`, `env`,
        `env_options`.
    """

    def with_levels(make: Callable[[], Actor]) -> dict[str, Any]:
        played = play(make, levels, threads)
        return {**played.summarize(), "levels": played.list_levels()}

    played = play(actor, levels, threads)
    summary = played.summarize()
    return {
        **summary,
        **cost(summary["segments_per_decision"]),
        **{name: None if make is None else with_levels(make) for name, make in (others or {}).items()},
        **play_references(levels, references),
        "clairvoyant": summarize_clairvoyant(played.episodes),
        "levels": played.list_levels(),
        "seeds": {"first": int(played.episodes.seeds[0]), "count": levels.episodes},
        "split": played.episodes.split,
        "env": levels.env_id,
        "env_options": levels.env_options,
    }


def evaluate_policy(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int = 200,
    seed: int = 0,
    split: str = "validation",
    deterministic: bool = True,
    threads: Threads | None = None,
    oracle: bool = False,
    batch: int = 256,
    processes: Processes = SINGLE_PROCESS,
    check_stop: CheckStop = never,
    workers: int = 0,
) -> dict[str, Any]:
    """A quick evaluation of a policy in training: `summarize`, by default without the oracle's metrics.

    Of levels of several sizes, success at each is `success_SIDE` in place of `by_size`.

    Args:
        policy: unchanged; no random stream of the training run is used.
        env_id, env_options: the environment.
        episodes: levels `seed ... seed + episodes - 1`.
        split: `train`, `validation` or `test`.
        deterministic: play the most probable action.
        threads: threads to divide the levels over.
        oracle: measure regret and segments by kind of change too.
        batch: environments stepped together in each thread.
        processes: to divide the levels over; all hold the policy and return the same. Not with `oracle`.
        check_stop: called before every step.
        workers: processes for slow environments, see `make_vector_env`.

    Raises:
        ValueError: fewer than one episode, or an environment that cannot be made.
        EnvironmentFailed: see `environments.checked`.
        Stopped: in all processes, where `check_stop` raised it in one.
    """
    own = processes.local_slice(episodes)
    count = own.stop - own.start
    played, stopped = None, False
    if count or processes.world_size == 1:
        actor = partial(PolicyActor, policy, deterministic, seed)
        levels = (count, seed + own.start, split, batch, oracle)
        try:
            played = run_in_threads(actor, env_id, env_options, *levels, threads, check_stop, workers)
        except Stopped:
            stopped = True
    if processes.agree(0.0, stopped)[1]:
        raise Stopped
    if processes.world_size > 1:
        played = _join(played, range(seed, seed + episodes), processes)
    assert played is not None
    summary = summarize(played)
    sizes = summary.pop("by_size", ())
    return {**summary, **{f"success_{size['side']}": size["success"] for size in sizes}}


def _join(own: Episodes | None, levels: range, processes: Processes) -> Episodes:
    """All episodes, from each process's own share; None: a process that had none to play."""
    columns = ("success", "steps", "returns", "clairvoyant", "segments", "sides")
    table = torch.zeros(len(columns), len(levels), dtype=torch.float64)
    for row, name in zip(table, columns, strict=True):
        values = None if own is None else getattr(own, name)
        row[processes.local_slice(len(levels))] = (
            torch.nan if values is None else torch.as_tensor(values, dtype=torch.float64)
        )
    joined = dict(zip(columns, processes.all_reduce(table).numpy(), strict=True))

    def counts(name: str) -> Any:
        return None if np.isnan(joined[name]).any() else joined[name].astype(np.int64)

    return Episodes(
        seeds=np.array(levels, np.int64),
        success=joined["success"].astype(bool),
        steps=joined["steps"].astype(np.int64),
        returns=joined["returns"],
        clairvoyant=counts("clairvoyant"),
        segments=counts("segments"),
        replaced=None,
        totals=None,
        split=None,
        sides=counts("sides"),
    )


Column = tuple[str, str, int, str]
"""Heading, key in the record (with dots: in records inside it), width and format."""
NAME_WIDTH, SIZE_WIDTH = 18, 24
MAZE_COLUMNS: tuple[Column, ...] = (
    ("SPL", "spl", 8, ".3f"),
    ("excess", "excess_steps", 9, ".2f"),
    ("pairs", "changes.pairs", 8, "d"),
    ("reacts", "changes.old_action_drop", 9, ".2f"),
    ("lost", "changes.extra_steps", 8, ".2f"),
)
MAZE_LEGEND = (
    "SPL: success weighted by path length; excess: steps of successful episodes beyond the clairvoyant arrival;",
    "pairs: levels played on with and without a change that makes the plan wrong; reacts: how much less likely a next",
    f"step follows it with the change (0: as likely, 1: never against always); lost: steps lost in the {HORIZON}",
    "decisions after it, two for each in the wrong direction",
)
RETURN_COLUMNS: tuple[Column, ...] = (("return", "return", 11, ".2f"), ("steps", "episode_length", 9, ".1f"))
"""For environments without shortest paths."""


def format_report(report: dict[str, Any]) -> str:
    """The record that `hrm_agent.evaluate.evaluate` returns, as a small table for the terminal."""
    seeds, split = report["seeds"], report["split"]
    last = seeds["first"] + seeds["count"] - 1
    trained = f", agent of {report['frames']:,} frames" if report.get("frames") else ""
    columns = MAZE_COLUMNS if report["spl"] is not None else RETURN_COLUMNS
    lines = [
        f"{report['env']}: {seeds['count']:,} {split + ' ' if split else ''}levels "
        f"(seeds {seeds['first']} to {last}){trained}",
        "",
        table_head(columns),
    ]
    rows = {"agent, greedy": report, "agent, sampled": report.get("sampled"), "random": report["random"]}
    replanners = {"BFS re-planner": report["bfs_replanner"], "... remembering": report.get("remembering_replanner")}
    for name, row in {**rows, **replanners}.items():
        if row is not None:
            lines.append(table_row(name, row, columns))
    if report["clairvoyant"] is not None:
        lines.append(
            table_row("clairvoyant bound", {"spl": report["clairvoyant"]["success"], **report["clairvoyant"]}, columns)
        )
    segments = round(report["segments_per_decision"], 2)
    lines += [
        *_sizes_table(report),
        "",
        *(MAZE_LEGEND if columns is MAZE_COLUMNS else ()),
        f"{report['core']}, carry={report['carry']}, {segments:g} segment{'s'[: segments != 1]} a decision, "
        f"{report['parameters']:,} parameters, {report['macs_per_decision']:,} multiply-adds,",
        f"{report['ms_per_decision']:.2f} ms alone, {report['ms_per_decision_batched']:.3f} ms in a batch of "
        f"{report['batch']}",
    ]
    return "\n".join(lines)


SIZE_COLUMNS: tuple[Column, ...] = (
    ("sampled", "sampled", 10, ".1%"),
    ("BFS re-planner", "bfs_replanner", 16, ".1%"),
    ("... remembering", "remembering_replanner", 17, ".1%"),
    ("clairvoyant", "clairvoyant", 13, ".1%"),
)
"""Of the table by size: players that a report may have."""


def _sizes_table(report: dict[str, Any]) -> list[str]:
    """Success of each player at each size, greedy with its interval; nothing where there is one size."""
    if "by_size" not in report:
        return []
    others = [column for column in SIZE_COLUMNS if report.get(column[1]) is not None]
    columns = [("SPL", "spl", 8, ".3f"), *others]
    lines = ["", table_head(columns, SIZE_WIDTH).replace(" success", "  greedy", 1)]
    for number, size in enumerate(report["by_size"]):
        players = {name: report[name]["by_size"][number]["success"] for _, name, _, _ in others}
        label = f"{size['side']}x{size['side']}, {size['episodes']:,} levels"
        lines.append(table_row(label, {**size, **players}, columns, SIZE_WIDTH))
    return lines


def table_head(columns: Sequence[Column], width: int = NAME_WIDTH) -> str:
    """Headings of a table whose rows are named in `width` characters."""
    return f"{'':{width}}{'success':>9}{'95% interval':>18}" + "".join(f"{head:>{w}}" for head, _, w, _ in columns)


def table_row(name: str, row: dict[str, Any], columns: Sequence[Column], width: int = NAME_WIDTH) -> str:
    """A player's row: success, its interval, and the columns; `-` where a number is None."""
    low, high = row["success_ci95"]
    cells = [f"{name:{width}}", f"{row['success']:>9.1%}", f"{f'{low:.1%} to {high:.1%}':>18}"]
    for _, key, wide, form in columns:
        value: Any = row
        for name in key.split("."):
            value = None if value is None else value.get(name)
        cells.append(f"{'-' if value is None else format(value, form):>{wide}}")
    return "".join(cells)
