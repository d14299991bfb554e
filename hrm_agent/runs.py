"""Run folders: what says how a run was started, and what all commands do that start or resume one."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from yaml import YAMLError

from hrm_agent import __version__
from hrm_agent.checkpoint import CheckpointError, write_atomically
from hrm_agent.cli import USAGE_ERROR, UsageError, fail
from hrm_agent.run_loop import Interrupted, NonFiniteRun, RunLoop
from hrm_agent.tracking import Console

RUN_VERSION = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
INTERRUPTED = 130


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the body, as Ctrl-C does; while it trains, the loop listens itself."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_run_folder(folder: str | None) -> None:
    """Raises: UsageError if there is a run in it."""
    if folder and (Path(folder) / RUN_FILE).exists():
        raise UsageError(f"hydra.run.dir={folder}: holds a run already; go on with it by resume={folder}")


def begin_run(folder: Path, values: dict[str, Any], command: str) -> None:
    """Describe a new run in its folder; ends the program where there is one already.

    Args:
        values: its resolved configuration.
        command: the module that runs it, `hrm_agent.train`.
    """
    try:
        os.close(os.open(folder / RUN_FILE, os.O_CREAT | os.O_EXCL))  # two runs that start at once cannot share it
    except FileExistsError:
        fail(f"{folder}: holds a run already; go on with it by resume={folder}", USAGE_ERROR)
    description = {
        "run_version": RUN_VERSION,
        "hrm_agent": __version__,
        "command": command_line(command),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "numpy", "gymnasium", "numba")},
    }
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())
    write_atomically(folder / RUN_FILE, (json.dumps(description, indent=2) + "\n").encode())


def is_multirun() -> bool:
    """Of a run that is resumed, which Hydra does not start, False."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def command_line(command: str) -> str:
    """What starts this run; of a job of a sweep, the job's own settings."""
    if not is_multirun():
        return " ".join([f"python -m {command}", *sys.argv[1:]])
    return " ".join([f"python -m {command}", *HydraConfig.get().overrides.task, "hydra.mode=RUN"])


def load_run(folder: Path, command: str = "hrm_agent.train") -> dict[str, Any]:
    """The resolved configuration of a run.

    Args:
        command: the module that must have started it.

    Raises:
        UsageError: `folder` holds no run, one of another version, or of another command.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: not the folder of a run ({RUN_FILE} or {CONFIG_FILE} is missing)")
    try:
        description = json.loads((folder / RUN_FILE).read_text())
        found, started = description["run_version"], str(description["command"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UsageError(f"{folder / RUN_FILE}: not a run's description") from None
    if found != RUN_VERSION:
        raise UsageError(f"{folder}: run of version {found}, expected {RUN_VERSION}; use the hrm_agent that wrote it")
    if f"python -m {command}" != " ".join(started.split()[:3]):
        raise UsageError(f"{folder}: a run of {' '.join(started.split()[:3])!r}; expected one of {command}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration")
    return {str(key): value for key, value in values.items()}


def change_settings(values: dict[str, Any], given: dict[str, str], changeable: tuple[str, ...]) -> None:
    """Put what is given beside `resume=` into a run's configuration.

    Raises:
        UsageError: it cannot change in a run that is resumed.
    """
    for key, text in given.items():
        if key not in changeable:
            raise UsageError(f"{key}={text}: cannot change in a run that is resumed; only {', '.join(changeable)}")
        values[key] = OmegaConf.from_cli([f"{key}={text}"])[key]


def write_settings(folder: Path, values: dict[str, Any]) -> None:
    """Keep a run's changed configuration."""
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())


@contextmanager
def run_errors(folder: Path, command: str) -> Iterator[None]:
    """Turn what can end a run inside the body into one line that says how to go on."""
    go_on = f"go on with: python -m {command} resume={folder}"
    try:
        with terminated_like_interrupted():  # here too: a launcher may call this in a process of its own
            yield
    except CheckpointError as error:
        fail(str(error), USAGE_ERROR)
    except KeyboardInterrupt:  # before training began, or a second time
        fail(f"interrupted; {go_on}", INTERRUPTED)
    except Interrupted as error:
        fail(f"{error}; {go_on}", INTERRUPTED)
    except NonFiniteRun as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error}; earlier checkpoints are intact, {go_on}", 1)


def announce(console: Console, folder: Path) -> None:
    """Say where a run's files are."""
    console.say(f"run folder: {folder}\ncurves:     tensorboard --logdir {folder}")


def resume_loop(loop: RunLoop, console: Console) -> None:
    """Load the newest checkpoint. A run that was killed before its first begins anew: a fresh one is where it was."""
    checkpoint = loop.resume() if loop.checkpoints.paths() else None
    if checkpoint:
        console.say(f"going on from {checkpoint}")
