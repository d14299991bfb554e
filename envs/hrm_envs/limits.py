"""Make ``gymnasium.make(id, max_episode_steps=N)`` reach the environment itself.

``make`` keeps that argument for its ``TimeLimit`` wrapper and hands neither the constructor nor the spec of
the unwrapped environment a word of it. A wrapper alone would cut episodes short behind the kernel's back,
which then would report no episode statistics, and could never make them longer than the default limit.
"""

import inspect
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from hrm_envs.batch import Batch


def requested_limit() -> int | None:
    """The ``max_episode_steps`` of the ``gymnasium.make`` call that is two frames up, if there is one.

    Meant for a ``spec`` setter, which ``make`` calls on the new environment before it wraps it. The code
    object is compared, so no other caller is ever mistaken for ``make``.
    """
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    if caller is None or caller.f_code is not gymnasium.make.__code__:
        return None
    limit = caller.f_locals.get("max_episode_steps")
    if limit is None:
        limit = getattr(caller.f_locals.get("env_spec"), "max_episode_steps", None)
    return limit if isinstance(limit, int) and limit > 0 else None


class LevelEnv(gymnasium.Env):
    """A single environment over a batch of one level, which obeys the time limit that ``gymnasium.make`` is given.

    A subclass sets ``batch``, and leaves the setter of ``spec`` as it is: ``requested_limit`` counts frames.
    """

    batch: Batch
    _spec: EnvSpec | None = None

    @property
    def config(self) -> Any:
        """The parameters in force."""
        return self.batch.config

    @property
    def spec(self) -> EnvSpec | None:
        """The specification ``gymnasium.make`` built this environment from."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec
        limit = requested_limit()
        if limit is not None:
            self.batch.limit_episodes(limit)

    @property
    def level_seed(self) -> int:
        """The level being played; its two highest bits are the split."""
        return int(self.batch.state.level_seed[0])
