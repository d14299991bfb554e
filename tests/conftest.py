"""One thread and repeatable examples, so that a test that fails fails again.

Beside the outcome it says for which instruction sets the kernels were tested, and why not for others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forks import Forks
from hypothesis import settings

pytest.register_assert_rewrite("played", "refusals", "runs", "stack_cases", "window_cases")
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bits depend on how many threads torch splits a sum over."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts processes that need not import torch again."""
    forks = Forks()
    yield forks
    forks.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    tested = {value for r in reports for name, value in r.user_properties if name == "instruction set"}
    skipped = {
        r.longrepr[2].removeprefix("Skipped: ")
        for r in terminalreporter.stats.get("skipped", ())
        if "test_instruction_sets" in r.nodeid and isinstance(r.longrepr, tuple)
    }
    if tested:
        terminalreporter.write_line(f"kernels tested for: {', '.join(sorted(tested))}")
    for reason in sorted(skipped):
        terminalreporter.write_line(f"kernels not tested: {reason}")
