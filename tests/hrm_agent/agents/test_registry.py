"""Agents by name: registered by hand, shipped, or found in other installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import hrm_agent
from commands import run_command
from forks import Forks
from hrm_agent import Agent
from hrm_agent.agents import registry as registration
from hrm_agent.agents.__main__ import main as list_agents
from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import AgentRegistry, load_agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.files.reading import CheckpointError
from hrm_agent.shifts import shifts
from hrm_agent.watch import watch
from tiny import ACTIONS, GRID, MAZE, grids, tiny_policy

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted(folder.parent.name for folder in (ROOT / "hrm_agent" / "agents").glob("*/agent.json"))
RECORDS = {r["agent"]: r for r in json.loads((ROOT / "experiments" / "shipped_agents" / "results.json").read_text())}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    specs = dict(registration.registry)
    yield
    registration.registry.registered = specs


def tiny_agent(**changes: Any) -> Agent:
    return Agent(tiny_policy(**changes), GRID, ACTIONS, {"env": "DynamicMaze-v0", "env_options": MAZE, "frames": 7})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_agent().save(tmp_path / "agent")
    return tmp_path / "agent"


def same_weights(one: Agent, other: Agent) -> bool:
    theirs = other.policy.state_dict()
    return all(torch.equal(t, theirs[name]) for name, t in one.policy.state_dict().items())


def test_an_agent_is_made_from_a_folder_a_callable_and_an_entry_point(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_agents.py").write_text(
        f"class Zoo:\n    @staticmethod\n    def small():\n        return {str(folder)!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    hrm_agent.register("A-v0", folder)
    hrm_agent.register("B-v1", str(folder))
    hrm_agent.register("C-v2", tiny_agent)
    hrm_agent.register("D-v3", "my_agents:Zoo.small")
    assert "my_agents" not in sys.modules  # nothing is imported before it is made
    for name in ("A-v0", "B-v1", "C-v2", "D-v3"):
        assert same_weights(hrm_agent.make(name), tiny_agent())
        assert name in hrm_agent.registry
        lesioned = hrm_agent.make(name, carry="reset", segments=3)
        assert (lesioned.policy.config.carry, lesioned.policy.segments) == ("reset", 3)
    assert list(hrm_agent.registry) == sorted(hrm_agent.registry)
    assert hrm_agent.registry["D-v3"].entry == "my_agents:Zoo.small"


def test_a_folder_stays_the_same_when_the_working_folder_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hrm_agent.register("A-v0", "agent")
    monkeypatch.chdir("/")
    assert same_weights(hrm_agent.make("A-v0"), tiny_agent())


@pytest.mark.parametrize(
    "name", ["Maze", "Maze-v", "maze_v0", "-v0", "v0-Maze", "Maze--v0", "a b-v0", "Maze-v0 ", "ä-v0"]
)
def test_a_badly_formed_id_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="expected letters and digits in groups joined by -"):
        hrm_agent.register(name, folder)


def test_a_name_stands_for_one_thing(folder: Path, tmp_path: Path) -> None:
    hrm_agent.register("A-v0", folder)
    hrm_agent.register("A-v0", str(folder))  # the same: nothing happens
    with pytest.raises(ValueError, match="A-v0: already registered"):
        hrm_agent.register("A-v0", tmp_path / "other")
    assert hrm_agent.registry["A-v0"].folder == folder
    with pytest.raises(ValueError, match=r"no folder, no package\.module:callable and no callable"):
        hrm_agent.register("B-v0", 3)  # type: ignore[arg-type]


def test_what_cannot_be_made_says_why_on_one_line(tmp_path: Path) -> None:
    hrm_agent.register("Maze-Absent-v0", tmp_path / "absent")
    hrm_agent.register("Maze-Module-v0", "no_such_module:agent")
    hrm_agent.register("Maze-Name-v0", "hrm_agent.agents.agent:no_such_agent")
    hrm_agent.register("Maze-Number-v0", lambda: 7)  # type: ignore[arg-type, return-value]
    for name, reason in {
        "Maze-Absent-v0": "no such folder",
        "Maze-Module-v0": "cannot import no_such_module",
        "Maze-Name-v0": "hrm_agent.agents.agent:no_such_agent does not exist",
        "Maze-Number-v0": "returned 7, expected an Agent or a folder",
        "Maze-Modul-v0": "did you mean Maze-Module-v0",
        "no_such_module:Maze-v0": "cannot import no_such_module",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            hrm_agent.make(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(KeyError):
        hrm_agent.registry["Maze-Modul-v0"]
    with pytest.raises(ValueError, match="segment=3: an agent has no such setting"):
        hrm_agent.make("Maze-Name-v0", segment=3)


def test_an_environment_is_checked_and_grids_of_other_sizes_fit(folder: Path) -> None:
    hrm_agent.register("A-v0", folder)
    same = gym.make("DynamicMaze-v0", **MAZE)
    larger = gym.make_vec("DynamicMaze-v0", num_envs=2, vectorization_mode="vector_entry_point", rows=5, cols=4)
    assert hrm_agent.make("A-v0", env=same).observation_space == same.observation_space
    fitted = hrm_agent.make("A-v0", env=larger)
    assert fitted.observation_space == larger.single_observation_space
    actions, _ = fitted.predict(larger.reset(seed=0)[0])
    assert actions.shape == (2,)
    with pytest.raises(ValueError, match=r"agent A-v0: .* do not fit"):
        hrm_agent.make("A-v0", env=gym.make("CartPole-v1"))


class Spoken(gym.Env):
    """Observations that agents see only in a wrapper."""

    observation_space = gym.spaces.Dict(
        {"seen": gym.spaces.Discrete(3), "said": gym.spaces.Text(4, charset="ab"), "lit": gym.spaces.MultiBinary(2)}
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self, quiet: bool = False, render_mode: str | None = None) -> None:
        self.quiet, self.render_mode = quiet, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"seen": 1, "said": "" if self.quiet else "ab", "lit": np.ones(2, np.int8)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, True, False, {}


@pytest.fixture
def spoken() -> Iterator[str]:
    gym.register("Spoken-v0", entry_point=Spoken)
    yield "Spoken-v0"
    gym.registry.pop("Spoken-v0")


def test_an_agent_trained_in_wrappers_plays_what_make_env_makes(spoken: str, tmp_path: Path) -> None:
    trained_in = make_vector_env(spoken, 1)
    spaces = trained_in.single_observation_space, trained_in.single_action_space
    policy = tiny_policy(spaces[0], actions=spaces[1], readout="mean", positions="none", crop=0, patch=1)
    Agent(policy, *spaces, {"env": spoken}).save(tmp_path / "agent")
    hrm_agent.register("Spoken-MLP-v0", tmp_path / "agent")
    env = hrm_agent.make_env(spoken)
    agent = hrm_agent.make("Spoken-MLP-v0", env=env)
    action, _ = agent.predict(env.reset(seed=0)[0])
    assert action in env.action_space
    for bare in (gym.make(spoken), gym.make_vec(spoken, num_envs=2, vectorization_mode="sync")):
        with pytest.raises(ValueError, match=r"agent Spoken-MLP-v0: .*; make it by hrm_agent\.make_env") as caught:
            hrm_agent.make("Spoken-MLP-v0", env=bare)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="do not fit") as caught:
        hrm_agent.make("Spoken-MLP-v0", env=gym.make("CartPole-v1"))
    assert "make_env" not in str(caught.value)  # wrappers would not help there


def test_make_env_takes_options_and_refuses_on_one_line(spoken: str) -> None:
    quiet, loud = (hrm_agent.make_env(spoken, {"quiet": quiet}).reset(seed=0)[0]["said"] for quiet in (True, False))
    assert not np.array_equal(quiet, loud)
    assert hrm_agent.make_env("hrm_envs:DynamicMaze-v0", MAZE).observation_space == GRID
    for arguments, reason in (
        (("Spokn-v0",), "did you mean Spoken-v0"),
        (("no_such_module:Maze-v0",), "cannot import no_such_module"),
        ((spoken, {"loud": True}), "env=Spoken-v0: .*loud"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            hrm_agent.make_env(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(AttributeError, match="no_such_name"):
        hrm_agent.no_such_name  # noqa: B018


def test_an_agent_of_minigrid_plays_minigrid(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    env = hrm_agent.make_env("MiniGrid-DoorKey-5x5-v0")
    policy = tiny_policy(
        env.observation_space, actions=env.action_space, readout="mean", positions="none", crop=0, patch=1
    )
    Agent(policy, env.observation_space, env.action_space).save(tmp_path)
    hrm_agent.register("DoorKey-TRM-v0", tmp_path)
    assert hrm_agent.make("DoorKey-TRM-v0", env=env).predict(env.reset(seed=0)[0])[0] in env.action_space
    with pytest.raises(ValueError, match=r"make it by hrm_agent\.make_env"):
        hrm_agent.make("DoorKey-TRM-v0", env=gym.make("MiniGrid-DoorKey-5x5-v0"))


# Another installed package: what pip leaves behind of one, without pip.
PLUGIN = """
import sys
from pathlib import Path
import hrm_agent
sys.modules["imported_by_discovery"] = sys.modules[__name__]
def guest(): return Path(__file__).parent / "guest"
def register_all(): hrm_agent.register("Guest-Many-v0", guest()); hrm_agent.register("Guest-Many-v1", guest)
"""
ENTRY_POINTS = """
[hrm_agent.agents]
Guest-v0 = guest_agents:guest
Guest-Broken-v0 = no_such_module:agent
__root__ = guest_agents:register_all
broken = guest_agents:no_such_function
"""
PROGRAM = """
import sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import hrm_agent
    assert not said and "guest_agents" not in sys.modules
    assert {"Guest-v0", "Guest-Many-v0", "Guest-Many-v1", "Guest-Broken-v0"} <= set(hrm_agent.registry)
    list(hrm_agent.registry)
