"""Environments of other packages: what they raise and what they return, checked and said in one line.

Our own environments are not wrapped, so their steps cost nothing more. `Guard` wraps a single environment, `Checked` a
vector of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from hrm_agent.environments.action_masks import IGNORE, MASK, SETTING, MaskError
from hrm_agent.names.values import printable
from hrm_envs import MazeConfig

EPISODE_LIMIT = 10_000
"""Steps after which an evaluation cuts an episode off where the environment names no time limit of its own."""
LIMIT_NAMES = ("max_episode_steps", "_max_episode_steps", "max_steps")
"""Attributes by which environments and Gymnasium's TimeLimit name their own limit."""
OURS = Path(__file__).resolve().parents[1]
GYMNASIUM = Path(gym.__file__).resolve().parent


class EnvironmentFailed(RuntimeError):
    """An environment raised an exception, or returned what its spaces do not allow.

    The message is one line. `__cause__` is the environment's own exception; None where it raised none.
    """


class InAnotherProcess(Exception):
    """An environment's exception in another process; the message is the traceback of it (`own_traceback`)."""


def failed(env_id: str, where: str, error: BaseException) -> EnvironmentFailed:
    """An exception that an environment raised, as one line; to be raised `from` it.

    Args:
        where: e.g. `environment 3 failed in reset`.
    """
    text = " ".join(str(error).split())[:500]
    return EnvironmentFailed(f"env={env_id}: {where}: {type(error).__name__}{': ' * bool(text)}{printable(text)}")


def own_traceback(error: BaseException) -> str:
    """The traceback of an environment's exception, of the frames in its own files; empty where there is none.

    Frames of this package and of Gymnasium's wrappers are left out; the environments that Gymnasium brings are kept.
    """
    if isinstance(error, InAnotherProcess):
        return str(error)
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        own = [frame for frame in part.stack if not _is_machinery(Path(frame.filename).resolve())]
        part.stack = traceback.StackSummary.from_list(own)
        part = part.__cause__ or part.__context__
    if not told.stack:
        return ""
    return "\n".join(printable(line) for line in "".join(told.format()).splitlines())


def _is_machinery(file: Path) -> bool:
    if file.is_relative_to(GYMNASIUM):
        return not file.is_relative_to(GYMNASIUM / "envs") or file.name == "registration.py"
    return file.is_relative_to(OURS)


def episode_limit(env: gym.Env | VectorEnv, least: int = EPISODE_LIMIT) -> int:
    """Steps after which an episode is taken to have no end: the environment's own limit, and at least `least`."""
    found = [least]
    config = getattr(env.unwrapped, "config", None)
    for part in (env.unwrapped, config, env.spec):
        found += _limits_of(part)
    if isinstance(config, MazeConfig):  # larger mazes have longer limits
        found.append(config.longest_episode)
    layer: Any = getattr(env, "envs", [env])[0]
    while layer is not None:
        found += _limits_of(layer)
        layer = layer.env if isinstance(layer, gym.Wrapper) else None
    return max(found)


def _limits_of(layer: Any) -> Iterator[int]:
    for name in LIMIT_NAMES:
        try:
            limit = vars(layer).get(name)
        except TypeError:  # None, or an object with slots
            limit = getattr(layer, name, None)
        if isinstance(limit, int | np.integer) and not isinstance(limit, bool):
            yield int(limit)


class Guard(gym.Wrapper):
    """A single environment that says its number, and the step of the episode, when it raises.

    Args:
        env_id: for messages.
        number: of the environment in its vector.

    Raises:
        EnvironmentFailed: by every method, from the environment's own exception. Running out of memory passes through.
    """

    def __init__(self, env: gym.Env, env_id: str, number: int = 0) -> None:
        super().__init__(env)
        self.env_id, self.number, self.steps, self._over = env_id, number, 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:
            self._raise("reset", error)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        try:
            return self.env.step(action)
        except (Exception, SystemExit) as error:
            self._raise(f"step {self.steps:,} of an episode", error)

    def close(self) -> None:
        if self._over:  # Gymnasium closes again what is collected
            return
        self._over = True
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            self._raise("close", error)

    def _raise(self, where: str, error: BaseException) -> NoReturn:
        if isinstance(error, MemoryError | EnvironmentFailed):
            raise error
        if isinstance(error, MaskError):
            raise EnvironmentFailed(f"env={self.env_id}: environment {self.number}: {where}: {error}") from None
        raise failed(self.env_id, f"environment {self.number} failed in {where}", error) from error


