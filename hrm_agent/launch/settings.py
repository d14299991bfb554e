"""From the composed configuration to the typed settings of each part."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.imitation import DAggerConfig, ImitationConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.names.values import EpisodesOrNone, Group, check_fields, checked, one_of, refuse_unknown, typed, types_of
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.parallel.threads import available_cores
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import PolicyConfig
from hrm_agent.training.learners import AlgoConfig, check_segments
from hrm_agent.training.trainer import TrainerConfig

ALGORITHMS: dict[str, type[AlgoConfig]] = {
    "ppo": PPOConfig,
    "dqn": DQNConfig,
    "bc": ImitationConfig,
    "dagger": DAggerConfig,
}
# Imitation leaves the value untrained; fine-tuning by PPO has a place for it.
HEADS = {"ppo": "actor_critic", "dqn": "q", "bc": "actor_critic", "dagger": "actor_critic"}
TRAINER_SETTINGS = tuple(f.name for f in dataclasses.fields(TrainerConfig) if f.name not in ("env", "env_options"))
GROUPS = ("env", "core", "carry", "algo")
Objective = Annotated[str, one_of(("success", "return"))]
POLICY_SETTINGS = ("segments", "stop", "stop_threshold", "time_gradient")


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """What `hrm_agent.train` does with a run."""

    objective: Objective = "success"  # success | return: of the validation levels, what a sweep maximises
    test_episodes: EpisodesOrNone = 1000  # of the final evaluation on test levels; 0: none
    resume: str | None = None  # folder of a run to resume

    def __post_init__(self) -> None:
        check_fields(self)


KNOWN = {
    "": (*TRAINER_SETTINGS, *GROUPS, *POLICY_SETTINGS, "readout", "encoder", *TrainCommand.__annotations__),
    "env": ("id", "options", "readout", "encoder", "total_steps"),
    "carry": ("rule",),
}


RENAMED = (("", "shards", "threads"), ("training", "rows_at_once", "chunk_size"))
"""Group, former name and present name of settings: command lines, configurations and earlier runs may hold either."""


def rename_overrides(overrides: Iterable[str]) -> list[str]:
    """`shards=2` -> `threads=2`; `cuda.halves=false` is dropped: environments are no longer stepped in two halves."""
    patterns = {rf"^([+]*{group}{'[.]' * bool(group)}){old}(?==)": rf"\1{new}" for group, old, new in RENAMED}
    renamed = [override for override in overrides if not re.match(r"[+]*cuda\.halves=", override)]
    for pattern, present in patterns.items():
        renamed = [re.sub(pattern, present, override) for override in renamed]
    return renamed


def rename_settings(values: dict[str, Any]) -> None:
    """The same, in place, in a configuration; where a file has the former name, a present one that was given wins."""
    for group, old, new in RENAMED:
        part = values.get(group) if group else values
        if isinstance(part, dict) and old in part:
            former = part.pop(old)
            part[new] = former if part.get(new, 0) in (0, "auto") else part[new]
    if isinstance(values.get("cuda"), dict):
        values["cuda"].pop("halves", None)


def defaults(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with plain values."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            values[field.name] = made if isinstance(made, dict) else dataclasses.asdict(made)
    return values


def option_defaults(command: Any) -> dict[str, Any]:
    """The options of a command that starts no run, with defaults: a function's arguments, or a dataclass's fields.

    `???` is the default of one that must be given. Of an argument that is a dataclass the fields are options. `best` is
    typed as `which=best|last`; what is called with results (`on_record`) cannot be typed.
    """
    if dataclasses.is_dataclass(command):
        return {field.name: "???" for field in dataclasses.fields(command)} | defaults(command)
    found: dict[str, Any] = {}
    for argument in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(argument.default):
            found |= vars(argument.default)
        elif not argument.name.startswith("on_"):
            found[argument.name] = "???" if argument.default is argument.empty else argument.default
    return {**found, "which": "best"} if found.pop("best", False) else found


def option_types(command: Any) -> dict[str, Any]:
    """The types of the same options, as their annotations have them."""
    kinds = types_of(command)
    if dataclasses.is_dataclass(command):
        return kinds
    found: dict[str, Any] = {"which": Annotated[str, one_of(("best", "last"))]}
    for argument in inspect.signature(command).parameters.values():
        is_group = dataclasses.is_dataclass(argument.default)
        found |= types_of(type(argument.default)) if is_group else {argument.name: kinds[argument.name]}
    return {name: found[name] for name in option_defaults(command)}


def train_defaults() -> dict[str, Any]:
    """The configuration of `train` without its groups; `configs/train.yaml` holds what differs."""
    policy = defaults(PolicyConfig)
    return {**defaults(TrainerConfig), **{name: policy[name] for name in POLICY_SETTINGS}, **defaults(TrainCommand)}


def config_folder() -> Path:
    """The YAML files: beside the package when installed, at the repository's root in a checkout."""
    package = Path(str(files("hrm_agent")))
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs beside {package}: the installation is incomplete")


