"""Agents by name, as Gymnasium has environments by name: `register`, `make` and the mapping `registry`.

The registry holds the agents that ship with the package (`hrm_agent/agents/`), those added by `register`, and those of
other installed packages, found through the entry-point group `hrm_agent.agents`:

    [project.entry-points."hrm_agent.agents"]
    MyMaze-TRM-v0 = "my_package.agents:my_maze"     # a callable that returns a folder or an Agent
    __root__ = "my_package.agents:register_agents"  # any other name: called once; calls `register`

The first kind is imported when the agent is made, the second when the registry is first searched. Neither happens on
`import hrm_agent`, and a plugin that fails is skipped with a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import gymnasium as gym

from hrm_agent import agents as shipped
from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.agents.description import find_agent_folder, read_description
from hrm_agent.environments.wrappers import is_adapted
from hrm_agent.names.installed import without_working_folder
from hrm_agent.names.registry import Registry

GROUP = "hrm_agent.agents"
ID = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*-v[0-9]+")
ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

TRAINED = AgentOverrides()
Entry = str | Path | Callable[[], "Agent | str | Path"]


@dataclass(frozen=True)
class AgentSpec:
    """A registered agent.

    Attributes:
        id: its name.
        entry: a folder (`Path`), an entry point (`"package.module:callable"`) or a callable.
        package: the installed distribution that registered it; empty for a direct call of `register`.
    """

    id: str
    entry: Entry
    package: str = ""

    def __str__(self) -> str:
        return str(self.entry)

    @property
    def folder(self) -> Path | None:
        """The folder with its files; None for an entry point."""
        return self.entry if isinstance(self.entry, Path) else None

    def describe(self) -> dict[str, Any] | None:
        """The content of `agent.json`, read without building the agent; None for an entry point.

        Raises:
            CheckpointError: there is no agent of this version in the folder.
        """
        return None if self.folder is None else read_description(find_agent_folder(self.folder))

    def make(self, best: bool = True, overrides: AgentOverrides = TRAINED) -> Agent:
        """The agent itself; see `make`.

        Args:
            best: for a training run, its best agent rather than the last.

        Raises:
            ValueError: `best` is false for an agent made by a function; and see `make`.
        """
        made: Any = self.entry
        if isinstance(made, str):
            made = _import(made, f"agent {self.id}")
        if not isinstance(made, Path):
            made = made()
        if isinstance(made, str | Path):
            return Agent.load(made, best=best, **vars(overrides))
        if not isinstance(made, Agent):
            raise ValueError(f"agent {self.id}: its entry point returned {made!r}, expected an Agent or a folder")
        if not best:
            raise ValueError(f"which=last: agent {self.id} is made by a function, not read from a run; use which=best")
        return made.changed(overrides)


class AgentRegistry(Registry[AgentSpec]):
    """Ids -> `AgentSpec`, sorted by id; the first access searches other packages."""

    def __init__(self) -> None:
        # First, so that their names cannot be taken.
        ours = {folder.name: AgentSpec(folder.name, folder, "hrm-agent") for folder in shipped.folders()}
        super().__init__("agent", GROUP, ours)
        self._searched = False

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))

    def __repr__(self) -> str:
        return f"AgentRegistry({', '.join(self)})"

    def add(self, name: str, value: AgentSpec) -> None:
        """Raises: ValueError for an id that is malformed, or taken by another agent."""
        if ID.fullmatch(name) is None:
            raise ValueError(
                f"agent id {name!r}: expected letters and digits in groups joined by -, the last of them vN, "
                "such as DynamicMaze-TRM-v0"
            )
        if name in self.registered and self.registered[name].entry == value.entry:
            return
        super().add(name, value)

    def entry_points(self) -> dict[str, EntryPoint]:
        """None: the first look registers what they name."""
        if not self._searched:
            self._searched = True  # first, so that a plugin may read the registry while it is searched
            with without_working_folder():
                points = entry_points(group=GROUP)
            for point in points:
                package = point.dist.name if point.dist is not None else ""
                try:
                    with without_working_folder():
                        self._add_plugin(point, package)
                except Exception as error:  # another package's failure must not affect the registry
                    reason = f"{type(error).__name__}: {error}"
                    warnings.warn(
                        f"agents of {package or 'an unknown package'}: entry point {point.name} = {point.value} is "
                        f"left out ({reason})",
                        stacklevel=4,
                    )
        return {}

    def _add_plugin(self, point: EntryPoint, package: str) -> None:
        if ID.fullmatch(point.name):
            if not point.attr:
                raise ValueError("expected package.module:callable")
            self.add(point.name, AgentSpec(point.name, f"{point.module}:{point.attr}", package))
        elif point.load()() is not None:
            raise ValueError(f"{point.name} is no agent id, and its function returns a value; expected it to register")


registry = AgentRegistry()


def register(id: str, folder_or_entry_point: Entry) -> None:
    """Register an agent under an id; repeating the same call has no effect.

    Args:
        id: groups of letters and digits joined by `-`, the last of them `vN`: `DynamicMaze-TRM-v0`. A changed agent
            gets a new version.
        folder_or_entry_point: the folder of an agent or of a training run; or a callable, or its name as
            `"package.module:callable"`, without arguments, that returns an `Agent` or such a folder. Nothing is read or
            imported before the agent is made.

    Raises:
        ValueError: a malformed id, an id that is taken by another agent, or another kind of entry.
    """
    entry = folder_or_entry_point
    if isinstance(entry, str) and (Path(entry).exists() or ENTRY_POINT.fullmatch(entry) is None):
        entry = Path(entry)
    if isinstance(entry, Path):
        entry = entry.absolute()  # independent of later changes of the working folder
    elif not isinstance(entry, str) and not callable(entry):
        raise ValueError(f"agent {id}: {entry!r} is no folder, no package.module:callable and no callable")
    registry.add(id, AgentSpec(id, entry))


def make(id: str, env: gym.Env | gym.vector.VectorEnv | None = None, **settings: Any) -> Agent:
    """Make a registered agent.

    Args:
        id: its name; `"module:NAME"` imports `module` first, which may register it.
        env: an environment to play, in the wrappers that its observations need (`hrm_agent.make_env`); the agent is
            fitted to the size of its grid (`Agent.fit`).
        settings: overrides of the trained `carry`, `segments`, `first_segments`, `stop` and `stop_threshold`
            (`AgentOverrides`).

    Raises:
        ValueError: an unknown id (the nearest is named), an agent that cannot be loaded, an override that is not
            possible, or spaces that do not fit `env`.
    """
    known = vars(TRAINED)
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(f"{unknown[0]}={settings[unknown[0]]!r}: an agent has no such setting; {', '.join(known)}")
    spec = _find(id)
    agent = spec.make(overrides=AgentOverrides(**settings))
    if env is None:
        return agent
    observations, actions = _single_spaces(env)
    try:
        agent = agent.fit(observations)
        agent.check_fits(observations, actions)
    except ValueError as error:
        bare = "" if is_adapted(observations) else "; make it by hrm_agent.make_env, which adds the wrappers it lacks"
        raise ValueError(f"agent {spec.id}: {error}{bare}") from None
    return agent


def load_agent(
    run: str | Path | None, agent: str | None, best: bool = True, overrides: AgentOverrides = TRAINED
) -> Agent:
    """The agent of a command: of the folder `run`, or registered as `agent`.

    Raises:
        ValueError: none or both are given, `best` is false for an agent made by a function, or see `Agent.load` and
            `make`.
    """
    if (run is None) == (agent is None):
        given = "neither" if run is None else f"run={run} and agent={agent}"
        raise ValueError(
            f"expected run=FOLDER or agent=ID, one of the two, got {given}; python -m hrm_agent.agents lists the ids"
        )
    if agent is not None:
        return _find(agent).make(best, overrides)
    assert run is not None
    return Agent.load(run, best=best, **vars(overrides))


def _find(agent_id: str) -> AgentSpec:
    """A registered agent; for `"module:NAME"` the module is imported first."""
    module, _, name = str(agent_id).rpartition(":")
    if module:
        _import_module(module, f"agent={agent_id}")
    return registry[name]


def _single_spaces(env: gym.Env | gym.vector.VectorEnv) -> tuple[gym.Space, gym.Space]:
    if isinstance(env, gym.vector.VectorEnv):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def _import(entry_point: str, what: str) -> Any:
    module, _, path = entry_point.partition(":")
    found: Any = _import_module(module, what)
    try:
        for name in path.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise ValueError(f"{what}: {entry_point} does not exist ({error})") from None
    return found


def _import_module(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(f"{what}: cannot import {module} ({type(error).__name__}: {error})") from None
