"""A run loses nothing to an evaluation that is stopped, never ends or fails, whatever it meets."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from commands import TINY_RUN, run_command
from hrm_agent import supervise, train
from hrm_agent.agents.agent import Agent
from hrm_agent.algos.ppo import PPO
from hrm_agent.evaluation import episodes, video
from hrm_agent.evaluation.episodes import PolicyActor, ReplanActor, run_in_threads
from hrm_agent.launch.cli import check_jobs
from hrm_agent.parallel import memory as memory_module
from hrm_agent.parallel.memory import describe_out_of_memory, is_out_of_memory
from hrm_agent.parallel.stopping import Stopped
from hrm_agent.parallel.threads import Threads
from hrm_agent.training import learners
from hrm_agent.training import trainer as trainer_module
from hrm_agent.training.loop import Interrupted
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from runs import assert_equal_bits, everything
from tiny import MAZE, make_trainer

pytestmark = pytest.mark.usefixtures("videos")
FAILING = "failing_envs:Failing-v0"
SETTINGS: dict[str, Any] = {"eval_every": 64, "video_every": 64, "checkpoint_every": 64, "keep_checkpoints": 9}
# 4 updates of 32 frames: evaluated, recorded and kept after the second and the last.
MOMENTS = [(duty, frames) for duty in ("validate", "_record_video") for frames in (64, 128)]


@pytest.fixture(scope="module", autouse=True)
def _videos_are_not_encoded() -> Iterator[None]:
    """Most of what so short a run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "encode_gif", lambda frames, fps: b"GIF")
        patch.setattr(video, "_compose", lambda picture, *_: picture)
        yield


