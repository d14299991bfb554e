"""An id from a file imports nothing; what a user types does. And a library that is missing is one line."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import hrm_agent
from commands import run_command, tiny_run
from forks import Forks
from hrm_agent import train
from hrm_agent.agents.agent import Agent
from hrm_agent.environments import make as environments
from hrm_agent.environments.make import make_env, make_vector_env
from hrm_agent.environments.sources import StoredId, check_stored
from hrm_agent.evaluation.level_sets import find_level_set
from hrm_agent.launch.solve import choose_task
from tiny import ACTIONS, GRID, MAZE, tiny_policy

EVIL = "import os, pathlib; pathlib.Path(os.environ['RAN']).touch()\n"
MINE = """
import gymnasium as gym
from hrm_envs import MazeEnv

gym.register("Mine-v0", entry_point=MazeEnv, vector_entry_point="hrm_envs:MazeVectorEnv")
"""


def save_agent(folder: Path, env: str, options: dict[str, Any] | None = None) -> Path:
    Agent(tiny_policy(), GRID, ACTIONS, {"env": env, "env_options": options or {}}).save(folder)
    return folder


def sent_folders(tmp_path: Path) -> list[tuple[Path, str, str]]:
    """Agents from a stranger, the command that meets each, and what it says; every module beside them is evil."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "minigrid").mkdir(parents=True)
    (elsewhere / "minigrid" / "__init__.py").write_text(EVIL)
    cases = {
        "known prefix": ("MiniGrid-Empty-5x5-v0", "minigrid.py", "evaluate", "do not fit"),
        "link out of it": ("BabyAI-GoToObj-v0", "minigrid", "evaluate", "do not fit"),
        "not installed": ("Mujoco/Walk-v0", "Mujoco.py", "evaluate", "no such environment"),
        "its own module": ("beside_it:M-v0", "beside_it.py", "shifts", "files import none"),
        "a standard module": ("unittest.__main__:M-v0", "unittest.py", "watch", "files import none"),
        "a core": ("DynamicMaze-v0", "ring.py", "evaluate", "core=ring: no such core"),
    }
    made = []
    for name, (env, module, command, said) in cases.items():
        folder = save_agent(tmp_path / name.replace(" ", "_"), env)
        if name == "link out of it":
            (folder / module).symlink_to(elsewhere / "minigrid")
        else:
            (folder / module).write_text(EVIL)
        if name == "a core":  # a folder that looks like an installed package with a core
            description = json.loads((folder / "agent.json").read_text())
            description["policy"]["core"] = "ring"
            (folder / "agent.json").write_text(json.dumps(description))
            metadata = folder / "ring-1.0.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ring\nVersion: 1.0\n")
            (metadata / "entry_points.txt").write_text("[hrm_agent.cores]\nring = ring:Ring\n")
        made.append((folder, command, said))
    return made


def test_nothing_in_a_folder_from_a_stranger_is_run(tmp_path: Path, forks: Forks) -> None:
    """Each command inside the folder, where `python -m` searches modules first."""
    for folder, command, said in sent_folders(tmp_path):
        ran = tmp_path / f"{folder.name} ran"
        before = sorted(folder.rglob("*"))
        (done,) = forks.run([["-m", f"hrm_agent.{command}", "run=."]], [{"RAN": str(ran)}], folder)
        assert not ran.exists(), folder.name
        assert done.returncode == 2, f"{folder.name}: {done.stdout}{done.stderr}"
        assert said in done.stderr, f"{folder.name}: {done.stderr}"
        assert "Traceback" not in done.stderr
        assert sorted(folder.rglob("*")) == before


