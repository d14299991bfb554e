"""`env=ID` and `core=NAME` without a configuration file: a Hydra config source that reads the registries.

Hydra searches its sources in turn. The shipped files come first, so `configs/env/ID.yaml` wins; for every other id that
Gymnasium can make, this source provides a generic node. Ids may name the module that registers them,
`env=hrm_envs:DynamicMaze-v0`, and may have a namespace, `env=ALE/Pong-v5`.

`configs/recommended/algo/ID/ALGO.yaml` and `configs/recommended/core/ID/CORE.yaml` override the defaults of that
algorithm and core; experiments and the command line override them. Where there is no such file, and the environment is
not one of `hrm_envs`, this source provides one for the algorithms (`GENERIC_ALGO`).

`code/...` is what the dataclasses of the code say: `configs/train.yaml`, `configs/algo/ppo.yaml` and others begin with
it and hold what differs.

`core=MODULE:CLASS` imports the module. Such a core, and one that another package registers
(`hrm_agent.cores.register_core`, or the entry-point group `hrm_agent.cores`), has the options of its constructor as
settings: `core=ring core.gain=0.2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hrm_agent.cores import core_names, core_options, import_core
from hrm_agent.environments.make import check_env_id
from hrm_agent.launch.settings import ALGORITHMS, config_folder, defaults, train_defaults
from hrm_agent.policies.encoders import EncoderConfig

GENERIC_READOUT = "mean"
GENERIC_ENV: dict[str, Any] = {
    "options": {},
    "readout": GENERIC_READOUT,
    "encoder": defaults(EncoderConfig),
    "total_steps": 500_000,
}
# Mazes are short and their returns near 1; most other environments discount by 0.99 and have returns of any size.
GENERIC_ALGO: dict[str, dict[str, Any]] = {"ppo": {"gamma": 0.99, "scale_rewards": True}, "dqn": {"gamma": 0.99}}
GENERIC_HIDDEN_SIZE = 64
SINGLE = "hydra.mode=RUN"
"""What Hydra adds to the overrides of a single run."""
KINDS = {"code/": None, "env/": None, "core/": None, "recommended/algo/": "_global_", "recommended/core/": "_global_"}


class RegistrySource(ConfigSource):
    """`env/ID`, `core/NAME` and `recommended/{algo,core}/ID/CHOICE` for those without a file of their own."""

    @staticmethod
    def scheme() -> str:
        return "gymnasium"

    def load_config(self, config_path: str) -> ConfigResult:
        kind, node = _find(config_path)
        if node is None:
            raise ConfigLoadError(f"nothing is registered for {config_path}")
        return ConfigResult(self.provider, self.full_path(), node, {"package": KINDS[kind]})

    def available(self) -> bool:
        return True

    def is_config(self, config_path: str) -> bool:
        return _find(config_path)[1] is not None

    def is_group(self, config_path: str) -> bool:
        return False  # `--help` lists shipped files, not the hundreds of registered ids

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class RegistrySearchPath(SearchPathPlugin):
    """Puts `RegistrySource` after the shipped files; a program's own configurations are left as they are."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        shipped = str(config_folder())
        if any((element.path or "").removeprefix("file://") == shipped for element in search_path.get_path()):
            search_path.append("hrm_agent", f"{RegistrySource.scheme()}://registry")


def install() -> None:
    """Register `RegistrySource` with Hydra; further calls have no effect."""
    Plugins.instance().register(RegistrySource)
    Plugins.instance().register(RegistrySearchPath)


@contextmanager
def composed_once(own: list[str], config: DictConfig | None) -> Iterator[None]:
    """Let Hydra take `config` instead of composing it twice: for the mode, one job or several, and for the job.

    Args:
        own: the overrides that `config` was composed with.
        config: with Hydra's own part; None: it is composed as ever.
    """
    load = ConfigLoaderImpl.load_configuration

    def take(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], **more: Any) -> DictConfig:
        if config is None or overrides not in (own, [*own, SINGLE]):
            return load(self, config_name, overrides, **more)
        taken = deepcopy(config)
        if overrides != own:
            taken.hydra.mode = RunMode.RUN
            taken.hydra.overrides.hydra.append(SINGLE)
        return taken

    ConfigLoaderImpl.load_configuration = take  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


def path_safe(name: str) -> str:
    """`ALE/Pong-v5` -> `ALE-Pong-v5`: for the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


# At import, because the processes of a parallel launcher resolve the configuration too.
OmegaConf.register_new_resolver("path_safe", path_safe, replace=True)


def _find(config_path: str) -> tuple[str, DictConfig | None]:
    """The requested configuration; None where it must come from the shipped files."""
    for kind in KINDS:
        if config_path.startswith(kind):
            rest = config_path[len(kind) :]
            find = {"code/": _code_node, "env/": _env_node, "core/": _core_node}.get(kind, partial(_recommended, kind))
            return kind, find(rest)
    return "", None


def _code_node(path: str) -> DictConfig | None:
    """What the dataclasses of the code say, which the shipped files take as their defaults and change."""
    kind, _, name = path.partition("/")
    if path == "train":
        return OmegaConf.create(train_defaults())
    if path == "env":
        return OmegaConf.create(GENERIC_ENV)
    if kind == "algo" and name in ALGORITHMS:
        return OmegaConf.create({"name": name, **defaults(ALGORITHMS[name])})
    if path == "supervise":
        from hrm_agent.launch.supervised_settings import supervise_defaults  # which training by rewards does not need

        return OmegaConf.create(supervise_defaults())
    if kind == "task":
        from hrm_agent.supervised.tasks import TASKS, task_options

        return OmegaConf.create({"name": name, **task_options(name)}) if name in TASKS else None
    return None


def _env_node(env_id: str) -> DictConfig | None:
    try:
        check_env_id(env_id)
    except ValueError:
        return None
    module, _, name = env_id.rpartition(":")
    shipped = _shipped(f"env/{name}") if module else None
    return OmegaConf.merge(GENERIC_ENV, shipped or {}, {"id": env_id})  # type: ignore[return-value]


def _core_node(name: str) -> DictConfig | None:
    """Raises: ValueError for a core whose package, or whose module, cannot be loaded."""
    import_core(name)
    if name not in core_names():
        return None
    return OmegaConf.create({"name": name, "hidden_size": GENERIC_HIDDEN_SIZE, **core_options(name)})


def _recommended(kind: str, path: str) -> DictConfig | None:
    env_id, _, choice = path.rpartition("/")
    module, _, name = env_id.rpartition(":")
    shipped = _shipped(f"{kind}{name}/{choice}")
    if shipped is not None:
        return shipped if module else None  # without a module the file itself is found
    if _is_ours(env_id):
        return None
    generic = GENERIC_ALGO.get(choice) if kind == "recommended/algo/" else None
    return OmegaConf.create({"algo": generic}) if generic else None


def _is_ours(env_id: str) -> bool:
    """Whether it is of `hrm_envs`; True for an unregistered id, which is reported elsewhere."""
    try:
        check_env_id(env_id)
    except ValueError:
        return True
    return str(gym.spec(env_id.rpartition(":")[2]).entry_point).startswith("hrm_envs")


def _shipped(path: str) -> DictConfig | None:
    file: Path = config_folder() / f"{path}.yaml"
    if not file.is_file():
        return None
    node = OmegaConf.load(file)
    assert isinstance(node, DictConfig)
    node.pop("defaults", None)
    return node
