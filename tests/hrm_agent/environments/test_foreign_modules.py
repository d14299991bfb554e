"""A folder's files name an environment's module; they do not bring it. And a library that is missing is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from commands import run_command
from hrm_agent.agents.agent import Agent
from hrm_agent.environments import make as environments
from hrm_agent.environments.make import make_env, make_vector_env
from tiny import ACTIONS, GRID, tiny_policy

EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """An agent that somebody sent, with a module beside it."""
    Agent(tiny_policy(), GRID, ACTIONS, {"env": "beside_it:M-v0"}).save(tmp_path)
    (tmp_path / "beside_it.py").write_text(EVIL)
    return tmp_path


def test_a_module_beside_an_agent_is_not_run(sent: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(sent)
    monkeypatch.syspath_prepend(str(sent))  # as `python -m` does with the working folder
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, "evaluate", "run=.")
    assert stopped.value.code == 2
    assert "if you trust it, say env=beside_it:M-v0 yourself" in capsys.readouterr().err
    assert not (sent / "ran").exists()
    assert "beside_it" not in sys.modules


def test_a_module_from_elsewhere_or_one_that_the_user_names_is_imported(
    sent: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent.load(sent)
    monkeypatch.syspath_prepend(str(sent))
    assert agent.environment(env="beside_it:M-v0") == ("beside_it:M-v0", {})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "beside_it.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(elsewhere), *(p for p in sys.path if p != str(sent))])
    assert agent.environment() == ("beside_it:M-v0", {})


@pytest.mark.parametrize("in_a_run", [True, False])
def test_a_folder_called_agents_is_a_run_only_with_a_run_beside_it(
    in_a_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents kept in ~/agents: what is installed elsewhere in ~ did not come with them."""
    folder = tmp_path / "agents" / "mine"
    Agent(tiny_policy(), GRID, ACTIONS, {"env": "installed_at_home:M-v0"}).save(folder)
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "installed_at_home.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    if in_a_run:
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ValueError, match="brings it along"):
            Agent.load(folder).environment()
    else:
        assert Agent.load(folder).environment() == ("installed_at_home:M-v0", {})


def test_nothing_beside_an_agent_of_a_sent_run_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the sender left out what makes the folder a run."""
    Agent(tiny_policy(), GRID, ACTIONS, {"env": "beside_runs_agents:M-v0"}).save(tmp_path / "agents" / "last")
    (tmp_path / "beside_runs_agents.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="brings it along"):
        Agent.load(tmp_path).environment()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that are looked up in the registry, in order."""
    seen: list[str] = []
    check = environments.check_env_id
    monkeypatch.setattr(environments, "check_env_id", lambda env_id: (seen.append(env_id), check(env_id))[1])
    return seen


def test_an_id_is_looked_up_once_for_a_whole_vector(counted: list[str]) -> None:
    make_vector_env("CartPole-v1", 5).close()
    assert counted == ["CartPole-v1"]


@pytest.mark.parametrize(
    "error",
    [
        gym.error.DependencyNotInstalled("Box2D is not installed,\nrun `pip install box2d`"),
        ImportError("Box2D is not installed,\nrun `pip install box2d`"),
    ],
)
def test_a_library_that_an_environment_lacks_is_one_line(error: Exception) -> None:
    def lacking(**_: Any) -> gym.Env:
        raise error

    gym.register("Lacking-v0", lacking)
    try:
        for make in (lambda: make_vector_env("Lacking-v0", 1), lambda: make_env("Lacking-v0")):
            with pytest.raises(ValueError, match="env=Lacking-v0: Box2D is not installed, run `pip install box2d`"):
                make()
    finally:
        del gym.registry["Lacking-v0"]
