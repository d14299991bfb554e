"""Time limits of single environments: the environment's own, and ``gymnasium.make``'s.

``max_episode_steps`` is a parameter of every environment of this package: the kernel truncates at that step, and the
clairvoyant bound counts no later arrival. It is in force in vector environments, to which ``gymnasium.make_vec`` passes
it, and in single ones that are constructed directly.

``gymnasium.make`` keeps its argument of that name, and the limit an id is registered with, for its ``TimeLimit``
wrapper and passes neither to the environment. The single environments it makes of this package's ids therefore have no
limit of their own (``Unlimited``), and the wrapper alone truncates, as for any environment: at the registered step,
earlier, later or never (-1). ``env.spec.max_episode_steps`` is then the limit in force, and ``clairvoyant`` gives the
earliest arrival whether or not it is in time.
"""

from typing import Any

import gymnasium

from hrm_envs.batch import Batch
from hrm_envs.config import MAX_STEPS


class Unlimited:
    """An entry point for ``gymnasium.register``: environments of a class, without a time limit of their own.

    Args:
        kind: a class whose parameter ``max_episode_steps`` is then ``MAX_STEPS`` unless it is given.
    """

    def __init__(self, kind: Any) -> None:
        self.kind, self.metadata = kind, kind.metadata  # ``gymnasium.make`` looks for the render modes here

    def __call__(self, **parameters: Any) -> gymnasium.Env:
        return self.kind(**{"max_episode_steps": MAX_STEPS, **parameters})


class LevelEnv(gymnasium.Env):
    """A single environment over a batch of one level. A subclass sets ``batch``."""

    batch: Batch

    @property
    def config(self) -> Any:
        """The parameters in force."""
        return self.batch.config

    @property
    def level_seed(self) -> int:
        """The current level; its two highest bits are the split."""
        return int(self.batch.state.level_seed[0])
