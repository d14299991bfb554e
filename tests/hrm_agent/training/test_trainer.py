"""A run that was stopped, killed or starved of disk ends as one that was not."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands import run_command, tiny_run
from forks import Forks
from hrm_agent import train
from hrm_agent.agents.agent import Agent
from hrm_agent.algos.ppo import PPO
from hrm_agent.experience.rollout import Rollout
from hrm_agent.files.reading import CheckpointError
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training import trainer as trainer_module
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.loop import Interrupted
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from runs import assert_equal_bits, everything
from tiny import MAZE, make_dqn_trainer, make_trainer


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("carry", ["full", "last_token", "reset", "leak"])
def test_four_updates_equal_two_then_resumed_for_two_more(
    carry: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"policy": {"carry": carry}, "threads": threads}
    whole = make_trainer(tmp_path / "whole", **changes)
    whole.run(Console())
    halted = make_trainer(tmp_path / "halves", **changes)
    update = halted.algo.update

    def stop_after_the_second(rollout: Rollout, progress: float) -> dict[str, float]:
        if halted.updates == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(rollout, progress)

    monkeypatch.setattr(halted.algo, "update", stop_after_the_second)
    with pytest.raises(Interrupted, match="interrupted at 64 frames"):
        halted.run(Console())
    resumed = make_trainer(tmp_path / "halves", **changes)
    torch.manual_seed(99)  # the global stream must not matter
    resumed.resume()
    assert (resumed.frames, resumed.updates) == (64, 2)
    resumed.run(Console())
    assert whole.updates == resumed.updates == 4
    assert_equal_bits(everything(whole), everything(resumed))
    names = everything(whole).keys()
    for part in ("policy/", "optimizer/", "generator/", "collector/env/", "collector/obs/", "collector/generator"):
        assert any(name.startswith(part) for name in names)


def test_a_number_of_segments_is_drawn_for_every_rollout_and_resumed(tmp_path: Path) -> None:
    """Acting and the update on it run the same K; evaluation and saved agents have `segments`."""
    changes: dict[str, Any] = {"policy": {"segments": 3}, "algo": {"min_segments": 1, "epochs": 2}, "total_steps": 256}
    whole = make_trainer(tmp_path / "whole", checkpoint_every=128, **changes)
    acted, updated = [], []
    for kind, name, seen in ((whole.collector, "collect", acted), (whole.algo, "update", updated)):
        original = getattr(kind, name)

        def noting(*given: Any, original: Any = original, seen: list[int] = seen) -> Any:
            seen.append(whole.policy.rules.segments)
            return original(*given)

        setattr(kind, name, noting)
    whole.run(Console())
    assert acted == updated
    assert set(acted) == {1, 2, 3}
    assert whole.policy.segments == 3
    assert Agent.load(tmp_path / "whole").policy.segments == 3
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/segments"] for line in lines if "loss/segments" in line] == acted
    (tmp_path / "halves" / "checkpoints").mkdir(parents=True)
    shutil.copy(whole.checkpoints.paths()[0], tmp_path / "halves" / "checkpoints")
    resumed = make_trainer(tmp_path / "halves", **changes)
    torch.manual_seed(99)  # the global stream must not matter
    resumed.resume()
    assert resumed.updates < whole.updates
    resumed.run(Console())
    assert "generator/segments" in everything(whole)
    assert_equal_bits(everything(whole), everything(resumed))


def test_segments_that_cannot_be_drawn_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"algo.min_segments=4: expected at most segments=3"):
        make_trainer(tmp_path / "run", policy={"segments": 3}, algo={"min_segments": 4})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("carry", "algo"),
    [
        ("full", {}),
        ("reset", {"double_q": False, "loss": "mse", "optimizer": "adam_atan2"}),
        ("last_token", {"prioritised": True}),
        ("gate", {"each_segment": True, "train_steps": 1, "burn_in": 0, "stride": 1, "n_step": 1}),
    ],
)
def test_dqn_resumed_ends_as_if_it_had_not_been_stopped(carry: str, algo: dict[str, Any], tmp_path: Path) -> None:
    """The replay, its targets, priorities and every random stream are in the checkpoint."""
    changes: dict[str, Any] = {"policy": {"carry": carry, "segments": 2}, "algo": algo, "checkpoint_every": 64}
    whole = make_dqn_trainer(tmp_path / "whole", total_steps=192, **changes)
    whole.run(Console())
    paths = whole.checkpoints.paths()
    assert [int(p.stem) for p in paths] == [64, 128, 192]
    (tmp_path / "halves" / "checkpoints").mkdir(parents=True)
    shutil.copy(paths[1], tmp_path / "halves" / "checkpoints")
    resumed = make_dqn_trainer(tmp_path / "halves", total_steps=192, **changes)
    torch.manual_seed(99)  # the global stream must not matter
    resumed.resume()
    assert (resumed.frames, resumed.updates) == (128, 4)
    steps = resumed.algo.steps
    resumed.run(Console())
    assert resumed.algo.steps > steps > 0
    one, other = everything(whole), everything(resumed)
    assert_equal_bits(one, other)
    for part in ("policy/", "algo/target/", "algo/optimizer/", "algo/generator", "replay/"):
        assert any(name.startswith(part) for name in one)
    assert not torch.equal(one["algo/target/policy_head.weight"], one["policy/policy_head.weight"])


def test_dqn_explores_before_it_learns_and_its_agent_says_what_it_is(tmp_path: Path) -> None:
    trainer = make_dqn_trainer(tmp_path)
    trainer.run(Console())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["frames"] for line in lines if "loss/loss" in line] == [64, 96, 128]
    agent = Agent.load(tmp_path / "agents" / "last")
    assert agent.info["algo"] == "dqn"
    assert agent.policy.config.heads == "q"


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    runs = [make_trainer(tmp_path / str(i), seed=seed, total_steps=32) for i, seed in enumerate((3, 3, 4))]
    for trainer in runs:
        trainer.run(Console())
    first, same, other = (everything(t) for t in runs)
    assert_equal_bits(first, same)
    assert not torch.equal(first["policy/policy_head.weight"], other["policy/policy_head.weight"])
    assert not torch.equal(first["collector/obs/"], other["collector/obs/"])


@pytest.mark.usefixtures("videos")
def test_a_run_folder_holds_what_it_should(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_every=64, checkpoint_every=32, keep_checkpoints=2)
    trainer.run(Console())
    assert [int(p.stem) for p in CheckpointFolder(tmp_path / "checkpoints").paths()] == [96, 128]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["frames"] for line in lines if "loss/policy_loss" in line] == [32, 64, 96, 128]
    assert [line["frames"] for line in lines if "validation/success" in line][:2] == [64, 128]
    logged = {name for line in lines for name in line}
    assert {"train/success", "train/length", "loss/state_drift_epoch0", "loss/entropy"} <= logged
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert {b"validation/video", b"GIF89a"} <= set(re.findall(rb"validation/video|GIF89a", events.read_bytes()))
    for name in ("best", "last"):
        agent = Agent.load(tmp_path / "agents" / name)
        assert agent.info["env"] == "DynamicMaze-v0"
        assert agent.info["frames"] <= 128
    weights = load_file(tmp_path / "agents" / "last" / "agent.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in trainer.policy.state_dict().items())


def test_a_resumed_run_skips_a_damaged_checkpoint_and_refuses_when_all_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, checkpoint_every=32)
    trainer.run(Console())
    paths = trainer.checkpoints.paths()
    paths[-1].write_bytes(paths[-1].read_bytes()[:-9])
    resumed = make_trainer(tmp_path)
    assert resumed.resume() == paths[-2]
    assert resumed.frames == 96
    for path in paths[:-1]:
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or altered"):
        make_trainer(tmp_path).resume()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make_trainer(tmp_path / "empty").resume()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_steps=32).run(Console())
    for changes in (
        {"policy": {"carry": "last_token"}},
        {"policy": {"hidden_size": 16}},
        {"algo": {"num_envs": 4}},
        {"env_options": {**MAZE, "rows": 4}},
    ):
        with pytest.raises(CheckpointError, match="does not fit this run's settings"):
            make_trainer(tmp_path, **changes).resume()


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, checkpoint_every=32)
    update = trainer.algo.update

    def poisoned(rollout: Any, progress: float) -> dict[str, float]:
        if trainer.updates == 2:
            rollout.rewards[0, 0] = float("nan")
        return update(rollout, progress)

    monkeypatch.setattr(trainer.algo, "update", poisoned)
    with pytest.raises(NonFiniteNumbers, match=r"at 96 frames; the last good checkpoint is .*000000000064"):
        trainer.run(Console())
    assert int(trainer.checkpoints.paths()[-1].stem) == 64


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(1)
        run_command(patch, "train", *tiny_run(folder))
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    weights = Path("agents/last/agent.safetensors")
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
    last = Path("checkpoints/000000000256.safetensors")
    assert_equal_bits(load_file(one / last), load_file(other / last))
    frames = [
        [json.loads(line)["frames"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    assert frames[0] == frames[1]


KILLED = {
    # In the second of the four minibatches of the fifth update.
    "update": """
