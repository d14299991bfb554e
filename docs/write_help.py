"""Keep the pages of plain `--help` with the package, in `hrm_agent/launch/help_pages.json`.

Run it after a change of a setting, `python docs/write_help.py`; a test compares the file with the code.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from unittest.mock import patch

from hrm_agent.launch.commands import COMMANDS
from hrm_agent.launch.pages import KEPT, Page

ARGPARSE = ("bench", "parity")
"""Commands whose pages depend on the machine."""


def page_of(command: str) -> Page:
    """What the command prints for `--help`, as the code says it."""
    spec = find_spec(f"hrm_agent.{command}")
    package = spec is not None and spec.submodule_search_locations is not None
    module = import_module(f"hrm_agent.{command}.__main__" if package else f"hrm_agent.{command}")
    pages: list[Page] = []
    path = [*sys.path]
    with (
        patch.object(Page, "render", lambda page: pages.append(page) or ""),
        patch.object(sys, "argv", [command, "--help"]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    sys.path[:] = path  # a command that reads folders leaves out the working folder
    (page,) = pages
    return page


def text() -> str:
    """The file's content."""
    pages = {command: page_of(command)._asdict() for command in COMMANDS if command not in ARGPARSE}
    return json.dumps(pages, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    KEPT.write_text(text())
