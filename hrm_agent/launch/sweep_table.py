"""The runs below a folder in one table, the best first (`python -m hrm_agent.sweep_table`)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rich.console import Console
from rich.table import Table

from hrm_agent.files.reading import CheckpointError, read_json
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.resume import CONFIG_FILE, RUN_FILE, read_settings
from hrm_agent.names.values import one_of
from hrm_agent.training.tracking import METRICS_FILE, read_metrics

COMMAND = "hrm_agent.train"
RESULTS = ("test_success", "test_sampled", "validation_success", "validation_return")
Column = Annotated[str, one_of(RESULTS)]
SUFFIXES = (".csv", ".md")
WIDE = 1000  # columns of a pipe or a file: no line is broken there

Row = dict[str, Any]


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
    folders = [path.parent for path in sorted(root.rglob(RUN_FILE)) if _is_run(path.parent)]
    runs = [(path, *_read_run(path)) for path in folders]
    if not runs:
        raise UsageError(f"folder={folder}: no run in it")
    differing = _differing([values for _, values, _ in runs])
    reached = [name for name in RESULTS if any(result.get(name) is not None for _, _, result in runs)]
    rows = [
        {
            "run": str(path.relative_to(root)),
            **{name: result.get(name) for name in (*reached, "frames")},
            **{name: values.get(name) for name in differing},
        }
        for path, values, result in runs
    ]
    columns = [sort, *reached] if sort in reached else reached
    rows.sort(key=lambda row: [(row[name] is not None, row[name]) for name in columns], reverse=True)
    if out is not None:
        write_output(out, (_csv(rows) if out.endswith(".csv") else _markdown(rows)).encode())
    return rows


def _is_run(folder: Path) -> bool:
    """Whether it is a run of `hrm_agent.train`; what else writes a `run.json` has settings of another kind."""
    if not os.path.lexists(folder / CONFIG_FILE):
        return False
    try:
        described: _Described = read_json(folder / RUN_FILE, _Described, links=False)
    except CheckpointError as error:
        raise UsageError(f"{folder}: a damaged run ({error})") from None
    return described.command is None or COMMAND in described.command.split()


class _Described(msgspec.Struct):
    """Of `run.json`."""

    command: str | None = None


class _Sampled(msgspec.Struct):
    """Of its entry for actions drawn from the policy."""

    success: float


class _Evaluated(msgspec.Struct):
    """Of `eval.json`."""

    success: float
    sampled: _Sampled | None = None


def _read_run(folder: Path) -> tuple[dict[str, Any], Row]:
    """Settings by dotted name, and results."""
    try:
        return dict(_flat(read_settings(folder))), _read_results(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: a damaged run ({error})") from None


def _read_results(folder: Path) -> Row:
    results: Row = {"frames": None}
    path = folder / METRICS_FILE
    if os.path.lexists(path):
        for number, (_, logged) in enumerate(read_metrics(path, "frames"), 1):
            if logged is None:
                raise UsageError(f"{path}: line {number} is not an object of numbers with frames")
            results["frames"] = int(logged["frames"])
            for name in ("success", "return"):
                if f"validation/{name}" in logged:
                    results[f"validation_{name}"] = logged[f"validation/{name}"]
    if os.path.lexists(folder / "eval.json"):
        evaluated: _Evaluated = read_json(folder / "eval.json", _Evaluated, links=False)
        results["test_success"] = evaluated.success
        results["test_sampled"] = None if evaluated.sampled is None else evaluated.sampled.success
    return results


def _flat(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """Names, in the order of the configuration, whose values are not the same everywhere."""
    names = list(dict.fromkeys(name for values in settings for name in values))
    return [name for name in names if len({str(values.get(name)) for values in settings}) > 1]


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
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=WIDE)).print(table)
