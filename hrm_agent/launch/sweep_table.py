"""The runs below a folder in one table, the best first (`python -m hrm_agent.sweep_table`)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.run_records import Row, differing, find_runs, read_run
from hrm_agent.names.values import one_of, printable

RESULTS = ("test_success", "test_sampled", "validation_success", "validation_return")
Column = Annotated[str, one_of(RESULTS)]
SUFFIXES = (".csv", ".md")
WIDE = 1000  # columns of a pipe or a file: no line is broken there


def sweep_table(folder: str, out: str | None = None, sort: Column | None = None) -> list[Row]:
    """Results of the runs below `folder`, and the settings in which they differ.

    Args:
        folder: searched at any depth for runs of `hrm_agent.train` (`run.json` beside `config.yaml`), links to folders
            not followed; those without a result (interrupted, or unfinished) come last.
        out: a `.csv` or `.md` file, written whole or not at all.
        sort: one of `RESULTS`, the largest first, equals by the others; None: the first of them that any run has.

    Returns:
        A row for each run: `run` (its folder below `folder`), every column of `RESULTS` that any run has, `frames`,
        and the settings that differ, by their dotted names. None where a run has none.

    Raises:
        ValueError: no run there, a damaged file of a run, an unknown column, or another kind of file to write.
    """
    if sort is not None and sort not in RESULTS:
        raise UsageError(f"sort={sort}: expected one of {', '.join(RESULTS)}")
    if out is not None:
        check_output(out)
        if Path(out).suffix not in SUFFIXES:
            raise UsageError(f"out={out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    root = existing_folder(folder, "folder")
    runs = [read_run(path) for path in find_runs(root)]
    if not runs:
        raise UsageError(f"folder={folder}: no run in it")
    names = differing([run.settings for run in runs])
    reached = [name for name in RESULTS if any(run.results.get(name) is not None for run in runs)]
    rows = [
        {
            "run": str(run.folder.relative_to(root)),
            **{name: run.results.get(name) for name in (*reached, "frames")},
            **{name: run.settings.get(name) for name in names},
        }
        for run in runs
    ]
    columns = [sort, *reached] if sort in reached else reached
    rows.sort(key=lambda row: [(row[name] is not None, row[name]) for name in columns], reverse=True)
    if out is not None:
        write_output(out, (_csv(rows) if out.endswith(".csv") else _markdown(rows)).encode())
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(rows: list[Row]) -> str:
    """Numbers in full, for further processing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(rows: list[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def print_table(rows: list[Row]) -> None:
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("run", "group", "arm") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_text(value))) for value in row.values()))  # [bold] in a file is no markup
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=WIDE)).print(table)
