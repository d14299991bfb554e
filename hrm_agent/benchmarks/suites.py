"""Suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hrm_agent.benchmarks.automatic import auto
from hrm_agent.benchmarks.cases import Case, Options
from hrm_agent.benchmarks.deciding import decision
from hrm_agent.benchmarks.recipe import published
from hrm_agent.benchmarks.stacks import blocks
from hrm_agent.benchmarks.supervising import segment
from hrm_agent.benchmarks.training import update
from hrm_agent.benchmarks.worlds import env

SUITES: dict[str, Callable[[Options], Iterator[Case]]] = {
    "blocks": blocks,
    "decision": decision,
    "update": update,
    "auto": auto,
    "env": env,
    "segment": segment,
    "published": published,
}
DEFAULT = tuple(name for name in SUITES if name != "published")
"""What is measured where nothing is named: all but the one that takes minutes."""
