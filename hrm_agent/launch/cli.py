"""Common parts of the commands: overrides, checks before anything is written, and one-line errors.

Bad input ends with exit code 2 and one line on stderr; nothing has been written by then.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.cores import core_names, import_core
from hrm_agent.environments.checked import EnvironmentFailed, own_traceback
from hrm_agent.environments.make import check_env_id
from hrm_agent.files.interrupts import INTERRUPTED
from hrm_agent.launch import hydra_plugin as config_source
from hrm_agent.launch import startup
from hrm_agent.launch.commands import spelled
from hrm_agent.launch.settings import GROUPS, config_folder, option_defaults, option_types, rename_overrides
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import checked, printable, shown, takes_text
from hrm_agent.parallel.memory import describe_out_of_memory, is_out_of_memory

USAGE_ERROR = 2
MOST_JOBS = 100_000
"""Of a sweep."""
LONGEST = 20_000
"""Characters of an argument."""
DEEPEST = 20
"""Brackets within brackets in one."""
OTHER_GROUPS = {
    ("train", "task"): "train takes environments, env=ID; python -m hrm_agent.supervise takes tasks",
    ("supervise", "env"): "supervise takes tasks, task=NAME; python -m hrm_agent.train takes environments",
    ("supervise", "algo"): "supervise has one algorithm, training.NAME=VALUE; python -m hrm_agent.train takes several",
}
"""What to do about a group of the other command."""
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
LIST = re.compile(r"^((?:init_parts|freeze|loggers)=)(\w+(?:,\w+)+)$")
PLUGINS = {
    "hydra/launcher/joblib": "'hrm-agent[sweep]'",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/submitit_local": "'hrm-agent[cluster]'",
    "hydra/launcher/submitit_slurm": "'hrm-agent[cluster]'",
}


FORMER_SEARCH = (
    (r"^\+*sweep=", "space="),
    (r"^hydra\.sweeper\.n_trials=", "trials="),
    (r"^hydra\.(?:launcher|sweeper)\.n_jobs=", "jobs="),
    (r"^hydra\.sweeper\.storage=", "storage="),
    (r"^hydra\.sweeper\.study_name=", "name="),
    (r"^hydra\.sweeper\.sampler\.seed=", "sampler_seed="),
    (r"^hydra\.sweep\.dir=", "out="),
)
"""What was typed for a search by `train`, and what it is now."""


class UsageError(ValueError):
    """Invalid input; the message is one line."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn input errors inside the body into one line on stderr and exit code 2, and Ctrl-C into one and 130.

    Where an environment fails, its own traceback comes before the line, and the exit code is 1; it is 1 too where
    memory runs out.
    """
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException, HydraException) as error:
        fail(str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except EnvironmentFailed as error:
        say_traceback(error)
        fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"{describe_out_of_memory(error)}; ask for less at once", 1)


def say_error(message: str, code: int = 1) -> None:
    """Print a message on one line to stderr, without control characters. That of Ctrl-C is no error."""
    startup.over()
    print("" if code == INTERRUPTED else "error: ", printable(spelled(message)), sep="", file=sys.stderr, flush=True)


def say_traceback(error: EnvironmentFailed) -> None:
    """Print the traceback of what an environment raised to stderr, without the frames of this package."""
    trace = "" if error.__cause__ is None else own_traceback(error.__cause__)
    if trace:
        startup.over()
        print(trace, file=sys.stderr, flush=True)


def fail(message: str, code: int) -> NoReturn:
    say_error(message, code)
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
    open_groups = ("env.options.", "env.options=", "task.env_options.", "task.env_options=")
    return [f"++{a}" if a.startswith(open_groups) else a for a in arguments]


def check_jobs(arguments: list[str], config_name: str, check: Callable[[DictConfig], Any]) -> DictConfig | None:
    """Compose the configuration of every job of `arguments` and `check` it.

    Returns:
        The configuration where there is one job, with Hydra's own part; None for several.

    Raises:
        UsageError: an unknown choice or setting, with the nearest one that exists.
        ValueError: from `check`.
    """
    refuse_search(arguments)
    overrides = command_overrides(arguments)
    typed = parse_overrides(overrides)
    drawn = [o.input_line for o in typed if o.is_sweep_override() and not o.is_discrete_sweep()]
    if drawn:
        raise UsageError(f"{drawn[0]}: a grid draws from no intervals; python -m hrm_agent.search does")
    composed = compose_config([_first(o) for o in typed], config_name, hydra=True)
    if any(o.is_sweep_override() for o in typed):
        for job in expand_sweeps(overrides):
            check(compose_config(job, config_name))
        return None
    alone = deepcopy(composed)
    with open_dict(alone):
        del alone["hydra"]
    check(alone)
    return composed


def refuse_search(arguments: Sequence[str]) -> None:
    """Raises: UsageError for the former form of a search, `+sweep=ppo`, with what to type instead."""
    if not any(re.match(r"\+*(sweep=|hydra/sweeper=optuna)", a) for a in arguments):
        return
    words = []
    for argument in arguments:
        for pattern, present in FORMER_SEARCH:
            argument = re.sub(pattern, present, argument)
        if argument and not argument.startswith(("-", "hydra")):
            words += [argument] if argument not in words else []
    raise UsageError(
        f"a search is a command of its own now, with trials that are kept: python -m hrm_agent.search {' '.join(words)}"
    )


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
    """Raises: UsageError for an override that does not follow Hydra's grammar, or is too long."""
    for text in overrides:
        _check_size(text)
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        plain = [text for text in overrides if "=" not in text and not text.startswith("~")]
        if plain:
            raise UsageError(f"{printable(plain[0])}: expected NAME=VALUE, such as total_steps=100_000") from None
        raise UsageError(f"{str(error).splitlines()[0]} in {' '.join(overrides)!r}") from None
    for override in parsed:
        value = override.value()
        names = value if isinstance(value, list) else [] if value is None or override.is_sweep_override() else [value]
        if _is_group(override.key_or_group) and not all(isinstance(name, str) for name in names):
            raise UsageError(f"{override.input_line}: expected a name{_known_choices(override.key_or_group)}")
    return parsed


