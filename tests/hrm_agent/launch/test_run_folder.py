"""A run's folder from a stranger, or with two processes: what is written stays in it, and nothing else gets in."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

from commands import TINY_RUN, run_command, tiny_run
from forks import Forks
from hrm_agent.files.locking import LOCK_FILE, lock_folder
from hrm_agent.files.reading import CheckpointError
from hrm_agent.launch import runs
from hrm_agent.launch.errors import terminated_like_interrupted
from hrm_agent.launch.resume import OWN
from hrm_agent.tensors.files import SUFFIX
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.tracking import RunLog, read_metrics
from refusals import files, refusal


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "run"
    handlers = list(logging.root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        run_command(patch, "train", *tiny_run(folder), "total_steps=64", "checkpoint_every=32", "test_episodes=2")
    logging.root.handlers[:] = handlers
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_entries_are_those_of_a_run(finished: Path) -> None:
    """A run of `supervise` has `models` in place of `agents`, and no other entry (docs/index.md)."""
    entries = {path.name for path in finished.iterdir()}
    assert entries == {*OWN, LOCK_FILE, ".hydra"} - {"models"}


PLACES = [
    "metrics.jsonl", "config.yaml", "run.json", "eval.json", "run.lock", "agents", "agents/best", "checkpoints",
    "tensorboard", "agents/last/agent.json", "checkpoints/000000000064.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_resume_writes_through_no_link(
    place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    (run / place).rename(outside)
    (run / place).symlink_to(outside)
    line = refusal(monkeypatch, capsys, "train", ["resume=run", "total_steps=96"], tmp_path)
    assert f"run/{place}" in line
    assert "symbolic link" in line or "not a regular file" in line


@pytest.mark.parametrize("place", [place for place in PLACES if place != "agents/best"])
def test_resume_waits_for_no_fifo(
    place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (run / place).is_dir():
        shutil.rmtree(run / place)
    else:
        (run / place).unlink()
    os.mkfifo(run / place)
    line = refusal(monkeypatch, capsys, "train", ["resume=run"], tmp_path)
    assert f"run/{place}: not a regular file" in line


def test_a_new_run_writes_through_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "agents").symlink_to(tmp_path / "outside")
    line = refusal(monkeypatch, capsys, "train", [*TINY_RUN, "hydra.run.dir=run"], tmp_path)
    assert "run/agents: a symbolic link" in line


def test_a_run_is_reached_through_a_link(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a process that was killed left half written is removed, what a person put there is not."""
    (tmp_path / "linked").symlink_to(run)
    mine = [run / ".notes.tmp", run / "agents" / ".0.tmp"]
    left = [run / ".metrics.jsonl.0123456789abcdef.tmp", run / "agents" / "best" / ".agent.json.77.tmp"]
    for path in (*mine, *left):
        path.touch()
    run_command(monkeypatch, "train", f"resume={tmp_path / 'linked'}", "total_steps=96")
    assert CheckpointFolder(run / "checkpoints").latest() == run / "checkpoints" / f"{96:012d}{SUFFIX}"
    assert sorted(run.rglob("*.tmp")) == sorted(mine)


def test_a_second_process_is_refused(
    run: Path, tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_folder(run, pytest.fail):
        line = refusal(monkeypatch, capsys, "train", ["resume=run", "total_steps=96"], tmp_path)
        (other,) = forks.run([["-m", "hrm_agent.train", "resume=run"]], [{"OMP_NUM_THREADS": "1"}], tmp_path)
    assert f"run: process {os.getpid()} on " in line
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1] == line.rstrip()


def test_a_run_that_cannot_be_described_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_atomically", full)
        with pytest.raises(SystemExit) as exit_:
            run_command(patch, "train", *tiny_run(folder))
    assert exit_.value.code == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "run.json").read_bytes() == b""
    run_command(monkeypatch, "train", *tiny_run(folder), "total_steps=32")


@pytest.mark.parametrize("setting", ["env.id", "algo.new[1]"])
def test_no_variable_of_the_environment_gets_into_a_run(
    setting: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HRM_SECRET", "hidden")
    text = (run / "config.yaml").read_text()
    hidden = "${oc.env:HRM_SECRET}"
    changed = {
        "env.id": text.replace("id: DynamicMaze-v0", f"id: {hidden}"),
        "algo.new[1]": text.replace("algo:\n", f"algo:\n  new: [1, '{hidden}']\n"),
    }[setting]
    assert changed != text
    (run / "config.yaml").write_text(changed)
    line = refusal(monkeypatch, capsys, "train", ["resume=run"], tmp_path)
    assert f"config.yaml: {setting} is '${{oc.env:HRM_SECRET}}'" in line
    assert "hidden" not in line


def test_what_is_typed_is_interpolated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_STEPS", "96")
    run_command(monkeypatch, "train", f"resume={run}", "total_steps=${oc.decode:${oc.env:HRM_STEPS}}")
    assert "\ntotal_steps: 96\n" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    "description",
    [[], {"run_version": "1", "command": "python -m hrm_agent.train"}, {"run_version": 1, "command": ["a", "b", "c"]}],
)
def test_a_description_of_other_types_is_refused(
    description: object,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run / "run.json").write_text(json.dumps(description))
    assert "not a run's description" in refusal(monkeypatch, capsys, "train", ["resume=run"], tmp_path)


