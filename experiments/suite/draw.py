"""The suite's tables: trained agents beside the references that `baselines.py` measured.

Success of an agent: mean over training seeds, 95% over seeds and levels, greedy and sampled. At equal frames: success
of actions sampled in training, at the frames of the slowest agent of a level.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from experiments.engine.comparisons import MODES, comparison_rows, outcomes
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import crossed_interval, mean_of, success_interval
from experiments.engine.tables import average, each_seed, estimate, number, success, table

STILL = ("size_13", "size_17", "size_21", "size_31", "decoys_13")
"""Perfect mazes: the bound's arrival is the length of the way, with decoys and the waiting at doors."""
WAYS = ((1, 10), (11, 20), (21, 40), (41, 80), (81, 400))


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    settings, levels, references = settings_of(folder), load(folder / "levels.json"), load(folder / "baselines.json")
    results = load(folder / "results.json")
    agents = list(settings["agents"])
    longer = [f"{agent}_long" for agent in agents]

    also = settings.get("also", {})

    def has(names: Collection[str], reference: Record) -> bool:
        return any(r["agent"] == f"{name}@{reference['level']}" for r in results for name in names)

    return {
        "suite": table([reference_row(r) for r in references]),
        "suite agents": table([level_row(r, agents, results, levels) for r in references] if results else []),
        "suite comparisons": table(compared(agents, list(settings["levels"]), levels)),
        "suite longer": table([level_row(r, longer, results, levels) for r in references if has(longer, r)]),
        "suite frames": table([frames_row(r["level"], agents, results) for r in references] if results else []),
        "suite also": table([level_row(r, list(also), results, levels) for r in references if has(also, r)]),
        "suite ways": table(ways_rows(folder, agents, levels) if results else []),
        "suite larger": table(larger_rows(agents, load(folder / "lesions.json"))),
        "suite tuning": table(tuning_rows(load(folder / "tuning.json"))),
        "size_shift": table([shift_row(r) for r in load(folder / "size_shift.json")]),
    }


def called(agent: str) -> str:
    """What the page calls an agent: frames are also what training counts."""
    return agent.replace("frames", "four frames").replace("_long", ", 300 s")


def shift_row(record: Record) -> dict[str, str]:
    """One agent on larger mazes than it was trained on."""
    return {
        "tested on": record["tested_on"],
        "segments": str(record["segments"]),
        "success [95%]": success(record),
        "SPL": average([record], "spl"),
        "levels": str(record["episodes"]),
    }


def reference_row(level: Record) -> dict[str, str]:
    bfs, bound, best = level["bfs_replanner"], level["clairvoyant"], level["best_reference"]
    reference = level["references"][best]
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
        "material": number(level["material_share"], 2),
    }


def level_row(level: Record, agents: list[str], results: list[Record], levels: list[Record]) -> dict[str, str]:
    """Both agents on one level, greedy and sampled, beside the best reference."""
    row = {
        "level": level["level"],
        "random": f"{level['random']['success']:.3f}",
        "best reference": f"{level['references'][level['best_reference']]['success']:.3f}",
    }
    for agent in agents:
        arm = f"{agent}@{level['level']}"
        runs = [r for r in results if r["agent"] == arm]
        for mode in MODES:
            scores = outcomes(levels, arm, mode)
            row[f"{called(agent)}, {mode}"] = (
                estimate(crossed_interval(scores), mode == "greedy") if len(scores) else ""
            )
        row[f"{called(agent)}, SPL"] = average(runs, "spl") if runs else ""
        row[f"{called(agent)}, seeds"] = str(len(runs))
    return row


