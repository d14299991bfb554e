"""Settings and run folders of `hrm_agent.learn`: keyword arguments become what the command would have been given.

So defaults, checks and messages are those of the command, and the run can be resumed by it.
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict

from hrm_agent.cores import CORES, Core, register_core
from hrm_agent.environments.objects import identify
from hrm_agent.environments.sources import confirm_stored
from hrm_agent.launch.cli import UsageError, compose_config, existing_folder, open_options, parse_overrides
from hrm_agent.launch.resume import check_settings, load_run
from hrm_agent.launch.runs import check_new, holds_run
from hrm_agent.launch.settings import GROUPS, resolve
from hrm_agent.launch.settings import settings as settings_of
from hrm_agent.names.values import printable, shown

ADDED_GROUPS = ("experiment", "earlier")
"""Groups that a command line adds with a plus sign."""
CHOSEN_BY = {"core": "name", "carry": "rule", "algo": "name", "env": "id"}
SETTING = re.compile(r"\+{0,2}[A-Za-z_][\w.@/-]*")
WORD = re.compile(r"[A-Za-z_][\w./:+-]*")
KEPT_WORDS = ("true", "false", "null", "nan", "inf")
"""Texts that would be read as another value."""


class NewRun(NamedTuple):
    """A run that is to begin.

    Attributes:
        config: its configuration, not yet resolved.
        folder: nothing has been written there.
        command: the command line that starts the same run.
    """

    config: DictConfig
    folder: Path
    command: str


def compose_run(env: Any, settings: Mapping[str, Any], folder: str | Path | None, command: str) -> NewRun:
    """The run that these settings begin.

    Args:
        env: see `hrm_agent.learn`.
        settings: by the command's names.
        folder: None: the one that the command would take, with a number where that has a run already.
        command: the module that trains, `hrm_agent.train`.

    Raises:
        ValueError: an unknown setting, a value that no configuration can hold, an environment that cannot be used, or
            a folder with a run.
    """
    env_id, flat = _identified(env, settings)
    overrides = _overrides(env_id, flat)
    composed = _compose(overrides)
    own = Path(folder) if folder is not None else _free_folder(composed)
    if own.exists() and not own.is_dir():
        raise UsageError(f"folder={own}: not a folder")
    check_new(own, f"folder={own}", "resume=True resumes it")
    return NewRun(_without_hydra(composed), own, " ".join([f"python -m {command}", *overrides]))


def reopen_run(
    env: Any,
    settings: Mapping[str, Any],
    folder: str | Path | None,
    command: str,
    changeable: tuple[str, ...],
) -> tuple[Path, dict[str, Any]]:
    """Folder and configuration of a run that is resumed; nothing is written.

    Settings that cannot change may be given again as they were, so that the call which began the run resumes it.

    Args:
        changeable: settings that can change.

    Raises:
        ValueError: no such run, a run of another environment, or a setting that cannot change and does.
    """
    if folder is None:
        raise UsageError("resume=True: of which run? Give its folder, folder=FOLDER")
    path = existing_folder(folder, "folder")
    values = load_run(path, command)
    env_id, flat = _identified(env, settings, values)
    part = values.get("env")
    confirm_stored(str(part.get("id")) if isinstance(part, dict) else "", env_id)
    overrides = _overrides(env_id, flat)
    new = resolve(_without_hydra(_compose(overrides)))
    for name, value in flat.items():
        if name in changeable:
            values[name] = new[name]
        elif name.lstrip("+") in ADDED_GROUPS:
            kept = {key: part for key, part in new.items() if key not in (*changeable, "resume")}
            _refuse_changes({key: values.get(key) for key in kept}, kept, changeable)
        else:
            place = f"{name}.{CHOSEN_BY[name]}" if name in GROUPS and not isinstance(value, Mapping) else name
            _refuse_changes({place: _find(values, place)}, {place: _find(new, place)}, changeable)
    check_settings(path, values, settings_of)
    return path, values


def _refuse_changes(before: dict[str, Any], now: dict[str, Any], changeable: tuple[str, ...]) -> None:
    for name, value in now.items():
        if before[name] != value:
            raise UsageError(
                f"{name}={shown(value)}: the run has {shown(before[name])}; only {', '.join(changeable)} can change in "
                "a run that is resumed"
            )


def _find(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _compose(overrides: list[str]) -> DictConfig:
    """The configuration with Hydra's own part. Raises: UsageError; see `compose_config`."""
    parse_overrides(overrides)
    return compose_config(overrides, "train", hydra=True)


def _without_hydra(composed: DictConfig) -> DictConfig:
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _free_folder(composed: DictConfig) -> Path:
    """The folder that the command would take; another where that has a run, of the same second."""
    state = HydraConfig.instance()
    before = state.cfg
    try:
        state.set_config(composed)  # which the folder's name is interpolated from
        own = Path(composed.hydra.run.dir).absolute()
    finally:
        state.cfg = before
    folder, number = own, 1
    while holds_run(folder):
        number += 1
        folder = own.with_name(f"{own.name}_{number}")
    return folder