from hrm_agent.algos.ppo import PPO
minibatch, calls = PPO._train, []
def dies(self, *arguments):
    calls.append(1)
    if len(calls) == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return minibatch(self, *arguments)
PPO._train = dies
""",
    # When half of the checkpoint after those at 0, 64 and 128 frames is written.
    "checkpoint": """
fsync, calls = os.fsync, []
def dies(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp") and "checkpoints" in os.readlink(
        f"/proc/self/fd/{descriptor}"
    ):
        calls.append(1)
        if len(calls) == 4:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dies
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("where", KILLED)
def test_a_run_killed_anywhere_ends_with_the_same_bytes(
    where: str,
    uninterrupted: Path,
    forks: Forks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    script = f"import os, signal\n{KILLED[where]}\nfrom hrm_agent import train\ntrain.main()\n"
    (killed,) = forks.run([["-c", script, *tiny_run(folder)]], [{"OMP_NUM_THREADS": "1"}])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "agents" / "last").exists()
    checkpoints = folder / "checkpoints"
    assert [int(p.stem) for p in CheckpointFolder(checkpoints).paths()] == [0, 64, 128]
    assert len(list(checkpoints.glob(".*.tmp"))) == (where == "checkpoint")
    run_command(monkeypatch, "train", f"resume={folder}")
    assert "resuming from" in capsys.readouterr().err
    assert_same_end(uninterrupted, folder)
    assert list(checkpoints.glob(".*.tmp")) == []


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Shells let what they start in the background ignore Ctrl-C, `nohup` a hang-up, and so would the tests."""
    before = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGHUP)}
    yield
    for sent, handler in before.items():
        signal.signal(sent, handler)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(
    sent: signal.Signals,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    minibatch, calls = PPO._train, []

    def interrupted(self: PPO, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 10:  # in the third update, which ends before the run stops
            for _ in range(1 + (sent == signal.SIGHUP)):  # the terminal sends it, and so does the shell
                os.kill(os.getpid(), sent)
        return minibatch(self, *arguments)

    before = signal.getsignal(sent)
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "_train", interrupted)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "train", *tiny_run(folder))
    assert exit_.value.code == 130
    assert signal.getsignal(sent) == before
    last = capsys.readouterr().err.splitlines()[-1]
    assert "interrupted at 96 frames" in last
    assert last.endswith(f"resume with: python -m hrm_agent.train resume={folder}")
    run_command(monkeypatch, "train", f"resume={folder}")
    assert_same_end(uninterrupted, folder)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training_begins_ends_with_one_line(
    sent: signal.Signals,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the checks run there is nothing to resume; while the environments are compiled there is a folder."""
    folder = tmp_path / "run"
    before = signal.getsignal(sent)

    def interrupted(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), sent)
        pytest.fail("the signal was not noticed")

    again = f"; nothing has been saved yet, begin it again with: python -m hrm_agent.train resume={folder}"
    for part, hint in (("check_run", ""), ("Trainer", again)):
        with monkeypatch.context() as patch:
            patch.setattr(train, part, interrupted)
            with pytest.raises(SystemExit) as exit_:
                run_command(patch, "train", *tiny_run(folder))
        assert exit_.value.code == 130
        assert signal.getsignal(sent) == before
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1] == f"interrupted{hint}"
        assert folder.exists() == (part == "Trainer")
        assert lines[:-1] == ([f"run folder: {folder}", f"curves:     tensorboard --logdir {folder}"] if hint else [])
    run_command(monkeypatch, "train", f"resume={folder}")
    assert_same_end(uninterrupted, folder)


