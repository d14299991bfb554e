"""The first second of a training command: print a line and compile the C++ kernels while torch is imported."""

from __future__ import annotations

import gc
import os

from hrm_agent.kernels.cpu import build
from hrm_agent.training.waiting import Waiting

_open_lines: list[Waiting] = []


def begin(command: str, arguments: list[str]) -> None:
    """Print that the command starts, and begin to compile the kernels if they are likely to be needed.

    Args:
        command: for example `train`.
        arguments: of the command line, unchecked; `kernel` and `device` are only known if they are given there.
    """
    shows = any(a in ("-h", "--help", "--cfg", "-c", "--info", "-i", "--hydra-help") for a in arguments)
    gc.disable()  # collections during the imports would take a tenth of the start
    if os.environ.get("RANK", "0") != "0" or shows:
        return
    line = Waiting(f"hrm_agent.{command} starts: importing torch")
    line.__enter__()
    _open_lines.append(line)
    given = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    on_cpu = given.get("device", "cpu") == "cpu"
    if on_cpu and given.get("kernel", "auto") in ("auto", "fused", "fused_bf16") and "resume" not in given:
        build.begin()


def over() -> None:
    """End the line once everything is imported; further calls have no effect."""
    while _open_lines:
        _open_lines.pop().__exit__(None, None, None)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
