"""Cores of other packages: by registration and by entry point."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forks import Forks
from hrm_agent.cores import CORES, Core, State, build_core, core_names, core_options, find_core, register_core
from hrm_agent.cores.feedforward import FeedForward


class Memory(Core):
    """Adds what it sees to what it holds."""

    def __init__(self, hidden_size: int, length: int, grid: Any = None, *, rate: float = 0.5) -> None:
        super().__init__(hidden_size, length, grid)
        self.rate = rate

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, self.length, self.hidden_size),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        held = state[0] + self.rate * x
        return held, (held,)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(CORES.registered)
    yield
    CORES.registered = before


@pytest.mark.usefixtures("registry")
def test_a_registered_core_is_built_by_its_name_with_its_options() -> None:
    register_core("memory", Memory)
    register_core("memory", Memory)  # the same again changes nothing
    core = build_core("memory", hidden_size=4, length=3, rate=2.0)
    y, _ = core(torch.ones(1, 3, 4), core.initial_state(1))
    assert (y == 2).all()
    assert core_options("memory") == {"rate": 0.5}
    assert "memory" in core_names()
    with pytest.raises(ValueError, match=r"no option 'rat'; did you mean rate"):
        build_core("memory", hidden_size=4, length=3, rat=1)


@pytest.mark.usefixtures("registry")
def test_what_cannot_be_registered_is_refused() -> None:
    class Demanding(Memory):
        def __init__(self, hidden_size: int, length: int, grid: Any = None, *, must: int) -> None:
            super().__init__(hidden_size, length, grid)

    for name, core, message in (
        ("trm", Memory, "already registered as TRM"),
        ("a:b", Memory, "expected letters"),
        ("", Memory, "expected letters"),
        ("other", dict, "no subclass"),
        ("other", Demanding, "the options must need default values"),
    ):
        with pytest.raises(ValueError, match=message):
            register_core(name, core)  # type: ignore[arg-type]
    assert "other" not in CORES


def test_an_unknown_core_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean feedforward"):
        find_core("feed_forward")
    assert find_core("feedforward") is FeedForward


def test_an_installed_packages_core_is_found_by_its_entry_point_and_a_broken_one_says_so(
    tmp_path: Path, forks: Forks
) -> None:
    """Discovery is importlib's own: a distribution is a folder of metadata on the path."""
    (tmp_path / "echoing.py").write_text(
        textwrap.dedent(
            """
            from hrm_agent.cores import Core

            class Echo(Core):
                def initial_state(self, batch_size):
                    return ()

                def forward(self, x, state):
                    return x, state
            """
        )
    )
    metadata = tmp_path / "echoing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echoing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hrm_agent.cores]\necho = echoing:Echo\nbroken = echoing:Missing\n")
    code = """
        from hrm_agent.cores import build_core, core_names
        assert {"echo", "broken", "trm"} <= set(core_names())
        assert type(build_core("echo", hidden_size=4, length=2)).__name__ == "Echo"
        try:
            build_core("broken", hidden_size=4, length=2)
        except ValueError as error:
            print(error)
    """
    (result,) = forks.run([["-c", textwrap.dedent(code)]], [{"PYTHONPATH": str(tmp_path)}])
    assert result.returncode == 0, result.stderr
    assert "core=broken: its package fails to load echoing:Missing (AttributeError" in result.stdout
