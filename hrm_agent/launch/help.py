"""What the code says of its settings, for `--help` and for the reference page of the documentation.

Nothing of it is written twice: names and defaults are those of dataclasses, functions and classes, and what a setting
means stands in the comment behind a dataclass's field or in the list of arguments of a docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from omegaconf import OmegaConf, open_dict

from hrm_agent.cores import find_core
from hrm_agent.launch.cli import command_overrides, compose_config, group_choices
from hrm_agent.launch.pages import Page, Rows
from hrm_agent.launch.settings import ALGORITHMS, TrainCommand, config_folder, defaults, option_defaults, option_types
from hrm_agent.names.values import expected, types_of
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import PolicyConfig
from hrm_agent.training.trainer import TrainerConfig

# An entry of a docstring's list, `name, name: text`, with the further lines of its text; and a field with a comment.
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
FIELD = re.compile(r"^ {4}(\w+): .*?  # (.+)$", re.MULTILINE)
GROUPS = ("task", "env", "core", "carry", "algo")
OPTIONS = "keyword arguments of the environment, env.options.NAME=VALUE; docs/environments/ lists those of the mazes"
ELSEWHERE = re.compile(r"see `(\w+)`")


class Setting(NamedTuple):
    """`name=default`, what it is, and which values it takes, in words; empty where that is not known."""

    name: str
    default: Any
    meaning: str
    values: str = ""

    @property
    def given(self) -> str:
        return f"{self.name}={plain(self.default)}"


def explain(documented: Any) -> dict[str, str]:
    """What a function, a class or a dataclass says of its arguments, in its own order; a class adds to its bases'."""
    kinds = documented.__mro__[::-1] if inspect.isclass(documented) else (documented,)
    found: dict[str, str] = {}
    for kind in kinds:
        entries = ENTRY.findall(inspect.cleandoc(kind.__doc__ or ""))
        if dataclasses.is_dataclass(kind):
            with suppress(OSError):  # no source there
                entries += FIELD.findall(inspect.getsource(kind))
        known = {**vars(sys.modules[kind.__module__]), **{each.__name__: each for each in kinds}}
        for names, text in entries:
            there = ELSEWHERE.match(text)
            others = explain(known[there[1]]) if there and known.get(there[1], kind) is not kind else {}
            found |= {name: others.get(name, " ".join(text.split())) for name in names.split(", ")}
    if inspect.isfunction(documented):
        for name, argument in inspect.signature(documented).parameters.items():
            if dataclasses.is_dataclass(argument.default):  # its fields in its place
                pairs, fields = list(found.items()), explain(type(argument.default)).items()
                at = list(found).index(name)
                found = dict([*pairs[:at], *fields, *pairs[at + 1 :]])
    return found


def settings_of(documented: Any, values: Mapping[str, Any] | None = None, prefix: str = "") -> list[Setting]:
    """The settings that a dataclass, a function or a class stands for.

    Args:
        documented: see `explain`.
        values: names and defaults, where they are not its own.
        prefix: of the names, `algo.`.
    """
    kinds = option_types(documented) if values is None else types_of(documented)
    values = option_defaults(documented) if values is None else values
    meanings = explain(documented)
    meanings["which"] = f"best | last: {meanings.get('best', '')}"
    names = sorted(values, key=[*meanings, *values].index)
    words = {name: expected(kind) for name, kind in kinds.items() if kind is not Any}
    return [Setting(prefix + name, values[name], meanings.get(name, ""), words.get(name, "")) for name in names]


