"""Markdown tables, and the rows that most studies have: their arms, then the policies that need no training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from experiments.engine.comparisons import MODES, outcomes
from experiments.engine.records import Record
from experiments.engine.statistics import NEVER, Estimate, crossed_interval, mean_of, median_of, success_interval

EMPTY = "No record yet."
REFERENCES = ("random", "bfs_replanner", "clairvoyant")
UNTRAINED = (*REFERENCES, "remembering_replanner")
"""Policies that need no training; the last where something is hidden."""
LABELS = {"random": "random policy", "bfs_replanner": "BFS re-planner", "clairvoyant": "clairvoyant bound"}
SHORT = ("agent", "success [95% over seeds and levels]", "each seed", "frames", "training, median")
"""Columns of the table that the project's README has."""


def table(rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> str:
    """Markdown with one line a row.

    Args:
        rows: cells by column; what a row lacks is left blank.
        columns: which of them, in this order; those of the first row where None.
    """
    if not rows:
        return EMPTY
    names = columns or tuple(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in rows])


def number(value: float | None, digits: int = 3) -> str:
    """Blank for None."""
    return "" if value is None else f"{value:.{digits}f}"


def average(runs: Sequence[Record], name: str, digits: int = 3) -> str:
    """Mean of a field over the runs that have it."""
    return number(mean_of(run.get(name) for run in runs), digits)


def estimate(value: Sequence[float] | None, bold: bool = True, digits: int = 3) -> str:
    """`value [low, high]`; blank for None."""
    if value is None:
        return ""
    middle, low, high = (f"{number:.{digits}f}" for number in value[:3])
    return f"**{middle}** [{low}, {high}]" if bold else f"{middle} [{low}, {high}]"


def success(record: Record, bold: bool = False, digits: int = 3) -> str:
    """Success of one record with its interval over levels."""
    return estimate(Estimate(record["success"], *record["success_ci95"]), bold, digits)


def each_seed(runs: Sequence[Record], digits: int = 3) -> str:
    return " ".join(f"{run['success']:.{digits}f}" for run in runs)


def median(runs: Sequence[Record], name: str, digits: int = 0, unit: str = "") -> str:
    """Median of a field over seeds; `never` where most runs did not get there."""
    value = median_of(run[name] for run in runs)
    return "never" if value == NEVER else f"{value:,.{digits}f}{unit}"


def seconds(runs: Sequence[Record]) -> str:
    """Median seconds of training."""
    return f"{median_of(run['seconds'] for run in runs):.0f} s"


def longest(runs: Sequence[Record]) -> str:
    """The longest whole command, where that is known."""
    walls = [run["wall_seconds"] for run in runs if run.get("wall_seconds") is not None]
    return f"{max(walls):.0f} s" if walls else ""


SPLITS = {
    "train": "split `train`",
    "validation": "split `validation`",
    "development": "split `development`, called `test` until 30 November 2026",
    "test": "split `test`",
    "none": "an environment without splits, on seeds that were kept for testing",
}
"""What a record was measured on, by its `split`."""


def split_of(record: Record) -> str:
    """Records of before 30 November 2026 do not say it; their levels are those of `development` now."""
    if record.get("success") is not None and record.get("split", "") is None:
        return "none"
    return record.get("split") or "development"


def levels_line(records: Sequence[Record]) -> str:
    """One sentence on the levels that records are of."""
    counts = Counter(map(split_of, records))
    if not counts:
        return EMPTY
    if len(counts) == 1:
        return f"Levels: {SPLITS[next(iter(counts))]}."
    parts = [
        f"{counts[split]} record{'s' * (counts[split] > 1)} of {words}"
        for split, words in SPLITS.items()
        if split in counts
    ]
    return f"Levels: {'; '.join(parts)}."


def lost_after_changes(runs: Sequence[Record]) -> dict[str, str]:
    """Steps lost after a change, from pairs of worlds; of records of before December 2026 the mean over changes.

    The latter makes failing agents look better than they are (`experiments/change_metrics`).
    """
    paired = [run["changes"]["extra_steps"] for run in runs if run.get("changes")]
    if paired:
        return {"steps lost of 10 after a change": number(mean_of(paired), 2)}
    return {"regret after a material change, mean over changes": average(runs, "regret_after_material_change")}


def by_agent(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs of every agent, the most successful agent first, those that need no training last."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["agent"], []).append(record)
    rank = {name: len(REFERENCES) - place for place, name in enumerate(REFERENCES)}
    return dict(
        sorted(groups.items(), key=lambda g: (rank.get(g[0], 0), -(mean_of(r["success"] for r in g[1]) or 0.0)))
    )


def arm_rows(records: Sequence[Record], arms: Sequence[str], levels: Sequence[Record] = ()) -> list[dict[str, str]]:
    """One row an arm, then the references on the levels of its environment.

    Args:
        records: of the study.
        arms: their names.
        levels: outcomes on every level, where the study keeps them. An arm whose seeds all have theirs gets the crossed
            interval, and sampled success beside greedy; any other `success_interval`.
    """
    rows: list[dict[str, str]] = []
    is_drawn = any("sampled" in record for record in levels)
    seen = set()
    for arm in arms:
        runs = [record for record in records if record["agent"] == arm]
        if not runs:
            continue
        greedy, drawn = (outcomes(levels, arm, mode) for mode in MODES)
        found = crossed_interval(greedy) if len(greedy) == len(runs) else success_interval(runs)
        sampled = estimate(crossed_interval(drawn), bold=False) if len(drawn) == len(runs) else ""
        rows.append(
            {
                "agent": arm,
                "success [95% over seeds and levels]": estimate(found),
                **({"sampled [95%]": sampled} if is_drawn else {}),
                "each seed": each_seed(runs),
                **({"return": average(runs, "return", 1)} if runs[0]["spl"] is None else {}),
                "SPL": average(runs, "spl"),
                **lost_after_changes(runs),
                "frames": f"{runs[0]['frames']:,}",
                "training, median": seconds(runs),
                "whole command, longest": longest(runs),
                "parameters": f"{runs[0]['parameters']:,}",
            }
        )
        for key, name in LABELS.items():
            known, label = runs[0][key], f"{name}, {runs[0]['env']}"
            if known and (label, known["success"]) not in seen:
                seen.add((label, known["success"]))
                rows.append(
                    {
                        "agent": label,
                        "success [95% over seeds and levels]": success(known),
                        "SPL": average([known], "spl"),
                        **lost_after_changes([known]),
                    }
                )
    return rows
