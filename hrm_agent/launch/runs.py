"""Start and perform runs: the common part of the commands `train` and `supervise`."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hrm_agent import __version__
from hrm_agent.files.folders import check_own
from hrm_agent.files.locking import lock_folder
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import remove_leftovers, write_atomically
from hrm_agent.launch import hydra_plugin as config_source
from hrm_agent.launch import startup
from hrm_agent.launch.cli import (
    USAGE_ERROR,
    UsageError,
    check_jobs,
    fail,
    open_options,
    usage_errors,
    wants_help,
)
from hrm_agent.launch.errors import INTERRUPTED, terminated_like_interrupted
from hrm_agent.launch.resume import CONFIG_FILE, OWN, RUN_FILE, RUN_VERSION, reopen_run
from hrm_agent.launch.settings import config_folder, resolve
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, ProcessLost, join
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.loop import RunLoop
from hrm_agent.training.tracking import Console

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


@outliving_the_terminal()
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
        values.pop("resume", None)
        with outliving_the_terminal(), _begin_run(folder, values, _command_line(command)):
            return _announce(perform, folder, values, resumed=False)

    try:
        with terminated_like_interrupted():
            with usage_errors():
                processes = join()
            if not processes.is_rank_zero:
                _follow(processes, perform)
                return
        with terminated_like_interrupted(), _leading(processes):
            arguments = sys.argv[1:] = open_options(sys.argv[1:])
            given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
            if given.get("resume", "null") not in ("null", ""):
                startup.over()
                with usage_errors():
                    folder, values = reopen_run(given, command, changeable, settings)
                    check(OmegaConf.create(values), folder)
                with _go_on(folder, values if given else None):
                    _announce(perform, folder, values, resumed=True)
                return
            if {"-h", "--help"} & set(arguments):
                from hrm_agent.launch.help import run_page  # which a run does not need

                with usage_errors():
                    page = run_page(name, arguments).render()
                startup.over()
                print(page)
                return
            composed = None
            if not wants_help(arguments):
                with usage_errors():
                    _check_single_run(processes, arguments)
                    composed = check_jobs(arguments, name, lambda cfg: check(cfg, None))
                    _check_run_folder(given.get("hydra.run.dir"))
            startup.over()
            sys.argv[0] = command
            config_source.install()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # then it raises errors; else it prints them, and ends
            try:
                with config_source.composed_once(arguments, composed):
                    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)(start)()
            except OSError as error:  # it could not make the run's folder
                fail(f"{error}; give another place with hydra.run.dir=FOLDER", USAGE_ERROR)
    except (KeyboardInterrupt, ProcessLost) as error:
        message, code = (str(error), 1) if isinstance(error, ProcessLost) else ("interrupted", INTERRUPTED)
        if not processes.is_rank_zero:
            raise SystemExit(code) from None
        fail(message, code)
    finally:
        startup.over()
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
    """Raises: ValueError for a folder with a run, or with links where a run writes."""
    if folder:
        check_new(Path(folder), f"hydra.run.dir={folder}", f"resume it with resume={folder}")


def check_new(folder: Path, name: str, remedy: str) -> None:
    """Check the folder of a run that is to begin.

    Args:
        name, remedy: of the folder and of the run in it, for messages.

    Raises:
        ValueError: it has a run, or links where a run writes.
    """
    check_own(folder, OWN)
    if holds_run(folder):
        raise UsageError(f"{name}: holds a run already; {remedy}")


def holds_run(folder: Path) -> bool:
    """Whether a run has been described there: an empty description is that of a process which ended at once."""
    try:
        return os.lstat(folder / RUN_FILE).st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run's folder; see `lock_folder` for the errors."""
    return lock_folder(folder, lambda line: print(f"warning: {line}", file=sys.stderr))


@contextmanager
def _begin_run(folder: Path, values: dict[str, Any], command: str) -> Iterator[None]:
    """`begin_run`; ends the program where that raises."""
    with ExitStack() as held:
        with usage_errors():
            held.enter_context(begin_run(folder, values, command))
        yield


@contextmanager
def begin_run(folder: Path, values: dict[str, Any], command: str) -> Iterator[None]:
    """Describe a new run in its folder, and hold the folder's lock during the body.

    Args:
        folder: is there.
        values: its resolved configuration.
        command: that starts the run, `python -m hrm_agent.train ...`.

    Raises:
        ValueError: there is a run already, or another process has the folder.
        OSError: it cannot be written.
    """
    description = {
        "run_version": RUN_VERSION,
        "hrm_agent": __version__,
        "command": command,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "numpy", "gymnasium", "numba")},
    }
    with _locked(folder):
        try:
            os.close(os.open(folder / RUN_FILE, os.O_CREAT | os.O_EXCL))  # also where the file system has no locks
        except FileExistsError:
            if holds_run(folder):
                raise UsageError(f"{folder}: holds a run already; resume it with resume={folder}") from None
        keep_settings(folder, values)
        write_atomically(folder / RUN_FILE, (json.dumps(description, indent=2) + "\n").encode())
        yield


@contextmanager
def _go_on(folder: Path, changed: dict[str, Any] | None) -> Iterator[None]:
    """`go_on`; ends the program where that raises."""
    with ExitStack() as held:
        with usage_errors():
            held.enter_context(go_on(folder, changed))
        yield


@contextmanager
def go_on(folder: Path, changed: dict[str, Any] | None) -> Iterator[None]:
    """Hold the lock of a resumed run's folder during the body.

    Args:
        changed: its configuration, where a setting is changed.

    Raises:
        ValueError: another process has it.
        OSError: it cannot be written.
    """
    with _locked(folder):
        for written in (folder, *folder.glob("agents/*"), *folder.glob("models/*")):
            remove_leftovers(written)
        if changed is not None:
            keep_settings(folder, changed)
        yield


def is_multirun() -> bool:
    """Whether Hydra runs a sweep; False for a resumed run, which Hydra does not start."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command_line(command: str) -> str:
    """The command line that starts this run; for a job of a sweep, with the job's own settings."""
    if not is_multirun():
        return " ".join([f"python -m {command}", *sys.argv[1:]])
    return " ".join([f"python -m {command}", *HydraConfig.get().overrides.task, "hydra.mode=RUN"])


def keep_settings(folder: Path, values: dict[str, Any]) -> None:
    """Keep a run's configuration."""
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())


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
    if checkpoint and loop.done >= 1:
        console.say(
            f"finished at {checkpoint}: nothing is left to train, and it is measured again; "
            "more total_steps or max_seconds train on"
        )
    elif checkpoint:
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
    """Print how long the run was, and why it is longer than `total_steps`."""
    asked = loop.config.total_steps
    whole = f" (total_steps={asked:,}, rounded up to whole rollouts of {loop.step_size:,})"
    rounded = whole if loop.position > asked else ""
    console.say(f"at {loop.position:,} {loop.unit} after {loop.seconds:.0f} s of training{rounded}")
