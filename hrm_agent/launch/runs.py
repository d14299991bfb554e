"""Run folders, and the common part of the commands that start and resume runs: `train` and `supervise`."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from hrm_agent import __version__
from hrm_agent.agents.agent import RUN_FILE
from hrm_agent.launch import hydra_plugin as config_source
from hrm_agent.launch import starting
from hrm_agent.launch.cli import (
    USAGE_ERROR,
    UsageError,
    check_jobs,
    existing_folder,
    fail,
    open_options,
    say_error,
    usage_errors,
    wants_help,
)
from hrm_agent.launch.settings import config_folder, rename_settings, resolve
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, ProcessesDiverged, ProcessLost, join
from hrm_agent.tensors.files import CheckpointError, write_atomically
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.loop import Interrupted, RunLoop
from hrm_agent.training.tracking import Console

RUN_VERSION = 1
CONFIG_FILE = "config.yaml"
INTERRUPTED = 130

Loop = TypeVar("Loop", bound=RunLoop)


@dataclass(frozen=True)
class Run:
    """A run that begins or is resumed; with `torchrun`, as one of its processes sees it.

    Attributes:
        folder: with `config.yaml` and `run.json`.
        values: its resolved configuration.
        resumed: whether it goes on from a checkpoint, if there is one.
        processes: those that run it together.
        console: silent in all but rank 0.
    """

    folder: Path
    values: dict[str, Any]
    resumed: bool
    processes: Processes
    console: Console


def run_command(
    name: str,
    settings: Callable[[dict[str, Any]], Any],
    check: Callable[[DictConfig, Path | None], Any],
    perform: Callable[[Run], float],
    changeable: tuple[str, ...],
) -> None:
    """The command `python -m hrm_agent.NAME`: read and check the settings, then perform one run or a sweep of them.

    Under `torchrun` rank 0 reads and checks the command line and creates the run's folder; the others wait for
    `_announce`, or end.

    Args:
        name: of the command, and of its configuration.
        settings: from a resolved configuration to typed settings.
        check: refuses a configuration by a ValueError, before anything is written; of a run that is resumed it is given
            the folder.
        perform: the run; returns the sweeper's objective.
        changeable: settings that can change when a run is resumed.
    """
    processes, command = SINGLE_PROCESS, f"hrm_agent.{name}"

    def start(cfg: DictConfig) -> float:
        """A job in Hydra's run folder."""
        folder, values = Path(HydraConfig.get().runtime.output_dir), resolve(cfg)
        values.pop("resume")
        _begin_run(folder, values, command)
        return _announce(perform, folder, values, resumed=False)

    try:
        with terminated_like_interrupted():
            processes = join()
            if not processes.is_rank_zero:
                _follow(processes, perform)
                return
        with terminated_like_interrupted(), _leading(processes):
            arguments = sys.argv[1:] = open_options(sys.argv[1:])
            given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
            if given.get("resume", "null") not in ("null", ""):
                starting.over()
                with usage_errors():
                    folder, values = reopen_run(given, command, changeable, settings)
                    check(OmegaConf.create(values), folder)
                    if given:
                        _write_settings(folder, values)
                _announce(perform, folder, values, resumed=True)
                return
            if {"-h", "--help"} & set(arguments):
                from hrm_agent.launch.help import run_page  # which a run does not need

                with usage_errors():
                    page = run_page(name, arguments)
                starting.over()
                print(page)
                return
            if not wants_help(arguments):
                with usage_errors():
                    _check_single_run(processes, arguments)
                    check_jobs(arguments, name, lambda cfg: check(cfg, None))
                    _check_run_folder(given.get("hydra.run.dir"))
            starting.over()
            sys.argv[0] = command
            config_source.install()
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(start)()
    except (KeyboardInterrupt, ProcessLost) as error:
        message, code = (str(error), 1) if isinstance(error, ProcessLost) else ("interrupted", INTERRUPTED)
        if not processes.is_rank_zero:
            raise SystemExit(code) from None
        fail(message, code)
    finally:
        starting.over()
        processes.leave()


