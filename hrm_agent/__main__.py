"""`hrm-agent COMMAND ...`, or `python -m hrm_agent COMMAND ...`: every command by one name."""

from __future__ import annotations

import os
import runpy
import sys
from typing import NoReturn

from hrm_agent import __version__
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.commands import AFTERWARDS, COMMANDS, NAME, USAGE, begin_one_command
from hrm_agent.launch.pages import Page, print_kept_page
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import printable

USAGE_ERROR = 2


def main() -> None:
    """Run the command that the command line names, as `python -m hrm_agent.COMMAND` does."""
    command, *arguments = sys.argv[1:] or ["--help"]
    begin_one_command()
    with outliving_the_terminal():
        if command in ("-h", "--help", "help"):
            page = Page(USAGE, "Train recurrent reasoning agents, measure them, and see them think.", (), {
                "Commands": list(COMMANDS.items()),
                "Options": [("--help", "this page"), ("--version", "the version of this package")],
            }, AFTERWARDS)  # fmt: skip
            print(page.render())
            return
        if command in ("-V", "--version"):
            print(f"{NAME} {__version__}")
            return
        if command not in COMMANDS:
            meant = did_you_mean(command, COMMANDS, shown=0) or "."
            refuse(f"{command}: no such command{meant} {NAME} --help lists them all")
        print_kept_page(command, arguments)
    sys.argv = [command, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()  # a script's own folder is there, python -m has the working folder
    runpy.run_module(f"hrm_agent.{command}", run_name="__main__", alter_sys=True)


def refuse(message: str) -> NoReturn:
    print("error:", printable(message), file=sys.stderr, flush=True)
    raise SystemExit(USAGE_ERROR)


if __name__ == "__main__":
    main()
