"""From the composed configuration to the typed settings of each part."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from hrm_agent.algos.dqn import DQNConfig
from hrm_agent.algos.imitation import DAggerConfig, ImitationConfig
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.parallel.cuda import CudaConfig
from hrm_agent.parallel.threads import available_cores
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import PolicyConfig
from hrm_agent.training.learners import AlgoConfig
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
POLICY_SETTINGS = ("segments", "stop", "stop_threshold", "time_gradient")


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """What `hrm_agent.train` does with a run."""

    objective: str = "success"  # success | return: of the validation levels, what a sweep maximises
    test_episodes: int = 1000  # of the final evaluation on test levels; 0: none
    resume: str | None = None  # folder of a run to resume


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


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain values, with interpolations and `threads: auto` resolved.

    Raises:
        ValueError: a required setting is missing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key}: required, and not given; add {error.full_key}=VALUE") from None
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    rename_settings(plain)
    if plain["threads"] == "auto":
        on_cpu = str(plain.get("device", "cpu")) == "cpu"
        plain["threads"] = available_cores() if on_cpu else 1  # several threads do not help on a GPU
    return plain


def settings(values: dict[str, Any]) -> tuple[TrainerConfig, PolicyConfig, AlgoConfig]:
    """The typed settings of a run; `values` comes from `resolve`.

    Raises:
        ValueError: a value that is out of range or of the wrong type.
    """
    for group, known in KNOWN.items():
        _refuse_unknown(values[group] if group else values, known, group)
    core = dict(values["core"])
    algo = dict(values["algo"])
    name = algo.pop("name")
    if name not in ALGORITHMS:
        raise ValueError(f"algo={name}: no such algorithm{did_you_mean(name, ALGORITHMS)}")
    policy = PolicyConfig(
        core=core.pop("name"),
        hidden_size=_checked("core.hidden_size", core.pop("hidden_size"), int),
        core_options=core,
        carry=values["carry"]["rule"],
        segments=_checked("segments", values["segments"], int),
        stop=values["stop"],
        stop_threshold=_checked("stop_threshold", values["stop_threshold"], float),
        time_gradient=values["time_gradient"],
        readout=values["readout"],
        heads=HEADS[name],
        encoder=typed(EncoderConfig, values["encoder"], "encoder"),
    )
    trainer = {name: values[name] for name in TRAINER_SETTINGS if name in values}  # earlier runs may lack the newest
    for part_list in ("init_parts", "freeze"):
        if isinstance(trainer.get(part_list), list):
            trainer[part_list] = ",".join(map(str, trainer[part_list]))
    if "cuda" in trainer:
        trainer["cuda"] = typed(CudaConfig, dict(trainer["cuda"] or {}), "cuda")
    if trainer.get("init_from") is not None:
        trainer["init_from"] = str(trainer["init_from"])  # a folder may be called 0
    env = {"env": values["env"]["id"], "env_options": dict(values["env"]["options"] or {})}
    return typed(TrainerConfig, {**env, **trainer}, ""), policy, typed(ALGORITHMS[name], algo, "algo")


def typed(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    """Build a dataclass of plain fields, each checked against its annotation.

    Args:
        kind: the dataclass.
        values: of its fields; the others have their defaults.
        prefix: of their names in messages, `algo` or `settings`.

    Raises:
        ValueError: an unknown name, a value of another type, or from the dataclass itself.
    """
    types = {"int": int, "float": float, "bool": bool, "str": str}
    annotated = {f.name: types.get(str(f.type)) for f in dataclasses.fields(kind)}
    _refuse_unknown(values, annotated, prefix)
    return kind(**{name: _checked(_label(prefix, name), value, annotated[name]) for name, value in values.items()})


def _refuse_unknown(values: dict[str, Any], known: Collection[str], prefix: str) -> None:
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{_label(prefix, name)}={value}: no such setting; expected one of {', '.join(known)}")


def _label(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _checked(label: str, value: Any, kind: type | None) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is not None and type(value) is not kind:
        raise ValueError(f"{label}={value!r}: expected {kind.__name__}")
    return value