def log_lines(folder: Path, *lines: str) -> Path:
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder / "metrics.jsonl"


GOOD = ['{"frames": 10, "loss/a": 1, "loss/b": NaN}', '{"frames": 20, "loss/a": 2.5}', '{"frames": 30, "loss/a": 3}']


@pytest.mark.parametrize("cut", ["", '{"frames": 4', '{"frames": 40, "loss/a": 1}'])
def test_a_log_is_continued_where_the_run_is(cut: str, tmp_path: Path) -> None:
    path = log_lines(tmp_path, *GOOD, cut)
    lines: list[str] = []
    log = RunLog(tmp_path, 20, say=lines.append)
    assert path.read_text().splitlines() == GOOD[:2]
    log.file.write("{}\n")
    log.close()
    assert path.read_text().splitlines() == [*GOOD[:2], "{}"]
    assert lines == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "line",
    ["[1]", '{"frames": "20"}', '{"loss/a": 1}', '{"frames": true}', '{"frames": -1}', '{"frames": 1e400}',
     '{"frames": 1.5}', '{"frames": 10, "loss/a": null}', '{"frames": 1' + "0" * 5000 + "}", "[" * 100_000, "\0" * 100,
     '{"frames": 10, "loss/a": [1]}', '{"frames": NaN}'],
    ids=lambda line: line[:20].replace("\0", "0"),
)  # fmt: skip
def test_a_damaged_line_is_kept_aside(line: str, tmp_path: Path) -> None:
    path = log_lines(tmp_path, GOOD[0], line, GOOD[1], "")
    before = path.read_bytes()
    lines: list[str] = []
    RunLog(tmp_path, 20, say=lines.append).close()
    assert path.read_text().splitlines() == GOOD[:2]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert lines == [f"{path}: 1 damaged line left out; the file as it was is kept as metrics.jsonl.damaged"]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = log_lines(tmp_path, *GOOD)
    before = path.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            RunLog(tmp_path, 10)
    assert files(tmp_path) == {path: before}


def test_a_log_outside_is_not_touched(tmp_path: Path) -> None:
    """Neither through a symbolic link, nor through a hard link, as an archive can hold."""
    outside, run = tmp_path / "outside", tmp_path / "run"
    run.mkdir()
    outside.write_text("mine\n")
    (run / "metrics.jsonl").hardlink_to(outside)
    log = RunLog(run, 0)
    log.scalars(5, loss={"a": 1.0})
    log.close()
    assert outside.read_text() == "mine\n"
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(CheckpointError, match="a symbolic link"):
        RunLog(run, 0)
    with pytest.raises(CheckpointError, match="a symbolic link"):
        list(read_metrics(run / "metrics.jsonl", "frames"))
    assert outside.read_text() == "mine\n"


def test_checkpoints_are_regular_files_of_the_folder(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.path(64)
    path.parent.mkdir()
    (folder.folder / ".folder.tmp").mkdir()
    folder.save(32, {}, {})
    path.symlink_to(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=f"{path}: not a regular file"):
        folder.latest()
    path.unlink()
    (tmp_path / "linked").symlink_to(folder.folder)
    with pytest.raises(CheckpointError, match="linked: a symbolic link"):
        CheckpointFolder(tmp_path / "linked").paths()


OUT = [
    "evaluate run=absent", "shifts run=absent", "watch run=absent", "export run=absent", "solve model=absent",
    "sweep_table folder=.",
]  # fmt: skip


@pytest.mark.parametrize("out", ["", "folder", "absent/file.json", "folder/link"])
@pytest.mark.parametrize("command", OUT)
def test_where_a_result_goes_is_checked_first(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("link")
    name, *arguments = command.split()
    line = refusal(monkeypatch, capsys, name, [*arguments, f"out={out}"], tmp_path)
    assert line.startswith(f"error: out={out}: ")


CLOSES = """
import os, sys
how, *sys.argv[1:] = sys.argv[1:]
reader, writer = os.pipe() if how == "pipe" else os.openpty()
for number in (1, 2):
    os.dup2(writer, number)
os.close(writer)
from hrm_agent import train
from hrm_agent.algos.ppo import PPO
minibatch, calls = PPO._train, []
def closes(self, *arguments):
    calls.append(1)
    if len(calls) == 10:
        os.close(reader)
    return minibatch(self, *arguments)
PPO._train = closes
train.main()
"""


@pytest.mark.parametrize("how", ["pipe", "terminal"])
def test_a_closed_terminal_ends_no_training(how: str, forks: Forks, tmp_path: Path) -> None:
    """Neither the progress bar, nor the measurement at the end, nor the report."""
    arguments = [*tiny_run(tmp_path / "run"), "total_steps=96", "test_episodes=2"]
    (ended,) = forks.run([["-c", CLOSES, how, *arguments]], [{"OMP_NUM_THREADS": "1", "TERM": "xterm"}])
    assert ended.returncode == 0
    assert (ended.stdout, ended.stderr) == ("", "")
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["frames"] == 96


@pytest.mark.parametrize(("before", "raised"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_nohup_is_respected(before: signal.Handlers, raised: bool) -> None:
    own = signal.signal(signal.SIGHUP, before)
    try:
        caught = False
        try:
            with terminated_like_interrupted():
                os.kill(os.getpid(), signal.SIGHUP)
        except KeyboardInterrupt:
            caught = True
        assert caught == raised
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, own)
