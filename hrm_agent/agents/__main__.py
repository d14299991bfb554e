"""`python -m hrm_agent.agents`: the registered agents. With an id: its model card."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hrm_agent.agents.card import CARD_FILE, evaluation_of
from hrm_agent.agents.description import find_agent_folder
from hrm_agent.agents.registry import AgentSpec, registry
from hrm_agent.files.reading import CheckpointError, read_text
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import UsageError, usage_errors, wants_help
from hrm_agent.launch.pages import Page
from hrm_agent.names.values import printable

USAGE = "python -m hrm_agent.agents [ID]"
COLUMNS = ("id", "environment", "core", "carry", "K", "parameters", "success greedy, sampled", "from")
WIDE = 1000  # columns of a pipe or a file: no line is broken there


@outliving_the_terminal()
def main() -> None:
    arguments = sys.argv[1:]
    if wants_help(arguments):
        print(Page(USAGE, "Without an id, the registered agents; with one, its model card.", (), {}).render())
        return
    with usage_errors():
        if len(arguments) > 1 or any("=" in a or a.startswith("-") for a in arguments):
            raise UsageError(f"{' '.join(arguments)}: expected the id of an agent or nothing; {USAGE}")
        if arguments:
            print(read_card(registry[arguments[0]]))
        else:
            terminal = Console()
            (terminal if terminal.is_terminal else Console(width=WIDE)).print(list_agents())


def read_card(spec: AgentSpec) -> str:
    """Raises: ValueError if the agent has no card."""
    if spec.folder is None:
        raise UsageError(f"agent {spec.id}: is made by {spec.entry} and has no card")
    path = find_agent_folder(spec.folder) / CARD_FILE
    if not path.is_file():
        raise UsageError(f"{path}: no such file; saving the agent again writes it")
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in read_text(path))


def list_agents() -> Table:
    """One line per registered agent, with the reason where one cannot be read."""
    table = Table(*COLUMNS, title="Registered agents")
    table.columns[0].no_wrap = True  # so that ids can be copied
    table.columns[0].min_width = max((len(agent_id) for agent_id in registry), default=0)
    for spec in registry.values():
        cells = (spec.id, *_headline(spec), spec.package or "register()")
        table.add_row(*(Text(printable(cell)) for cell in cells))  # as text: [bold] in an agent's file is no markup
    return table


def _headline(spec: AgentSpec) -> tuple[str, ...]:
    empty = ("",) * (len(COLUMNS) - 3)
    try:
        description = spec.describe()
    except CheckpointError as error:
        return (f"cannot be read: {error}", *empty)
    if description is None:
        return (f"made by {spec.entry}", *empty)
    policy, info = description["policy"], description["info"]
    parameters, evaluation = info.get("parameters"), evaluation_of(info)
    return (
        info.get("env") or "?",
        policy["core"],
        policy["carry"],
        str(policy["segments"]),
        "?" if parameters is None else f"{parameters:,}",
        "not evaluated" if evaluation is None else _success(evaluation),
    )


def _success(evaluation: dict[str, Any]) -> str:
    low, high = evaluation["success_ci95"]
    greedy, sampled = f"{evaluation['success']:.1%} ({low:.1%} to {high:.1%})", evaluation.get("sampled")
    return greedy if sampled is None else f"{greedy}, {sampled['success']:.1%}"


if __name__ == "__main__":
    main()
