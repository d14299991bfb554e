"""Common parts of the commands: overrides, checks before anything is written, and one-line errors.

Bad input ends with exit code 2 and one line on stderr; nothing has been written by then.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.cores import core_names
from hrm_agent.environments.make import check_env_id
from hrm_agent.launch import hydra_plugin as config_source
from hrm_agent.launch import startup
from hrm_agent.launch.settings import GROUPS, config_folder, option_defaults, rename_overrides
from hrm_agent.names.nearest import did_you_mean

USAGE_ERROR = 2
HYDRA_FLAGS = (
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-sc",
    "--shell-completion",
)
LIST = re.compile(r"^((?:init_parts|freeze)=)(\w+(?:,\w+)+)$")
PLUGINS = {
    "hydra/sweeper/optuna": "'hrm-agent[sweep]'",
    "hydra/launcher/joblib": "'hrm-agent[sweep]'",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/submitit_local": "'hrm-agent[cluster]'",
    "hydra/launcher/submitit_slurm": "'hrm-agent[cluster]'",
}


class UsageError(ValueError):
    """Invalid input; the message is one line."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn input errors inside the body into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException, HydraException) as error:
        fail(str(error), USAGE_ERROR)


def say_error(message: str) -> None:
    """Print a message on one line to stderr."""
    startup.over()
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)


def fail(message: str, code: int) -> None:
    say_error(message)
    raise SystemExit(code)


def wants_help(arguments: list[str]) -> bool:
    return any(a.split("=")[0] in HYDRA_FLAGS for a in arguments)


def open_options(arguments: list[str]) -> list[str]:
    """Let `env.options.NAME=VALUE` add or change a parameter, since the configuration lists none of them.

    The same holds for `task.env_options.NAME=VALUE`.

    `init_parts=core,encoder` is a list where nothing is swept over.
    """
    if not {"-m", "--multirun"} & set(arguments):
        arguments = [LIST.sub(r"\1[\2]", a) for a in arguments]
    arguments = rename_overrides(arguments)
    return [f"++{a}" if a.startswith(("env.options.", "task.env_options.")) else a for a in arguments]


def check_jobs(arguments: list[str], config_name: str, check: Callable[[DictConfig], Any]) -> None:
    """Compose the configuration of every job of `arguments` and `check` it.

    For a search, whose jobs are not known beforehand, every choice and both ends of every interval are checked, one at
    a time.

    Raises:
        UsageError: an unknown choice or setting, with the nearest one that exists.
        ValueError: from `check`.
    """
    overrides = command_overrides(arguments)
    typed = parse_overrides(overrides)
    composed = compose_config([_first(o) for o in typed], config_name, hydra=True)
    sweeper = composed.hydra.sweeper
    is_search = "params" in sweeper and not sweeper._target_.endswith("BasicSweeper")
    if not is_search:
        drawn = [o.input_line for o in typed if o.is_sweep_override() and not o.is_discrete_sweep()]
        if drawn:
            raise UsageError(f"{drawn[0]}: this sweeper draws from no intervals; add hydra/sweeper=optuna")
        if not any(o.is_sweep_override() for o in typed):
            with open_dict(composed):
                del composed["hydra"]
            check(composed)  # the only job there is
            return
        for job in expand_sweeps(overrides):
            check(compose_config(job, config_name))
        return
    fixed = {o.get_key_element() for o in typed}
    searched = [f"{name}={values}" for name, values in (sweeper.params or {}).items() if name not in fixed]
    for job in one_at_a_time([*overrides, *searched]):
        check(compose_config(job, config_name))


def command_overrides(arguments: list[str]) -> list[str]:
    """The overrides of a command line; `--config-dir` becomes Hydra's search path."""
    overrides, waiting = [], iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value if equals else next(waiting, ""))
            if not folder.is_dir():
                raise UsageError(f"{flag} {folder}: no such folder")
            overrides.append(f"hydra.searchpath=['file://{folder.absolute()}']")
        elif not argument.startswith("-"):
            overrides.append(argument)
    return overrides


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Raises: UsageError for an override that does not follow Hydra's grammar."""
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UsageError(f"{str(error).splitlines()[0]} in {' '.join(overrides)!r}") from None


def expand_sweeps(overrides: list[str]) -> Iterator[list[str]]:
    """`a=1,2 b=3` -> `a=1 b=3`, `a=2 b=3`."""
    for job in itertools.product(*map(_choices, parse_overrides(overrides))):
        yield list(job)


def one_at_a_time(overrides: list[str]) -> Iterator[list[str]]:
    """`a=1,2 b=3,4 c=interval(5,6)` -> the first of each; then `a=2`, `b=4` and `c=6`, with the first of the others."""
    choices = [_choices(override) for override in parse_overrides(overrides)]
    first = [some[0] for some in choices]
    yield first
    for i, some in enumerate(choices):
        for other in some[1:]:
            yield [*first[:i], other, *first[i + 1 :]]


