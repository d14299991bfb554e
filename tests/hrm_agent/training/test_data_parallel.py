"""Several processes train the policy that one would."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import TINY_RUN, run_command
from forks import Ended, Forks
from hrm_agent import recurrence, train
from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.parallel.processes import SINGLE_PROCESS, check_local_device, join
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.deep_supervision import check_processes as check_supervised_processes
from hrm_agent.tensors.files import load_tensors
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.learners import check_processes
from hrm_agent.training.loop import CHECKPOINTS
from hrm_agent.training.tracking import Console
from parallel_worker import SETTINGS, build
from puzzles import make_model
from runs import Part
from tiny import make_trainer

WORKER = Path(__file__).resolve().parents[2] / "support" / "parallel_worker.py"
MIDDLE, END = "000000000064.safetensors", "000000000128.safetensors"


def environment(**more: str) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def launch(forks: Forks, size: int, *command: str) -> list[Ended]:
    """What `torchrun` does, without its watching: one process for each rank, and how each of them ended."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(size))
    ranks = [
        {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)} for rank in range(size)
    ]
    return forks.run([list(command)] * size, ranks)


def launch_worker(forks: Forks, size: int, scenario: str, folder: Path) -> None:
    for process in launch(forks, size, str(WORKER), scenario, str(folder)):
        assert process.returncode == 0, process.stderr


