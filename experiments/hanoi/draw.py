"""Tables and figures of the page, from its JSON files alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine.comparisons import MODES, comparison_rows, outcomes
from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import crossed_interval, mean_of, success_interval
from experiments.engine.tables import REFERENCES, average, each_seed, estimate, number, seconds, table
from experiments.hanoi.trials import trial_rows
from hrm_envs.hanoi_rendering import render_hanoi
from hrm_envs.hanoi_rules import PEGS

MOVES = {"greedy moves": "steps", "sampled moves": "sampled_steps"}
"""What a table says, and the field of `levels.json`: moves, which are the time limit where a level is not solved."""
FRAMES = 6


def tables(folder: Path) -> dict[str, str]:
    puzzles = load(folder / "puzzles.json")
    results, levels = load(folder / "results.json"), load(folder / "levels.json")
    settings = settings_of(folder)
    return {
        "hanoi disks": table(disks_rows(puzzles)),
        "hanoi models": table(model_rows(puzzles)),
        "hanoi trials": table(trial_rows(load(folder / "trials.json"))),
        "hanoi towers": table(tower_rows(load(folder / "towers.json"))),
        "hanoi segments": table(segment_rows(load(folder / "segments.json"))),
        "hanoi agents": table(agent_rows(results, levels, list(settings["arms"]))),
        "hanoi cut": table(cut_rows(load(folder / "lesions.json"), results)),
        "hanoi comparisons": table(compared(levels, settings["comparisons"])),
    }


def numbers_of(records: list[Record]) -> list[str]:
    """Numbers of disks that all records have, in order."""
    return sorted(set.intersection(*(set(r["by_disks"]) for r in records)), key=int) if records else []


def disks_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a model and number of disks: means over seeds, and solved games of every seed."""
    rows = []
    for arm in dict.fromkeys(r["agent"] for r in records):
        runs = [r for r in records if r["agent"] == arm]
        for disks in numbers_of(runs):
            own = [r["by_disks"][disks] for r in runs]
            floor = own[0]
            rows.append(
                {
                    "model": f"`{arm}`",
                    "disks": disks,
                    "optimal move": average(own, "exact", 4),
                    "legal": average(own, "legal", 4),
                    "random": number(floor["random_exact"]),
                    "look-ahead": number(floor["look_ahead_exact"]),
                    "moves of a shortest solution": number(floor["distance"], 1),
                    "games solved in twice the moves [95%]": estimate(
                        success_interval(
                            [{"success": o["solved_2x"], "success_ci95": o["solved_2x_ci95"]} for o in own]
                        )
                    ),
                    "each seed": " ".join(number(o["solved_2x"]) for o in own),
                    "optimally": average(own, "optimal"),
                    "(1 - e)^moves": average(own, "predicted"),
                    "random, look-ahead": f"{floor['random']['solved_2x']:.2f}, {floor['look_ahead']['solved_2x']:.2f}",
                }
            )
    return rows


def model_rows(records: list[Record]) -> list[dict[str, str]]:
    rows = []
    for arm in dict.fromkeys(r["agent"] for r in records):
        runs = [r for r in records if r["agent"] == arm]
        rows.append(
            {
                "model": f"`{arm}`",
                "seeds": str(len(runs)),
                "parameters": f"{runs[0]['parameters']:,}",
                "segments": str(runs[0]["max_segments"]),
                "steps": f"{runs[0]['steps']:,}",
                "puzzles and segments, together": f"{runs[0]['samples']:,}",
                "training, median": seconds(runs),
                "kernel, instructions": f"{runs[0]['kernel']}, {runs[0]['instruction_set']}",
            }
        )
    return rows


def tower_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a model: of so many games from tower to tower those solved, of each seed."""
    rows = []
    for arm in dict.fromkeys(r["agent"] for r in records):
        runs = [r for r in records if r["agent"] == arm]
        solved = {f"{n} disks": " ".join(str(r["solved"][n]) for r in runs) for n in runs[0]["solved"]}
        rows.append({"model": f"`{arm}`", **solved})
    return rows


def segment_rows(records: list[Record]) -> list[dict[str, str]]:
    """One row a model and number of segments a move, means over seeds."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for arm, segments, disks in dict.fromkeys((r["agent"], r["segments"], r["disks"]) for r in records):
        own = [r for r in records if (r["agent"], r["segments"], r["disks"]) == (arm, segments, disks)]
        row = rows.setdefault((arm, segments), {"model": f"`{arm}`", "segments a move": str(segments)})
        row[f"{disks} disks: optimal move"] = average(own, "exact", 4)
        row[f"games solved, {disks} disks"] = average(own, "solved_2x")
        row[f"each seed, {disks} disks"] = " ".join(number(r["solved_2x"], 2) for r in own)
    return list(rows.values())


def scores(levels: list[Record], arm: str, mode: str) -> NDArray[np.float64]:
    """Success or moves `[seeds, levels]`."""
    if mode in MOVES:
        return np.array([r[MOVES[mode]] for r in levels if r["agent"] == arm], float)
    return outcomes(levels, arm, mode)