def test_what_draws_an_environment_is_not_taken_from_the_folder_either(tmp_path: Path, forks: Forks) -> None:
    """CartPole imports pygame when it is drawn, long after it was made."""
    cart = gym.make("CartPole-v1")
    policy = tiny_policy(cart.observation_space, actions=cart.action_space, readout="mean")
    info = {"env": "CartPole-v1", "env_options": {"max_episode_steps": 2}}
    Agent(policy, cart.observation_space, cart.action_space, info).save(tmp_path)
    (tmp_path / "pygame.py").write_text(EVIL)
    command = ["-m", "hrm_agent.watch", "run=.", "episodes=1"]
    (done,) = forks.run([command], [{"RAN": str(tmp_path / "ran")}], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_stored_id_names_no_module_and_a_typed_one_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_by_me.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    agent = Agent.load(save_agent(tmp_path / "agent", "typed_by_me:Mine-v0", MAZE))
    said = r"env=typed_by_me:Mine-v0: a file names the module typed_by_me, .*, give env=typed_by_me:Mine-v0"
    for use in (
        agent.environment,
        lambda: make_env(agent.info["env"]),
        lambda: make_vector_env(agent.info["env"], 2),
        lambda: hrm_agent.make_env(agent.changed(hrm_agent.agents.agent.AgentOverrides(segments=2)).info["env"]),
    ):
        with pytest.raises(ValueError, match=said):
            use()
    assert "typed_by_me" not in sys.modules
    try:
        env_id, options = agent.environment("typed_by_me:Mine-v0")
        assert options == MAZE
        assert make_env(env_id, options).observation_space == GRID
        assert "typed_by_me" in sys.modules
        # Whoever has imported the module may play what the agent names.
        assert make_env(*agent.environment()).observation_space == GRID
        assert make_env(StoredId("Mine-v0"), MAZE).observation_space == GRID
    finally:
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("typed_by_me", None)


@pytest.mark.parametrize("env_id", ["hrm_envs:DynamicMaze-v0", "DynamicMaze-v0", "gymnasium:CartPole-v1"])
def test_an_id_of_a_known_package_is_the_same_from_a_file(env_id: str) -> None:
    stored, typed = (make_vector_env(kind(env_id), 2) for kind in (StoredId, str))
    assert stored.single_observation_space == typed.single_observation_space
    assert check_stored(env_id) == env_id


def test_a_stored_id_is_made_without_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def entry() -> gym.Env:
        seen.append([*sys.path])
        return gym.make("CartPole-v1")

    gym.register("Looks-v0", entry_point=entry)
    try:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
        before = [*sys.path]
        make_env(StoredId("Looks-v0"))
        make_env("Looks-v0")
        assert sys.path == before
    finally:
        del gym.registry["Looks-v0"]
    without, as_ever = seen
    assert str(tmp_path) not in without
    assert "" not in without
    assert as_ever == before


def test_a_level_set_and_a_model_import_nothing_either(tmp_path: Path) -> None:
    sets = tmp_path / "sets.json"
    sets.write_text(json.dumps({"mine": {"env": "antigravity:M-v0", "sha256": ""}}))
    with pytest.raises(ValueError, match="a file names the module antigravity"):
        find_level_set("mine", sets)
    info = {"task": "maze_path", "task_options": {"env": "antigravity:M-v0", "pool": 8}}
    with pytest.raises(ValueError, match=r"give task_options\.env=antigravity:M-v0"):
        choose_task(tmp_path, None, {}, info)
    assert choose_task(tmp_path, None, {"env": "mine:M-v0"}, info)[1]["env"] == "mine:M-v0"
    assert "antigravity" not in sys.modules


def interrupted(run: Any) -> Any:
    raise KeyboardInterrupt


def test_a_run_of_a_typed_module_goes_on_when_it_is_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "typed_for_a_run.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    run, env = tmp_path / "run", "env=typed_for_a_run:Mine-v0"
    settings = [a for a in tiny_run(run) if not a.startswith(("env=", "total_steps="))]
    try:
        run_command(monkeypatch, "train", env, *settings, "total_steps=32", "test_episodes=4")
        assert json.loads((run / "eval.json").read_text())["env"] == "typed_for_a_run:Mine-v0"
        gym.registry.pop("Mine-v0")
        sys.modules.pop("typed_for_a_run")
        files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        for typed, said in (
            ([], f"files import none; if you trust it, resume with {env}"),
            (["env=DynamicMaze-v0"], f"the run is one of {env}; the environment cannot change"),
        ):
            capsys.readouterr()
            with pytest.raises(SystemExit) as stopped:
                run_command(monkeypatch, "train", f"resume={run}", *typed, "total_steps=64")
            assert stopped.value.code == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
        assert "typed_for_a_run" not in sys.modules
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
        monkeypatch.setattr(train, "measure", interrupted)  # when all is trained
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run_command(monkeypatch, "train", f"resume={run}", env, "total_steps=64")
        assert Agent.load(run, best=False).info["frames"] == 64
        assert f"resume with: python -m hrm_agent.train {env} resume={run}" in capsys.readouterr().err
    finally:
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("typed_for_a_run", None)


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