def _identified(
    env: Any, settings: Mapping[str, Any], resumed: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The environment's id, and all settings by their dotted names.

    Args:
        resumed: the configuration of the run that is resumed, whose id an object is given again.
    """
    flat: dict[str, Any] = {}
    if isinstance(env, Mapping):
        chosen = [env[key] for key in ("name", "id") if key in env]
        if len(chosen) != 1:
            raise UsageError("env: expected its id, as name or id, beside its other settings")
        flat |= _flat("env", {key: value for key, value in env.items() if key not in ("name", "id")})
        env = chosen[0]
    for name, value in settings.items():
        flat |= _flat(name, value)
    options = _nested({n.removeprefix("env.options."): v for n, v in flat.items() if n.startswith("env.options.")})
    wanted = None
    if resumed is not None and not isinstance(env, str):
        wanted = _find(resumed, "env.id")
        if isinstance(wanted, str) and not options:
            stored = _find(resumed, "env.options")
            options = stored if isinstance(stored, dict) else {}
    if isinstance(flat.get("core"), type):
        flat["core"] = _name_core(flat["core"], None if resumed is None else _find(resumed, "core.name"))
    env_id, own = identify(env, options, wanted)
    return env_id, {**{f"env.options.{name}": value for name, value in own.items()}, **flat}


def _name_core(core: type, wanted: Any) -> str:
    """The name of a core's class, which is registered where it has none.

    Args:
        wanted: the name that it must have again, of a run that is resumed.
    """
    known = [name for name, kind in CORES.registered.items() if kind is core]
    if wanted in known or (known and wanted is None):
        return str(wanted or known[0])
    base, number = core.__name__, 1
    if isinstance(wanted, str) and re.fullmatch(rf"{re.escape(base)}(-\d+)?", wanted) and issubclass(core, Core):
        CORES.registered.pop(wanted, None)  # that of an earlier cell of a notebook
        register_core(wanted, core)
        return wanted
    while (name := f"{base}-{number}" if number > 1 else base) in CORES:
        number += 1
    register_core(name, core)
    return name


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Settings by dotted names; `name` in a group is its choice, and the options of an environment stay whole."""
    if not isinstance(name, str) or not SETTING.fullmatch(name):
        raise UsageError(f"{shown(name)}: expected the name of a setting")
    if name == "hydra" or name.startswith("hydra."):
        raise UsageError(f"{name}: is the command's alone; the run's folder is folder=FOLDER")
    if not isinstance(value, Mapping) or not value or name.startswith("env.options."):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if not isinstance(key, str):
            raise UsageError(f"{name}: {shown(key)}: expected the name of a setting")
        found |= {name: inner} if name in GROUPS and key == "name" else _flat(f"{name}.{key}", inner)
    return found


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted names as groups within groups."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        part = made
        for group in groups:
            part = part.setdefault(group, {})
        part[last] = value
    return made


def _overrides(env_id: str, flat: dict[str, Any]) -> list[str]:
    """What is typed on the command line for the same settings."""
    typed = [override("env", env_id)]
    for name, value in flat.items():
        typed.append("+" * (name in ADDED_GROUPS) + override(name, value))
    return open_options(typed)


def override(name: str, value: Any) -> str:
    """`NAME=VALUE` as it is typed. Raises: UsageError for a value that a configuration cannot hold."""
    return f"{name}={_text(name, value)}"


def _text(name: str, value: Any) -> str:
    """A value as Hydra reads it. Raises: UsageError for one that a configuration cannot hold."""
    if value is None or isinstance(value, bool | np.bool_):
        return {None: "null", True: "true", False: "false"}[value if value is None else bool(value)]
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        plain = WORD.fullmatch(value) and value.lower() not in KEPT_WORDS
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(name, part) for part in value)}]"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not WORD.fullmatch(key):
                raise UsageError(f"{name}: {shown(key)}: expected a name, of letters, digits and _")
        return f"{{{','.join(f'{key}:{_text(name, part)}' for key, part in value.items())}}}"
    raise UsageError(
        f"{name}={printable(shown(value))}: expected a number, a text, True or False, None, or a list or dictionary of "
        "these; what a configuration cannot hold belongs into a callable that makes the environment"
    )


def make_folder(folder: Path) -> None:
    """Raises: UsageError where the folder of a run cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{error}; give another place with folder=FOLDER") from None


@contextmanager
def program_left_as_it_was(device: Any) -> Iterator[None]:
    """Put back after the body what training changes in the whole process: torch's threads and random numbers.

    Args:
        device: on which is trained.
    """
    threads = torch.get_num_threads()
    kind = str(device).partition(":")[0]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if kind == "cuda" else ()):
            yield
    finally:
        torch.set_num_threads(threads)


def configuration(values: dict[str, Any]) -> DictConfig:
    """Resolved values as a configuration, for checks."""
    made = OmegaConf.create(values)
    assert isinstance(made, DictConfig)
    return made
