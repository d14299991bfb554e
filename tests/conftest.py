"""One thread and repeatable examples, so that a test that fails fails again; and where the time goes.

What every process would compile is compiled before the workers start, and the files that take longest come first.
Beside the outcome it says for which instruction sets the kernels were tested, and why not for others.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import settings

from forks import Forks
from hrm_agent.kernels.cpu import build

LONG = (
    "test_docs.py", "test_data_parallel.py", "test_instruction_sets.py", "test_export.py", "test_trainer.py",
    "test_bench.py", "test_startup.py", "test_evaluation.py", "test_sweeps.py", "test_cli.py",
)  # fmt: skip
"""Files that a worker should not begin with when the others are done, the longest first (`--dist loadfile`)."""

pytest.register_assert_rewrite("played", "refusals", "runs", "stack_cases", "window_cases")
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Compile kernels and environments once, side by side, where several workers would all begin with that."""
    gc.disable()  # until the tests are collected: imports make little garbage
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        return
    from hrm_agent.environments.make import make_vector_env
    from tiny import MAZE

    build.begin()
    env = make_vector_env("DynamicMaze-v0", 1, MAZE)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with suppress(build.NoKernels):
        build.library()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def _modules_are_not_walked() -> None:
    """What is there before a file of tests stays: collecting garbage among a million such objects takes its time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bits depend on how many threads torch splits a sum over."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _few_timed_calls_and_small_videos() -> Iterator[None]:
    """No test asserts how long a decision takes, or how large a maze is in a video; every run ends with one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm_agent.evaluation.cost.TIMED_CALLS", 2)
        patch.setattr("hrm_agent.evaluation.cost.WARM_UP_CALLS", 0)
        patch.setattr("hrm_agent.evaluation.video.SCALE", 8)
        yield


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
