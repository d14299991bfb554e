"""`env=ID` of anything that Gymnasium knows, without a file; and the settings recommended for an environment."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from omegaconf import OmegaConf

from commands import run_command
from forks import Forks
from hrm_agent.environments.make import check_env_id, make_vector_env
from hrm_agent.launch.cli import UsageError, check_jobs, command_overrides, compose_config
from hrm_agent.launch.hydra_plugin import GENERIC_READOUT, path_safe
from hrm_agent.launch.settings import config_folder, resolve, settings
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.trees import to_tensors
from hrm_agent.train import check_run
from hrm_envs import MazeVectorEnv

TINY = (
    "core.hidden_size=8", "core.inner_size=8", "algo.num_envs=4", "algo.rollout_steps=8", "algo.window=8",
    "algo.minibatch_windows=2", "total_steps=64", "eval_every=0", "eval_episodes=2", "test_episodes=2", "threads=1",
)  # fmt: skip


@pytest.fixture
def namespaced() -> Iterator[str]:
    """An id with a slash, as the Arcade Learning Environment's."""
    gym.register("TestSpace/Cart-v3", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv")
    yield "TestSpace/Cart-v3"
    del gym.registry["TestSpace/Cart-v3"]


def composed(*overrides: str) -> dict[str, Any]:
    return resolve(compose_config(list(overrides), "train"))


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "FrozenLake-v1", "Blackjack-v1", "Acrobot-v1", "CliffWalking-v1"])
def test_a_registered_id_needs_no_file(env_id: str) -> None:
    cfg = compose_config([f"env={env_id}"], "train")
    check_run(cfg)
    values = resolve(cfg)
    assert (values["env"]["id"], values["env"]["options"], values["readout"]) == (env_id, {}, GENERIC_READOUT)
    assert values["algo"]["gamma"] == 0.99


def test_an_id_with_a_namespace(namespaced: str) -> None:
    cfg = compose_config([f"env={namespaced}"], "train")
    check_run(cfg)
    assert resolve(cfg)["env"]["id"] == namespaced
    assert path_safe(namespaced) == "TestSpace-Cart-v3"


def test_an_id_with_a_module_is_imported_on_use(tmp_path: Path, forks: Forks) -> None:
    """In a process of its own, where nothing has been imported or registered yet."""
    (tmp_path / "strangers_worlds.py").write_text(
        textwrap.dedent("""
            import gymnasium
            gymnasium.register("Strange-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
                               max_episode_steps=20)
        """)
    )
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from hrm_agent.launch.cli import compose_config; "
        "from hrm_agent.train import check_run; cfg = compose_config(['env=strangers_worlds:Strange-v0'], 'train'); "
        "check_run(cfg); print(cfg.env.id, cfg.algo.gamma)"
    )
    (done,) = forks.run([["-c", script, str(tmp_path)]], [{}])
    assert done.stdout.split() == ["strangers_worlds:Strange-v0", "0.99"], done.stderr


def test_an_id_of_ours_with_its_module_has_the_shipped_settings() -> None:
    plain, named = composed("env=DynamicMaze-v0"), composed("env=hrm_envs:DynamicMaze-v0")
    assert named["env"].pop("id") == "hrm_envs:DynamicMaze-v0"
    assert plain["env"].pop("id") == "DynamicMaze-v0"
    assert named == plain
    env = make_vector_env("hrm_envs:DynamicMaze-v0", 2)
    assert isinstance(env, MazeVectorEnv)  # the fast one


