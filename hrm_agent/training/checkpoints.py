"""The last few checkpoints of a run, each written atomically."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from torch import Tensor

from hrm_agent.files.reading import CheckpointError
from hrm_agent.files.writing import remove_leftovers
from hrm_agent.tensors.files import SUFFIX, save_tensors


class CheckpointFolder:
    """The last few checkpoints of a run, named by the frames they were taken at.

    Args:
        folder: created at the first save.
        keep: how many to keep; older ones are removed after a new one is safely written.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Oldest first.

        Raises:
            CheckpointError: one of them is a symbolic link or no regular file, or the folder is a link.
        """
        if self.folder.is_symlink():
            raise CheckpointError(f"{self.folder}: a symbolic link; expected a folder")
        paths = sorted(self.folder.glob(f"[0-9]*{SUFFIX}"))
        for path in paths:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise CheckpointError(f"{path}: not a regular file")
        return paths

    def latest(self) -> Path | None:
        """Raises: CheckpointError, see `paths`."""
        paths = self.paths()
        return paths[-1] if paths else None

    def path(self, frames: int) -> Path:
        """Of the checkpoint that is taken at so many frames."""
        return self.folder / f"{frames:012d}{SUFFIX}"

    def save(self, frames: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
        path = self.path(frames)
        save_tensors(path, tensors, metadata)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        remove_leftovers(self.folder)
        return path