@contextmanager
def _leading(processes: Processes) -> Iterator[None]:
    """End the other processes where the body ends without `_announce`."""
    code: Any = 0
    try:
        yield
    except SystemExit as error:
        code = error.code
        raise
    except BaseException:
        code = INTERRUPTED
        raise
    finally:
        if not processes.begun:
            with suppress(ProcessLost):
                processes.broadcast_object({"exit": code})


def _follow(processes: Processes, perform: Callable[[Run], float]) -> None:
    """Wait for `_announce` and perform the run, or end; for processes other than rank 0."""
    message = processes.broadcast_object(None)
    if "exit" in message:
        raise SystemExit(message["exit"])
    perform(Run(Path(message["folder"]), message["values"], message["resumed"], processes, Console(quiet=True)))


def _announce(perform: Callable[[Run], float], folder: Path, values: dict[str, Any], resumed: bool) -> float:
    """Perform a run in rank 0, which broadcasts to the others that it begins."""
    processes = join()
    processes.broadcast_object({"folder": str(folder), "values": values, "resumed": resumed})
    processes.begun = True
    return perform(Run(folder, values, resumed, processes, Console()))


def _check_single_run(processes: Processes, arguments: list[str]) -> None:
    """Raises: UsageError for several runs in several processes."""
    if processes.world_size > 1 and {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments):
        raise UsageError(
            f"--multirun in {processes.world_size} processes of torchrun: expected one run; start each by itself"
        )


def _check_run_folder(folder: str | None) -> None:
    if folder and (Path(folder) / RUN_FILE).exists():
        raise UsageError(f"hydra.run.dir={folder}: holds a run already; resume it with resume={folder}")


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt in the body, as Ctrl-C does; during training the loop handles both."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _begin_run(folder: Path, values: dict[str, Any], command: str) -> None:
    """Describe a new run in its folder; ends the program where there is one already."""
    try:
        os.close(os.open(folder / RUN_FILE, os.O_CREAT | os.O_EXCL))  # two runs that start at once cannot share it
    except FileExistsError:
        fail(f"{folder}: holds a run already; resume it with resume={folder}", USAGE_ERROR)
    description = {
        "run_version": RUN_VERSION,
        "hrm_agent": __version__,
        "command": _command_line(command),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "numpy", "gymnasium", "numba")},
    }
    _write_settings(folder, values)
    write_atomically(folder / RUN_FILE, (json.dumps(description, indent=2) + "\n").encode())


def is_multirun() -> bool:
    """Whether Hydra runs a sweep; False for a resumed run, which Hydra does not start."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command_line(command: str) -> str:
    """The command line that starts this run; for a job of a sweep, with the job's own settings."""
    if not is_multirun():
        return " ".join([f"python -m {command}", *sys.argv[1:]])
    return " ".join([f"python -m {command}", *HydraConfig.get().overrides.task, "hydra.mode=RUN"])


def load_run(folder: Path, command: str) -> dict[str, Any]:
    """The resolved configuration of a run.

    Args:
        command: the module that must have started it, `hrm_agent.train`.

    Raises:
        UsageError: `folder` holds no run, one of another version, or of another command.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: not the folder of a run ({RUN_FILE} or {CONFIG_FILE} is missing)")
    try:
        description = json.loads((folder / RUN_FILE).read_text())
        found, module = description["run_version"], description["command"].split()[2]  # of python -m MODULE ...
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError):
        raise UsageError(f"{folder / RUN_FILE}: not a run's description") from None
    if found != RUN_VERSION:
        raise UsageError(f"{folder}: run of version {found}, expected {RUN_VERSION}; use the hrm_agent that wrote it")
    if module != command:
        raise UsageError(f"{folder}: a run of {module}, not of {command}; resume it with python -m {module}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration")
    named = {str(key): value for key, value in values.items()}
    rename_settings(named)
    return named


def reopen_run(
    given: dict[str, str],
    command: str,
    changeable: tuple[str, ...],
    settings: Callable[[dict[str, Any]], Any],
) -> tuple[Path, dict[str, Any]]:
    """Folder and changed configuration of the run to resume; nothing is written.

    Args:
        given: `KEY=VALUE` of the command line; `resume` is taken out.
        command: the module that must have started it.
        changeable: settings that can change in a run that is resumed.
        settings: from the configuration to typed settings.

    Raises:
        UsageError: no such run, or a setting that cannot change.
        ValueError: what `settings` finds wrong.
    """
    folder = existing_folder(given.pop("resume"), "resume")
    values = load_run(folder, command)
    for key, text in given.items():
        if key not in changeable:
            raise UsageError(f"{key}={text}: cannot change in a run that is resumed; only {', '.join(changeable)}")
        values[key] = OmegaConf.from_cli([f"{key}={text}"])[key]
    try:
        settings(values)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration ({error!r})") from None
    return folder, values


def check_count(values: dict[str, Any], name: str) -> None:
    """Raises: UsageError if setting `name` is no number of levels or puzzles."""
    count = values.get(name)
    if type(count) is not int or count < 0:
        raise UsageError(f"{name}={count}: expected an integer, 0 or more")


def _write_settings(folder: Path, values: dict[str, Any]) -> None:
    """Keep a run's configuration."""
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())


