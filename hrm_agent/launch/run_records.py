"""What the folders of training runs hold: settings, final results, learning curves and outcomes on every level."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from hrm_agent.files.reading import CheckpointError, read_json
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.resume import CONFIG_FILE, RUN_FILE, read_settings
from hrm_agent.training.tracking import METRICS_FILE, read_metrics

COMMAND = "hrm_agent.train"
EVALUATION_FILE = "eval.json"

Row = dict[str, Any]


class RunRecord(NamedTuple):
    """A run of `hrm_agent.train`.

    Attributes:
        settings: by dotted name.
        results: `frames`, `validation_success`, `validation_return`, `test_success` and `test_sampled`, as far as the
            run has them.
    """

    folder: Path
    settings: dict[str, Any]
    results: Row


class _Described(msgspec.Struct):
    """Of `run.json`."""

    command: str | None = None


class Outcomes(msgspec.Struct):
    """On each level: success as a string of `0` and `1`."""

    success: Annotated[str, Meta(pattern="^[01]*$")]


class Played(msgspec.Struct):
    """What one way to act achieved."""

    success: Annotated[float, Meta(ge=0, le=1)]
    episodes: Annotated[int, Meta(ge=1)] | None = None
    levels: Outcomes | None = None
    return_: float | None = msgspec.field(default=None, name="return")


class Evaluated(Played):
    """Of `eval.json`: greedy actions, and sampled ones where the policy is a distribution.

    Attributes:
        seeds, split, env, env_options: which levels were played.
    """

    sampled: Played | None = None
    seeds: dict[str, int] | None = None
    split: str | None = None
    env: str | None = None
    env_options: dict[str, Any] | None = None

    @property
    def played_on(self) -> str:
        """Equal for runs that were measured on the same levels."""
        return repr((self.env, self.env_options, self.split, self.seeds, self.episodes))


def find_runs(root: Path) -> list[Path]:
    """Folders of the runs of `hrm_agent.train` below a folder, or itself, in their order; links are not followed.

    Raises:
        UsageError: the description of one is damaged.
    """
    return [path.parent for path in sorted(root.rglob(RUN_FILE)) if is_run(path.parent)]


def is_run(folder: Path) -> bool:
    """Whether it is a run of `hrm_agent.train`; what else writes a `run.json` has settings of another kind.

    Raises:
        UsageError: its description is damaged.
    """
    if not os.path.lexists(folder / CONFIG_FILE):
        return False
    try:
        described: _Described = read_json(folder / RUN_FILE, _Described, links=False)
    except CheckpointError as error:
        raise UsageError(f"{folder}: a damaged run ({error})") from None
    return described.command is None or COMMAND in described.command.split()


def read_run(folder: Path) -> RunRecord:
    """Raises: UsageError for a file of it that is damaged."""
    try:
        return RunRecord(folder, dict(_flat(read_settings(folder))), _read_results(folder))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: a damaged run ({error})") from None


def read_lines(folder: Path) -> Iterator[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`; none where there is no file.

    Raises:
        UsageError: one is damaged.
    """
    path = folder / METRICS_FILE
    if os.path.lexists(path):
        for number, (_, logged) in enumerate(read_metrics(path, "frames"), 1):
            if logged is None:
                raise UsageError(f"{path}: line {number} is not an object of numbers with frames")
            yield logged


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Every number that a run logged, by name: frames and values."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in read_lines(folder):
        for name, value in line.items():
            if name != "frames":
                curves.setdefault(name, []).append((line["frames"], value))
    return curves


def read_evaluation(folder: Path) -> Evaluated | None:
    """What a run achieved on test levels; None where it has not been measured.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / EVALUATION_FILE
    return read_json(path, Evaluated, links=False) if os.path.lexists(path) else None


def _read_results(folder: Path) -> Row:
    results: Row = {"frames": None}
    for logged in read_lines(folder):
        results["frames"] = int(logged["frames"])
        for name in ("success", "return"):
            if f"validation/{name}" in logged:
                results[f"validation_{name}"] = logged[f"validation/{name}"]
    evaluated = read_evaluation(folder)
    if evaluated is not None:
        results["test_success"] = evaluated.success
        results["test_sampled"] = None if evaluated.sampled is None else evaluated.sampled.success
    return results


def _flat(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names, in the order of the configuration, whose values are not the same everywhere."""
    names = list(dict.fromkeys(name for values in settings for name in values))
    return [name for name in names if len({str(values.get(name)) for values in settings}) > 1]