def test_shipped_files_win() -> None:
    for file in (config_folder() / "env").glob("*.yaml"):
        if file.stem.startswith(("MiniGrid", "BabyAI", "MiniHack")):
            continue  # may not be installed
        shipped = compose_config([f"env={file.stem}"], "train").env
        assert shipped.id == file.stem
        assert shipped.total_steps == OmegaConf.load(file).total_steps


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=CartPole-v9", "did you mean CartPole-v"),
        ("env=DynamicMaz-v0", "did you mean DynamicMaze-v0?"),
        ("env=no_such_module:Maze-v0", "cannot import no_such_module: there is no such module; is its package"),
        ("env=hrm_envs:DynamicMaz-v0", "did you mean DynamicMaze-v0?"),
        ("env=TestSpac/Cart-v3", "did you mean TestSpace/Cart-v3?"),
    ],
)
def test_an_unknown_id_is_refused_with_the_nearest(override: str, message: str, namespaced: str) -> None:
    with pytest.raises(ValueError) as error:
        compose_config([override], "train")
    assert str(error.value).startswith(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_job_of_a_sweep_over_environments_is_checked(namespaced: str) -> None:
    seen = []
    check_jobs(
        ["--multirun", f"env=FrozenLake-v1,{namespaced},hrm_envs:CueMaze-v0"], "train", lambda c: seen.append(c.env.id)
    )
    assert seen == ["FrozenLake-v1", namespaced, "hrm_envs:CueMaze-v0"]
    with pytest.raises(ValueError, match="env=FrozenLak-v1"):
        check_jobs(["--multirun", "env=CartPole-v1,FrozenLak-v1"], "train", check_run)


def test_recommended_settings_lie_between_defaults_and_what_is_chosen() -> None:
    default, chosen = composed("env=CartPole-v1"), composed("env=CartPole-v1", "algo.value_coef=3", "objective=success")
    assert default["algo"]["value_coef"] == 1.0
    assert default["objective"] == "return"
    assert (chosen["algo"]["value_coef"], chosen["objective"]) == (3, "success")
    assert composed("env=DynamicMaze-v0")["algo"] == composed()["algo"]
    under_experiment = composed("+experiment=carry_budget", "env=CartPole-v1")
    assert under_experiment["core"]["hidden_size"] == 32  # the experiment's
    assert under_experiment["algo"]["value_coef"] == 1.0


@pytest.mark.thorough
@pytest.mark.parametrize("core", ["trm", "hrm", "feedforward", "gru"])
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_recommendations_fit_every_choice(core: str, algo: str) -> None:
    """A setting that only one algorithm or core knows must not reach another."""
    for env in ("CartPole-v1", "FrozenLake-v1"):
        cfg = compose_config([f"env={env}", f"core={core}", f"algo={algo}"], "train")
        check_run(cfg)
        assert cfg.algo.gamma in (0.98, 0.99)


def test_minigrids_mission_and_direction_reach_the_core() -> None:
    pytest.importorskip("minigrid")
    cfg = compose_config(["env=MiniGrid-DoorKey-5x5-v0"], "train")
    check_run(cfg)
    run, policy, _ = settings(resolve(cfg))
    env = make_vector_env(run.env, 1, run.env_options)
    made = Policy(policy, env.single_observation_space, env.single_action_space)
    assert made.encoder.length == 2  # what is seen; the direction with the words
    obs, _ = env.reset(seed=0)
    tokens = made.encoder(to_tensors(obs))
    for part in ("direction", "mission", "image"):
        changed = {**obs, part: np.zeros_like(obs[part]) if obs[part].any() else obs[part] + 1}
        assert (made.encoder(to_tensors(changed)) != tokens).any(), part


def test_a_folder_of_the_users_own_configurations(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "Mine.yaml").write_text(
        "id: CartPole-v1\noptions: {}\nreadout: mean\n"
        "encoder: {crop: 0, patch_size: 1, positions: none, prefix: 0}\n"
        "total_steps: 777\n"
    )
    given = ["env=Mine", "core=gru"]
    for flags in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        assert composed(*command_overrides([*flags, *given]))["total_steps"] == 777
    with pytest.raises(UsageError, match="no such folder"):
        command_overrides(["--config-dir", str(tmp_path / "absent")])


@pytest.mark.usefixtures("videos")
def test_a_stranger_is_trained_evaluated_and_resumed(
    tmp_path: Path, namespaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_command(monkeypatch, "train", f"env={namespaced}", *TINY, "env.options.max_episode_steps=9")
    (folder,) = tmp_path.glob("runs/*/*")
    assert "_TestSpace-Cart-v3_hrm_auto_seed0" in folder.name
    assert json.loads((folder / "eval.json").read_text())["env"] == namespaced
    run_command(monkeypatch, "train", f"resume={folder}", "total_steps=128")
    run_command(monkeypatch, "evaluate", f"run={folder}", "episodes=2", "out=eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["frames"] == 128


def test_the_configuration_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(monkeypatch, "train", "env=hrm_envs:CueMaze-v0", "--cfg", "job")
    assert "id: hrm_envs:CueMaze-v0" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = (\n", "SyntaxError: '(' was never closed"),
        ("\nimport no_such_dependency\n", "ModuleNotFoundError: No module named 'no_such_dependency' (line 2 of "),
        ("open('no_such_file')\n", "No such file or directory: 'no_such_file' (line 1 of "),
        ("raise SystemExit(3)\n", "SystemExit: 3 (line 1 of "),
    ],
)
def test_a_module_that_cannot_be_imported_says_where_it_fails(
    source: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_worlds.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=re.escape("env=broken_worlds:A-v0: cannot import broken_worlds: ")) as raised:
        check_env_id("broken_worlds:A-v0")
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