class _Field(NamedTuple):
    """A part of an observation, and what is checked of it.

    Attributes:
        name: for messages.
        key: of a Dict observation; None: the whole observation.
        shape, dtype: of one environment's.
        bounds: of integers, by which encoders choose embeddings; None: every integer of the type is allowed.
    """

    name: str
    key: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    bounds: tuple[int, int] | None

    def wrong(self, values: NDArray) -> NDArray[np.bool_] | None:
        """Where values are not allowed, in their shape; None where all are."""
        if self.dtype.kind == "f":
            finite = np.isfinite(values)
            return None if finite.all() else ~finite
        if self.bounds is None or not values.size:
            return None
        low, high = self.bounds
        if values.min() >= low and values.max() <= high:
            return None
        return (values < low) | (values > high)

    @property
    def expected(self) -> str:
        return "finite numbers" if self.bounds is None else f"{self.bounds[0]} to {self.bounds[1]}, as its space says"


def _fields_of(space: gym.Space) -> list[_Field]:
    if isinstance(space, gym.spaces.Dict):
        return [_field(f"observation {printable(repr(key))}", key, part) for key, part in space.spaces.items()]
    return [_field("observation", None, space)]


def _field(name: str, key: str | None, space: gym.Space) -> _Field:
    dtype, low, high = np.dtype(space.dtype), None, None
    if isinstance(space, gym.spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, gym.spaces.MultiDiscrete):
        low, high = space.start.min(), (space.start + space.nvec - 1).max()
    elif isinstance(space, gym.spaces.MultiBinary):
        low, high = 0, 1
    elif isinstance(space, gym.spaces.Box) and dtype.kind in "iu" and space.low.size:
        low, high = space.low.min(), space.high.max()
        if low == np.iinfo(dtype).min and high == np.iinfo(dtype).max:
            low = high = None
    bounds = None if low is None or high is None else (int(low), int(high))
    return _Field(name, key, tuple(space.shape or ()), dtype, bounds)