(warning,) = said  # once
assert "broken = guest_agents:no_such_function is left out" in str(warning.message), warning
assert "guest-package" in str(warning.message), warning
for name in ("Guest-v0", "Guest-Many-v0", "Guest-Many-v1"):
    print(hrm_agent.make(name, segments=2), hrm_agent.registry[name].package)
try:
    hrm_agent.make("Guest-Broken-v0")
except ValueError as error:
    print(error)
"""


def test_the_agents_of_another_package_are_found_through_its_entry_points(
    folder: Path, tmp_path: Path, forks: Forks
) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    info = site / "guest_package-1.0.dist-info"
    info.mkdir(parents=True)
    empty.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "guest_agents.py").write_text(PLUGIN)
    folder.rename(site / "guest")
    paths = os.pathsep.join([str(site), str(ROOT), str(ROOT / "envs")])
    (done,) = forks.run([["-c", PROGRAM]], [{"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}], empty)
    assert done.returncode == 0, done.stderr
    *made, broken = done.stdout.splitlines()
    assert len(made) == 3
    assert all("segments=2" in line for line in made)
    assert made[0].endswith("guest-package")
    assert (
        broken
        == "agent Guest-Broken-v0: cannot import no_such_module (ModuleNotFoundError: No module named 'no_such_module')"
    )


def test_a_registered_agent_plays_as_its_folder_does(folder: Path, tmp_path: Path) -> None:
    hrm_agent.register("A-v0", folder)
    by_name, by_folder = (evaluate(**which, episodes=20) for which in ({"agent": "A-v0"}, {"run": str(folder)}))  # type: ignore[arg-type]
    assert by_name["levels"] == by_folder["levels"]
    assert (by_name["agent"], by_name["run"]) == ("A-v0", None)
    assert (by_folder["agent"], by_folder["run"]) == (None, str(folder))
    shifted = shifts(agent="A-v0", episodes=4, axes=["doors"])
    assert shifted["agent"] == "A-v0"
    assert watch(agent="A-v0", episodes=1, out=str(tmp_path / "film.gif")).read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize("command", ["evaluate", "watch", "shifts"])
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "expected run=FOLDER or agent=ID, one of the two, got neither"),
        (["run=a", "agent=A-v0"], "one of the two, got run=a and agent=A-v0"),
        (["agent=DynamicMaze-TRN-v0"], "did you mean DynamicMaze-TRM-v0?"),
    ],
)
def test_the_commands_take_a_run_or_an_agent(
    command: str, given: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, command, *given)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert line in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_every_agent_and_a_name_prints_its_card(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hrm_agent.register("A-v0", folder)
    hrm_agent.register("B-v0", tiny_agent)
    hrm_agent.register("C-v0", tmp_path / "absent")
    monkeypatch.setenv("COLUMNS", "240")

    def shown(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hrm_agent.agents", *arguments])
        list_agents()
        return str(capsys.readouterr().out)

    table = shown()
    assert all(name in table for name in (*SHIPPED, "A-v0", "B-v0", "C-v0"))
    assert "no such folder" in table
    assert all(f"{RECORDS[name]['success']:.1%}" in table for name in SHIPPED)
    for name in SHIPPED:
        description = hrm_agent.registry[name].describe()
        assert description is not None
        assert f"), {description['info']['evaluation']['sampled']['success']:.1%} " in table
    assert shown("A-v0") == (folder / "README.md").read_text() + "\n"
    for wrong in (["A-v1"], ["B-v0"], ["A-v0", "B-v0"], ["run=A-v0"]):
        with pytest.raises(SystemExit) as ended:
            shown(*wrong)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_registry_that_nobody_filled_holds_what_ships() -> None:
    fresh = AgentRegistry()
    assert set(SHIPPED) <= set(fresh)
    assert all(fresh[name].package == "hrm-agent" for name in SHIPPED)
    with pytest.raises(CheckpointError):
        registration.AgentSpec("A-v0", Path("absent")).describe()


def test_registering_before_the_first_look_breaks_nothing(folder: Path) -> None:
    fresh = AgentRegistry()
    with pytest.raises(ValueError, match=f"{SHIPPED[0]}: already registered"):
        fresh.add(SHIPPED[0], registration.AgentSpec(SHIPPED[0], folder))
    fresh.add("A-v0", registration.AgentSpec("A-v0", folder))
    assert {"A-v0", *SHIPPED} <= set(fresh)
    assert fresh[SHIPPED[0]].package == "hrm-agent"


def test_an_agent_of_a_plugin_whose_name_is_taken_is_left_out_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint(name, "guest_agents:guest", registration.GROUP) for name in ("A-v0", SHIPPED[0], "Guest-v0")]
    monkeypatch.setattr(registration, "entry_points", lambda group: points)
    fresh = AgentRegistry()
    fresh.add("A-v0", registration.AgentSpec("A-v0", folder))
    with pytest.warns(UserWarning, match="already registered") as warned:
        assert set(fresh) == {"A-v0", "Guest-v0", *SHIPPED}
    assert len(warned) == 2
    assert fresh["A-v0"].folder == folder


def test_which_agent_of_a_registered_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, segments in (("best", 1), ("last", 3)):
        tiny_agent(segments=segments).save(run / "agents" / name)
    hrm_agent.register("Run-v0", run)
    hrm_agent.register("Called-v0", lambda: run)
    hrm_agent.register("Made-v0", tiny_agent)
    for name in ("Run-v0", "Called-v0"):
        assert hrm_agent.make(name).policy.segments == 1
        assert load_agent(None, name, best=True).policy.segments == 1
        assert load_agent(None, name, best=False).policy.segments == 3
    assert load_agent(None, "Run-v0", False, AgentOverrides("reset")).policy.config.carry == "reset"
    with pytest.raises(ValueError, match="which=last: agent Made-v0 is made by a function") as caught:
        load_agent(None, "Made-v0", best=False)
    assert "\n" not in str(caught.value)


def test_the_shipped_agents_are_small() -> None:
    files = [p for p in (ROOT / "hrm_agent" / "agents").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) < 2_000_000
    assert len(SHIPPED) >= 1
    assert set(RECORDS) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_agent_plays_as_its_card_says(name: str) -> None:
    card = hrm_agent.make(name).info["evaluation"]
    record, episodes = RECORDS[name], 100
    assert (card["success"], card["success_ci95"], card["spl"]) == tuple(
        record[k] for k in ("success", "success_ci95", "spl")
    )
    assert record["levels"]["success"].count("1") == round(card["success"] * card["levels"])
    report = evaluate(agent=name, episodes=episodes, baselines=False)
    # Level by level; a tie in the logits may fall the other way where a machine rounds otherwise.
    mine, theirs = report["levels"]["success"], record["levels"]["success"][:episodes]
    assert sum(a != b for a, b in zip(mine, theirs, strict=True)) <= 2
    low, high = report["success_ci95"]
    assert low <= card["success_ci95"][1]
    assert high >= card["success_ci95"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_evaluating_a_shipped_agent_repeats_its_card(name: str) -> None:
    from hrm_agent.agents.card import evaluation_facts

    assert evaluation_facts(evaluate(agent=name)) == hrm_agent.make(name).info["evaluation"]


def test_environments_are_made_by_module_and_name_from_anywhere(tmp_path: Path) -> None:
    """`module:id` imports the module, which registers; no checkout near."""
    code = (
        "import gymnasium as gym; env = gym.make('hrm_envs:DynamicMaze-v0', rows=3, cols=3, walls=1, doors=1);"
        "obs, _ = env.reset(seed=1); assert obs in env.observation_space; print(env.spec.id, obs.shape)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "envs")}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["DynamicMaze-v0", "(7,", "7)"]


def test_observations_of_a_made_agent_are_its_own(folder: Path) -> None:
    hrm_agent.register("A-v0", folder)
    obs = grids(5).numpy()
    assert np.array_equal(hrm_agent.make("A-v0").predict(obs)[0], tiny_agent().predict(obs)[0])