def assert_same_run(one: Path, other: Path, exactly: bool = False) -> None:
    """Same levels, actions, episodes and random streams; same weights, optimizer and latents but for rounding."""
    (tensors, metadata), (others, others_metadata) = load_tensors(one), load_tensors(other)
    assert metadata.pop("seconds") > 0
    assert others_metadata.pop("seconds") > 0
    if exactly:
        assert metadata == others_metadata
    assert metadata["collector"] == others_metadata["collector"]
    assert len(metadata["collector"]["episodes"]) > 1
    assert metadata["updates"] == others_metadata["updates"] == 4
    assert metadata["validation"]["success"] == others_metadata["validation"]["success"]
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        close = 0.0 if exactly or not tensor.is_floating_point() else 1e-4
        torch.testing.assert_close(others[name], tensor, rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    for kind in SETTINGS:
        build(kind, folder / kind).run(Console())
    return folder


@pytest.fixture(scope="module")
def two(alone: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Runs of two processes: whole, and second halves of those of one and of their own."""
    folder = tmp_path_factory.mktemp("two")
    copy_halves(alone, folder)
    launch_worker(forks, 2, "train", folder)
    return folder


def copy_halves(runs: Path, folder: Path) -> None:
    for kind in SETTINGS:
        (folder / "half" / kind / "checkpoints").mkdir(parents=True)
        shutil.copy(runs / kind / "checkpoints" / MIDDLE, folder / "half" / kind / "checkpoints")


def end(run: Path) -> Path:
    return run / "checkpoints" / END


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_learn_what_one_does(kind: str, alone: Path, two: Path) -> None:
    assert_same_run(end(alone / kind), end(two / "whole" / kind))
    middle, last = (load_tensors(alone / kind / "checkpoints" / name)[0] for name in (MIDDLE, END))
    weights = [name for name in last if name.startswith("policy/") and name.endswith("weight")]
    assert max((last[name] - middle[name]).abs().max() for name in weights) > 3e-3  # what equality to 1e-4 is worth


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_log_what_one_does(kind: str, alone: Path, two: Path) -> None:
    one, other = lines(alone / kind), lines(two / "whole" / kind)
    assert len(one) == len(other) > 4
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not name.startswith("time/") and "per_second" not in name:
                # Some are small differences of large sums.
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("kind", ["maze", "dagger"])
def test_a_run_of_one_process_goes_on_in_two(kind: str, alone: Path, two: Path) -> None:
    assert_same_run(end(alone / kind), end(two / "half" / kind))


def test_an_environment_that_cannot_be_put_back_begins_anew_in_every_process(two: Path) -> None:
    tensors, metadata = load_tensors(end(two / "half" / "numbers"))
    assert metadata["collector"]["frames"] == 128
    assert tensors["collector/obs/"].unique(dim=0).shape[0] == 8  # no environment has another's stream


def test_two_processes_resume_bit_for_bit(two: Path) -> None:
    assert_same_run(end(two / "whole" / "maze"), end(two / "own_half" / "maze"), exactly=True)


@pytest.mark.parametrize("kind", ["maze", "dagger"])
def test_a_run_of_two_processes_goes_on_in_one(kind: str, alone: Path, two: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(two / "whole" / kind / "checkpoints" / MIDDLE, tmp_path / "checkpoints")
    trainer = build(kind, tmp_path)
    trainer.resume()
    trainer.run(Console())
    assert_same_run(end(alone / kind), end(tmp_path))


def test_a_run_of_two_processes_goes_on_in_four(alone: Path, two: Path, tmp_path: Path, forks: Forks) -> None:
    copy_halves(two / "whole", tmp_path)
    shutil.rmtree(tmp_path / "half" / "numbers")
    launch_worker(forks, 4, "halves", tmp_path)
    for kind in ("maze", "dagger"):
        assert_same_run(end(alone / kind), end(tmp_path / "half" / kind))


def test_what_happens_in_one_process_ends_all(tmp_path: Path, forks: Forks) -> None:
    launch_worker(forks, 2, "trouble", tmp_path)
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    for stories in told:
        assert stories["stopped"].startswith("Interrupted: interrupted at 32 frames; checkpoint")
        assert stories["validating"].startswith("Interrupted: interrupted at 64 frames; checkpoint")
        assert stories["poisoned"].startswith("NonFiniteNumbers: ")
        assert "at 128 frames" not in stories["poisoned"]
        assert stories["apart"].startswith("ProcessesDiverged: at 0 frames: the weights of process 1 are not those")
    assert told[0]["hasty"] == told[1]["hasty"]
    assert (tmp_path / "stopped" / "checkpoints" / "000000000032.safetensors").is_file()
    assert not list((tmp_path / "apart").glob("checkpoints/*"))
    assert load_tensors(tmp_path / "validating" / "checkpoints" / MIDDLE)[1]["left"] == ["validate", "checkpoint"]


@pytest.mark.skipif(not recurrence.available("fused"), reason="no C++ compiler")
def test_the_first_process_measures_for_all(tmp_path: Path, forks: Forks) -> None:
    launch_worker(forks, 2, "kernel", tmp_path)  # each process checks what it measured and took
    for before in (None, "fused_bf16"):
        newest = CheckpointFolder(tmp_path / str(before) / CHECKPOINTS).latest()
        assert newest is not None
        assert load_tensors(newest)[1]["kernel"] == "fused"


def test_what_does_not_divide_is_refused_once(tmp_path: Path, forks: Forks) -> None:
    wrong = ("algo.num_envs=9", "algo.minibatch_windows=9", f"hydra.run.dir={tmp_path / 'run'}")
    processes = launch(forks, 2, "-m", "hrm_agent.train", *TINY_RUN, *wrong)
    assert [p.returncode for p in processes] == [2, 2]
    message = "error: algo.num_envs=9 for 2 processes of torchrun: expected a multiple of 2, 2 or more for each\n"
    assert [p.stderr for p in processes] == [f"hrm_agent.train starts: importing torch\n{message}", ""]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (PPOConfig(num_envs=12, window=8, minibatch_windows=12), 8, r"algo.num_envs=12 for 8 processes"),
        (PPOConfig(num_envs=8, window=8, minibatch_windows=8), 8, r"2 or more for each"),
        (PPOConfig(num_envs=12, window=8, minibatch_windows=3), 2, r"algo.minibatch_windows=3 for 2 processes"),
        (DQNConfig(), 2, r"algo=dqn trains in one process, not in 2 processes of torchrun"),
    ],
)
def test_work_that_cannot_be_shared_evenly_is_refused(config: Any, size: int, message: str) -> None:
    check_processes(config, SINGLE_PROCESS)
    with pytest.raises(ValueError, match=message):
        check_processes(config, Part(1, size))


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.thorough
@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_torchrun_trains_one_policy_into_one_folder(forked: bool, tmp_path: Path, forks: Forks) -> None:
    """The command itself: Hydra's folder, training, the evaluation at the end. Three interpreters take their time."""
    short = [*TINY_RUN, "test_episodes=4", "total_steps=64"]
    if forked:
        command = [*TORCHRUN, "--start-method=fork", "--run-path", train.__file__, *short]
        (done,) = forks.run([command], [environment()], tmp_path)
    else:
        command = [sys.executable, *TORCHRUN, "-m", "hrm_agent.train", *short]
        done = subprocess.run(
            command, env={**os.environ, **environment()}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("run folder:") == 1
    assert done.stdout.count(": 4 test levels") == 1
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert {p.name for p in folder.iterdir()} >= {"agents", "checkpoints", "eval.json", "run.json", "tensorboard"}
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


# 12 steps of 8 puzzles, a checkpoint after every fourth; exploration and halting decide which are replaced.
PUZZLES = (
    "task=maze", "task.rows=3", "task.cols=3", "core.hidden_size=8", "core.inner_size=8", "core.L_cycles=1",
    "training.batch_size=8", "training.max_segments=3", "training.warmup=0", "total_steps=12", "eval_every=4",
    "eval_puzzles=8", "test_puzzles=8", "log_every=4", "checkpoint_every=4", "threads=1",
)  # fmt: skip


def assert_same_supervised_run(one: Path, other: Path) -> None:
    (tensors, metadata), (others, others_metadata) = (
        load_tensors(run / "checkpoints" / "000000000012.safetensors") for run in (one, other)
    )
    assert metadata["learner"] == others_metadata["learner"]
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        close = 1e-4 if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(others[name], tensor, rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.thorough
def test_two_processes_learn_the_puzzles_that_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Forks
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_command(monkeypatch, "supervise", *PUZZLES, f"hydra.run.dir={one}")
    first, second = launch(forks, 2, "-m", "hrm_agent.supervise", *PUZZLES, f"hydra.run.dir={two}")
    assert first.returncode == second.returncode == 0, first.stderr
    assert second.stdout == second.stderr == ""
    assert_same_supervised_run(one, two)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    before, after = (load_tensors(one / "checkpoints" / f"0000000000{n}.safetensors")[0] for n in ("08", "12"))
    moved = [(after[n] - before[n]).abs().max() for n in after if n.startswith("model/") and n.endswith("weight")]
    assert max(moved) > 3e-4
    (two / "checkpoints" / "000000000012.safetensors").unlink()
    run_command(monkeypatch, "supervise", f"resume={two}")
    assert_same_supervised_run(one, two)


@pytest.mark.parametrize(("batch", "puzzles", "message"), [(7, 0, "training.batch_size=7 for 2"), (8, 8, "embeddings")])
def test_supervised_work_that_cannot_be_shared_is_refused(batch: int, puzzles: int, message: str) -> None:
    model, config = make_model(puzzles=puzzles), SupervisedConfig(batch_size=batch)
    check_supervised_processes(model, config, SINGLE_PROCESS)
    with pytest.raises(ValueError, match=message):
        check_supervised_processes(model, config, Part(0, 2))


DIES = """
import os, signal
from hrm_agent.algos.ppo import PPO
minibatch, calls = PPO._train, []
def dies(self, *arguments):
    calls.append(1)
    if len(calls) == 10 and self.processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return minibatch(self, *arguments)
PPO._train = dies
from hrm_agent import train
train.main()
"""


def test_a_process_that_is_killed_does_not_hang_the_others(tmp_path: Path, forks: Forks) -> None:
    folder = tmp_path / "run"
    first, killed = launch(forks, 2, "-c", DIES, *TINY_RUN, f"hydra.run.dir={folder}")
    assert killed.returncode == -signal.SIGKILL
    assert first.returncode == 1
    last = first.stderr.splitlines()[-1]
    assert last.startswith("error: another process of this run has ended")
    assert f"resume with: python -m hrm_agent.train resume={folder}" in last
    assert sorted(p.name for p in (folder / "checkpoints").iterdir())[-1] == "000000000064.safetensors"


def test_one_process_exchanges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "all_gather", "gather", "broadcast", "barrier", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *a, **k: pytest.fail("exchanged something"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() is SINGLE_PROCESS
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() is SINGLE_PROCESS
    make_trainer(tmp_path, total_steps=32).run(Console())


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    for processes, threads in ((1, 8), (2, 6), (5, 2), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert resolve(compose_config([], "train"))["threads"] == threads


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_local_device("cpu")
    with pytest.raises(ValueError, match=re.escape("2 processes on a machine with 1 GPUs")):
        check_local_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_local_device("cuda")
    with pytest.raises(ValueError, match="device=cuda:1 for 2 processes: expected cuda"):
        check_local_device("cuda:1")
