"""From the composed configuration to the typed settings of each part; the only module that knows both."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.encoders import EncoderConfig
from hrm_agent.parallel import available_cores
from hrm_agent.policy import PolicyConfig
from hrm_agent.trainer import TrainerConfig

ALGORITHMS = {"ppo": PPOConfig}


def config_folder() -> Path:
    """The YAML files: beside the package when installed, at the repository's root in a checkout."""
    package = Path(str(files("hrm_agent")))
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs beside {package}: the installation is incomplete")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain values, without interpolations and with `shards: auto` made a number."""
    values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    if plain["shards"] == "auto":
        plain["shards"] = available_cores()
    return plain


def settings(values: dict[str, Any]) -> tuple[TrainerConfig, PolicyConfig, PPOConfig]:
    """The typed settings of a run; `values` comes from `resolve`.

    Raises:
        ValueError: a value that is out of range or of the wrong type.
    """
    core = dict(values["core"])
    algo = dict(values["algo"])
    algo.pop("name")
    policy = PolicyConfig(
        core=core.pop("name"),
        hidden_size=_checked("core.hidden_size", core.pop("hidden_size"), int),
        core_options=core,
        carry=values["carry"]["rule"],
        segments=_checked("segments", values["segments"], int),
        time_gradient=values["time_gradient"],
        readout=values["readout"],
        encoder=_typed(EncoderConfig, values["encoder"], "encoder"),
    )
    names = {f.name for f in dataclasses.fields(TrainerConfig)} - {"env", "env_options"}
    trainer = {name: values[name] for name in names}
    env = {"env": values["env"]["id"], "env_options": dict(values["env"]["options"] or {})}
    return _typed(TrainerConfig, {**env, **trainer}, ""), policy, _typed(PPOConfig, algo, "algo")


def _typed(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    """Build a dataclass of plain fields, each checked against its annotation."""
    types = {"int": int, "float": float, "bool": bool, "str": str}
    annotated = {f.name: types.get(str(f.type)) for f in dataclasses.fields(kind)}
    checked = {}
    for name, value in values.items():
        label = f"{prefix}.{name}" if prefix else name
        if name not in annotated:
            raise ValueError(f"{label}={value}: no such setting; expected one of {', '.join(annotated)}")
        checked[name] = _checked(label, value, annotated[name])
    return kind(**checked)


def _checked(label: str, value: Any, kind: type | None) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is not None and type(value) is not kind:
        raise ValueError(f"{label}={value!r}: expected {kind.__name__}")
    return value
