"""One thread and repeatable examples, so that a test that fails fails again; and where the time goes.

What every process would compile is compiled before the first test, by the process that `forks` forks from; the process
that hands out the tests imports no torch. The files that take longest come first.
Beside the outcome it says for which instruction sets the kernels were tested, and why not for others.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from forks import Forks, Server

LONG = (
    "test_docs.py", "test_data_parallel.py", "test_instruction_sets.py", "test_export.py", "test_trainer.py",
    "test_bench.py", "test_startup.py", "test_evaluation.py", "test_sweeps.py", "test_cli.py",
)  # fmt: skip
"""Files that a worker should not begin with when the others are done, the longest first (`--dist loadfile`)."""

pytest.register_assert_rewrite("played", "refusals", "runs", "stack_cases", "window_cases", "windows")
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")
SERVER = pytest.StashKey[Server]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the process that all workers fork from; it compiles while they collect."""
    gc.disable()  # until the tests are collected: imports make little garbage
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        config.stash[SERVER] = Server()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where that process is."""
    node.workerinput["forks"] = node.config.stash[SERVER].address


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].close()


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
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _few_timed_calls_and_small_videos() -> Iterator[Any]:
    """No test asserts how long a decision takes, or how large a maze is in a video; runs end without one.

    It is the longest part of a short run. Runs of tests that use `videos` end with theirs, and so do those of processes
    of their own.
    """
    from hrm_agent.training.trainer import Trainer

    record = Trainer._record_video
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm_agent.evaluation.cost.TIMED_CALLS", 2)
        patch.setattr("hrm_agent.evaluation.cost.WARM_UP_CALLS", 0)
        patch.setattr("hrm_agent.evaluation.video.SCALE", 8)
        patch.setattr(Trainer, "_record_video", lambda trainer, log, console: None)
        yield record


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch, _few_timed_calls_and_small_videos: Any) -> None:
    """Runs of this process end with their video, as users' do."""
    from hrm_agent.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_record_video", _few_timed_calls_and_small_videos)


@pytest.fixture(scope="session")
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Starts processes that need not import torch again."""
    if address := getattr(request.config, "workerinput", {}).get("forks"):
        yield Forks(address)
        return
    server = Server()
    yield Forks(server.address)
    server.close()


@pytest.fixture(autouse=True, scope="session")
def _compiled(request: pytest.FixtureRequest) -> None:
    """Where several workers would all begin with that."""
    if hasattr(request.config, "workerinput"):
        request.getfixturevalue("forks").wait()


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
