"""The suite's table, for `experiments/study.py`: agents beside the references that `baselines.py` measured."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))

from baselines import NAME, suite_table


def tables(folder: Path) -> dict[str, str]:
    """Tables of the page by the name of their marks."""
    return {NAME: suite_table()}


def figures(folder: Path) -> None:
    """The table says it all."""
