"""`core=NAME` of a core that another package registers, without a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands import run_command
from hrm_agent.agents.agent import Agent
from hrm_agent.cores import CORES, Core, State, register_core
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.train import check_run
from hrm_agent.training.trainer import Trainer

TINY = (
    "env=CartPole-v1", "core.hidden_size=8", "algo.num_envs=4", "algo.rollout_steps=8", "algo.window=8",
    "algo.minibatch_windows=2", "total_steps=32", "eval_every=0", "eval_episodes=2", "test_episodes=0", "threads=1",
)  # fmt: skip


class Leaky(Core):
    """Forgets at a rate; its state is a plain tuple, as the contract allows."""

    def __init__(
        self,
        hidden_size: int,
        length: int,
        grid: tuple[int, int] | None = None,
        *,
        leak: float = 0.5,
        label: str | None = None,
    ) -> None:
        super().__init__(hidden_size, length, grid)
        self.leak = leak
        self.scale = torch.nn.Parameter(torch.ones(hidden_size))

    def initial_state(self, batch_size: int) -> State:
        return (self.scale.new_zeros(batch_size, self.length, self.hidden_size),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        held = (1 - self.leak) * state[0] + self.scale * x
        return held, (held,)


@pytest.fixture
def leaky() -> Iterator[None]:
    before = dict(CORES.registered)
    register_core("leaky", Leaky)
    yield
    CORES.registered = before


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose core cannot be loaded."""
    metadata = tmp_path / "site" / "broken-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hrm_agent.cores]\nbroken = no_such_package:Core\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


def composed(*overrides: str) -> dict[str, Any]:
    return resolve(compose_config(list(overrides), "train"))


@pytest.mark.usefixtures("leaky")
def test_a_registered_cores_options_are_its_settings() -> None:
    assert composed("core=leaky")["core"] == {"name": "leaky", "hidden_size": 64, "leak": 0.5, "label": None}
    chosen = composed("core=leaky", "core.leak=0.25", "core.label=mine", "core.hidden_size=8")
    assert chosen["core"] == {"name": "leaky", "hidden_size": 8, "leak": 0.25, "label": "mine"}


def test_the_shipped_files_win() -> None:
    assert composed("core=gru")["core"]["memory_size"] == 128  # the class's own default is None


@pytest.mark.thorough
@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize("carry", ["full", "reset", "last_token", "gate", "output"])
def test_it_trains_and_is_loaded_with_every_carry_rule(
    carry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_command(monkeypatch, "train", *TINY, "core=leaky", "core.leak=0.25", f"carry={carry}", "hydra.run.dir=run")
    agent = Agent.load("run")
    assert (agent.policy.config.core, agent.policy.config.carry) == ("leaky", carry)
    assert agent.policy.config.core_options == {"leak": 0.25, "label": None}
    assert isinstance(agent.policy.core, Leaky)
    assert agent.policy.core.leak == 0.25


@pytest.mark.usefixtures("leaky", "broken")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("core=leakyy", "core=leakyy: no such core; did you mean leaky?"),
        ("core=trmm", "did you mean trm? Known: broken, convlstm, drc, drc_small, feedforward, gru"),
        ("core=leaky core.leek=1", "core.leek: no such setting; did you mean core.leak?"),
        ("core=leaky +core.leek=1", "core=leaky has no option 'leek'; did you mean leak?"),
        ("core=gru core.memory_sise=3", "core.memory_sise: no such setting; did you mean core.memory_size?"),
        ("core=broken", "core=broken: its package fails to load no_such_package:Core (ModuleNotFoundError"),
        ("--multirun core=trm,leakyy", "core=leakyy: no such core; did you mean leaky?"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("training began"))
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "train", *arguments.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert list(empty.iterdir()) == []


@pytest.mark.usefixtures("leaky")
def test_a_sweep_over_cores_is_checked_job_by_job() -> None:
    for core in ("trm", "leaky", "gru"):
        check_run(compose_config(["env=CartPole-v1", f"core={core}", "core.hidden_size=8"], "train"))


def test_options_that_no_file_can_hold_are_refused_at_registration() -> None:
    class Activated(Leaky):
        def __init__(self, hidden_size: int, length: int, grid: Any = None, *, activation: Any = torch.nn.SiLU) -> None:
            super().__init__(hidden_size, length, grid)

    with pytest.raises(ValueError, match=r"activated: .*activation.*SiLU.*expected a number, a text") as error:
        register_core("activated", Activated)
    assert "\n" not in str(error.value)
    assert "activated" not in CORES