class Checked(VectorWrapper):
    """A vector environment of another package in SAME_STEP autoreset mode, whose observations and rewards are checked.

    Numbers must be finite, integers within the bounds of the space, and shapes those of the spaces. Values are not
    changed, but converted where an observation has another type of number than its space declares.

    Args:
        no_masks: infos must hold no mask of legal actions: it would be one that was not found in the first info, and
            that no one uses.

    Raises:
        EnvironmentFailed: by `reset`, `step` and `close`; the message names the environment, the step and the field.
    """

    def __init__(self, env: VectorEnv, env_id: str, no_masks: bool = False) -> None:
        super().__init__(env)
        self.env_id, self.steps, self.no_masks = env_id, 0, no_masks
        self._fields = _fields_of(env.single_observation_space)

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not yet there
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        try:
            obs, infos = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:
            self._raise(error)
        self._check_masks(infos)
        return self._check_obs(obs), infos

    def step(self, actions: Any) -> tuple[Any, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        self.steps += 1
        try:
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
        except (Exception, SystemExit) as error:
            self._raise(error)
        self._check_masks(infos)
        obs, rewards = self._check_obs(obs), np.asarray(rewards)
        terminated, truncated = (np.asarray(flags, np.bool_) for flags in (terminated, truncated))
        for name, values in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            if values.shape != (self.num_envs,) or values.dtype.kind not in "fiub":
                self._refuse(f"{name} are {_describe(values)}, expected numbers of shape ({self.num_envs},)")
        if not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            self._refuse(f"environment {row}: reward is {rewards[row]}, expected a finite number")
        over = terminated | truncated
        if over.any():
            self._check_final(infos, np.flatnonzero(over))
        return obs, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            self.env.close_extras(**kwargs)
        except (Exception, SystemExit) as error:
            self._raise(error, "close")

    def _check_masks(self, infos: Any) -> None:
        if self.no_masks and MASK in infos:
            self._refuse(
                f"an {MASK} in its info, where the first info of another one had none; expected one with every "
                f"observation, or {SETTING}={IGNORE}"
            )

    def _check_obs(self, obs: Any) -> Any:
        """The observations, with the types that their space declares."""
        if self._fields[0].key is None:
            return self._check_field(self._fields[0], obs)
        for field in self._fields:
            if not isinstance(obs, dict) or field.key not in obs:
                self._refuse(f"no {field.name}")
            value = self._check_field(field, obs[field.key])
            if value is not obs[field.key]:
                obs = {**obs, field.key: value}
        return obs

    def _check_field(self, field: _Field, given: Any) -> NDArray:
        value = np.asarray(given)
        if value.shape != (self.num_envs, *field.shape):
            self._refuse(f"{field.name} of shape {value.shape}, expected {(self.num_envs, *field.shape)}")
        if value.dtype != field.dtype:
            if not np.can_cast(value.dtype, field.dtype, "same_kind"):
                self._refuse(f"{field.name} of type {value.dtype}, expected {field.dtype}, as its space says")
            value = value.astype(field.dtype)
        wrong = field.wrong(value)
        if wrong is not None:
            row = int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])
            self._refuse_values(row, field, value[row], wrong[row])
        return value

    def _check_final(self, infos: Any, rows: NDArray[np.int64]) -> None:
        """The final observations of the episodes that have just ended."""
        final = infos.get("final_obs") if isinstance(infos, dict) else None
        if final is None:
            self._refuse("no infos['final_obs'] where an episode ended, which autoreset mode SAME_STEP returns there")
        for row in rows:
            for field in self._fields:
                try:
                    value = final[field.key][row] if isinstance(final, dict) else final[row]
                    if field.key is not None and not isinstance(final, dict):
                        value = value[field.key]
                except (KeyError, IndexError, TypeError):
                    self._refuse(f"environment {row}: no {field.name} in infos['final_obs'], where its episode ended")
                value = np.asarray(value)
                if value.shape != field.shape:
                    self._refuse(f"environment {row}: final {field.name} of shape {value.shape}, not {field.shape}")
                wrong = field.wrong(value)
                if wrong is not None:
                    self._refuse_values(int(row), field, value, wrong, "final ")

    def _refuse_values(
        self, row: int, field: _Field, value: NDArray, wrong: NDArray[np.bool_], which: str = ""
    ) -> NoReturn:
        """Name the first wrong number of an observation, and where it lies in it."""
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = f" at {list(place)}" if place else ""
        self._refuse(f"environment {row}: {which}{field.name} is {value[place]}{at}, expected {field.expected}")

    def _refuse(self, what: str) -> NoReturn:
        raise EnvironmentFailed(f"env={self.env_id}: {self._when()}: {what}")

    def _when(self) -> str:
        return f"step {self.steps:,} after the reset" if self.steps else "reset"

    def _raise(self, error: BaseException, where: str = "") -> NoReturn:
        if isinstance(error, MemoryError | EnvironmentFailed):
            raise error
        if isinstance(error, MaskError):
            raise EnvironmentFailed(f"env={self.env_id}: {self._when()}: {error}") from None
        misfit = None if where else self._misfit()
        if misfit is not None:
            raise EnvironmentFailed(f"env={self.env_id}: {self._when()}: {misfit}") from None
        raise failed(self.env_id, f"failed in {where or self._when()}", error) from error

    def _misfit(self) -> str | None:
        """The observation for which Gymnasium could not join those of single environments; None where all fit."""
        for row, obs in enumerate(getattr(self.env, "_env_obs", ())):
            if obs is None:  # not yet reset
                continue
            for field in self._fields:
                if field.key is not None and (not isinstance(obs, dict) or field.key not in obs):
                    return f"environment {row}: no {field.name}"
                try:
                    value = np.asarray(obs if field.key is None else obs[field.key])
                except ValueError:  # a list of unequal lists
                    return f"environment {row}: {field.name} is no array of shape {field.shape}"
                if value.shape != field.shape or not np.can_cast(value.dtype, field.dtype, "same_kind"):
                    return f"environment {row}: {field.name} is {_describe(value)}, expected {field.dtype}{field.shape}"
        return None


def _describe(values: NDArray) -> str:
    return f"{values.dtype}{values.shape}"


@contextmanager
def closing(env: gym.Env | VectorEnv) -> Iterator[None]:
    """Close an environment after the body. Where the body has raised, what `close` raises is dropped."""
    try:
        yield
    except BaseException:
        with suppress(EnvironmentFailed):
            env.close()
        raise
    env.close()


@contextmanager
def constructing(env_id: str) -> Iterator[None]:
    """Name an environment whose constructor raises an unexpected exception; the expected ones pass through.

    Raises:
        EnvironmentFailed: from the environment's own exception.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, MemoryError, EnvironmentFailed, gym.error.Error):
        raise  # an option or a library is wrong, which callers say themselves
    except (Exception, SystemExit) as error:
        raise failed(env_id, "failed in its constructor", error) from error
