"""What ends a run: errors and signals as one line that says how to resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.files.reading import CheckpointError
from hrm_agent.launch.cli import INTERRUPTED, USAGE_ERROR, say_error, say_traceback
from hrm_agent.launch.resume import RUN_FILE
from hrm_agent.parallel.memory import describe_out_of_memory, is_out_of_memory
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, ProcessesDiverged, ProcessLost
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.loggers import LoggerFailed
from hrm_agent.training.loop import CHECKPOINTS, Interrupted
from hrm_agent.training.signals import stop_signals

SMALLER = {
    "hrm_agent.train": "less of algo.num_envs, algo.rollout_steps, algo.minibatch_windows or algo.capacity",
    "hrm_agent.supervise": "less of training.batch_size, or fewer puzzles at once (training.chunk_size)",
}
"""What a run of a command can do with less of, where memory runs out."""


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt in the body, as Ctrl-C does; the training loop handles all three.

    A SIGHUP that is ignored stays so, see `stop_signals`.
    """
    previous = {s: signal.signal(s, signal.default_int_handler) for s in stop_signals() if s != signal.SIGINT}
    try:
        yield
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


@contextmanager
def _silent_writer() -> Iterator[None]:
    """TensorBoard's thread is silent where it cannot write; the run's own thread meets the same error, and ends."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        theirs = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (theirs and isinstance(arguments.exc_value, OSError)):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


@contextmanager
def run_errors(folder: Path, command: str, processes: Processes = SINGLE_PROCESS) -> Iterator[None]:
    """Turn errors and signals that end a run inside the body into one line that says how to resume, or where there is
    no checkpoint yet that nothing was saved.

    Where all processes end, rank 0 prints it before any of them ends, since `torchrun` then terminates the rest.
    Where one ends, that one does.
    """

    def go_on(intact: str = "") -> str:
        """How to go on; `intact`: where there are earlier checkpoints, what is said of them."""
        line = f"python -m {command} resume={folder}" + ", under torchrun or alone" * (processes.world_size > 1)
        if _has_checkpoint(folder):
            return f"{intact}resume with: {line}"
        return f"nothing has been saved yet, begin it again with: {line}"

    def end(message: str, code: int, everywhere: bool = False) -> None:
        if processes.is_rank_zero or not everywhere:
            say_error(message if processes.is_rank_zero else f"process {processes.rank}: {message}", code)
        if everywhere:
            with suppress(ProcessLost):
                processes.barrier()
        raise SystemExit(code)

    try:
        with terminated_like_interrupted(), _silent_writer():  # here too: a launcher may call this itself
            yield
    except CheckpointError as error:
        end(str(error), USAGE_ERROR)
    except KeyboardInterrupt:  # before training began, or a second time
        if processes.is_rank_zero:
            end(f"interrupted; {go_on()}", INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except Interrupted as error:
        end(f"{error}; {go_on()}", INTERRUPTED, everywhere=True)
    except (NonFiniteNumbers, ProcessesDiverged, LoggerFailed) as error:
        end(str(error), 1, everywhere=True)
    except ProcessLost as error:
        if processes.is_rank_zero:
            end(f"{error}; {go_on('earlier checkpoints are intact, ')}", 1)
        raise SystemExit(1) from None
    except EnvironmentFailed as error:
        say_traceback(error)
        end(f"{error}; {go_on(_last_checkpoint(folder))}", 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        less = SMALLER.get(command, "a smaller batch")
        how = go_on("earlier checkpoints are intact: with more memory, ")
        end(f"{describe_out_of_memory(error)}; {how}, or begin another run with {less}", 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not (folder / RUN_FILE).exists():
            end(f"{folder}: the folder was removed while the run worked in it; start the run again", 1)
        end(f"{error}; {go_on('earlier checkpoints are intact, ')}", 1)


def _last_checkpoint(folder: Path) -> str:
    with suppress(CheckpointError):
        return f"the last checkpoint is {CheckpointFolder(folder / CHECKPOINTS).latest()}; "
    return ""


def _has_checkpoint(folder: Path) -> bool:
    """True as well where something is wrong with them, which resuming says."""
    try:
        return CheckpointFolder(folder / CHECKPOINTS).latest() is not None
    except (CheckpointError, OSError):
        return True
