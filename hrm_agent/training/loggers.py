"""Where a run's numbers and videos go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, or your own."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import printable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "tensorboard"
PROJECT = "hrm-agent"
"""Name of the project in Weights & Biases (unless `WANDB_PROJECT` says another), and of the experiment in MLflow."""
BATCH = 100
"""Parameters that MLflow takes at once."""
LONGEST_VALUE = 500
"""Characters of a parameter in MLflow."""


class LoggerFailed(RuntimeError):
    """A logger could not begin; the message is one line."""


@runtime_checkable
class Logger(Protocol):
    """Takes the numbers of a run. All methods are called in the process that trains, between updates."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name (`train/success`, `validation/return`, `loss/policy_loss`).

        Args:
            step: environment frames of training so far. A run that is resumed repeats those after its checkpoint.
        """

    def video(self, step: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """A GIF of episodes; `shape` is the (height, width, 3) of its pictures."""

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """The settings of a run by name: when it begins, without results, and at its end with them."""

    def close(self) -> None:
        """The run is over, or interrupted."""


class TensorBoardLogger:
    """TensorBoard's event files in a folder.

    Args:
        folder: of the event files.
        step: where the run (re)starts; TensorBoard does not show what an interrupted run logged after it.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._folder, self._purge = str(folder), step + 1 if step else None

    @cached_property
    def writer(self) -> SummaryWriter:
        """Imported with the first numbers: frames come first."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._folder, purge_step=self._purge)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def video(self, step: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        """TensorBoard shows it moving under Images."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=gif, height=shape[0], width=shape[1], colorspace=3)
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """For the HPARAMS tab, in the run's own folder (`add_hparams` would open another); at the end alone."""
        if not results:
            return
        from torch.utils.tensorboard.summary import hparams

        assert self.writer.file_writer is not None
        for summary in hparams(_plain(settings), dict(results)):
            self.writer.file_writer.add_summary(summary)

    def close(self) -> None:
        if "writer" in self.__dict__:
            self.writer.close()


class WandbLogger:
    """A run of Weights & Biases (extra `wandb`), with the variables of its own (`WANDB_PROJECT`, `WANDB_MODE`).

    Its name is that of the run's folder, and its id follows from the folder's path, so that a run that is resumed there
    goes on in the same one. Points repeated after a checkpoint are drawn twice.

    Args:
        folder: of the run; W&B keeps its files there, in `wandb/`.
        step: where the run (re)starts.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._wandb: Any = import_module("wandb")
        self._run: Any = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_identity(folder),
            dir=str(folder),
            resume="allow" if step else None,
        )
        self._run.define_metric("frames")
        self._run.define_metric("*", step_metric="frames")  # its own steps may not be repeated

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"frames": step, **values})

    def video(self, step: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        self._run.log({"frames": step, tag: self._wandb.Video(io.BytesIO(gif), format="gif")})

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        self._run.config.update(_plain(settings), allow_val_change=True)
        self._run.summary.update(dict(results))

    def close(self) -> None:
        self._run.finish()


class MLflowLogger:
    """A run of MLflow (extra `mlflow`), on the server or in the database that `MLFLOW_TRACKING_URI` names.

    It is found again by a tag, so that a training run that is resumed goes on in the same one. The active run of the
    program, if it has one, is left alone.

    Args:
        folder: of the training run, whose name it has.
        step: where the run (re)starts.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._mlflow: Any = import_module("mlflow")
        self._client: Any = self._mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(PROJECT)
        tag = {"hrm_agent.run": _identity(folder)}
        found = self._client.search_runs([number], f"tags.`hrm_agent.run` = '{_identity(folder)}'") if step else []
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(number, tags=tag, run_name=folder.name).info.run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        metric, now = self._mlflow.entities.Metric, int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[metric(name, value, now, step) for name, value in values.items()])

    def video(self, step: int, tag: str, gif: bytes, shape: tuple[int, ...]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{tag.replace('/', '_')}_{step:012}.gif"
            file.write_bytes(gif)
            self._client.log_artifact(self._run, str(file), "videos")

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Settings that are not there yet: MLflow keeps the first value. Results are among the metrics already."""
        there = self._client.get_run(self._run).data.params
        param = self._mlflow.entities.Param
        new = [param(n, str(v)[:LONGEST_VALUE]) for n, v in _plain(settings).items() if n not in there]
        for begin in range(0, len(new), BATCH):
            self._client.log_batch(self._run, params=new[begin : begin + BATCH])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _tensorboard(folder: Path, step: int) -> Logger:
    return TensorBoardLogger(folder / TENSORBOARD, step)


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {
    TENSORBOARD: _tensorboard,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}
"""By the name of the package that each needs, and of the extra that installs it."""


def logger_names(text: str) -> list[str]:
    """The loggers that `loggers=tensorboard,wandb` names; none for an empty text.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"loggers={printable(name)}: no such logger{did_you_mean(name, LOGGERS)}")
        found = find_spec(name)
        if found is None or found.origin is None:  # W&B leaves a folder `wandb` behind, which looks like a package
            raise ValueError(f"loggers={name}: needs {name}, which is not installed; pip install 'hrm-agent[{name}]'")
    return list(dict.fromkeys(names))


def split_loggers(given: Any) -> tuple[list[str], list[Logger]]:
    """Loggers by name, and those that a program brings.

    Raises:
        ValueError: something that is neither.
    """
    given = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for number, logger in enumerate(given):
        if not isinstance(logger, str | Logger) or isinstance(logger, type):
            what = logger.__name__ if isinstance(logger, type) else type(logger).__name__
            raise ValueError(
                f"loggers[{number}]={what}: expected {', '.join(LOGGERS)}, or an object with the methods of "
                "hrm_agent.Logger: scalars, video, hyperparameters, close"
            )
    names = [name for given_text in given if isinstance(given_text, str) for name in given_text.split(",")]
    return names, [logger for logger in given if not isinstance(logger, str)]


def open_loggers(names: Sequence[str], folder: Path, step: int) -> list[Logger]:
    """Those named, for a run in this folder that (re)starts at `step`.

    Raises:
        LoggerFailed: one of them could not begin, for want of a login for example.
    """
    opened: list[Logger] = []
    for name in names:
        try:
            opened.append(LOGGERS[name](folder, step))
        except Exception as error:  # of other packages
            for logger in opened:
                logger.close()
            raise LoggerFailed(f"loggers={name}: {printable(f'{type(error).__name__}: {error}')[:500]}") from error
    return opened


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}


def _identity(folder: Path) -> str:
    """The same for the same folder on the same machine."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
