"""Resume a run: read its folder, and change the settings that may change.

`launch/runs.py: open_loop` then builds the run, and `training/loop.py: resume` restores it from the newest checkpoint
that is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from hrm_agent.cores import import_core
from hrm_agent.environments.action_masks import IGNORE, SETTING
from hrm_agent.environments.sources import confirm_stored
from hrm_agent.files.folders import check_own
from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.reading import CheckpointError, read_json
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.settings import rename_settings
from hrm_agent.names.values import printable

RUN_VERSION = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
OWN = (RUN_FILE, CONFIG_FILE, "metrics.jsonl", "eval.json", "agents", "models", "checkpoints", "tensorboard")
"""Entries of a run's folder that commands write or read."""


class RunDescription(msgspec.Struct):
    """What `run.json` holds; it has more entries, which are for people."""

    run_version: int
    command: str
    machine: str = ""


def read_description(folder: Path) -> RunDescription:
    """The description of a run.

    Raises:
        UsageError: `run.json` is no run's description.
    """
    try:
        description: RunDescription = read_json(folder / RUN_FILE, RunDescription, links=False)
    except CheckpointError as error:
        raise UsageError(f"{error}; not a run's description") from None
    return description


def load_run(folder: Path, command: str) -> dict[str, Any]:
    """The configuration of a run, as it was resolved when the run began: nothing in it is interpolated again.

    Args:
        command: the module that must have started it, `hrm_agent.train`.

    Raises:
        UsageError: `folder` holds no run, one of another version, or of another command.
        CheckpointError: something that a resumed run writes or reads is not a regular file in the folder.
    """
    if not all(os.path.lexists(folder / name) for name in (RUN_FILE, CONFIG_FILE)):
        raise UsageError(f"{folder}: not the folder of a run ({RUN_FILE} or {CONFIG_FILE} is missing)")
    check_own(folder, OWN)
    description = read_description(folder)
    words = description.command.split()  # python -m MODULE ...
    module = words[2] if len(words) > 2 else ""
    found = description.run_version
    if found != RUN_VERSION:
        raise UsageError(f"{folder}: run of version {found}, expected {RUN_VERSION}; use the hrm_agent that wrote it")
    if not re.fullmatch(r"[\w.]+", module):
        raise UsageError(f"{folder / RUN_FILE}: not a run's description (command is not python -m MODULE)")
    if module != command:
        raise UsageError(f"{folder}: a run of {module}, not of {command}; resume it with python -m {module}")
    values = read_settings(folder)
    _refuse_interpolations(values, "", folder / CONFIG_FILE)
    if "env" in values:
        values.setdefault(SETTING, IGNORE)  # of a run from before there was this setting
    return values


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a run's `config.yaml`, under the present names of settings.

    Raises:
        CheckpointError: see `read_yaml`.
        UsageError: it holds something else than settings by name.
    """
    values = read_yaml(folder / CONFIG_FILE, links=False)
    if not isinstance(values, dict):
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration")
    named = {str(key): value for key, value in values.items()}
    rename_settings(named)
    return named


def _refuse_interpolations(value: Any, name: str, path: Path) -> None:
    """Raises: UsageError for a text that OmegaConf would replace, by a variable of the environment for example."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _refuse_interpolations(entry, f"{name}.{key}" if name else str(key), path)
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            _refuse_interpolations(entry, f"{name}[{place}]", path)
    elif isinstance(value, str) and "${" in value:
        raise UsageError(f"{path}: {name} is {value[:100]!r}; expected a value, a run's settings are not interpolated")


def reopen_run(
    given: dict[str, str],
    command: str,
    changeable: tuple[str, ...],
    settings: Callable[[dict[str, Any]], Any],
) -> tuple[Path, dict[str, Any]]:
    """Folder and changed configuration of the run to resume; nothing is written.

    Args:
        given: `KEY=VALUE` of the command line; `resume` is taken out, and `env` and `core`, which a run must be given
            again where they name a module.
        command: the module that must have started it.
        changeable: settings that can change in a run that is resumed.
        settings: from the configuration to typed settings.

    Raises:
        UsageError: no such run, or a setting that cannot change.
        CheckpointError: see `load_run`.
        ValueError: what `settings` finds wrong, or an environment of a module that is not given again.
    """
    folder = existing_folder(given.pop("resume"), "resume")
    values = load_run(folder, command)
    _confirm_env(values, given)
    _confirm_core(values, given)
    for key, text in given.items():
        if key not in changeable:
            raise UsageError(f"{key}={text}: cannot change in a run that is resumed; only {', '.join(changeable)}")
        values[key] = OmegaConf.from_cli([f"{key}={text}"])[key]
    check_settings(folder, values, settings)
    return folder, values


def check_settings(folder: Path, values: dict[str, Any], settings: Callable[[dict[str, Any]], Any]) -> None:
    """Raises: ValueError where the configuration of a run that is resumed is not that of a run."""
    try:
        settings(values)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration ({error!r})") from None


def _confirm_core(values: dict[str, Any], given: dict[str, str]) -> None:
    """Import the core of a run where it names a module and is typed again; `find_core` refuses it otherwise."""
    part = values.get("core")
    stored = part.get("name") if isinstance(part, dict) else None
    if isinstance(stored, str) and ":" in stored and "core" in given:
        if given["core"] != stored:
            raise UsageError(
                f"core={printable(given['core'])}: the run is one of core={printable(stored)}; the core cannot change "
                "in a run that is resumed"
            )
        import_core(given.pop("core"))


def _confirm_env(values: dict[str, Any], given: dict[str, str]) -> None:
    for group, key, name in (("env", "id", "env"), ("task", "env", "task.env")):
        part = values.get(group)
        stored = part.get(key) if isinstance(part, dict) else None
        if isinstance(stored, str):
            confirm_stored(stored, given.pop(name, None), name)
