"""`env=ID` without a configuration file: a Hydra source of configurations that knows Gymnasium's registry.

Hydra asks its sources in turn. The shipped files come first, so `configs/env/ID.yaml` wins; for every other id that
Gymnasium can make, this source answers with a generic node. Ids may name the module that registers them,
`env=hrm_envs:DynamicMaze-v0`, and may have a namespace, `env=ALE/Pong-v5`.

What `configs/recommended/algo/ID/ALGO.yaml` and `configs/recommended/core/ID/CORE.yaml` say is laid over the defaults
of that algorithm and core, beneath an experiment's settings and beneath what is typed. Where there is no such file, and
the environment is not one of ours, this source answers: other worlds are not discounted as short mazes are, and their
observations may have no grid to convolve over.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from hrm_agent.config import config_folder
from hrm_agent.environments import check_env_id
from hrm_agent.wrappers import adapt

GENERIC_READOUT = "mean"
GENERIC_ENV: dict[str, Any] = {
    "options": {},
    "readout": GENERIC_READOUT,
    "encoder": {"crop": 0, "patch_size": 1, "positions": "none", "prefix": 0},
    "total_steps": 500_000,
}
# Mazes are short, so ours discount by 0.97; most other environments are written with 0.99 in mind.
GENERIC_ALGO: dict[str, Any] = {"gamma": 0.99}
KINDS = {"env/": None, "recommended/algo/": "_global_", "recommended/core/": "_global_"}


class RegistrySource(ConfigSource):
    """`env/ID` and `recommended/{algo,core}/ID/CHOICE` for ids without a file of their own."""

    @staticmethod
    def scheme() -> str:
        return "gymnasium"

    def load_config(self, config_path: str) -> ConfigResult:
        kind, node = _find(config_path)
        if node is None:
            raise ConfigLoadError(f"no registered environment for {config_path}")
        return ConfigResult(self.provider, self.full_path(), node, {"package": KINDS[kind]})

    def available(self) -> bool:
        return True

    def is_config(self, config_path: str) -> bool:
        return _find(config_path)[1] is not None

    def is_group(self, config_path: str) -> bool:
        return False  # `--help` lists what is shipped, not the hundreds of ids that are registered

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class RegistrySearchPath(SearchPathPlugin):
    """Puts `RegistrySource` behind the shipped files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("hrm_agent", f"{RegistrySource.scheme()}://registry")


def install() -> None:
    """Make Hydra ask `RegistrySource`; calling it again changes nothing."""
    Plugins.instance().register(RegistrySource)
    Plugins.instance().register(RegistrySearchPath)


def path_safe(name: str) -> str:
    """`ALE/Pong-v5` -> `ALE-Pong-v5`: for the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


# At import, because the processes of a parallel launcher resolve the configuration too.
OmegaConf.register_new_resolver("path_safe", path_safe, replace=True)


def _find(config_path: str) -> tuple[str, DictConfig | None]:
    """The kind of configuration that is asked for, and what it holds; None where the shipped files must answer."""
    for kind in KINDS:
        if config_path.startswith(kind):
            rest = config_path[len(kind) :]
            return kind, _env_node(rest) if kind == "env/" else _recommended(kind, rest)
    return "", None


def _env_node(env_id: str) -> DictConfig | None:
    try:
        check_env_id(env_id)
    except ValueError:
        return None
    module, _, name = env_id.rpartition(":")
    shipped = _shipped(f"env/{name}") if module else None
    return OmegaConf.create({**(shipped or GENERIC_ENV), "id": env_id})


def _recommended(kind: str, path: str) -> DictConfig | None:
    env_id, _, choice = path.rpartition("/")
    module, _, name = env_id.rpartition(":")
    shipped = _shipped(f"{kind}{name}/{choice}")
    if shipped is not None:
        return shipped if module else None  # without a module the file itself is found
    if _is_ours(env_id):
        return None
    if kind == "recommended/algo/":
        return OmegaConf.create({"algo": GENERIC_ALGO})
    has_choice = "mixing" in (_shipped(f"core/{choice}") or {})
    mixing = _suitable_mixing(env_id) if has_choice else None
    return None if mixing is None else OmegaConf.create({"core": {"mixing": mixing}})


def _is_ours(env_id: str) -> bool:
    """Whether it is of `hrm_envs`; of an id that is not registered there is nothing to say, so True."""
    try:
        check_env_id(env_id)
    except ValueError:
        return True
    return str(gym.spec(env_id.rpartition(":")[2]).entry_point).startswith("hrm_envs")


@lru_cache(maxsize=64)
def _suitable_mixing(env_id: str) -> str | None:
    """How tokens should exchange what they know; None: as the core's own file says, by convolution over the grid.

    A convolution needs a grid, and leaves the tokens beside it (a mission, a direction) to themselves.
    """
    try:
        env = adapt(gym.make(env_id.rpartition(":")[2]))
    except Exception:  # whatever a stranger's constructor raises; training says it again, and why
        return None
    space = env.observation_space
    parts = list(space.spaces.values()) if isinstance(space, gym.spaces.Dict) else [space]
    env.close()
    grids = sum(isinstance(part, gym.spaces.Box) and len(part.shape) in (2, 3) for part in parts)
    if grids == 0:
        return "attention"
    return "attention_conv" if len(parts) > grids else None


def _shipped(path: str) -> DictConfig | None:
    file: Path = config_folder() / f"{path}.yaml"
    if not file.is_file():
        return None
    node = OmegaConf.load(file)
    assert isinstance(node, DictConfig)
    return node