def _is_group(name: str) -> bool:
    return "/" in name or (bool(name) and (config_folder() / name).is_dir())


def _known_choices(group: str) -> str:
    """`: hrm, trm, ...`; empty for Hydra's own groups."""
    names = group_choices(group)
    return f", {', '.join(names)}" if names else ""


def expand_sweeps(overrides: list[str]) -> Iterator[list[str]]:
    """`a=1,2 b=3` -> `a=1 b=3`, `a=2 b=3`.

    Raises:
        UsageError: more jobs than `MOST_JOBS`.
    """
    choices = [_choices(override) for override in parse_overrides(overrides)]
    jobs = math.prod(map(len, choices))
    if jobs > MOST_JOBS:
        raise UsageError(f"{jobs:,} jobs; expected at most {MOST_JOBS:,}")
    for job in itertools.product(*choices):
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
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
        if len(values) > MOST_JOBS:
            raise UsageError(f"{shown(override.input_line)}: expected at most {MOST_JOBS:,} values")
        return [f"{name}={value}" for value in values]
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
        with _without_hydra(), initialize_config_dir(str(config_folder()), version_base="1.3"):
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
        other = OTHER_GROUPS.get((config_name, key[1]))
        if other and chosen:
            raise UsageError(f"{chosen[0]}: {other}") from None
        if (config_folder() / key[1]).is_dir() and chosen:
            raise UsageError(f"{chosen[0]}: add this group with a plus sign, +{chosen[0]}") from None
        choices = [o for o in overrides if o.partition("=")[0] in (*GROUPS, "task")]
        known = [*known_settings(config_name, choices), "hydra.run.dir"]
        meant = did_you_mean(key[1], known, shown=0) or f"; python -m hrm_agent.{config_name} --help lists them"
        raise UsageError(f"{key[1]}: no such setting{meant}") from None


