"""The runs below a folder in one table, the best first (`python -m hrm_agent.sweep_table`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from hrm_agent.files.writing import write_atomically
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.settings import rename_settings

RESULTS = ("test_success", "validation_success", "validation_return")
SUFFIXES = (".csv", ".md")
WIDE = 1000  # columns of a pipe or a file: no line is broken there

Row = dict[str, Any]


def sweep_table(folder: str, out: str | None = None, sort: str | None = None) -> list[Row]:
    """Results of the runs below `folder`, and the settings in which they differ.

    Args:
        folder: searched at any depth for runs of `hrm_agent.train` (`run.json` beside `config.yaml`); those without a
            result (interrupted, or unfinished) come last.
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
    if out is not None and (Path(out).suffix not in SUFFIXES or not Path(out).absolute().parent.is_dir()):
        raise UsageError(f"out={out}: expected a name that ends in {' or '.join(SUFFIXES)}, in a folder that exists")
    root = existing_folder(folder, "folder")
    # What else writes a run.json, as the agents of Stable-Baselines3 do, has settings of another kind.
    folders = [path.parent for path in sorted(root.rglob("run.json")) if (path.parent / "config.yaml").is_file()]
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
        write_atomically(Path(out), (_csv(rows) if out.endswith(".csv") else _markdown(rows)).encode())
    return rows


def _read_run(folder: Path) -> tuple[dict[str, Any], Row]:
    """Settings by dotted name, and results."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        assert isinstance(values, dict)
        rename_settings(values)  # type: ignore[arg-type]
        return dict(_flat(values)), _read_results(folder)
    except (OSError, ValueError, TypeError, AssertionError, YAMLError) as error:
        raise UsageError(f"{folder}: a damaged run ({error})") from None


def _read_results(folder: Path) -> Row:
    results: Row = {"frames": None}
    if (folder / "metrics.jsonl").is_file():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            if line.endswith("}"):  # the last line of a run that was killed may be cut
                logged = json.loads(line)
                results["frames"] = logged["frames"]
                for name in ("success", "return"):
                    if f"validation/{name}" in logged:
                        results[f"validation_{name}"] = logged[f"validation/{name}"]
    if (folder / "eval.json").is_file():
        results["test_success"] = json.loads((folder / "eval.json").read_text())["success"]
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
