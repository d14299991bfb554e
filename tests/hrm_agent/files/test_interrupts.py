"""Ctrl-C while a command is importing ends it in one line, whatever it is importing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hrm_agent.files.interrupts import is_command
from hrm_agent.launch.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
# Python reads `sitecustomize` first. As a user may press Ctrl-C when a module is about to be imported.
PRESSES = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                if "CONVERTED" in os.environ:  # as libraries in C do
                    raise ImportError("cannot be imported") from None
                raise

sys.meta_path.insert(0, Presses())
"""


def start(folder: Path, command: list[str], **variables: str) -> subprocess.Popen[str]:
    if not (folder / "sitecustomize.py").exists():
        (folder / "sitecustomize.py").write_text(PRESSES)
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "envs")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def test_every_command_that_is_interrupted_while_it_imports_says_so_in_one_line(tmp_path: Path) -> None:
    """`numpy` is imported by all of them, early."""
    processes = {name: start(tmp_path, ["-m", f"hrm_agent.{name}"], AT="numpy") for name in COMMANDS}
    processes["one name"] = start(tmp_path, ["-m", "hrm_agent", "evaluate"], AT="torch")
    assert {name: ended(process) for name, process in processes.items()} == dict.fromkeys(
        [*COMMANDS, "one name"], (130, "interrupted\n")
    )


def test_so_it_is_when_torch_is_imported_and_when_a_library_makes_another_error_of_it(tmp_path: Path) -> None:
    code, said = ended(start(tmp_path, ["-m", "hrm_agent.train", "kernel=plain"], AT="torch"))
    assert (code, said) == (130, "hrm_agent.train starts: importing torch\ninterrupted\n")
    converted = start(tmp_path, ["-m", "hrm_agent.evaluate"], AT="numpy", CONVERTED="1")
    assert ended(converted) == (130, "interrupted\n")


def test_programs_that_import_the_package_are_left_alone(tmp_path: Path) -> None:
    program = (
        "import sys, signal; hook = sys.excepthook; import hrm_agent; assert sys.excepthook is hook; import no_such"
    )
    code, said = ended(start(tmp_path, ["-c", program], AT="no_such"))
    assert code == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["-m"], ["python", "-m", "hrm_agent.train", "seed=1"], True),
        (["-m", "seed=1"], ["python", "-u", "-m", "hrm_agent.agents"], True),
        (["-m"], ["python", "-m", "hrm_agents.train"], False),
        (["-m"], ["python", "-m", "pytest", "-m", "hrm_agent.train"], False),
        (["-c"], ["python", "-c", "import hrm_agent", "-m", "hrm_agent.train"], False),
        (["/usr/bin/hrm-agent", "train"], ["python", "/usr/bin/hrm-agent", "train"], True),
        (["/usr/bin/x"], ["python", "-m", "hrm_agent.train"], False),
        ([], ["python"], False),
    ],
)
def test_which_processes_are_commands(arguments: list[str], original: list[str], expected: bool) -> None:
    assert is_command(arguments, original, "hrm_agent") is expected
