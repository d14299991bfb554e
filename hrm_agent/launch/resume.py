"""Resume a run: read its folder, and change the settings that may change.

`launch/runs.py: open_loop` then builds the run, and `training/loop.py: resume` restores it from the newest checkpoint
that is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from hrm_agent.agents.agent import RUN_FILE
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.settings import rename_settings

RUN_VERSION = 1
CONFIG_FILE = "config.yaml"


def load_run(folder: Path, command: str) -> dict[str, Any]:
    """The resolved configuration of a run.

    Args:
        command: the module that must have started it, `hrm_agent.train`.

    Raises:
        UsageError: `folder` holds no run, one of another version, or of another command.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: not the folder of a run ({RUN_FILE} or {CONFIG_FILE} is missing)")
    try:
        description = json.loads((folder / RUN_FILE).read_text())
        found, module = description["run_version"], description["command"].split()[2]  # of python -m MODULE ...
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError):
        raise UsageError(f"{folder / RUN_FILE}: not a run's description") from None
    if found != RUN_VERSION:
        raise UsageError(f"{folder}: run of version {found}, expected {RUN_VERSION}; use the hrm_agent that wrote it")
    if module != command:
        raise UsageError(f"{folder}: a run of {module}, not of {command}; resume it with python -m {module}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration")
    named = {str(key): value for key, value in values.items()}
    rename_settings(named)
    return named


def reopen_run(
    given: dict[str, str],
    command: str,
    changeable: tuple[str, ...],
    settings: Callable[[dict[str, Any]], Any],
) -> tuple[Path, dict[str, Any]]:
    """Folder and changed configuration of the run to resume; nothing is written.

    Args:
        given: `KEY=VALUE` of the command line; `resume` is taken out.
        command: the module that must have started it.
        changeable: settings that can change in a run that is resumed.
        settings: from the configuration to typed settings.

    Raises:
        UsageError: no such run, or a setting that cannot change.
        ValueError: what `settings` finds wrong.
    """
    folder = existing_folder(given.pop("resume"), "resume")
    values = load_run(folder, command)
    for key, text in given.items():
        if key not in changeable:
            raise UsageError(f"{key}={text}: cannot change in a run that is resumed; only {', '.join(changeable)}")
        values[key] = OmegaConf.from_cli([f"{key}={text}"])[key]
    try:
        settings(values)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration ({error!r})") from None
    return folder, values
