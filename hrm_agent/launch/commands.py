"""The commands, with a line each: what `hrm-agent --help` lists, and how messages spell a command.

Imports the standard library alone.
"""

from __future__ import annotations

import re

from hrm_agent.files.interrupts import SCRIPT

NAME = SCRIPT
COMMANDS = {
    "train": "train an agent in an environment, measure it, save it",
    "evaluate": "an agent on held-out levels, beside baselines and the bound",
    "watch": "a video of an agent's episodes",
    "play": "a local web page on which one watches an agent think and disturbs it",
    "plot": "learning curves and a table of runs, by group, with intervals over seeds",
    "study": "compare ideas: train arms over seeds, measure, test the differences, draw",
    "search": "search for settings with Optuna; several processes may work on one search",
    "sweep_table": "the runs below a folder in one table, the best first",
    "shifts": "an agent on mazes that differ from its own in one option at a time",
    "probe": "fit the linear probe of an agent's latents: how far is each cell from the goal?",
    "agents": "the agents that are registered, with their figures",
    "export": "one decision of an agent as an ONNX graph",
    "supervise": "train a core on labelled puzzles, or on the next character of a text",
    "solve": "a puzzle or text model on what was held out",
    "chess_positions": "chess positions judged by an engine, to train on",
    "generate": "a text model writes on from a prompt",
    "baselines": "train and measure agents of Stable-Baselines3 on the same environments",
    "bench": "the speed of each way to compute, and its error",
    "parity": "compare the cores with numbers computed by their authors' code",
}
"""By name; each is the module `hrm_agent.NAME`."""
USAGE = f"{NAME} COMMAND [KEY=VALUE] ..."
AFTERWARDS = (
    f"{NAME} COMMAND --help lists the settings of a command with a line on each. "
    "python -m hrm_agent COMMAND is the same."
)
_SPELLED = re.compile(r"python -m hrm_agent\.(\w+)")
_one_command = False


def begin_one_command() -> None:
    """From now on messages say `hrm-agent train` where they would say `python -m hrm_agent.train`."""
    global _one_command
    _one_command = True


def spelled(text: str) -> str:
    """A text with its commands spelled as this process was called."""
    return _SPELLED.sub(rf"{NAME} \1", text) if _one_command else text
