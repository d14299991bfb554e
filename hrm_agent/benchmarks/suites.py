"""Suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hrm_agent.benchmarks.automatic import auto
from hrm_agent.benchmarks.cases import Case, Options
from hrm_agent.benchmarks.decisions import decision
from hrm_agent.benchmarks.deep_supervision import segment
from hrm_agent.benchmarks.environments import env
from hrm_agent.benchmarks.recipe import published
from hrm_agent.benchmarks.stacks import blocks
from hrm_agent.benchmarks.training import update

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
"""Measured when no suite is named: all but the one that takes minutes."""
