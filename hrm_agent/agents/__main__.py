"""`python -m hrm_agent.agents`: the registered agents and puzzle models. With an id: its model card."""

from __future__ import annotations

import sys
from pathlib import Path
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
from hrm_agent.supervised.files import read_info
from hrm_agent.supervised.registry import puzzle_models
from hrm_agent.training.model_folder import find_model

USAGE = "python -m hrm_agent.agents [ID]"
COLUMNS = ("id", "environment", "core", "carry", "K", "parameters", "success greedy, sampled", "from")
MODEL_COLUMNS = ("id", "task", "core", "segments", "parameters", "solved", "halting by itself")
WIDE = 1000  # columns of a pipe or a file: no line is broken there


@outliving_the_terminal()
def main() -> None:
    arguments = sys.argv[1:]
    if wants_help(arguments):
        about = "Without an id, the registered agents and puzzle models; with one, its model card."
        print(Page(USAGE, about, (), {}).render())
        return
    with usage_errors():
        if len(arguments) > 1 or any("=" in a or a.startswith("-") for a in arguments):
            raise UsageError(f"{' '.join(arguments)}: expected the id of an agent or nothing; {USAGE}")
        if arguments:
            print(find_card(arguments[0]))
        else:
            terminal = Console()
            wide = terminal if terminal.is_terminal else Console(width=WIDE)
            wide.print(list_agents())
            if puzzle_models:
                wide.print(list_models())


def find_card(name: str) -> str:
    """The card of an agent or a puzzle model. Raises: ValueError if neither has this name, or it has no card."""
    if name not in registry and name in puzzle_models:
        return read_page(find_model(puzzle_models[name], best=True).parent / CARD_FILE)
    return read_card(registry[name])


def read_card(spec: AgentSpec) -> str:
    """Raises: ValueError if the agent has no card."""
    if spec.folder is None:
        raise UsageError(f"agent {spec.id}: is made by {spec.entry} and has no card")
    return read_page(find_agent_folder(spec.folder) / CARD_FILE)


def read_page(path: Path) -> str:
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


def list_models() -> Table:
    """One line per registered puzzle model, with the reason where one cannot be read."""
    table = Table(*MODEL_COLUMNS, title="Registered puzzle models, for solve model=ID")
    table.columns[0].no_wrap = True
    for name in sorted(puzzle_models):
        table.add_row(*(Text(printable(cell)) for cell in (name, *_model_headline(puzzle_models[name]))))
    return table


def _model_headline(folder: Path) -> tuple[str, ...]:
    try:
        info = read_info(find_model(folder, best=True).parent)
        return tuple(str(info.get(key) or "?") for key in ("task", "core", "max_segments")) + _solved(info)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a folder of someone else may hold anything
        return (f"cannot be read: {error}", *[""] * (len(MODEL_COLUMNS) - 2))


def _solved(info: dict[str, Any]) -> tuple[str, ...]:
    """Parameters, and how many puzzles are solved after all segments and as halted."""
    parameters, found = info.get("parameters"), info.get("evaluation")
    size = "?" if parameters is None else f"{parameters:,}"
    if found is None:
        return size, "not evaluated", ""
    score, halted = "valid" if "valid" in found else "exact", found["halted"]
    low, high = found[f"{score}_ci95"]
    return (
        size,
        f"{found[score]:.1%} ({low:.1%} to {high:.1%})",
        f"{halted[score]:.1%} in {halted['segments']:.1f} segments",
    )


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
