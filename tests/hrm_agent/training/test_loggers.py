"""Numbers and videos go to TensorBoard, to W&B and MLflow (stand-ins have their place here), and to a program's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hrm_agent import Logger
from hrm_agent.training.loggers import LoggerFailed, logger_names, open_loggers, split_loggers
from hrm_agent.training.tracking import Console, RunLog
from tiny import make_trainer

QUIET = Console(quiet=True)
WANDB = """
calls = []


class Video:
    def __init__(self, data, format):
        self.data, self.format = data.read(), format


class Run:
    config = summary = None

    def __init__(self):
        self.config = self.summary = self

    def __getattr__(self, name):
        return lambda *given, **named: calls.append((name, given, named))


def init(**named):
    calls.append(("init", (), named))
    if named["name"] == "without a login":
        raise RuntimeError("No API key\\nconfigured")
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace

experiments, runs = {}, {}
entities = SimpleNamespace(
    Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
)


class MlflowClient:
    def get_experiment_by_name(self, name):
        return experiments.get(name)

    def create_experiment(self, name):
        experiments[name] = SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment_id, tags, run_name):
        run_id = f"run {len(runs)}"
        data = SimpleNamespace(params={}, metrics=[], files=[])
        runs[run_id] = SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, status="RUNNING", name=run_name), data=data, tags=tags
        )
        return runs[run_id]

    def search_runs(self, experiment_ids, filter_string):
        return [run for run in runs.values() if f"'{run.tags['hrm_agent.run']}'" in filter_string]

    def get_run(self, run_id):
        return runs[run_id]

    def update_run(self, run_id, status):
        runs[run_id].info.status = status

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        runs[run_id].data.metrics += metrics
        for key, value in params:
            assert runs[run_id].data.params.setdefault(key, value) == value

    def log_artifact(self, run_id, path, folder):
        with open(path, "rb") as file:
            runs[run_id].data.files.append((folder, file.read()))

    def set_terminated(self, run_id):
        runs[run_id].info.status = "FINISHED"
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "wandb.py").write_text(WANDB)
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    yield importlib.import_module
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


class Kept:
    """A program's own logger."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []
        self.settings: list[tuple[dict[str, Any], dict[str, float]]] = []
        self.videos: list[tuple[int, str, bytes]] = []
        self.closed = 0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.numbers.append((step, values))

    def video(self, step: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        assert len(shape) == 3
        self.videos.append((step, tag, gif))

    def hyperparameters(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        self.settings.append((settings, results))

    def close(self) -> None:
        self.closed += 1


@pytest.mark.usefixtures("videos")
def test_each_logger_gets_what_the_log_has_and_goes_on_where_the_run_does(stand_ins: Any, tmp_path: Path) -> None:
    kept, folder = Kept(), tmp_path / "run"
    make_trainer(folder, loggers="wandb,mlflow", more_loggers=[kept], total_steps=64).run(QUIET)
    assert isinstance(kept, Logger)
    assert not (folder / "tensorboard").exists()  # it was not asked for
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{"frames": step, **values} for step, values in kept.numbers] == logged
    assert [step for step, _ in kept.numbers] == [32, 64, 64]
    ((begun, nothing), (ended, results)) = kept.settings
    assert begun == ended
    assert ended["env"] == "DynamicMaze-v0"
    assert nothing == {}
    assert set(results) == {"validation/success"}
    ((step, tag, gif),) = kept.videos
    assert (step, tag, gif[:4]) == (64, "validation/video", b"GIF8")
    assert kept.closed == 1

    wandb, mlflow = stand_ins("wandb"), stand_ins("mlflow")
    calls = [(name, given[0] if given else named) for name, given, named in wandb.calls]
    assert calls[0][1]["dir"] == str(folder)
    assert calls[0][1]["resume"] is None
    assert [given for name, given in calls if name == "log" and tag not in given] == logged
    (video,) = [given[tag] for name, given in calls if name == "log" and tag in given]
    assert (video.data, video.format) == (gif, "gif")
    assert calls[-1][0] == "finish"
    (run,) = mlflow.runs.values()
    assert run.info.status == "FINISHED"
    assert run.data.metrics == [(n, v, step) for step, values in kept.numbers for n, v in values.items()]
    assert run.data.files == [("videos", gif)]
    assert run.data.params["env"] == "DynamicMaze-v0"

    resumed = make_trainer(folder, loggers="wandb,mlflow", total_steps=96)
    resumed.resume()
    resumed.run(QUIET)
    again = [named for name, _, named in wandb.calls if name == "init"][1]
    assert (again["id"], again["resume"]) == (calls[0][1]["id"], "allow")
    assert list(mlflow.runs) == ["run 0"]
    assert run.data.metrics[-1][2] == 96
    assert run.info.status == "FINISHED"


def test_a_logger_that_cannot_begin_is_one_line_and_the_others_are_closed(stand_ins: Any, tmp_path: Path) -> None:
    folder = tmp_path / "without a login"
    with pytest.raises(LoggerFailed, match=r"^loggers=wandb: RuntimeError: No API key configured$"):
        open_loggers(["mlflow", "wandb"], folder, 0)
    assert stand_ins("mlflow").runs["run 0"].info.status == "FINISHED"


def test_a_package_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder where W&B has left its files, which looks like a package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("hrm_agent.training.loggers.find_spec", lambda name: find(name) if name == "wandb" else None)
    find = importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError) as error:
            make_trainer(tmp_path / "run", loggers=name)
        line = f"loggers={name}: needs {name}, which is not installed; pip install 'hrm-agent[{name}]'"
        assert str(error.value) == line
    assert not (tmp_path / "run").exists()


def test_loggers_are_named_or_brought() -> None:
    kept = Kept()
    assert split_loggers("tensorboard") == (["tensorboard"], [])
    assert split_loggers(["tensorboard,wandb", kept]) == (["tensorboard", "wandb"], [kept])
    assert split_loggers([]) == ([], [])
    assert logger_names("tensorboard, tensorboard") == ["tensorboard"]
    assert logger_names("") == []
    with pytest.raises(ValueError, match=r"loggers=tensorbord: no such logger; did you mean tensorboard\?"):
        logger_names("tensorbord")
    with pytest.raises(ValueError, match=r"loggers\[0\]=Kept: expected tensorboard, wandb, mlflow, or an object with"):
        split_loggers([Kept])


def test_a_log_that_is_closed_closes_its_file_whatever_a_logger_does(tmp_path: Path) -> None:
    class Broken(Kept):
        def close(self) -> None:
            raise ConnectionError

    log = RunLog(tmp_path, 0, loggers=[Broken()])
    with pytest.raises(ConnectionError):
        log.close()
    assert log.file.closed
