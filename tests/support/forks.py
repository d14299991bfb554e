"""Python processes that have imported torch already: forked from one that has, where each start would take seconds.

`forks.py` itself is the process that they are forked from. It imports and compiles, and neither trains nor starts a
thread, so what it forks differs from `python ...` only in how soon it begins.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn

TIMEOUT = 120.0  # seconds


class Ended(NamedTuple):
    """How a process ended."""

    returncode: int  # minus the number of the signal that killed it
    stdout: str
    stderr: str


class Server:
    """The process that others are forked from. It ends when this one does."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="forks")
        self.address = f"{self._folder.name}/socket"
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.address],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the process to fork from has ended; its error is on stderr"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._folder.cleanup()


class Forks:
    """Starts processes side by side and waits for all of them.

    Args:
        address: of the `Server`, which several processes may ask at once.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def run(
        self, commands: list[list[str]], environments: list[dict[str, str]], folder: Path | None = None
    ) -> list[Ended]:
        """What `python COMMAND` does, for every command: `-m MODULE ...`, `-c CODE ...` or `FILE ...`.

        Args:
            environments: variables beside those of this process, for each command.
            folder: in which they run; None: the working folder.
        """
        with TemporaryDirectory() as made:
            outputs = [[f"{made}/{number}.{name}" for name in ("out", "err")] for number in range(len(commands))]
            where = str(folder or Path.cwd())
            jobs = [
                {"command": command, "environment": {**os.environ, **more}, "folder": where, "outputs": files}
                for command, more, files in zip(commands, environments, outputs, strict=True)
            ]
            codes = self._ask(jobs)
            return [
                Ended(code, *(Path(file).read_text() for file in files))
                for code, files in zip(codes, outputs, strict=True)
            ]

    def wait(self) -> None:
        """Until the server is ready, with what every process would compile compiled."""
        self._ask([])

    def _ask(self, jobs: list[dict[str, Any]]) -> list[int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            with connection.makefile("rw") as channel:
                channel.write(json.dumps(jobs) + "\n")
                channel.flush()
                answer = channel.readline()
        assert answer, "the process to fork from has ended; its error is on stderr"
        found: list[int] = json.loads(answer)
        return found


def prepare() -> None:
    """What most commands would spend their first seconds on. Not the commands: `-m` would warn of them."""
    from hrm_agent.kernels.cpu import build

    build.begin()
    import torch.utils.tensorboard  # noqa: F401

    import hrm_agent.evaluate
    import hrm_agent.launch.hydra_plugin
    import hrm_agent.launch.runs
    import hrm_agent.launch.settings
    import hrm_agent.supervised.trainer
    import hrm_agent.watch  # noqa: F401
    from hrm_agent.environments.make import make_vector_env
    from hrm_agent.evaluation.report import evaluate_policy
    from hrm_agent.launch.cli import compose_config
    from tiny import MAZE, tiny_policy

    compose_config([], "train")
    env = make_vector_env("DynamicMaze-v0", 1, MAZE)
    evaluate_policy(tiny_policy(env.single_observation_space), "DynamicMaze-v0", MAZE, 1)  # loads what is compiled
    with suppress(build.NoKernels):
        build.library()
    gc.collect()
    gc.freeze()  # no process has to walk what all of them have


def become(job: dict[str, Any]) -> NoReturn:
    """Run a command in this process, as `python` would, and end with its exit code."""
    code = 1
    try:
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        added = job["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[1:1] = [folder for folder in added if folder and folder not in sys.path]
        for number, file in enumerate([os.devnull, *job["outputs"]]):
            opened = os.open(file, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, number)
            os.close(opened)
        code = run_command(job["command"])
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_command(command: list[str]) -> int:
    try:
        match command:
            case ["-m", module, *arguments]:
                sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["-c", source, *arguments]:
                sys.argv, sys.path[0] = ["-c", *arguments], ""
                exec(source, {"__name__": "__main__"})
            case [file, *arguments]:
                sys.argv, sys.path[0] = [file, *arguments], str(Path(file).parent)
                runpy.run_path(file, run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(jobs: list[dict[str, Any]]) -> list[int]:
    """Fork a process for each job; returns how they ended. After `TIMEOUT` those that still run are killed."""
    running: dict[int, int] = {}
    for number, job in enumerate(jobs):
        pid = os.fork()
        if pid == 0:
            become(job)
        running[pid] = number
    codes, until = [0] * len(jobs), time.monotonic() + TIMEOUT
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            continue
        if time.monotonic() > until:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return codes


def answer(connection: socket.socket) -> NoReturn:
    """Do in a process of its own what one `Forks.run` asks for."""
    try:
        with connection.makefile("rw") as channel:
            channel.write(json.dumps(serve(json.loads(channel.readline()))) + "\n")
    finally:
        os._exit(0)


def listen(address: str) -> None:
    """Answer until the process that started this one closes its standard input."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("listening", flush=True)
        prepare()
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                answer(connection)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    listen(sys.argv[1])
