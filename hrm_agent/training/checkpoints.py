"""The last few checkpoints of a run, each written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

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
        """Oldest first."""
        return sorted(self.folder.glob(f"[0-9]*{SUFFIX}"))

    def latest(self) -> Path | None:
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
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink()
        return path