def compared(agents: list[str], names: list[str], levels: list[Record]) -> list[dict[str, str]]:
    """The two agents on every level where both have several seeds; p by Holm over all of them and both modes."""
    if len(agents) != 2:
        return []
    pairs = {name: [[f"{agent}@{name}" for agent in agents]] for name in names}
    between, rows = " - ".join(map(called, agents)), []
    for row in comparison_rows(pairs, partial(outcomes, levels)):
        found = {key.replace("a - b", between): text for key, text in row.items() if key not in ("question", "a", "b")}
        rows.append({"level": row["question"], **found})
    return rows


def at_frames(curve: list[list[float]], frames: float) -> float | None:
    """Of a learning curve of frames, seconds and success: success at the last point up to there."""
    return next((value for at, _, value in reversed(curve) if at <= frames), None)


def frames_row(level: str, agents: list[str], results: list[Record]) -> dict[str, str]:
    runs = {agent: [r for r in results if r["agent"] == f"{agent}@{level}"] for agent in agents}
    known = [r["frames"] for found in runs.values() for r in found]
    row = {"level": level, "at frames": f"{min(known):,}" if known else ""}
    for agent, found in runs.items():
        reached = mean_of(at_frames(r["curve"], min(known)) for r in found)
        row[f"{called(agent)}, sampled in training"] = number(reached, 3)
    for agent, found in runs.items():
        frames = mean_of(r["frames"] for r in found)
        row[f"{called(agent)}, frames in the whole time"] = "" if frames is None else f"{frames:,.0f}"
    return row


def ways_rows(folder: Path, agents: list[str], levels: list[Record]) -> list[dict[str, str]]:
    """In perfect mazes, greedy success by the bound's arrival."""
    rows = []
    for record in load(folder / "arrivals.json"):
        for agent in agents if record["level"] in STILL else []:
            scores = outcomes(levels, f"{agent}@{record['level']}", "greedy")
            if not len(scores):
                continue
            row = {"level": record["level"], "agent": called(agent)}
            ways = np.array(record["arrivals"])[: scores.shape[1]]
            for low, high in WAYS:
                chosen = (ways >= low) & (ways <= high)
                found = f"{scores[:, chosen].mean():.2f} ({chosen.sum()})" if chosen.any() else ""
                row[f"{low} to {high} steps"] = found
            rows.append(row)
    return rows


def larger_rows(agents: list[str], lesions: list[Record]) -> list[dict[str, str]]:
    """Agents of `size_13` on larger mazes without further training."""
    rows = []
    for level in dict.fromkeys(record["lesion"] for record in lesions):
        row = {"played on": level}
        for agent in agents:
            runs = [r for r in lesions if (r["lesion"], r["agent"]) == (level, f"{agent}@{STILL[0]}")]
            if runs:
                row[f"{called(agent)}, greedy"] = estimate(success_interval(runs))
                row[f"{called(agent)}, each seed"] = each_seed(runs)
                row[f"{called(agent)}, sampled"] = number(mean_of(r["sampled"]["success"] for r in runs))
        rows.append(row)
    return rows


def tuning_rows(trials: list[Record]) -> list[dict[str, str]]:
    """Candidates by learning rate and level, greedy and sampled; the mean of the two over levels decides."""
    rows = []
    for candidate, rate in sorted({(t["candidate"], t["learning_rate"]) for t in trials}):
        own = [t for t in trials if (t["candidate"], t["learning_rate"]) == (candidate, rate)]
        own.sort(key=lambda t: t["level"], reverse=True)
        row = {"candidate": called(candidate), "learning rate": f"{rate:g}"}
        for trial in own:
            row[f"{trial['level']}, greedy (sampled)"] = f"{trial['success']:.3f} ({trial['sampled_success']:.3f})"
            row[f"{trial['level']}, frames"] = f"{trial['frames']:,}"
        if len(own) > 1:
            row["mean"] = number(mean_of((t["success"] + t["sampled_success"]) / 2 for t in own), 3)
        rows.append(row)
    return sorted(rows, key=lambda row: -len(row))  # whoever went on has all columns


def figures(folder: Path) -> None:
    """None: the tables say it all."""
