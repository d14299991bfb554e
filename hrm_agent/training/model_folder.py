"""Where a run of supervised training keeps its models."""

from __future__ import annotations

from pathlib import Path

MODEL_FILE = "model.safetensors"


def find_model(path: str | Path, best: bool = False) -> Path:
    """The file of a model: `path` may be the file, its folder, or a run with `models/best` and `models/last`.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    name = "best" if best else "last"
    for candidate in (path, path / MODEL_FILE, path / "models" / name / MODEL_FILE):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{path}: no puzzle model there; expected {MODEL_FILE}, its folder, or a run of hrm_agent.supervise"
    )