@contextmanager
def run_errors(folder: Path, command: str, processes: Processes = SINGLE_PROCESS) -> Iterator[None]:
    """Turn errors and signals that end a run inside the body into one line that says how to resume.

    Where all processes end, rank 0 prints it before any of them ends, since `torchrun` then terminates the rest.
    Where one ends, that one does.
    """
    go_on = f"resume with: python -m {command} resume={folder}" + ", under torchrun or alone" * (
        processes.world_size > 1
    )

    def end(message: str, code: int, everywhere: bool = False) -> None:
        if processes.is_rank_zero or not everywhere:
            say_error(message if processes.is_rank_zero else f"process {processes.rank}: {message}")
        if everywhere:
            with suppress(ProcessLost):
                processes.barrier()
        raise SystemExit(code)

    try:
        with terminated_like_interrupted():  # here too: a launcher may call this in its own process
            yield
    except CheckpointError as error:
        end(str(error), USAGE_ERROR)
    except KeyboardInterrupt:  # before training began, or a second time
        if processes.is_rank_zero:
            end(f"interrupted; {go_on}", INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except Interrupted as error:
        end(f"{error}; {go_on}", INTERRUPTED, everywhere=True)
    except (NonFiniteNumbers, ProcessesDiverged) as error:
        end(str(error), 1, everywhere=True)
    except ProcessLost as error:
        if processes.is_rank_zero:
            end(f"{error}; earlier checkpoints are intact, {go_on}", 1)
        raise SystemExit(1) from None
    except torch.OutOfMemoryError as error:
        less = "a smaller batch, or fewer puzzles at once (training.chunk_size) where it is a supervised run"
        end(f"{str(error).splitlines()[0]}; give {less}; earlier checkpoints are intact, {go_on}", 1)
    except OSError as error:
        end(f"{error}; earlier checkpoints are intact, {go_on}", 1)


def open_loop(run: Run, build: Callable[[], Loop]) -> Loop:
    """Build a run's loop, restored from its newest checkpoint, and print where its files are.

    Raises:
        CheckpointError: none of its checkpoints can be used.
    """
    where, console = f"run folder: {run.folder}\ncurves:     tensorboard --logdir {run.folder}", run.console
    if not run.resumed:
        console.say(where)  # at once: building may take a minute
        return build()
    loop = build()
    # A run that was killed before its first checkpoint starts from the beginning.
    checkpoint = loop.resume() if loop.processes.broadcast_object(bool(loop.checkpoints.paths())) else None
    console.say(where)
    if checkpoint:
        console.say(f"resuming from {checkpoint}")
    return loop


def run_to_end(loop: RunLoop, console: Console) -> bool:
    """Train to the end; False: it diverged as one job of a sweep, which continues without it.

    Raises:
        NonFiniteNumbers: it diverged outside a sweep.
        Interrupted: it received a signal to stop.
    """
    try:
        loop.run(console)
    except NonFiniteNumbers as error:
        if not is_multirun():
            raise
        console.say(f"diverged: {error}")
        return False
    return True


def say_end(loop: RunLoop, console: Console) -> None:
    console.say(f"at {loop.position:,} {loop.unit} after {loop.seconds:.0f} s of training")