def test_a_full_disk_stops_the_run_and_keeps_its_checkpoints(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 11:  # two for each of config.yaml, run.json and three checkpoints
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "train", *tiny_run(folder))
    assert exit_.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device: " in last
    assert "000000000192.safetensors'; earlier checkpoints are intact, resume with" in last
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "000000000000.safetensors",
        "000000000064.safetensors",
        "000000000128.safetensors",
    ]
    run_command(monkeypatch, "train", f"resume={folder}")
    assert_same_end(uninterrupted, folder)


def test_a_folder_that_is_removed_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback of TensorBoard's thread, and without a second folder that lacks most of the first."""
    folder = tmp_path / "run"
    minibatch, calls = PPO._train, []

    def removes(self: PPO, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 10:
            shutil.rmtree(folder)
        return minibatch(self, *arguments)

    monkeypatch.setattr(PPO, "_train", removes)
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", *tiny_run(folder))
    assert exit_.value.code == 1
    told = capsys.readouterr().err
    expected = f"error: {folder}: the folder was removed while the run worked in it; start the run again\n"
    assert told.endswith(f" steps/s\n{expected}")
    assert not folder.exists()


@pytest.fixture
def copied(uninterrupted: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    uninterrupted: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in copied.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("config.yaml", "run.json"):
            path.unlink()
    assert len(list(copied.iterdir())) == 2
    run_command(monkeypatch, "train", f"resume={copied}")
    assert_same_end(uninterrupted, copied)


def test_what_is_changed_on_resume_stays_changed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(monkeypatch, "train", f"resume={copied}", "total_steps=288")
    run_command(monkeypatch, "train", f"resume={copied}")
    assert json.loads((copied / "agents" / "last" / "agent.json").read_text())["info"]["frames"] == 288


def test_a_run_ends_with_its_time_and_so_does_what_is_annealed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_steps=10**9, max_seconds=0.2, clock="cpu")
    seen = []
    collect = trainer.learner.collect

    def watched(collector: Any, done: float) -> None:
        seen.append(done)
        collect(collector, done)

    trainer.learner.collect = watched  # type: ignore[method-assign]
    trainer.run(Console())
    assert trainer.seconds >= 0.2
    assert trainer.frames < 10**6
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] < trainer.done == 1
    assert trainer.agent().info["clock"] == "cpu"


@pytest.mark.parametrize("wrong", [{"max_seconds": -1.0}, {"clock": "sun"}])
def test_a_time_limit_that_cannot_be_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_trainer(tmp_path, **wrong)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compilation_is_announced_before_it_begins(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(trainer_module, "is_compiled", lambda env: compiled)
    monkeypatch.setattr(trainer_module, "compile_env", lambda env: order.append("compiled"))
    collector = trainer_module.Collector
    monkeypatch.setattr(trainer_module, "Collector", lambda *a: (order.append("first reset"), collector(*a))[1])

    @contextmanager
    def waiting(console: Console, what: Any) -> Iterator[None]:
        order.append(what if isinstance(what, str) else what())
        yield
        order.append("over")

    monkeypatch.setattr(Console, "waiting", waiting)
    made = make_trainer(tmp_path)
    order.clear()
    Trainer(made.config, made.policy.config, made.algo.config, tmp_path, Console())
    assert order == ([] if compiled else [trainer_module.COMPILES, "compiled", "over"]) + ["first reset"]
