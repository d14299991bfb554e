"""Folders that may come from a stranger, and are written to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from hrm_agent.files.reading import CheckpointError


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Check that what is written below `folder` stays there: regular files in real folders, at every depth.

    Args:
        folder: itself it may be reached through a symbolic link.
        names: entries of it; those that do not exist are fine, others are not looked at.

    Raises:
        CheckpointError: an entry is a symbolic link, a FIFO, a device or a socket, or cannot be read.
    """
    waiting = [folder / name for name in names]
    while waiting:
        path = waiting.pop()
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                waiting += [Path(entry) for entry in os.scandir(path)]
                continue
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        if stat.S_ISLNK(mode):
            raise CheckpointError(
                f"{path}: a symbolic link; expected a regular file or a folder that lies in {folder} itself "
                f"({folder} as a whole may be a link)"
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: not a regular file")
