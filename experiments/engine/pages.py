"""Pages: what stands between `<!-- table NAME -->` and `<!-- /table NAME -->` is drawn from the JSON files.

A table goes wherever its marks are: into the page of its folder, the project's README, or a page of `docs/`. A folder's
`draw.py` has `tables(folder)`, tables by name, and `figures(folder)`; either may be missing. A study has besides a
table named after the folder, unless `study.yaml` says `own_table: true`, and the learning curves for a figure. A study,
and a folder with records of success, has a line `NAME levels`, which says what levels they are of.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from experiments.engine.figures import draw_curves
from experiments.engine.records import ROOT, Record, load, locked
from experiments.engine.tables import SHORT, arm_rows, levels_line, table

ON_LEVELS = ("lesions.json", "baselines.json", "size_shift.json", "lstm.json")
"""Further files of records that were measured on levels."""
ELSEWHERE = ("authors_maze", "chess", "defaults", "language", "supervised")
"""Folders whose records are not of the splits' levels: of the authors' code, validation, puzzles, text."""


def settings_of(folder: Path, file: str = "study.yaml") -> dict[str, Any]:
    """The folder's settings; empty where there is no such file."""
    path = folder / file
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def module_of(folder: Path, name: str) -> Any:
    """`experiments.FOLDER.NAME`, or None where there is no such file."""
    inside = folder.resolve().parent == ROOT / "experiments" and (folder / f"{name}.py").exists()
    return import_module(f"experiments.{folder.name}.{name}") if inside else None


def tables_of(folder: Path) -> dict[str, str]:
    """The folder's tables by name; that of a study comes with fewer columns too, as `NAME short`."""
    settings, made = settings_of(folder), {}
    if settings and not settings.get("own_table"):
        rows = arm_rows(load(folder / "results.json"), list(settings["arms"]), load(folder / "levels.json"))
        made = {folder.name: table(rows), f"{folder.name} short": table(rows, SHORT)}
    levels = measured(folder)
    if levels or (settings and folder.name not in ELSEWHERE):
        made[f"{folder.name} levels"] = levels_line(levels)
    own = module_of(folder, "draw")
    return made | (own.tables(folder) if hasattr(own, "tables") else {})


def measured(folder: Path) -> list[Record]:
    """The folder's records of success on levels."""
    files = dict.fromkeys(("results.json", settings_of(folder).get("results", "results.json"), *ON_LEVELS))
    records = [record for name in files for record in load(folder / name) if {"success", "clairvoyant"} & set(record)]
    return [] if folder.name in ELSEWHERE else records


def filled(text: str, tables: dict[str, str]) -> str:
    """What a page should say: the tables between their marks, where it has them.

    Raises:
        ValueError: a table begins and does not end.
    """
    for name, content in tables.items():
        begin, end = f"<!-- table {name} -->", f"<!-- /table {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if found and not closed:
            raise ValueError(f"table {name}: expected {end} after {begin}")
        text = f"{before}{begin}\n{content}\n{end}{after}" if found else text
    return text


def pages_of(folder: Path) -> list[Path]:
    """Every page that a table of the folder may stand in."""
    return [folder / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def draw(folder: Path) -> None:
    """Put the tables into the pages that have their marks, and draw the figures."""
    with locked(ROOT / "experiments"):
        tables = tables_of(folder)
        for page in pages_of(folder):
            before = page.read_text()
            if (after := filled(before, tables)) != before:
                page.write_text(after)
        own = module_of(folder, "draw")
        if hasattr(own, "figures"):
            own.figures(folder)
        elif (folder / "curves.json").exists():
            draw_curves(folder, list(settings_of(folder)["arms"]))
