"""Environments that a program gives as objects or callables: each becomes a Gymnasium id, `python/NAME`.

From then on it is made by its id like any other, so training, evaluations and videos need to know nothing of it. The id
is known in this process alone; a run or an agent from an earlier one is given its environment again.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hrm_agent.environments.action_masks import SETTING
from hrm_agent.names.values import printable

NAMESPACE = "python"
OWN_OPTIONS = ("render_mode", "max_episode_steps", "disable_env_checker", SETTING)
"""Of `gymnasium.make`, which does not pass all of them on, and of `make_env`."""
Maker = Callable[..., gym.Env]

_sources: dict[str, Any] = {}  # what each id was given as


def identify(env: Any, options: Mapping[str, Any], wanted: str | None = None) -> tuple[str, dict[str, Any]]:
    """The id by which an environment is made, and the options that its own copies are made with.

    An environment that `gymnasium.make` has made, without further wrappers, keeps its id. Anything else is registered:
    an environment with a `spec` is made again from it, another one is copied (`copy.deepcopy`), and a callable is
    called, with the options as keyword arguments.

    Args:
        env: an id, a `gymnasium.Env`, or a callable that returns one.
        options: keyword arguments of the environment, with which a callable is tried.
        wanted: the id that it must have again, of a run that is resumed.

    Raises:
        ValueError: a vector environment, an object that cannot be copied, a callable that makes no environment, or
            another environment than `wanted`.
    """
    if isinstance(env, str):
        return env, {}
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"env={_describe(env)}: a vector environment; expected a single one, of which training makes as many as "
            "algo.num_envs says: give its id, a gymnasium.Env or a callable that returns one"
        )
    if isinstance(env, gym.Env):
        made = _made_by_id(env)
        if made is not None and wanted in (None, made[0]):
            return made
        name = _clean(type(env.unwrapped).__name__ if env.spec is None else env.spec.name)
        _check_wanted(env, name, wanted)
        return _register(env, name, *_copies_of(env), wanted), {}
    if callable(env):
        known = next((env_id for env_id, source in _sources.items() if source == env and env_id in gym.registry), None)
        if known is not None and wanted in (None, known):
            return known, {}
        name = _clean(_name_of(env))
        _check_wanted(env, name, wanted)
        return _register(env, name, partial(_call, env), _try(env, options), wanted), {}
    raise ValueError(f"env={_describe(env)}: expected an id, a gymnasium.Env, or a callable that returns one")


def is_given(env_id: str) -> bool:
    """Whether an id is of this kind, in this process or another."""
    return env_id.startswith(f"{NAMESPACE}/")


def _made_by_id(env: gym.Env) -> tuple[str, dict[str, Any]] | None:
    """Id and options of an environment that its registered id makes again; None where something is added to it."""
    spec = env.spec
    registered = None if spec is None else gym.registry.get(spec.id)
    if spec is None or registered is None or spec.additional_wrappers or spec.entry_point != registered.entry_point:
        return None
    options = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    own = {name: value for name, value in registered.kwargs.items() if name != "render_mode"}
    changed = {name: value for name, value in options.items() if name not in own or own[name] != value}
    own_limit = spec.max_episode_steps is None and "max_episode_steps" in spec.kwargs  # `make_with_own_limit`
    if spec.max_episode_steps != registered.max_episode_steps and not own_limit:
        changed["max_episode_steps"] = -1 if spec.max_episode_steps is None else spec.max_episode_steps
    return (spec.id, changed) if _is_plain(changed) else None


def _copies_of(env: gym.Env) -> tuple[Maker, EnvSpec | None]:
    """What makes environments like this one, and its spec."""
    unmade = ""
    if env.spec is not None:
        again = partial(gym.make, copy.deepcopy(env.spec))
        try:
            again().close()
        except Exception as error:  # a wrapper that does not record its arguments, or a spec that was edited
            unmade = f"; nor made again from its spec: {type(error).__name__}: {error}"
        else:
            return again, env.spec
    try:
        template = copy.deepcopy(env)
    except Exception as error:
        why = printable(f"{type(error).__name__}: {error}{unmade}")
        raise ValueError(
            f"env={_describe(env)}: cannot be copied, and training needs several ({why}); give a callable that makes "
            "one, its class for example"
        ) from None
    return partial(_copy, template), env.spec


def _copy(template: gym.Env, render_mode: str | None = None) -> gym.Env:
    made = copy.deepcopy(template)
    if render_mode is not None:
        _draw(made, render_mode)
    return made


def _call(source: Callable[..., Any], render_mode: str | None = None, **options: Any) -> gym.Env:
    if render_mode is None:
        return _checked(source, source(**options))
    if _takes(source, "render_mode"):
        return _checked(source, source(**options, render_mode=render_mode))
    made = _checked(source, source(**options))
    _draw(made, render_mode)
    return made


def _draw(env: gym.Env, render_mode: str) -> None:
    """Let an environment that has been made draw itself. Raises: TypeError where it cannot."""
    if env.render_mode != render_mode and render_mode not in env.metadata.get("render_modes", ()):
        raise TypeError(f"its metadata['render_modes'] has no {render_mode!r}")
    env.unwrapped.render_mode = render_mode


def _takes(source: Callable[..., Any], argument: str) -> bool:
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def _checked(source: Callable[..., Any], made: Any) -> gym.Env:
    if isinstance(made, VectorEnv):
        raise ValueError(f"env={_describe(source)}: it returns a vector environment; expected a single one")
    if not isinstance(made, gym.Env):
        raise ValueError(f"env={_describe(source)}: it returns {_describe(made)}; expected a gymnasium.Env")
    return made


def _try(source: Callable[..., Any], options: Mapping[str, Any]) -> EnvSpec | None:
    """Call it once, for the spec of what it makes. Raises: ValueError where it cannot be called like this."""
    try:
        made = _call(source, **{name: value for name, value in options.items() if name not in OWN_OPTIONS})
    except TypeError as error:
        raise ValueError(f"env={_describe(source)}: {printable(str(error))}") from error
    spec = made.spec
    made.close()
    return spec


def _register(source: Any, name: str, make: Maker, spec: EnvSpec | None, wanted: str | None) -> str:
    """Register what makes an environment, with the reward threshold of its spec; time limits are wrappers of its own.

    Args:
        wanted: the id, which may be taken by what was given for it before; None: the next that is free.
    """
    if wanted is None:
        number = 1
        while (env_id := f"{NAMESPACE}/{name}" + f"-{number}" * (number > 1)) in gym.registry:
            number += 1
    else:
        env_id = wanted
        gym.registry.pop(env_id, None)
    threshold = None if spec is None else spec.reward_threshold
    gym.register(env_id, make, reward_threshold=threshold)
    _sources[env_id] = source
    return env_id


def _check_wanted(source: Any, name: str, wanted: str | None) -> None:
    """Raises: ValueError where the id that an environment must have again is that of another one."""
    if wanted is not None and not re.fullmatch(rf"{NAMESPACE}/{re.escape(name)}(-\d+)?", wanted):
        raise ValueError(
            f"env={_describe(source)}: the run is one of env={printable(wanted)}; the environment cannot change in a "
            "run that is resumed"
        )


def _clean(name: str) -> str:
    """A name as ids may have it, without a version."""
    return re.sub(r"[^\w.]+", "_", name).strip("_") or "env"


def _name_of(source: Any) -> str:
    if isinstance(source, partial):
        return _name_of(source.func)
    name = getattr(source, "__name__", type(source).__name__)
    return "env" if name == "<lambda>" else name


def _describe(value: Any) -> str:
    """A value in a message: short, without control characters."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return printable(value.__qualname__)
    text = printable(repr(value))
    return text if len(text) <= 60 else printable(f"<{type(value).__qualname__}>")


def _is_plain(value: Any) -> bool:
    """Whether a run's configuration can hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
