"""The first second of a command that trains: it speaks, and the C++ kernels compile, while torch is imported."""

from __future__ import annotations

import gc
import os

from hrm_agent.kernels.cpu import build
from hrm_agent.training.waiting import Waiting

_speaks: list[Waiting] = []


def begin(command: str, arguments: list[str]) -> None:
    """Say that the command starts, and compile what it will most likely need.

    Args:
        command: `train`, say.
        arguments: of the command line, not checked yet. What only a file says of `kernel` and `device` is not known.
    """
    shows = any(a in ("-h", "--help", "--cfg", "-c", "--info", "-i", "--hydra-help") for a in arguments)
    gc.disable()  # a tenth of the start would go into walking what the imports make
    if os.environ.get("RANK", "0") != "0" or shows:
        return
    line = Waiting(f"hrm_agent.{command} starts: importing torch")
    line.__enter__()
    _speaks.append(line)
    given = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    on_cpu = given.get("device", "cpu") == "cpu"
    if on_cpu and given.get("kernel", "auto") in ("auto", "fused", "fused_bf16") and "resume" not in given:
        build.begin()


def over() -> None:
    """Everything is imported; calling it again changes nothing."""
    while _speaks:
        _speaks.pop().__exit__(None, None, None)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
