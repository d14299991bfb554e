"""The pages that `--help` prints, and those that are kept with the package, so that they appear before torch is loaded.

Imports the standard library alone. `hrm_agent.launch.help` makes the pages from the code; `docs/write_help.py` keeps
those of plain `--help` in `help_pages.json`, and a test compares them.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.commands import spelled

KEPT = Path(__file__).with_name("help_pages.json")
HELP = (["--help"], ["-h"])
CORES = "hrm_agent.cores"
"""Group of entry points whose names are on a page; where other packages have any, pages are made from the code."""

Rows = Sequence[Sequence[str]]


class Page(NamedTuple):
    """What `--help` prints.

    Attributes:
        usage: one line.
        about: a sentence.
        examples: command lines.
        sections: by title, a text or rows of two columns.
        end: a text behind them.
    """

    usage: str
    about: str
    examples: Sequence[str]
    sections: Mapping[str, str | Rows]
    end: str = ""

    def render(self) -> str:
        """As wide as the terminal, 120 columns at most."""
        texts = {title: part if isinstance(part, str) else layout(part) for title, part in self.sections.items()}
        shown = {"Examples": "\n".join(f"  {each}" for each in self.examples), **texts}
        parts = [self.usage, self.about, *(f"{title}:\n{text}" for title, text in shown.items() if text)]
        return spelled("\n\n".join([*parts, *([self.end] if self.end else [])]))


def layout(rows: Iterable[Sequence[str]]) -> str:
    """Two columns, the second one wrapped."""
    rows = list(rows)
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    left = min(32, max((len(name) for name, _ in rows), default=0)) + 4
    lines = []
    for name, text in rows:
        if len(name) > left - 4:
            lines.append(f"  {name}")
            name = ""
        shown = textwrap.wrap(text, width - left, break_on_hyphens=False) or [""]
        lines += [f"  {name:{left - 2}}{shown[0]}".rstrip(), *(" " * left + more for more in shown[1:])]
    return "\n".join(lines)


def kept_page(command: str, arguments: list[str]) -> Page | None:
    """The page of a command that was asked for nothing but help, where it is kept and no other package adds to it."""
    if arguments not in HELP or not KEPT.is_file() or entry_points(group=CORES):
        return None
    pages: dict[str, Any] = json.loads(KEPT.read_text())
    return Page(**pages[command]) if command in pages else None


def print_kept_page(command: str, arguments: list[str]) -> None:
    """Print `kept_page` and end the process; nothing where there is none."""
    page = kept_page(command, arguments)
    if page is not None:
        with outliving_the_terminal():
            print(page.render())
        raise SystemExit(0)