def agent_rows(results: list[Record], levels: list[Record], arms: list[str]) -> list[dict[str, str]]:
    """One row an arm, then the policies that need no training on its levels."""
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for arm in arms:
        runs = [r for r in results if r["agent"] == arm]
        if not runs:
            continue
        success = {mode: estimate(crossed_interval(outcomes(levels, arm, mode))) for mode in MODES}
        rows.append(
            {
                "agent": arm,
                **success,
                "each seed": each_seed(runs),
                "SPL": average(runs, "spl"),
                **{mode: number(float(scores(levels, arm, mode).mean()), 2) for mode in MOVES},
                "frames": f"{runs[0]['frames']:,}",
                "training, median": seconds(runs),
            }
        )
        for name in REFERENCES:
            known = runs[0][name]
            label = f"{name.replace('_', ' ')}, {arm.rpartition('-')[2]} goal"
            if known and label not in seen:
                seen.add(label)
                made = number(known.get("episode_length", known.get("steps")), 2)
                spl = number(known["spl"]) if "spl" in known else ""
                rows.append({"agent": label, "greedy": number(known["success"]), "SPL": spl, "greedy moves": made})
    return rows


def cut_rows(lesions: list[Record], results: list[Record]) -> list[dict[str, str]]:
    rows = []
    for arm in dict.fromkeys(r["agent"] for r in lesions):
        cut, whole = ([r for r in records if r["agent"] == arm] for records in (lesions, results))
        rows.append({"agent": arm, "as trained": average(whole, "success"), "state cut": average(cut, "success")})
    return rows


def compared(levels: list[Record], pairs: list[list[str]]) -> list[dict[str, str]]:
    """Success and moves of pairs of arms."""
    most = max((steps for r in levels for field in MOVES.values() for steps in r[field]), default=1)
    rows = comparison_rows(
        {"": pairs}, partial(scores, levels), {**dict.fromkeys(MODES, 1), **dict.fromkeys(MOVES, most)}
    )
    return [{key: text for key, text in row.items() if key != "question"} for row in rows]


def figures(folder: Path) -> None:
    for shown in load(folder / "shown.json"):
        draw_strip(folder / "moves.png", shown)
    puzzles, curves = load(folder / "puzzles.json"), load(folder / "curves.json")
    if puzzles:
        draw_disks(folder / "disks.png", puzzles)
    if curves:
        draw_agents(folder / "agents.png", curves, list(settings_of(folder)["arms"]))


def strip(shown: Record, frames: int = FRAMES) -> list[tuple[int, NDArray[np.uint8]]]:
    """Moves made and a picture uint8 [h, w, 3] of a model's game, the first and the last state among them."""
    states = [np.array(list(map(int, state))) for state in shown["states"]]
    at = np.linspace(0, len(states) - 1, frames).round().astype(int)
    return [(int(move), render_hanoi(states[move], np.full_like(states[move], PEGS - 1))) for move in at]


def draw_strip(path: Path, shown: Record) -> None:
    """A tower on its way, above it where it is to go."""
    figure, axes = panels(2, FRAMES // 2, (11, 5.4))
    for axis, (move, frame) in zip(axes.flat, strip(shown), strict=True):
        axis.imshow(frame)
        axis.set_title(f"after {move} moves" if move else f"{shown['disks']} disks", fontsize=10)
        axis.axis("off")
    save(figure, path)


def draw_disks(path: Path, records: list[Record]) -> None:
    """Games solved and optimal moves against the number of disks; a thin line for every seed."""
    figure, (games, moves) = panels(1, 2, (11, 4))
    for place, arm in enumerate(dict.fromkeys(r["agent"] for r in records)):
        runs = [r for r in records if r["agent"] == arm]
        disks = numbers_of(runs)
        x = [int(d) for d in disks]
        for axis, name in ((games, "solved_2x"), (moves, "exact")):
            for run in runs:
                axis.plot(x, [run["by_disks"][d][name] for d in disks], color=f"C{place}", alpha=0.3, lw=1)
            axis.plot(x, mean_by(runs, disks, name), color=f"C{place}", marker="o", label=arm)
        games.plot(x, mean_by(runs, disks, "predicted"), color=f"C{place}", ls=":", label=f"{arm}: (1 - e)^moves")
    disks = numbers_of(records)
    x, floor = [int(d) for d in disks], [records[0]["by_disks"][d] for d in disks]
    games.plot(x, [f["look_ahead"]["solved_2x"] for f in floor], color="0.5", ls="--", label="look-ahead")
    moves.plot(x, [f["look_ahead_exact"] for f in floor], color="0.5", ls="--", label="look-ahead")
    moves.plot(x, [f["random_exact"] for f in floor], color="0.7", ls="-.", label="random")
    for axis, label in ((games, "games solved in twice the moves"), (moves, "states with an optimal move")):
        axis.axvspan(2.5, 6.5, color="0.92", zorder=0)
        axis.set(xlabel="disks (grey: trained on)", ylabel=label, ylim=(0, 1.02))
        axis.legend(loc="lower left", fontsize=8)
    save(figure, path)


def mean_by(runs: list[Record], disks: list[str], name: str) -> list[float | None]:
    return [mean_of(run["by_disks"][d][name] for run in runs) for d in disks]


def draw_agents(path: Path, curves: list[Record], arms: list[str]) -> None:
    """Success of sampled actions in training, a line for every seed, a panel for each kind of goal."""
    kinds = list(dict.fromkeys(arm.rpartition("-")[2] for arm in arms))
    figure, axes = panels(1, len(kinds), (11, 4), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        for place, arm in enumerate(arm for arm in arms if arm.endswith(f"-{kind}")):
            own: list[dict[str, Any]] = [c for c in curves if c["agent"] == arm]
            for count, curve in enumerate(own):
                frames, success = zip(*curve["train_success"], strict=True)
                label = None if count else arm.rpartition("-")[0]
                axis.plot(frames, success, color=f"C{place}", alpha=0.75, lw=1.3, label=label)
        axis.set(title=f"{kind} goal", xlabel="environment frames", ylim=(0, 1.02))
        axis.legend()
    axes[0].set(ylabel="success of sampled actions in training")
    save(figure, path)
