"""What a measurement says of its surroundings: command, commit, processor, load."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.engine.records import ROOT

FLAGS = ("avx2", "avx512f", "avx512_bf16")
CODE = ("hrm_agent", "envs", "configs")
"""What a result depends on besides its command."""


def git(checkout: Path, *arguments: str) -> str:
    """Output of a git command; empty where it fails or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def commit_of(checkout: Path = ROOT) -> str:
    """Short hash of a checkout's commit."""
    return git(checkout, "rev-parse", "--short", "HEAD") or "unknown"


def commit_of_code() -> str:
    """Short hash of this checkout, with `-dirty` behind it where the code about to run differs; new files count."""
    return commit_of() + ("-dirty" if git(ROOT, "status", "--porcelain", "--", *CODE) else "")


def command(*arguments: str) -> str:
    """The command that was typed, its script as a path in the repository; other `arguments` where they are given."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", name, *(arguments or sys.argv[1:])])


def load() -> float:
    """Mean number of processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(**more: Any) -> dict[str, Any]:
    """Kind of processor, torch and load, with what else is to be said between them."""
    import torch

    return {"processor": platform.machine(), **more, "torch": torch.__version__, "load": os.getloadavg()}


def cores_and_kind() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, no GPU"


def processor() -> dict[str, Any]:
    """The processor's model, and which of the instruction sets that matter here it has."""
    try:
        answer = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    except OSError:
        answer = ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in answer.splitlines())}
    has = fields.get("Flags", "").split()
    return {"model": fields.get("Model name", platform.processor()), **{flag: flag in has for flag in FLAGS}}


def write(path: Path, result: Any, indent: int = 1) -> None:
    """A measurement as JSON; numbers must be finite."""
    path.write_text(json.dumps(result, indent=indent, allow_nan=False) + "\n")