def shipped_options(core: str) -> dict[str, Any]:
    """Options of a core as shipped, without its name; none of other packages' cores."""
    path = config_folder() / "core" / f"{core}.yaml"
    if not path.is_file():
        return {}
    options = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items() if key != "name"}


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain values, with interpolations and `threads: auto` resolved; `env_workers: auto` is None.

    Raises:
        ValueError: a required setting is missing, or an interpolation stands for nothing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key}: required, and not given; add {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except RecursionError:
        raise ValueError("interpolations that never end; expected values") from None
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    rename_settings(plain)
    if plain.get("threads") == "auto":
        on_cpu = str(plain.get("device", "cpu")) == "cpu"
        plain["threads"] = available_cores() if on_cpu else 1  # several threads do not help on a GPU
    if plain.get("env_workers") == "auto":
        plain["env_workers"] = None
    return plain


def settings(values: dict[str, Any]) -> tuple[TrainerConfig, PolicyConfig, AlgoConfig]:
    """The typed settings of a run; `values` comes from `resolve`.

    Raises:
        ValueError: a value that is out of range or of the wrong type.
    """
    values = Group(values, "")
    env, core, carry, algo = (Group(values[group], group) for group in GROUPS)
    for group, given in (("", values), ("env", env), ("carry", carry)):
        refuse_unknown(given, KNOWN[group], group)
    name = checked("algo", algo.take("name"), Annotated[str, one_of(ALGORITHMS)])
    trainer = {name: values[name] for name in TRAINER_SETTINGS if name in values}  # earlier runs may lack the newest
    for part_list in ("init_parts", "freeze", "loggers"):
        if isinstance(trainer.get(part_list), list):
            trainer[part_list] = ",".join(map(str, trainer[part_list]))
    if "cuda" in trainer:
        trainer["cuda"] = typed(CudaConfig, {} if trainer["cuda"] is None else trainer["cuda"], "cuda")
    if trainer.get("init_from") is not None:
        trainer["init_from"] = str(trainer["init_from"])  # a folder may be called 0
    trainer["env"] = checked("env.id", env["id"], str)
    trainer["env_options"] = Group({} if env["options"] is None else env["options"], "env.options")
    policy = PolicyConfig(
        core=checked("core", core.take("name"), str),
        hidden_size=core.take("hidden_size"),
        core_options=dict(core),
        carry=checked("carry", carry["rule"], str),
        heads=HEADS[name],
        encoder=typed(EncoderConfig, values["encoder"], "encoder"),
        **{setting: values[setting] for setting in (*POLICY_SETTINGS, "readout")},
    )
    typed(TrainCommand, {setting: values[setting] for setting in defaults(TrainCommand) if setting in values}, "")
    algorithm = typed(ALGORITHMS[name], algo, "algo")
    check_segments(algorithm, policy.segments)
    return typed(TrainerConfig, trainer, ""), policy, algorithm
