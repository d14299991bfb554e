"""`hrm_agent.learn` is the command inside a program: the same settings, messages and weights; nothing else changes."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import hrm_agent
import hrm_envs
from commands import TINY_RUN, run_command, tiny_run
from hrm_agent import Agent, Callback, learn
from hrm_agent.cores import CORES
from hrm_agent.launch.cli import compose_config, open_options
from hrm_agent.launch.python import compose_run
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.tensors.files import load_tensors
from hrm_agent.training.trainer import Trainer
from refusals import files, refusal
from runs import assert_equal_bits
from tiny import MAZE
from worlds import LEARNED, SMALL_CORE, Recall, Ring

TINY = {"core": SMALL_CORE, **LEARNED, "total_steps": 128}


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    """What a test registers is gone after it."""
    hrm_envs.register_envs()
    mappings: list[dict[str, Any]] = [gym.registry, CORES.registered]
    before = [dict(mapping) for mapping in mappings]
    yield
    for mapping, was in zip(mappings, before, strict=True):
        mapping.clear()
        mapping.update(was)


def maze() -> gym.Env:
    return gym.make("DynamicMaze-v0", **MAZE)


class StopAt(Callback):
    def __init__(self, frames: int) -> None:
        self.frames = frames

    def on_update(self, trainer: Trainer) -> bool:
        return trainer.frames < self.frames


# The same settings


@pytest.mark.parametrize(
    ("env", "given", "typed"),
    [
        ("DynamicMaze-v0", {}, []),
        (
            "CartPole-v1",
            {"core": "trm", "algo": {"name": "dqn", "capacity": np.int64(30_000)}, "init_from": Path("0")},
            ["core=trm", "algo=dqn", "algo.capacity=30_000", "init_from='0'"],
        ),
        (
            {"id": "DynamicMaze-v0", "options": {"rows": 4}, "encoder": {"crop": 2}},
            {"algo.learning_rate": 1e-3, "freeze": ["core", "encoder"], "max_seconds": np.float32(0.5)},
            ["env.options.rows=4", "env.encoder.crop=2", "algo.learning_rate=1e-3", "freeze=core,encoder",
             "max_seconds=0.5"],
        ),
        ("DynamicMaze-v0", {"experiment": "braid", "cuda": {"bf16": False}}, ["+experiment=braid", "cuda.bf16=false"]),
        (gym.make("hrm_envs:DynamicMaze-v0", view=2), {"loggers": []}, ["env.options.view=2", "loggers=[]"]),
    ],
)  # fmt: skip
def test_the_settings_are_those_of_the_command(env: Any, given: dict[str, Any], typed: list[str]) -> None:
    named = [f"env={env}"] if isinstance(env, str) else []
    command = compose_config(open_options([*named, *typed]), "train")
    composed = compose_run(env, given, None, "hrm_agent.train")
    assert settings(resolve(composed.config)) == settings(resolve(command))


def test_the_folder_is_that_of_the_command_with_a_number_where_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hydra.core.utils.datetime", _Noon)
    for before in ("", "_2"):
        folder = tmp_path / "runs/2026-11-30" / f"12-00-00_ALE-Pong_hrm_auto_seed0{before}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    gym.register("ALE/Pong", Recall)
    found = compose_run("ALE/Pong", {}, None, "hrm_agent.train").folder
    assert found == tmp_path / "runs/2026-11-30/12-00-00_ALE-Pong_hrm_auto_seed0_3"


class _Noon:
    @staticmethod
    def now() -> Any:
        import datetime

        return datetime.datetime(2026, 11, 30, 12)


# The same messages


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ({"total_step": 5}, "total_step=5"),
        ({"core": "trmm"}, "core=trmm"),
        ({"segments": "many"}, "segments=many"),
    ],
)
def test_what_is_wrong_is_said_in_the_line_of_the_command(
    given: dict[str, Any],
    typed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(monkeypatch, capsys, "train", ["env=DynamicMaze-v0", typed], tmp_path)
    with pytest.raises(ValueError) as error:
        learn("DynamicMaze-v0", **given)
    assert f"error: {error.value}\n" == line
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("env", "given", "said"),
    [
        (gym.Space, {}, "env=Space: it returns .*; expected a gymnasium"),
        ("DynamicMaze-v0", {"env.options.rows": object()}, r"env\.options\.rows=.*: expected a number, a text, True"),
        ("DynamicMaze-v0", {"hydra.run.dir": "x"}, r"hydra\.run\.dir: is the command's alone; .*folder=FOLDER"),
        ("DynamicMaze-v0", {"core=trm,hrm seed": 1}, r"'core=trm,hrm seed': expected the name of a setting"),
        ("DynamicMaze-v0", {"seed": "0,1"}, r"seed='0,1': expected an integer"),
        (
            "DynamicMaze-v0",
            {"callbacks": [lambda trainer: None]},
            r"callbacks\[0\]=function: expected an hrm_agent",
        ),
        ("DynamicMaze-v0", {"callbacks": [Callback]}, r"give an object of it, Callback\(\)"),
        ("DynamicMaze-v0", {"loggers": [3]}, r"loggers\[0\]=int: expected tensorboard, wandb, mlflow, or an object"),
        ("DynamicMaze-v0", {"resume": True}, "resume=True: of which run"),
        ("DynamicMaze-v0", {"resume": True, "folder": "nowhere"}, "folder=nowhere: no such folder"),
        ("DynamicMaze-v0", {"folder": "/dev/null"}, "folder=/dev/null: not a folder"),
        ("DynamicMaze-v0", {"folder": "/proc/none/run"}, "No such file.*; give another place with folder=FOLDER"),
        ("Nothing-v0", {}, "env=Nothing-v0: no such environment"),
    ],
)
def test_what_only_a_program_can_do_wrong(
    env: Any, given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        learn(env, **given)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == {}


def test_processes_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="in one process; with torchrun start"):
        learn("DynamicMaze-v0")


# The same weights, and a program that is left as it was


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "train", *tiny_run(folder), "total_steps=128")
    return folder


def process_state() -> dict[str, Any]:
    """What a program shares with a library that it calls."""
    return {
        "threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().tolist(),
        "random of Python": random.getstate(),
        "Hydra": GlobalHydra.instance().hydra,
        "Hydra's configuration": HydraConfig.instance().cfg,
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "hook of threads": threading.excepthook,
        "arguments": list(sys.argv),
        "search path": list(sys.path),
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "type of numbers": torch.get_default_dtype(),
    }


def test_stopped_by_a_callback_and_resumed_it_ends_as_the_command_does(
    by_command: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a program that has a Hydra of its own, from an environment object, twice in one process."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "app.yaml").write_text("value: 3\n")
    torch.set_num_threads(2)
    folder = tmp_path / "run"
    with hydra.initialize_config_dir(str(tmp_path / "own"), version_base="1.3"):
        before = process_state()
        stopped = learn(maze(), callbacks=StopAt(96), folder=folder, **TINY)
        after = process_state()
        assert {name for name in before if before[name] != after[name]} == set()
        assert stopped.info["frames"] == 96
        assert stopped.info["validation"]["episodes"] == 4
        assert (folder / "checkpoints" / "000000000096.safetensors").is_file()
        assert f"run folder: {folder}" in capsys.readouterr().err

        finished = learn(maze(), folder=folder, resume=True, quiet=True, **TINY)
        assert capsys.readouterr() == ("", "")
        assert hydra.compose("app").value == 3
    with hydra.initialize_config_dir(str(tmp_path / "own"), version_base="1.3"):
        searched = GlobalHydra.instance().config_loader().get_search_path().get_path()
        assert "hrm_agent" not in {element.provider for element in searched}
    assert finished.info["frames"] == 128
    for name in ("agents/last/agent.safetensors", "checkpoints/000000000128.safetensors"):
        assert_equal_bits(load_tensors(by_command / name)[0], load_tensors(folder / name)[0])
    assert (by_command / "config.yaml").read_text() == (folder / "config.yaml").read_text()


def test_the_command_resumes_a_run_of_a_program(
    by_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, raised = tmp_path / "run", []

    def in_a_thread() -> None:
        try:
            learn(
                {"name": "DynamicMaze-v0", "options": MAZE}, folder=folder, callbacks=[StopAt(64)], quiet=True, **TINY
            )
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=in_a_thread)  # where Python allows no handlers of signals
    thread.start()
    thread.join()
    assert raised == []
    with pytest.raises(ValueError, match=r"folder=.*/run: holds a run already; resume=True resumes it"):
        learn("DynamicMaze-v0", folder=folder)
    run_command(monkeypatch, "train", f"resume={folder}")
    name = "agents/last/agent.safetensors"
    assert_equal_bits(load_tensors(by_command / name)[0], load_tensors(folder / name)[0])


@pytest.mark.parametrize(("env", "lines"), [(Recall, 1), ({"id": "DynamicMaze-v0", "options": MAZE}, 0)])
def test_a_resumed_run_says_where_new_episodes_begin(
    env: Any, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(env, callbacks=StopAt(96), folder=tmp_path / "run", quiet=True, **TINY)
    assert capsys.readouterr().err == ""
    learn(env, folder=tmp_path / "run", resume=True, **TINY)
    assert capsys.readouterr().err.count("keeps no state (get_state), so new episodes begin") == lines


@pytest.mark.parametrize(
    ("env", "given", "said"),
    [
        ("CartPole-v1", {}, "env=CartPole-v1: the run is one of env=DynamicMaze-v0"),
        (Recall, {}, "env=Recall: the run is one of env=DynamicMaze-v0; the environment cannot change"),
        ("DynamicMaze-v0", {"core": "hrm"}, r"core\.name='hrm': the run has 'trm'; only total_steps, .* can change"),
        ("DynamicMaze-v0", {"core": "trm", "core.hidden_size": 16}, r"core\.hidden_size=16: the run has 8"),
        ("DynamicMaze-v0", {"experiment": "braid"}, "the run has"),
        ("DynamicMaze-v0", {"total_steps": "many"}, "total_steps='many': expected an integer"),
    ],
)
def test_what_cannot_change_in_a_run_that_is_resumed(
    env: Any, given: dict[str, Any], said: str, by_command: Path
) -> None:
    before = files(by_command)
    with pytest.raises(ValueError, match=said):
        learn(env, folder=by_command, resume=True, quiet=True, **given)
    assert files(by_command) == before


# An environment and a core of the program's own


def test_an_own_environment_and_core_are_trained_interrupted_and_resumed(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_update(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    folder, core = tmp_path / "run", {"name": Ring, "hidden_size": 8, "rounds": 1}
    own = {**LEARNED, "total_steps": 64, "env.options.delay": 2}
    with pytest.raises(
        KeyboardInterrupt, match=r"interrupted at 32 frames; checkpoint .*032\.safetensors; resume=True"
    ):
        learn(Recall, core=core, folder=folder, callbacks=Interrupt(), quiet=True, **own)

    gym.registry.pop("python/Recall")  # as in a new process
    CORES.registered.pop("Ring")
    with pytest.raises(ValueError, match=r"core=Ring: no such core.*register_core\(NAME, CLASS\)"):
        learn(Recall, folder=folder, resume=True)
    agent = learn(Recall, core=core, folder=folder, resume=True, quiet=True, **own)
    assert agent.info["frames"] == 64
    assert (agent.info["env"], agent.policy.config.core) == ("python/Recall", "Ring")
    env = hrm_agent.make_env(*agent.environment())
    assert env.unwrapped.delay == 2  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation)
    assert action.shape == ()
    assert Agent.load(folder, best=False).info["frames"] == 64


def test_tiny_settings_are_those_of_the_tests_of_commands() -> None:
    composed = compose_run(maze(), {"core": SMALL_CORE, **LEARNED}, None, "hrm_agent.train")
    command = compose_config(open_options([*TINY_RUN]), "train")
    assert resolve(composed.config) == resolve(command)
    assert compose_config(composed.command.split(" ")[3:], "train") == command  # which `run.json` says begins it
