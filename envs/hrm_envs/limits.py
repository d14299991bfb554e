"""Time limits of single environments: the environment's own, and ``gymnasium.make``'s.

``max_episode_steps`` is a parameter of every environment of this package: the kernel truncates at that step, and the
clairvoyant bound counts no later arrival. It is in force in vector environments, to which ``gymnasium.make_vec`` passes
it, and in single ones that are constructed directly.

``gymnasium.make`` keeps its argument of that name, and the limit an id is registered with, for its ``TimeLimit``
wrapper and passes neither to the environment. The single environments it makes of this package's ids therefore have no
limit of their own (``Unlimited``), and the wrapper alone truncates, as for any environment: at the registered step,
earlier, later or never (-1). ``env.spec.max_episode_steps`` is then the limit in force, and ``clairvoyant`` gives the
earliest arrival whether or not it is in time.

A maze with ``sizes`` has another limit at each size, which that wrapper cannot have: under ``gymnasium.make`` it cuts
off large levels at the limit of small ones. ``make_with_own_limit`` makes it without the wrapper, with its own limits.
"""

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hrm_envs.batch import Batch, check_seeds
from hrm_envs.config import MAX_STEPS, check_choice
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD


class Unlimited:
    """An entry point for ``gymnasium.register``: environments of a class, without a time limit of their own.

    Args:
        kind: a class whose parameter ``max_episode_steps`` is then ``MAX_STEPS`` unless it is given.
    """

    def __init__(self, kind: Any) -> None:
        self.kind, self.metadata = kind, kind.metadata  # ``gymnasium.make`` looks for the render modes here

    def __call__(self, **parameters: Any) -> gymnasium.Env:
        return self.kind(**{"max_episode_steps": MAX_STEPS, **parameters})


def make_with_own_limit(name: str, **options: Any) -> gymnasium.Env:
    """``gymnasium.make`` of one of this package's ids whose episodes the environment truncates itself.

    Args:
        name: the id, with ``hrm_envs:`` before it or without.
        options: its keyword arguments; ``max_episode_steps`` (-1: no limit) in place of the registered one.
    """
    spec = copy.deepcopy(gymnasium.spec(name.removeprefix("hrm_envs:")))
    given = options.pop("max_episode_steps", None)
    limit = spec.max_episode_steps if given is None else given
    if limit not in (None, -1):
        spec.kwargs["max_episode_steps"] = limit  # as an argument of ``make`` it would be the wrapper's
    spec.max_episode_steps = None
    return gymnasium.make(spec, **options)


class LevelEnv(gymnasium.Env):
    """A single environment over a batch of one level.

    A subclass implements ``_build_batch`` and ``_build_spaces``, and ``render`` if it draws.
    """

    batch: Batch

    def __init__(self, *, render_mode: str | None = None, **parameters: Any) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, tuple(self.metadata["render_modes"]))
        self.render_mode = render_mode
        self.batch = self._build_batch(parameters)
        self.observation_space, self.action_space = self._build_spaces()
        self._trail: list[int] = []

    def _build_batch(self, parameters: dict[str, Any]) -> Batch:
        raise NotImplementedError

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        """The observation space and the action space."""
        raise NotImplementedError

    def _begin_trail(self) -> None:
        """Called with a new state: after a reset, or when one is restored."""

    def _extend_trail(self) -> None:
        """Called after a step."""

    @property
    def config(self) -> Any:
        """The parameters in force."""
        return self.batch.config

    @property
    def level_seed(self) -> int:
        """The current level; its two highest bits are the split."""
        return int(self.batch.state.level_seed[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episode 0 of ``seed``, or the next episode if it is None. ``options`` is not used."""
        if seed is not None:
            check_seeds(seed, 1)
        super().reset(seed=seed)
        self.batch.reset(seed, None if seed is not None else self.np_random)
        self._begin_trail()
        return self.observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move, then advance what changes by itself.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, and after an episode's end.
            ValueError: for an action out of range.
        """
        batch, outcome = self.batch, self.batch.outcome
        if batch.state.episode[0] < 0 or batch.state.done[0]:
            raise gymnasium.error.ResetNeeded("no episode is in progress; call reset() before step()")
        if np.ndim(action) != 0 or np.asarray(action).dtype.kind not in "iu":
            raise ValueError(f"action={action!r} is not an integer; give {batch.actions}")
        batch.step(np.array([action], np.int64), False)
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        success = bool(outcome.success[0])
        # At every step, since a wrapper may truncate at any. "episode" is left to RecordEpisodeStatistics.
        info = {**self._info(), "is_success": success}
        self._extend_trail()
        return self.observe(), GOAL_REWARD if success else STEP_REWARD, terminated, truncated, info

    def _info(self) -> dict[str, Any]:
        values = {name: value[0] for name, value in self.batch.info().items()}
        return {name: value if value.ndim else value.item() for name, value in values.items()}

    def observe(self) -> Any:
        """The current observation, for instance after ``set_state``."""
        seen = self.batch.observations
        return {name: array[0].copy() for name, array in seen.items()} if isinstance(seen, dict) else seen[0].copy()

    def clairvoyant(self) -> int:
        """Earliest possible arrival in steps from now, given the future schedule; -1 if impossible in time."""
        return int(self.batch.clairvoyant()[0])

    def get_state(self) -> dict[str, NDArray]:
        """The complete state as arrays by name; ``set_state`` restores it exactly."""
        return self.batch.get_state()

    def set_state(self, state: dict[str, NDArray]) -> None:
        """Restore ``get_state`` of an environment with the same parameters.

        Raises:
            ValueError: an array is missing or does not fit, or no such environment can be in this state; then nothing
                has changed.
        """
        self.batch.set_state(state)
        self._begin_trail()
