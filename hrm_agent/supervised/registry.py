"""Trained puzzle models by name: those that ship with the package (`models/`), and those that `register` adds.

`python -m hrm_agent.solve model=NAME` solves puzzles with one, `python -m hrm_agent.agents` lists them beside the
agents, and `load_model(puzzle_models[NAME])` loads one. `experiments/supervised/ship.py` puts a run's best model there.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path

from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.registry import Registry
from hrm_agent.training.model_folder import MODEL_FILE

ID = re.compile(r"\w+(-\w+)*-v[0-9]+", re.ASCII)


def shipped() -> dict[str, Path]:
    """The folders of the models that ship, by name."""
    here = Path(str(files("hrm_agent.supervised"))) / "models"
    return {found.parent.name: found.parent for found in sorted(here.glob(f"*/{MODEL_FILE}"))}


class PuzzleModels(Registry[Path]):
    """Names -> folders with `model.safetensors`, `model.json` and a card."""

    def __init__(self) -> None:
        super().__init__("model", "", shipped())

    def entry_points(self) -> dict[str, EntryPoint]:
        """None: a folder needs no import."""
        return {}

    def add(self, name: str, value: Path) -> None:
        """Raises: ValueError for a name that is malformed, or taken by another folder."""
        if ID.fullmatch(name) is None:
            raise ValueError(
                f"model {name!r}: expected letters, digits and underscores in groups joined by -, the last of them vN, "
                "such as maze_9-TRM-v0"
            )
        super().add(name, value)


puzzle_models = PuzzleModels()


def register(name: str, folder: str | Path) -> None:
    """Register a model under a name; repeating the same call has no effect.

    Args:
        name: groups of letters, digits and underscores joined by `-`, the last of them `vN`. A changed model gets a
            new version.
        folder: of a model or of a run of `hrm_agent.supervise`; nothing is read before it is used.

    Raises:
        ValueError: a malformed name, or one that is taken by another folder.
    """
    puzzle_models.add(name, Path(folder).absolute())


def find_named(given: str) -> Path:
    """The path that was given, where there is anything, else the folder of the model of this name.

    Raises:
        ValueError: neither is there.
    """
    path = Path(given)
    if path.exists():
        return path
    if given in puzzle_models:
        return puzzle_models[given]
    raise ValueError(
        f"model={given}: no such file or folder, nor a registered model{did_you_mean(given, puzzle_models)}"
    )
