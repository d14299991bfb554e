"""The tables of the page, from the JSON files alone."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.pages import settings_of
from experiments.engine.records import Record, load
from experiments.engine.tables import LABELS, number, table
from hrm_agent.evaluation.change import COMPARED, difference, read_pairs

HEADS = {
    "follow_old": "follows the old plan",
    "reaction": "reaction",
    "old_action_drop": "reacts",
    "decisions_to_replan": "decisions to re-plan",
    "extra_steps": "lost of 10 steps",
    "success": "success with the change",
}


def tables(folder: Path) -> dict[str, str]:
    settings, records = settings_of(folder, "agents.yaml"), load(folder / "results.json")
    made = {}
    for world, what in settings["worlds"].items():
        order = list(what["players"])
        chosen = [record for record in records if record["world"] == world]
        chosen.sort(key=lambda record: (order.index(record["agent"]), record["seed"]))
        made[f"old {world}"] = table([old_row(record) for record in chosen])
        made[f"new {world}"] = table([new_row(record) for record in chosen])
        made[f"survival {world}"] = table([survival_row(record) for record in chosen])
    made["comparisons"] = table(comparisons(folder, settings["comparisons"]))
    return made


def name_of(record: Record) -> str:
    label = str(LABELS.get(record["agent"], record["agent"]))
    return f"{label}, seed {record['seed']}" if record["agent"] not in LABELS and "TRM" not in label else label


def with_ends(record: Record, name: str, digits: int = 2) -> str:
    """The value and its interval; blank where it is not defined."""
    if record.get(name) is None:
        return ""
    low, high = record[f"{name}_ci95"]
    return f"{number(record[name], digits)} [{number(low, digits)}, {number(high, digits)}]"


def old_row(record: Record) -> dict[str, str]:
    return {
        "agent": name_of(record),
        "success [95% over levels]": with_ends(record, "success", 3),
        "changes": f"{record['material_changes']:,}",
        "stale-plan rate": number(record["stale_plan_rate"]),
        "steps to re-plan": number(record["steps_to_replan"], 2),
        "regret": number(record["regret_after_material_change"], 2),
    }


def new_row(record: Record) -> dict[str, str]:
    return {
        "agent": name_of(record),
        "pairs": str(record["pairs"]),
        "follows the old plan (without the change; by chance)": f"{with_ends(record, 'follow_old')} "
        f"({number(record['follow_old_unchanged'], 2)}; {number(record['follow_old_chance'], 2)})",
        **{HEADS[name]: with_ends(record, name) for name in COMPARED[1:5]},
        "success with / without the change": " / ".join(
            number(record[name], 2) for name in ("pair_success", "pair_success_unchanged")
        ),
        "waiting wins": number(record["waiting_wins"], 2),
    }


def survival_row(record: Record) -> dict[str, str]:
    curve = {f"after {t}": number(share, 2) for t, share in enumerate(record["not_replanned"] or ())}
    return {"agent": name_of(record), **curve}


def comparisons(folder: Path, wanted: list[list[str]]) -> list[dict[str, str]]:
    """Differences on shared levels, for every seed of each."""
    known = load(folder / "pairs.json")
    rows = []
    for world, *names in wanted:
        one, other = (sorted((r for r in known if (r["world"], r["agent"]) == (world, n)), key=seed_of) for n in names)
        for a in one:
            for b in other:
                found = difference(read_pairs(a["pairs"]), read_pairs(b["pairs"]))
                cells = {HEADS[name]: with_ends(found, name) for name in COMPARED}
                rows.append(
                    {"first minus second": f"{name_of(a)}; {name_of(b)}", "pairs": str(found["pairs"]), **cells}
                )
    return rows


def seed_of(record: Record) -> int:
    return record["seed"]
