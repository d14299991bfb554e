"""The agents that ship with the package: one folder each, named by its id, with `agent.json`, the weights and a card.

`experiments/shipped_agents/build.py` writes them. `python -m hrm_agent.agents` lists every registered agent.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def folders() -> list[Path]:
    """The folders of the shipped agents, sorted by id."""
    here = Path(str(files(__name__)))
    return sorted(found.parent for found in here.glob("*/agent.json"))