def _choices(override: Override) -> list[str]:
    """The values of one override, each as an override; of an interval its ends."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    name = override.get_key_element()
    if override.is_discrete_sweep():
        return [f"{name}={value}" for value in override.sweep_string_iterator()]
    interval = override.value()
    return [f"{name}={edge}" for edge in (interval.start, interval.end)]  # type: ignore[union-attr]


def _first(override: Override) -> str:
    return _choices(override)[0]


def compose_config(overrides: list[str], config_name: str, hydra: bool = False) -> DictConfig:
    """The configuration of one job; with Hydra's own part if `hydra`.

    Raises:
        UsageError: an unknown choice or setting, with the nearest one that exists.
    """
    config_source.install()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose(config_name, rename_overrides(overrides), return_hydra_config=hydra)
    except MissingConfigException as error:
        missing = str(error.missing_cfg_file or "")
        if missing.startswith("env/"):
            check_env_id(missing.removeprefix("env/"))  # raises what is wrong with the id
        if missing in PLUGINS:
            raise UsageError(f"{missing}: not installed; pip install {PLUGINS[missing]}") from None
        group, _, choice = missing.rpartition("/")
        meant = did_you_mean(choice, group_choices(group))
        raise UsageError(f"{group}={choice}: no such {group or 'config'}{meant}") from None
    except ConfigCompositionException as error:
        cause = " ".join(str(x) for x in (error, error.__cause__ or ""))
        key = re.search(r"(?:override|group|Key) '([^']+)'", cause)
        if key is None:
            raise UsageError(str(error).splitlines()[0]) from None
        chosen = [o for o in overrides if o.startswith(f"{key[1]}=")]
        if (config_folder() / key[1]).is_dir() and chosen:
            raise UsageError(f"{chosen[0]}: add this group with a plus sign, +{chosen[0]}") from None
        choices = [o for o in overrides if o.partition("=")[0] in (*GROUPS, "task")]
        raise UsageError(
            f"{key[1]}: no such setting{did_you_mean(key[1], known_settings(config_name, choices))}"
        ) from None


def group_choices(group: str) -> list[str]:
    """The names that are shipped for a group, `core` or a nested one, and the cores of other packages."""
    shipped = {path.stem for path in (config_folder() / group).glob("*.yaml")}
    return sorted(shipped.union(core_names()) if group == "core" else shipped)


def known_settings(config_name: str, choices: list[str] | None = None) -> list[str]:
    """Dotted names of every setting of the configuration with these choices of its groups, and the groups."""

    def walk(prefix: str, node: Any) -> Iterator[str]:
        yield prefix
        if isinstance(node, DictConfig):
            for key in map(str, node):
                yield from walk(f"{prefix}.{key}" if prefix else key, node._get_node(key))

    return [name for name in walk("", compose_config(choices or [], config_name)) if name]


def parse_options(arguments: list[str], command: Any, usage: str, examples: Sequence[str] = ()) -> dict[str, Any]:
    """`KEY=VALUE` arguments over the defaults of a command that starts no run.

    With `--help` prints the options and exits 0.

    Args:
        command: what stands for the options (`hrm_agent.launch.settings.option_defaults`).
        usage: one line.
        examples: of the help.

    Raises:
        UsageError: an unknown key, a required one that is missing, or a value of another type.
    """
    if wants_help(arguments):
        from hrm_agent.launch.help import command_page  # which is needed for nothing else

        print(command_page(usage, command, examples))
        raise SystemExit(0)
    defaults = OmegaConf.create(option_defaults(command))
    known = [str(key) for key in defaults]
    arguments = [re.sub("^band=", "split=", a) for a in arguments]  # its former name
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key.lstrip("+").split(".")[0] not in known:
            raise UsageError(f"{argument}: expected KEY=VALUE{did_you_mean(key, known)}")
    given = OmegaConf.from_cli([a.lstrip("+") for a in arguments])
    for argument in arguments:
        key, _, text = argument.lstrip("+").partition("=")
        if key in ("run", "agent", "out", "folder", "model", "submission") and text != "null":
            given[key] = text  # a folder may be called 0
    merged = OmegaConf.merge(defaults, given)
    assert isinstance(merged, DictConfig)
    numbers = {int: (int,), float: (int, float)}
    plain = OmegaConf.to_container(defaults)
    assert isinstance(plain, dict)
    for key in known:
        if OmegaConf.is_missing(merged, key):
            raise UsageError(f"{key}=... is required; {usage}")
        default = plain[key]
        expected = numbers.get(type(default))
        if expected and type(merged[key]) not in expected:
            raise UsageError(f"{key}={merged[key]}: expected a number like {default}")
        if isinstance(default, bool) and not isinstance(merged[key], bool):
            raise UsageError(f"{key}={merged[key]}: expected true or false")
    return {str(k): v for k, v in OmegaConf.to_container(merged, resolve=True).items()}  # type: ignore[union-attr]


def parse_agent_options(arguments: list[str], command: Any, usage: str, examples: Sequence[str] = ()) -> dict[str, Any]:
    """`parse_options` of a function that loads an agent or a model, as its arguments.

    `which=best|last` becomes `best=True|False`, and what overrides an agent's settings one `AgentOverrides`.

    Raises:
        UsageError: see `parse_options`; or another value of `which`.
    """
    options = parse_options(arguments, command, usage, examples)
    which = options.pop("which")
    if which not in ("best", "last"):
        raise UsageError(f"which={which}: expected best or last")
    if "overrides" in inspect.signature(command).parameters:
        options["overrides"] = AgentOverrides.taken_from(options)
    return {**options, "best": which == "best"}


def existing_folder(path: str | Path, what: str) -> Path:
    """Raises: UsageError if there is no such folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{what}={path}: no such folder")
    return folder