def watch_acts(
    trainer: Trainer, duty: str, frames: int, begins: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Call `begins` in the third decision of that duty at so many frames; the list counts those that come after."""
    act, perform = PolicyActor.act, getattr(trainer, duty)
    here, acts = [False], [0]

    def watched(self: PolicyActor, obs: Any) -> Any:
        if here[0]:
            acts[0] += 1
            if acts[0] == 3:
                begins()
        return act(self, obs)

    def performed(*arguments: Any) -> None:
        here[0] = trainer.frames == frames
        try:
            perform(*arguments)
        finally:
            here[0] = False

    monkeypatch.setattr(PolicyActor, "act", watched)
    monkeypatch.setattr(trainer, duty, performed)
    return acts


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/") and "per_second" not in k} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    assert [p.name for p in sorted((one / "checkpoints").iterdir())] == [
        p.name for p in sorted((other / "checkpoints").iterdir())
    ]
    for name in ("best", "last"):
        weights = Path("agents") / name / "agent.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes()
        infos = [dict(Agent.load(folder / "agents" / name).info) for folder in (one, other)]
        for info in infos:
            info.pop("seconds")
        assert infos[0] == infos[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, **SETTINGS).run(Console())
    return folder


@pytest.mark.parametrize(("duty", "frames"), MOMENTS)
def test_a_signal_in_an_evaluation_or_a_video_stops_at_once_and_resuming_repeats_it(
    duty: str, frames: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make_trainer(tmp_path, **SETTINGS)
    with monkeypatch.context() as patch:
        acts = watch_acts(stopped, duty, frames, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(Interrupted, match=f"interrupted at {frames} frames; checkpoint"):
            stopped.run(Console())
        assert acts == [3]  # the step in which it came was the last
    resumed = make_trainer(tmp_path, **SETTINGS)
    resumed.resume()
    assert resumed.frames == frames
    resumed.run(Console())
    assert_same_run(whole, tmp_path)
    reference = make_trainer(whole, **SETTINGS)
    reference.resume()
    assert_equal_bits(everything(reference), everything(resumed))


def test_what_is_left_to_do_is_checked_when_it_is_read(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_steps=32)
    trainer._left = ["finish"]
    trainer.save_checkpoint()
    with pytest.raises(ValueError, match=r"left=\['finish'\]: expected some of validate, curve, video, checkpoint"):
        make_trainer(tmp_path, total_steps=32).resume()


def test_the_training_is_on_disk_before_the_last_validation_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the folder, made in the validation, is what `kill -9` leaves."""
    run, killed = tmp_path / "run", tmp_path / "killed"
    trainer = make_trainer(run)
    with monkeypatch.context() as patch:
        watch_acts(trainer, "validate", 128, lambda: shutil.copytree(run, killed) and None, patch)
        trainer.run(Console())
    assert Agent.load(killed / "agents" / "last").info["frames"] == 128
    assert not (killed / "agents" / "best").exists()
    resumed = make_trainer(killed)
    resumed.resume()
    assert resumed.done == 1
    resumed.run(Console())
    assert_same_run(run, killed)
    assert_equal_bits(everything(trainer), everything(resumed))


def test_a_finished_run_that_is_resumed_validates_again_on_other_levels_only(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_steps=32).run(Console())
    for levels, lines in ((4, 1), (6, 2)):
        again = make_trainer(tmp_path, total_steps=32, eval_episodes=levels)
        again.resume()
        again.run(Console())
        assert again.validation["episodes"] == levels
        assert sum("validation/success" in line for line in logged(tmp_path)) == lines


def test_threads_stop_when_the_calling_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = Event(), []

    def play(*arguments: Any, check_stop: Callable[[], None], workers: int) -> None:
        if arguments[4] == 0:  # the part that begins with level 0
            begun.wait(30)
            raise KeyboardInterrupt
        begun.set()
        try:
            while True:
                check_stop()
        except Stopped:
            ended.append(True)
            raise

    monkeypatch.setattr(episodes, "run_episodes", play)
    threads = Threads(2)
    with pytest.raises(KeyboardInterrupt):
        run_in_threads(ReplanActor, "DynamicMaze-v0", MAZE, 4, threads=threads)
    assert threads._pool is not None
    threads._pool.shutdown()  # waits for all
    assert ended == [True]


def command(folder: Path, *more: str) -> list[str]:
    """A run on an environment that may fail: 2 updates of 32 frames."""
    settings = [word for word in TINY_RUN if not word.startswith("env")]
    return [f"env={FAILING}", *settings, "total_steps=64", f"hydra.run.dir={folder}", *more]


def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a run."""
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", *arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().err.splitlines()


def test_an_environment_without_an_end_is_cut_off_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(episodes, "episode_limit", lambda env: 20)
    monkeypatch.setattr(video, "VIDEO_LIMIT", 10)
    episodes.say_cut_off.cache_clear()
    run_command(monkeypatch, "train", *command(tmp_path, "env.options.length=0", "test_episodes=4"))
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "no time limit" in line] == [
        f"WARNING: env={FAILING} has no time limit: episodes of {what} are cut off after {steps} steps; set a limit by "
        "env.options.max_episode_steps=N in training, env_options.max_episode_steps=N elsewhere"
        for what, steps in (("an evaluation", 20), ("a video", 10))
    ]
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["episode_length"] == 20
    assert report["success"] == 1  # a return of 10, above 0
    assert "4 levels" in printed.out


@pytest.mark.parametrize("fault", ["step", "not_a_number"])
def test_an_environment_that_fails_in_the_last_validation_leaves_the_agent(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code, lines = fails(
        monkeypatch, capsys, *command(folder, f"env.options.fault={fault}", f"env.options.seeds={2**28}")
    )
    assert code == 1
    last = folder / "checkpoints" / "000000000064.safetensors"
    assert f"; the last checkpoint is {last}; " in lines[-1]
    assert lines[-1].endswith(f"resume with: python -m hrm_agent.train env={FAILING} resume={folder}")
    trace = [line for line in lines if line.lstrip().startswith(("Traceback", "File"))]
    if fault == "step":
        assert "environment 0 failed in step 3 of an episode: ZeroDivisionError" in lines[-1]
        assert len(trace) == 3  # its heading, `step` and what it calls
        assert not any("hrm_agent" in line or "gymnasium" in line for line in trace)
    else:
        assert "step 3 after the reset: environment 0: observation 'speed' is nan at [1]" in lines[-1]
        assert trace == []
    assert Agent.load(folder / "agents" / "last").info["frames"] == 64


@pytest.mark.parametrize("fault", ["not_a_number", "nan_reward"])
def test_numbers_of_an_environment_are_not_blamed_on_the_learning_rate(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = fails(monkeypatch, capsys, *command(tmp_path, f"env.options.fault={fault}", "env.options.seeds=5"))
    assert code == 1
    assert lines[-1].startswith(f"error: env={FAILING}: step 3 after the reset: environment 5: ")
    assert "nan" in lines[-1]
    assert "learning rate" not in lines[-1]
    assert (tmp_path / "checkpoints" / "000000000000.safetensors").is_file()


def test_a_constructor_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code, lines = fails(monkeypatch, capsys, *command(folder, "env.options.fault=constructor"))
    assert code == 1
    assert lines[-1].startswith(f"error: env={FAILING}: failed in its constructor: ZeroDivisionError: the gadget")
    assert "broken_gadget" in "".join(lines)
    assert not folder.exists()


USED_UP = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def test_memory_that_runs_out_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train_step(*arguments: Any) -> None:
        raise USED_UP

    monkeypatch.setattr(PPO, "_train", train_step)
    code, lines = fails(monkeypatch, capsys, *TINY_RUN, f"hydra.run.dir={tmp_path}")
    assert code == 1
    assert lines[-1].startswith("error: out of memory, of which 4,000.0 GB more were needed; earlier checkpoints are")
    assert f"resume with: python -m hrm_agent.train resume={tmp_path}, or begin another run with less of" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (USED_UP, "out of memory, of which 4,000.0 GB more were needed"),
        (MemoryError("Unable to allocate 373. GiB for an array"), "out of memory (Unable to allocate 373. GiB for an"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory (CUDA out of memory. Tried"),
        (RuntimeError("shapes do not match"), None),
        (ValueError("std::bad_alloc"), None),
    ],
)
def test_which_exceptions_say_that_memory_ran_out(error: Exception, said: str | None) -> None:
    assert is_out_of_memory(error) == (said is not None)
    if said is not None:
        assert describe_out_of_memory(error).startswith(said)


MANY = ["algo.num_envs=65536", "algo.rollout_steps=65536", "algo.window=64"]


@pytest.mark.parametrize(
    ("settings", "memory", "message"),
    [
        (MANY, 10**10, "algo.num_envs=65536, algo.rollout_steps=65536: the rollout needs .* GB, and cpu has 10.0 GB"),
        (["algo=dagger", *MANY], 10**10, "the rollout needs"),
        (["core.hidden_size=8192", "core.inner_size=32768"], 10**7, "core.hidden_size=8192: the weights do not fit"),
        ([], 500_000, "core.hidden_size=64: the weights do not fit into memory"),  # with gradients and moments
        ([], 1_000_000, "core.hidden_size=64: gradients and moments of the weights need|the rollout needs"),
    ],
)
def test_a_run_that_does_not_fit_into_memory_is_refused(
    settings: list[str], memory: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory_module, learners):
        monkeypatch.setattr(module, "available_memory", lambda device: memory)
    with pytest.raises(ValueError, match=message):
        check_jobs(settings, "train", train.check_run)


def test_a_signal_while_test_levels_are_played_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was not noticed")

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        code, lines = fails(patch, capsys, *TINY_RUN, f"hydra.run.dir={tmp_path}", "total_steps=32", "test_episodes=4")
    assert code == 130
    assert lines[-1] == f"interrupted; resume with: python -m hrm_agent.train resume={tmp_path}"
    run_command(monkeypatch, "train", f"resume={tmp_path}")
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 4


def test_weights_of_puzzle_models_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "available_memory", lambda device: 10**7)
    with pytest.raises(ValueError, match=r"core\.hidden_size=4096: the weights do not fit into memory"):
        check_jobs(["task=maze", "core.hidden_size=4096", "core.inner_size=4096"], "supervise", supervise.check_run)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained while nothing failed."""
    folder = tmp_path_factory.mktemp("agent") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "train", *command(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "fault", "code", "said"),
    [
        ("evaluate", "step", 1, "environment 0 failed in step 3 of an episode: ZeroDivisionError: the gadget is"),
        ("evaluate", "not_a_number", 1, "step 3 after the reset: environment 0: observation 'speed' is nan at [1]"),
        ("evaluate", "close", 1, "environment 0 failed in close: ZeroDivisionError"),
        ("evaluate", "interrupt", 130, "interrupted"),
        ("watch", "step", 1, "environment 0 failed in step 3 of an episode: ZeroDivisionError"),
        ("watch", "render", 1, "failed in render: ZeroDivisionError"),
        ("watch", "interrupt", 130, "interrupted"),
    ],
)
def test_commands_say_what_failed_and_write_nothing(
    name: str,
    fault: str,
    code: int,
    said: str,
    agent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / ("report.json" if name == "evaluate" else "film.gif")
    world = (f"env={FAILING}", f"env_options.fault={fault}")
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, name, f"run={agent}", *world, "episodes=2", f"out={out}")
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == code
    assert said in lines[-1]
    assert any("broken_gadget" in line for line in lines) == ("ZeroDivisionError" in said)
    assert not any("hrm_agent" in line for line in lines if line.lstrip().startswith("File"))
    assert not out.exists()


def test_an_agents_description_is_that_of_a_resumed_run(tmp_path: Path) -> None:
    """A checkpoint keeps metadata sorted by name, so the description does too."""
    trainer = make_trainer(tmp_path)
    trainer.validation = {"success": 0.5, "return": 1.0}
    assert list(trainer.agent().info["validation"]) == ["return", "success"]
