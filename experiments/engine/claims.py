"""`experiments/README.md`: a claim a line, its figure and seeds drawn from the records it names.

`python -m experiments.engine.claims` draws the table again from `experiments/claims.yaml`, a list of

    - claim: what is claimed, in one sentence
      page: FOLDER                  # its folder in experiments/
      records: {agent: NAME}        # fields of the records behind it; `file: NAME.json` where not `results.json`
      minus: {agent: NAME}          # the claim is a difference between these and those, on the same levels
      seeds: 5                      # training seeds, as the claim has them; 0: nothing is trained
      levels: text                  # what was played, where records do not say which split
      weakest: its weakest point
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from experiments.engine.pages import ELSEWHERE, filled
from experiments.engine.records import ROOT, Record, load
from experiments.engine.statistics import crossed_difference, crossed_interval, success_interval
from experiments.engine.tables import estimate, split_of, table

FILE = ROOT / "experiments" / "claims.yaml"
PAGE = ROOT / "experiments" / "README.md"


def claims() -> list[dict[str, Any]]:
    return yaml.safe_load(FILE.read_text())


def records_of(claim: dict[str, Any], key: str = "records") -> list[Record]:
    """The records that a claim rests on."""
    wanted = dict(claim[key])
    records = load(ROOT / "experiments" / claim["page"] / wanted.pop("file", "results.json"))
    return [record for record in records if all(record.get(name) == value for name, value in wanted.items())]


def seeds_of(claim: dict[str, Any], key: str = "records") -> int:
    """Training seeds among the records of a claim."""
    return len({seed for record in records_of(claim, key) if (seed := seed_of(record)) is not None})


def seed_of(record: Record) -> int | None:
    return record["seed"] if record.get("seed") is not None else record.get("trained", {}).get("seed")


def outcomes(claim: dict[str, Any], key: str, play: str = "success") -> np.ndarray | None:
    """Success [seeds, levels] where the page keeps the outcome on every level."""
    runs, wanted = records_of(claim, key), claim[key]
    rows = [
        level[play]
        for level in load(ROOT / "experiments" / claim["page"] / "levels.json")
        if play in level and all(level.get(n) == v for n, v in wanted.items() if n in level)
    ]
    if not runs or len(rows) != len(runs):
        return None
    return np.array([[outcome == "1" for outcome in row] for row in rows], float)


def figure(claim: dict[str, Any]) -> str:
    """Greedy success with its 95% interval, and sampled where known; or the difference on the same levels."""
    if "records" not in claim:
        return ""
    if "minus" in claim:
        parts = []
        for name, play in (("greedy", "success"), ("sampled", "sampled")):
            one, other = outcomes(claim, "records", play), outcomes(claim, "minus", play)
            if one is not None and other is not None:
                found = crossed_difference(one, other)
                parts.append(f"{name} {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
        return ", ".join(parts)
    greedy, sampled = outcomes(claim, "records"), outcomes(claim, "records", "sampled")
    value = success_interval(records_of(claim)) if greedy is None else crossed_interval(greedy)
    text = f"greedy {estimate(value, bold=False)}"
    return text if sampled is None else f"{text}, sampled {estimate(crossed_interval(sampled), bold=False)}"


def levels(claim: dict[str, Any]) -> str:
    """The splits of the records behind a claim, or what it says of itself."""
    found = [] if claim["page"] in ELSEWHERE or "records" not in claim else records_of(claim)
    splits = sorted({split_of(record) for record in found if "success" in record})
    return claim.get("levels") or ", ".join(f"`{split}`" for split in splits)


def rows() -> list[dict[str, str]]:
    return [
        {
            "claim": f"{claim['claim']} ([{claim['page']}]({claim['page']}/README.md))",
            "success [95%]": figure(claim),
            "levels": levels(claim),
            "training seeds": str(claim["seeds"] or ""),
            "weakest point": claim["weakest"],
        }
        for claim in claims()
    ]


def page() -> str:
    """What the page should say."""
    return filled(PAGE.read_text(), {"claims": table(rows())})


if __name__ == "__main__":
    PAGE.write_text(page())
