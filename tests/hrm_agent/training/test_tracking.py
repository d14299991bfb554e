"""What a run writes for people: TensorBoard's files, read back, and the progress on a terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from hrm_agent.launch.runs import Run, open_loop, say_end
from hrm_agent.parallel.processes import SINGLE_PROCESS
from hrm_agent.training import trainer as trainer_module
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from tiny import make_trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _few_timed_calls_and_small_videos: Any) -> Trainer:
    """A run of 128 frames that is evaluated twice, with a point of the curve before each, and recorded twice."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), eval_every=64, curve_every=32, video_every=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "CURVE_LEVELS", 2)
        patch.setattr(Trainer, "_record_video", _few_timed_calls_and_small_videos)
        trainer.run(Console())
    return trainer


def test_tensorboard_shows_the_video_since_its_tag_is_that_of_no_number(run: Trainer) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["validation/video"]
    assert not set(tags["images"]) & set(tags["scalars"])
    videos = events.Images("validation/video")
    assert {video.step for video in videos} == {64, 128}
    assert all(video.encoded_image_string.startswith(b"GIF8") for video in videos)


def test_a_quick_curve_has_points_between_evaluations_and_chooses_nothing(run: Trainer) -> None:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]

    def points(tag: str) -> list[tuple[int, int]]:
        return [(line["frames"], line[f"{tag}/episodes"]) for line in lines if f"{tag}/success" in line]

    assert points("validation") == [(64, 4), (128, 4)]
    assert points("validation_quick") == [(32, 2), (64, 2), (96, 2), (128, 2)]
    assert run.validation["episodes"] == 4
    assert run._validated == [128, 4]


@pytest.mark.parametrize("without", [{"curve_every": 0}, {"eval_every": 0}])
def test_no_curve_where_evaluations_or_its_points_are_turned_off(
    without: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, **{"eval_every": 64, "curve_every": 32, **without}, total_steps=96)
    levels: list[int] = []
    monkeypatch.setattr(trainer, "_evaluate", lambda count: levels.append(count) or {"success": 0.0, "return": 0.0})
    monkeypatch.setattr(trainer, "_record_video", lambda log, console: None)
    trainer.run(Console())
    assert set(levels) == {4}


@pytest.mark.parametrize("left", ["00:12", "1:01:40"])
def test_the_time_left_is_seen_on_a_terminal_of_80_columns(left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes, console = left, Console()
    stream = Terminal()
    console.rich = RichConsole(file=stream, force_terminal=True, width=80, height=24, legacy_windows=False)
    monkeypatch.setattr("rich.progress.TimeRemainingColumn.render", lambda self, task: minutes)
    with console.training(900_000, 0):
        numbers = {"success": 0.123, "validation_success": 0.456, "return": -1.5, "frames_per_second": 10_123.0}
        console.progress(450_000, numbers, ("success", "return"))
    shown = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).split())
    assert f"50% {left} left" in shown
    for part in ("450,000 frames", "success 0.123 sampled, 0.456 greedy", "return -1.500 sampled", "10,123 steps/s"):
        assert part in shown


@pytest.mark.parametrize(
    ("asked", "reason"), [(100, " (total_steps=100, rounded up to whole rollouts of 32)"), (128, "")]
)
def test_a_run_that_is_longer_than_asked_for_says_why(
    asked: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, total_steps=asked)
    trainer.collector.frames, trainer.updates, trainer.seconds = 128, 4, 7.0
    say_end(trainer, Console())
    assert capsys.readouterr().err == f"at 128 frames after 7 s of training{reason}\n"


def test_a_finished_run_that_is_resumed_says_that_it_is_only_measured(
    run: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = Run(run.folder, {}, True, SINGLE_PROCESS, Console())
    open_loop(resumed, lambda: make_trainer(run.folder, eval_every=64, curve_every=32, video_every=64))
    finished = "nothing is left to train, and it is measured again; more total_steps or max_seconds train on"
    assert finished in capsys.readouterr().err
    open_loop(resumed, lambda: make_trainer(run.folder, total_steps=256))
    said = capsys.readouterr().err
    assert "resuming from" in said
    assert finished not in said


def test_a_checkpoint_of_before_may_have_a_video_left_to_record(tmp_path: Path) -> None:
    """Its former name was `film`."""
    trainer = make_trainer(tmp_path, total_steps=32)
    trainer._left = ["film", "checkpoint"]
    trainer.save_checkpoint()
    resumed = make_trainer(tmp_path, total_steps=32)
    resumed.resume()
    assert resumed._left == ["video", "checkpoint"]
