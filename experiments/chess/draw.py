"""Tables of the page and its figures, from the JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.engine.figures import panels, save
from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.statistics import mean_of
from experiments.engine.tables import number, table
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_envs.endgames.drawing import SQUARE, draw_board

TOP = {1: "exact", 3: "top_3", 5: "top_5"}
PUBLISHED = {"exact": 0.112, "top_3": 0.340, "top_5": 0.511}
"""Of the student project that the page cites."""


def tables(folder: Path) -> dict[str, str]:
    """Tables by the name of their marks."""
    records, arms = load(folder / "results.json"), settings_of(folder)["arms"]
    syzygy = folder / "tables.json"
    compared = json.loads(syzygy.read_text())["records"] if syzygy.exists() else []
    return {
        "chess_endgames": table(rows_of([r for r in records if r["world"] == "endgames"], arms, endgame_cells)),
        "chess_judged": table(rows_of([r for r in records if r["world"] == "judged"], arms, judged_cells)),
        "chess_games": table(game_rows([r for r in records if r["world"] == "judged"], arms)),
        "chess_syzygy": table([syzygy_cells(record) for record in compared]),
    }


def rows_of(records: list[Record], arms: dict[str, Any], cells: Any) -> list[dict[str, str]]:
    """One row an arm: means over its seeds."""
    rows = []
    for arm, given in arms.items():
        runs = [record for record in records if record["agent"] == arm]
        if runs:
            about = {"arm": f"`{arm}`", "what it is": given["says"], "parameters": f"{runs[0]['parameters']:,}"}
            rows.append({**about, **cells(runs), "seeds": str(len(runs)), "training": f"{runs[0]['seconds']:.0f} s"})
    return rows


def spread(values: list[float | None], interval: Sequence[float] | None = None) -> str:
    """Mean, and the range over seeds where there are several.

    Args:
        interval: of the only value, over positions; shown where there is one seed.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    ends = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    if len(known) == 1 and interval is not None:
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{number(mean_of(known))}{ends}"


def share(values: list[float | None], count: int) -> str:
    """`spread` of shares of so many positions or games, with Wilson's interval."""
    first = values[0]
    return spread(values, None if first is None else wilson_interval(round(first * count), count))


def endgame_cells(runs: list[Record]) -> dict[str, str]:
    """Scores on exact endgames."""
    tests = [run["test"] for run in runs]
    own = [test.get("task", {}) for test in tests]
    count = tests[0]["puzzles"]
    cells = {
        "best move": share([test["exact"] for test in tests], count),
        "after one segment": share([test["curves"]["exact"][0] for test in tests], count),
        "legal without a mask": share([test["legal"] for test in tests], count),
        "keeps the value": share([test["keeps"] for test in tests], count),
    }
    for ending in ("KRK", "KQK"):
        cells[f"{ending} mated"] = spread(
            [task.get(f"{ending}_mated") for task in own], own[0].get(f"{ending}_mated_ci95")
        )
    return cells


def judged_cells(runs: list[Record]) -> dict[str, str]:
    """Scores on positions that the engine judged."""
    last, count = [run["judged"]["segments"][-1] for run in runs], runs[0]["judged"]["positions"]
    first = last[0]

    def lost(name: str) -> str:
        return spread([row[name] for row in last], first[f"{name}_ci95"])

    tests = [run["test"] for run in runs]
    tested = {f"top {k}": share([test[name] for test in tests], tests[0]["puzzles"]) for k, name in TOP.items()}
    return {
        **tested,
        "legal without a mask": share([test["legal"] for test in tests], tests[0]["puzzles"]),
        f"loss of win probability, of {count} positions": lost("loss"),
        "of the legal move": lost("loss_legal"),
        "blunders of it": lost("loss_legal_blunders"),
    }


def game_rows(records: list[Record], arms: dict[str, Any]) -> list[dict[str, str]]:
    """One row an arm and opponent: games of all seeds together."""
    rows = []
    for arm in arms:
        runs = [record["judged"]["games"] for record in records if record["agent"] == arm]
        for opponent in runs[0] if runs else ():
            sums = {k: sum(run[opponent][k] for run in runs) for k in ("games", "won", "drawn", "lost", "unfinished")}
            score = mean_of(run[opponent]["score"] for run in runs)
            rows.append(
                {"arm": f"`{arm}`", "against": opponent, "score": number(score), **{k: str(v) for k, v in sums.items()}}
            )
    return rows


def syzygy_cells(record: Record) -> dict[str, str]:
    """One ending of `tables.py`."""
    return {
        "ending": record["ending"],
        "positions compared": f"{record['positions']:,}",
        "equal to Syzygy's WDL": f"{record['wdl_equal']:,}",
        "DTZ compared": f"{record['dtz']:,}",
        "equal to the distance to mate": f"{record['dtz_equal']:,}",
        "within it": f"{record['dtz_within_distance']:,}",
        "longest mate": f"{record['longest_mate_moves']} moves",
    }


def figures(folder: Path) -> None:
    """`loss.png`: loss of win probability after every segment; `boards.png`: what a model answers on the way."""
    records = [record for record in load(folder / "results.json") if record["world"] == "judged"]
    if records:
        figure, axes = panels(1, 2, (9, 3.6))
        for place, arm in enumerate(settings_of(folder)["arms"]):
            runs = [record["judged"]["segments"] for record in records if record["agent"] == arm]
            for axis, name in zip(axes, ("loss_legal", "exact"), strict=True):
                for line, run in enumerate(runs):
                    values = [row[name] for row in run]
                    at = range(1, len(values) + 1)
                    style = {"color": f"C{place}", "alpha": 0.8, "label": None if line else arm}
                    axis.plot(at, values, "o-" if len(values) == 1 else "-", **style)
        axes[0].set(xlabel="segment", ylabel="loss of win probability", title="the most probable legal move")
        axes[1].set(xlabel="segment", ylabel="share", title="the engine's best move")
        axes[1].axhline(PUBLISHED["exact"], color="0.5", ls=":", lw=1)
        axes[0].legend()
        save(figure, folder / "loss.png")
    shown = load(folder / "shown.json")
    if shown:
        draw_answers(shown, folder / "boards.png")


def draw_answers(shown: list[Record], path: Path) -> None:
    """Boards with an arrow for the answer after each segment, the later the darker, and the engine's best move."""
    figure, axes = panels(1, len(shown), (4.2 * len(shown), 4.4), squeeze=False)
    for axis, record in zip(axes[0], shown, strict=True):
        axis.imshow(draw_board(record["rows"]))
        axis.set_axis_off()
        arrow(axis, record["best"], "tab:green", 1.0, 5)
        answers = [tuple(answer) for answer in record["answers"]]
        for place, answer in enumerate(answers):
            arrow(axis, answer, "tab:purple", (place + 1) / len(answers), 2)
        changes = 1 + sum(one != other for one, other in pairwise(answers))
        axis.set_title(f"{changes} answers in {len(answers)} segments; green: the engine's", fontsize=9)
    save(figure, path)


def arrow(axis: Any, move: Sequence[int], colour: str, alpha: float, width: float) -> None:
    """An arrow from one square to another."""
    (x0, y0), (x1, y1) = (((square % 8 + 0.5) * SQUARE, (7.5 - square // 8) * SQUARE) for square in move)
    style = {"arrowstyle": "-|>", "color": colour, "alpha": alpha, "lw": width}
    axis.annotate("", (x1, y1), (x0, y0), arrowprops=style)
