"""Episodes -> numbers with intervals -> JSON-able records and a table for the terminal."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hrm_agent import __version__
from hrm_agent.agents.agent import Agent
from hrm_agent.evaluation import metrics
from hrm_agent.evaluation.episodes import Episodes, PolicyActor, run_in_threads
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.encoders import Observation
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import reference_kernels

TIMED_CALLS = 40
WARM_UP_CALLS = 5


def summarize(episodes: Episodes) -> dict[str, Any]:
    """The metrics of some episodes; those that the environment gives no ground for are None.

    `success_ci95` is Wilson's interval; `spl` and `excess_steps` are against the clairvoyant arrival; means
    are over episodes, change-locked ones over material changes (`metrics.Changes`) or, where they are given for
    each of `metrics.CHANGE_KINDS`, over the decisions right after such a step.
    """
    n, successes = len(episodes), int(episodes.success.sum())
    shortest, changes, totals = episodes.clairvoyant, episodes.changes, episodes.totals
    measured: dict[str, Any] = {
        "success": successes / n,
        "success_ci95": list(metrics.wilson_interval(successes, n)),
        "episodes": n,
        "return": float(episodes.returns.mean()),
        "episode_length": float(episodes.steps.mean()),
        "spl": None,
        "excess_steps": None,
        "regret_after_material_change": None,
        "steps_to_replan": None,
        "stale_plan_rate": None,
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
    if changes is not None:
        measured["regret_after_material_change"] = metrics.regret_after_material_change(changes)
        measured["steps_to_replan"] = metrics.steps_to_replan(changes)
        measured["stale_plan_rate"] = metrics.stale_plan_rate(changes)
        measured["material_changes"] = len(changes.episode)
    if totals is not None:
        measured["regret_by_change"] = metrics.regret_by_change(totals)
        measured["decisions_by_change"] = metrics.decisions_by_change(totals)
        measured["segments_by_change"] = metrics.segments_by_change(totals)
    if episodes.segments is not None:
        measured["segments_per_decision"] = float(episodes.segments.sum() / episodes.steps.sum())
    return measured


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
    """Who was played: its folder or its registered id, the settings it thinks with, how it was trained, the version."""
    config = agent.policy.config
    names = ("core", "carry", "segments", "stop", "stop_threshold", "time_gradient")
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
    """What an agent that knows the future would reach on these levels; None where nobody can tell."""
    if episodes.clairvoyant is None:
        return None
    arrives = episodes.clairvoyant >= 0
    successes = int(arrives.sum())
    return {
        "success": successes / len(episodes),
        "success_ci95": list(metrics.wilson_interval(successes, len(episodes))),
        "steps": metrics.mean_or_none(episodes.clairvoyant[arrives]),
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
) -> dict[str, Any]:
    """The light evaluation of a policy in training: `summarize`, without change-locked metrics by default.

    Args:
        policy: left as it is; nothing is drawn from any random stream of the training run.
        env_id, env_options: the environment.
        episodes: levels `seed ... seed + episodes - 1`.
        split: `train`, `validation` or `test`.
        deterministic: play the most probable action.
        threads: threads to deal the levels over.
        oracle: measure the change-locked metrics too.
        batch: environments stepped together in each thread.
        processes: that the levels are divided over; all hold the policy, and each returns the whole. Not with `oracle`.

    Raises:
        ValueError: no episode asked for, or an environment that cannot be made.
    """
    own = processes.local_slice(episodes)
    count = own.stop - own.start
    played = None
    if count or processes.world_size == 1:
        actor = partial(PolicyActor, policy, deterministic, seed)
        first = seed + own.start
        played = run_in_threads(actor, env_id, env_options, count, first, split, batch, oracle, threads)
    if processes.world_size > 1:
        played = _join(played, range(seed, seed + episodes), processes)
    assert played is not None
    return summarize(played)


def _join(own: Episodes | None, levels: range, processes: Processes) -> Episodes:
    """The episodes on all levels, of which this process has played its share; None: it had none to play."""
    columns = ("success", "steps", "returns", "clairvoyant", "segments")
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
        changes=None,
        totals=None,
        split=None,
    )


def measure_cost(
    policy: Policy, observation_space: gym.Space, batch: int = 256, segments_used: float | None = None
) -> dict[str, Any]:
    """What one decision costs.

    Args:
        policy: with its number of segments, or the rule by which it stops.
        observation_space: of a single environment; a sample of it is decided on.
        batch: for `ms_per_decision_batched`.
        segments_used: mean segments per decision of a policy that stops by itself; None: all it may think.

    Returns:
        `macs_per_decision`, multiply-adds of matrix products and convolutions (half of torch's count of
        operations; look-ups, elementwise work and the question whether to stop are not counted), for
        `segments_used` segments;
        `ms_per_decision`, the median over `TIMED_CALLS` calls with one observation; `ms_per_decision_batched`,
        the median with `batch` observations, divided by them. Times are those of the sample, for which a policy
        that stops by itself may need more or fewer segments than on the levels.
    """
    one, many = _decision(policy, observation_space, 1), _decision(policy, observation_space, batch)
    return {
        "macs_per_decision": _count_macs(policy, observation_space, segments_used),
        "ms_per_decision": median_ms(one),
        "ms_per_decision_batched": median_ms(many) / batch,
        "batch": batch,
    }


def _count_macs(policy: Policy, space: gym.Space, segments_used: float | None) -> int:
    """Multiply-adds of one decision; those of a fractional number of segments lie on the line through 1 and 2."""
    config = policy.config
    if config.stop == "fixed":
        return _macs(policy, space)
    used = config.segments if segments_used is None else segments_used
    actions = gym.spaces.Discrete(policy.policy_head.out_features)
    with torch.random.fork_rng(devices=[]):  # building a policy draws its weights, which do not matter here
        fixed = [Policy(replace(config, segments=k, stop="fixed"), space, actions) for k in (1, 2)]
    first, both = (_macs(copy, space) for copy in fixed)
    return round(first + (used - 1) * (both - first))


def _macs(policy: Policy, space: gym.Space) -> int:
    decide = _decision(policy, space, 1)
    # Only attention's plain form is made of products that the counter knows on every device.
    with reference_kernels(policy), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        decide()
    return counter.get_total_flops() // 2


def _decision(policy: Policy, space: gym.Space, batch: int) -> Callable[[], None]:
    """A call that decides, in mid-episode, for `batch` copies of an observation."""
    device = next(policy.parameters()).device
    space.seed(0)
    sample = space.sample()
    sample = sample if isinstance(sample, dict) else {"": sample}
    copies = {key: torch.as_tensor(value, device=device)[None] for key, value in sample.items()}
    tensors = {key: value.expand(batch, *value.shape[1:]).contiguous() for key, value in copies.items()}
    obs: Observation = tensors[""] if list(tensors) == [""] else tensors
    state, start = policy.initial_state(batch), torch.zeros(batch, dtype=torch.bool, device=device)

    def decide() -> None:
        with torch.no_grad():
            policy.step(obs, state, start).logits.cpu()  # to the CPU: waits until the device is done

    return decide


def median_ms(call: Callable[[], None]) -> float:
    """Median duration of `TIMED_CALLS` calls in milliseconds, after `WARM_UP_CALLS` that do not count."""
    for _ in range(WARM_UP_CALLS):
        call()
    times = []
    for _ in range(TIMED_CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


Column = tuple[str, str, int, str]
"""Heading, key in the record, width and format."""
MAZE_COLUMNS: tuple[Column, ...] = (
    ("SPL", "spl", 8, ".3f"),
    ("excess", "excess_steps", 9, ".2f"),
    ("regret", "regret_after_material_change", 9, ".2f"),
    ("re-plan", "steps_to_replan", 9, ".2f"),
    ("stale", "stale_plan_rate", 8, ".1%"),
)
MAZE_LEGEND = (
    "SPL: success weighted by path length; excess: steps of successful episodes beyond the clairvoyant arrival;",
    "after a material change, regret: steps lost, re-plan: decisions before the first optimal one,",
    "stale: first decisions that only the old map makes optimal",
)
RETURN_COLUMNS: tuple[Column, ...] = (("return", "return", 11, ".2f"), ("steps", "episode_length", 9, ".1f"))
"""Of environments that know no shortest path."""


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
        f"{'':18}{'success':>9}{'95% interval':>18}" + "".join(f"{head:>{width}}" for head, _, width, _ in columns),
    ]
    rows = {"agent, greedy": report, "agent, sampled": report.get("sampled"), "random": report["random"]}
    for name, row in {**rows, "BFS re-planner": report["bfs_replanner"]}.items():
        if row is not None:
            lines.append(_table_row(name, row, columns))
    if report["clairvoyant"] is not None:
        lines.append(
            _table_row("clairvoyant bound", {"spl": report["clairvoyant"]["success"], **report["clairvoyant"]}, columns)
        )
    segments = round(report["segments_per_decision"], 2)
    lines += [
        "",
        *(MAZE_LEGEND if columns is MAZE_COLUMNS else ()),
        f"{report['core']}, carry={report['carry']}, {segments:g} segment{'s'[: segments != 1]} a decision, "
        f"{report['parameters']:,} parameters, {report['macs_per_decision']:,} multiply-adds,",
        f"{report['ms_per_decision']:.2f} ms alone, {report['ms_per_decision_batched']:.3f} ms in a batch of "
        f"{report['batch']}",
    ]
    return "\n".join(lines)


def _table_row(name: str, row: dict[str, Any], columns: Sequence[Column]) -> str:
    low, high = row["success_ci95"]
    cells = [f"{name:18}", f"{row['success']:>9.1%}", f"{f'{low:.1%} to {high:.1%}':>18}"]
    for _, key, width, form in columns:
        value = row.get(key)
        cells.append(f"{'-' if value is None else format(value, form):>{width}}")
    return "".join(cells)
