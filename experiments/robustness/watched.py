"""Run a command of hrm_agent and say, as it happens, which phase it is in.

    python experiments/robustness/watched.py DESCRIPTOR hrm_agent.train KEY=VALUE ...

Functions are wrapped once their modules are imported, so that the command starts as it always does. Every begin and end
is a line on the open file DESCRIPTOR: `+PHASE THREAD` or `-PHASE THREAD`. The clock of training counts its own calls,
so that equal runs write equal files.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import itertools
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

# Functions by module; `()` stands for the beginning of the context manager that a function returns.
WATCHED = {
    "hrm_agent.launch.runs": {"_begin_run()": "run folder"},
    "hrm_agent.kernels.cpu.build": {"_compile": "C++"},
    "hrm_agent.training.trainer": {
        "compile_env": "numba",
        "Trainer.iterate": "training",
        "Trainer.validate": "validation",
        "Trainer._record_video": "video",
        "Trainer.save_checkpoint": "checkpoint",
    },
}
TICK = 2.0**-10
"""Seconds that training appears to take between two looks at the clock; sums of it are exact."""


def announced(function: Callable[..., Any], phase: str, descriptor: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        thread = threading.get_ident()
        os.write(descriptor, f"+{phase} {thread}\n".encode())
        try:
            return function(*arguments, **options)
        finally:
            os.write(descriptor, f"-{phase} {thread}\n".encode())

    return call


def announced_begin(function: Callable[..., Any], phase: str, descriptor: int) -> Callable[..., Any]:
    @contextlib.contextmanager
    def call(*arguments: Any, **options: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            yield announced(stack.enter_context, phase, descriptor)(function(*arguments, **options))

    return functools.wraps(function)(call)


def wrap(module: ModuleType, descriptor: int) -> None:
    for path, phase in WATCHED.get(module.__name__, {}).items():
        *parents, name = path.removesuffix("()").split(".")
        holder: Any = functools.reduce(getattr, parents, module)
        wrapper = announced_begin if path.endswith("()") else announced
        setattr(holder, name, wrapper(getattr(holder, name), phase, descriptor))
    if module.__name__ == "hrm_agent.training.tracking":
        ticks = itertools.count()
        module.CLOCKS["wall"] = lambda: next(ticks) * TICK


class Watch(importlib.machinery.PathFinder):
    """Finds modules as Python does, and wraps those that are watched once they have been executed."""

    descriptor: int

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in WATCHED and name != "hrm_agent.training.tracking":
            return None
        spec = super().find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            wrap(module, cls.descriptor)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if __name__ == "__main__":
    Watch.descriptor = int(sys.argv[1])
    sys.argv[:2] = []
    sys.path[0] = os.getcwd()  # as with `python -m`
    sys.meta_path.insert(0, Watch)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
