"""A Python process of its own, for what only a fresh one shows."""

from __future__ import annotations

import os
import subprocess
import sys


def run_apart(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