@contextmanager
def _without_hydra() -> Iterator[None]:
    """Set aside during the body what a program has initialised of Hydra for its own configurations."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before  # of another instance: `initialize` leaves a copy


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
        UsageError: an unknown key, a required one that is missing, or a text that is no value.
        ValueError: a value of another type, or out of range.
    """
    if wants_help(arguments):
        from hrm_agent.launch.help import command_page  # which is needed for nothing else

        print(command_page(usage, command, examples).render())
        raise SystemExit(0)
    defaults, kinds = option_defaults(command), option_types(command)
    given: dict[str, Any] = {}
    for argument in (re.sub("^band=", "split=", a) for a in arguments):  # its former name
        path, equals, text = argument.lstrip("+").partition("=")
        key, *inner = path.split(".")
        if not equals:
            raise UsageError(f"{shown(argument)}: expected KEY=VALUE{did_you_mean(path, defaults)}")
        if key not in defaults:
            raise UsageError(f"{path}: no such setting{did_you_mean(key, defaults)}")
        if inner:  # env_options.rows=6
            _put_inside(given, path, [key, *inner], parse_value(path, text))
        else:
            given[key] = _text_or_value(key, text, kinds[key])
    try:
        options: Any = OmegaConf.to_container(OmegaConf.create({**defaults, **given}), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:  # of interpolations, ${...}
        raise UsageError(next(iter(str(error).splitlines()), "nested too deeply")) from None
    missing = [key for key in defaults if options[key] == "???"]
    if missing:
        raise UsageError(f"{missing[0]}=... is required; {usage}")
    return {key: checked(key, options[key], kinds[key]) for key in defaults}


def parse_agent_options(arguments: list[str], command: Any, usage: str, examples: Sequence[str] = ()) -> dict[str, Any]:
    """`parse_options` of a function that loads an agent or a model, as its arguments.

    `which=best|last` becomes `best=True|False`, and what overrides an agent's settings one `AgentOverrides`.
    `core=MODULE:CLASS` is imported, for agents whose files name such a core.

    Raises:
        UsageError: see `parse_options`.
        ValueError: see `parse_options`.
    """
    cores = [a.partition("=")[2] for a in arguments if re.match(r"core=[^=]*:", a)]
    for core in cores:  # that of an agent whose files name a module
        import_core(core)
    arguments = [a for a in arguments if a.removeprefix("core=") not in cores]
    options = parse_options(arguments, command, usage, examples)
    if "overrides" in inspect.signature(command).parameters:
        options["overrides"] = AgentOverrides.taken_from(options)
    best = options.pop("which") == "best"
    return {**options, "best": best}


def parse_value(name: str, text: str) -> Any:
    """A value in YAML, as it is typed: `6`, `null`, `[size,view]`, `{rows: 6}`.

    Args:
        name: of the setting, for messages.

    Raises:
        UsageError: it is no YAML, or too long, or holds anchors and aliases, of which a short text can make gigabytes.
    """
    _check_size(f"{name}={text}")
    try:
        if any(isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken) for token in yaml.scan(text)):
            reason = "anchors, aliases and tags are not read, write the value out"
        else:
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
            return read["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
    raise UsageError(f"{name}={shown(text)}: not a value in YAML ({reason})")


def _text_or_value(name: str, text: str, kind: Any) -> Any:
    """A text as it stands, since a folder may be called 0; of other types the value that it says."""
    if text == "null" or not takes_text(kind) or text[:1] in ("'", '"'):
        return parse_value(name, text)
    _check_size(f"{name}={text}")
    return text


def _put_inside(given: dict[str, Any], path: str, keys: list[str], value: Any) -> None:
    """Put a value into groups within groups, which begin empty."""
    group = given
    for key in keys[:-1]:
        if not isinstance(group.setdefault(key, {}), dict):
            raise UsageError(f"{path}={shown(value)}: {key} is no group of settings but {shown(group[key])}")
        group = group[key]
    group[keys[-1]] = value


def _check_size(argument: str) -> None:
    """Raises: UsageError for an argument that is longer, or more deeply nested, than anything that a person types."""
    deepest = max(itertools.accumulate((c in "[{(") - (c in ")}]") for c in argument), default=0)
    if len(argument) > LONGEST or deepest > DEEPEST:
        raise UsageError(
            f"{shown(argument)}: {len(argument):,} characters, nested {deepest} times; expected at most {LONGEST:,}, "
            f"nested at most {DEEPEST} times"
        )


def existing_folder(path: str | Path, what: str) -> Path:
    """Raises: UsageError if there is no such folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{what}={path}: no such folder")
    return folder