def plain(value: Any) -> str:
    """As it is typed."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(plain, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def brief(meaning: str) -> str:
    """Its first sentence."""
    sentence = re.split(r"(?<=\.)\s(?=[A-Z`])", meaning)[0].removesuffix(".").replace("`", "")
    return re.sub(r"\bNone\b", "null", sentence)


def command_page(usage: str, command: Callable[..., Any], examples: Sequence[str]) -> Page:
    """`--help` of a command whose options are the arguments of a function, or the fields of a dataclass."""
    about = inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0]
    options = [(s.given.replace("=???", "=..."), brief(s.meaning)) for s in settings_of(command)]
    return Page(usage, about.replace("`", ""), examples, {"Options and their defaults": options})


TRAIN = (
    "Train an agent, measure it on test levels, and keep it in a folder below runs/.",
    (
        "python -m hrm_agent.train env=CartPole-v1 core=gru total_steps=50_000",
        "python -m hrm_agent.train env.options.rows=6 env.options.cols=6 algo.learning_rate=1e-3",
        "python -m hrm_agent.train --multirun seed=0,1,2 carry=gate,reset",
    ),
)
SUPERVISE = (
    "Train a core on labelled puzzles, measure it on test puzzles, and keep it in a folder below runs/.",
    (
        "python -m hrm_agent.supervise task=sudoku total_steps=5_000",
        "python -m hrm_agent.supervise task.rows=5 task.cols=5 core.L_cycles=2 training.learning_rate=3e-4",
        "python -m hrm_agent.supervise +experiment=published/trm_sudoku device=cuda",
    ),
)
AFTERWARDS = (
    "A run that was interrupted, by Ctrl-C say, is resumed with resume=RUN. --cfg job prints all settings, --multirun "
    "runs every combination of lists (seed=0,1,2), and --hydra-help lists Hydra's own flags. docs/settings.md has the "
    "settings of every choice."
)


def run_page(name: str, arguments: list[str]) -> Page:
    """`--help` of `train` and `supervise`, with the values that the choices among `arguments` lead to."""
    composed = compose_config(command_overrides(arguments), name, hydra=True)
    chosen = {group: str(choice) for group, choice in composed.hydra.runtime.choices.items() if "/" not in group}
    with open_dict(composed):
        del composed["hydra"]
    values: Any = OmegaConf.to_container(composed, resolve=True)
    about, examples = TRAIN if name == "train" else SUPERVISE
    sections: dict[str, str | Rows] = {}
    for part, documented in documented_parts(name, values).items():
        title = " of ".join(["Settings", *([f"{part}={chosen[part]}" if part in chosen else part] if part else [])])
        sections[title] = [(s.given, brief(s.meaning)) for s in _rows(part, documented, values)]
    for title, rows in _chosen_parts(name, values, chosen):
        sections[title] = [(s.given, brief(s.meaning)) for s in rows]
    groups = [(f"{group}={chosen[group]}", _choices(group)) for group in GROUPS if group in chosen]
    return Page(
        f"python -m hrm_agent.{name} [GROUP=CHOICE] [KEY=VALUE] ...",
        about,
        examples,
        {"Groups": [*groups, *_optional_groups(name)], **sections},
        textwrap.fill(AFTERWARDS, 110),
    )


def _chosen_parts(
    name: str, values: Mapping[str, Any], chosen: Mapping[str, str]
) -> Iterator[tuple[str, list[Setting]]]:
    """The settings that a choice of a group brings: those of the core, and of the environment or the task."""
    core = dict(values["core"])
    yield f"Settings of core={chosen['core']}", settings_of(find_core(core.pop("name")), core, "core.")
    if name == "train":
        options = Setting("env.options", values["env"]["options"], OPTIONS)
        encoder = settings_of(EncoderConfig, values["env"]["encoder"], "env.encoder.")
        yield f"Settings of env={chosen['env']}", [options, *encoder]
        yield "Settings of cuda", settings_of(CudaConfig, values["cuda"], "cuda.")
        return
    from hrm_agent.supervised.tasks import task_class

    task = dict(values["task"])
    yield f"Settings of task={chosen['task']}", settings_of(task_class(task.pop("name")), task, "task.")


def _rows(part: str, documented: Iterable[Any], values: Mapping[str, Any]) -> list[Setting]:
    """The settings of one part of a configuration, in the order of what documents them."""
    own = values[part] if part else {name: each for name, each in values.items() if not isinstance(each, dict)}
    rows: list[Setting] = []
    for kind in documented:
        known = {name: own[name] for name in option_defaults(kind) if name in own}
        rows += settings_of(kind, known, f"{part}." * bool(part))
    return rows


def reference() -> Iterator[tuple[str, list[Setting]]]:
    """All settings of `train` and `supervise`, by the part or the choice that has them, with their defaults."""
    from hrm_agent.supervised.tasks import task_class

    kinds = {"core": find_core, "task": task_class}
    for name, group in (("train", "core"), ("supervise", "task")):
        # No file recommends anything for this core, so these are the defaults that all others change.
        values: Any = OmegaConf.to_container(compose_config(["core=gru"], name), resolve=True)
        for part, documented in documented_parts(name, values).items():
            if part != "algo":
                yield " ".join([name, *([f"{part}.NAME"] if part else [])]), _rows(part, documented, values)
        if name == "train":
            yield "train env.encoder.NAME", settings_of(EncoderConfig, defaults(EncoderConfig), "env.encoder.")
            yield "train cuda.NAME", settings_of(CudaConfig, defaults(CudaConfig), "cuda.")
            for algo, kind in ALGORITHMS.items():
                yield f"train algo={algo}", settings_of(kind, defaults(kind), "algo.")
        for choice in group_choices(group):
            own: Any = OmegaConf.to_container(compose_config([], f"{group}/{choice}")[group])
            yield f"{name} {group}={choice}", settings_of(kinds[group](own.pop("name")), own, f"{group}.")


def _choices(group: str) -> str:
    more = {
        "env": "any id that Gymnasium knows (MODULE:ID imports the module)",
        "core": "those of other packages (MODULE:CLASS imports the module)",
    }
    return "; ".join([", ".join(group_choices(group)), *([more[group]] if group in more else [])])


def documented_parts(name: str, values: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The parts of a configuration whose settings have a line each, and what explains them."""
    if name == "train":
        return {"": (TrainerConfig, PolicyConfig, TrainCommand), "algo": (ALGORITHMS[values["algo"]["name"]],)}
    from hrm_agent.launch.supervised_settings import ModelConfig, RunConfig, SuperviseCommand, SupervisedConfig

    return {"": (RunConfig, SuperviseCommand), "training": (SupervisedConfig,), "model": (ModelConfig,)}


def _optional_groups(name: str) -> list[tuple[str, str]]:
    """`+GROUP=NAME`: files that change many settings at once."""
    files = [path.relative_to(config_folder()).with_suffix("") for path in sorted(config_folder().rglob("*.yaml"))]
    found = []
    for group in ("experiment", "earlier"):
        names = [str(file.relative_to(group)) for file in files if file.is_relative_to(group)]
        own = [each for each in names if each.startswith("published/") == (name == "supervise")]
        if own and (name == "train" or group == "experiment"):
            found.append((f"+{group}=NAME", ", ".join(own)))
    return found
