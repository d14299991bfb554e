"""A batch of mazes behind one kernel, shared by the vector and the single environment."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_envs.config import MazeConfig
from hrm_envs.jit import compile_for, is_cached
from hrm_envs.kernel import (
    CHANGED,
    MATERIAL,
    OPTIMAL,
    RESET,
    STALE,
    STEP,
    STEP_AND_RESET,
    build_outcome,
    build_rules,
    build_scratch,
    build_state,
    needed_parts,
    run_batch,
)
from hrm_envs.levels import build_geometry
from hrm_envs.oracle import clairvoyant_arrival, level_codes
from hrm_envs.sizes import build_sizes
from hrm_envs.states import check_episodes, check_frame, check_maze

_NO_ACTIONS = np.zeros(0, np.int64)


# Former names of parameters, which saved agents and runs still use.
RENAMED = {"seed_band": "split"}


def config_from(kind: type, parameters: dict[str, Any]) -> Any:
    """Build a configuration of class ``kind``.

    A former name (``RENAMED``) is accepted, and ignored if the current one is given too.

    Raises:
        ValueError: an unknown name (the message gives the nearest known one), or a value out of range.
    """
    parameters = {RENAMED.get(k, k): v for k, v in parameters.items() if RENAMED.get(k) not in parameters}
    known = [field.name for field in fields(kind)]
    for name in parameters:
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name!r} is not a parameter of this environment; did you mean {close!r}?")
    return kind(**parameters)


def check_seeds(seed: Any, num_envs: int) -> NDArray[np.int64]:
    """Environment seeds int64 [N]: ``seed + i`` for an integer, one each for a list of integers."""
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        seeds = [int(seed) + i for i in range(num_envs)]
    else:
        try:
            seeds = [int(value.__index__()) for value in seed]
        except (TypeError, AttributeError):
            message = f"seed={seed!r} is not an integer or a list of integers; give one of 0 or more"
            raise ValueError(message) from None
        if len(seeds) != num_envs:
            raise ValueError(f"seed lists {len(seeds)} seeds for {num_envs} environments; give one for each")
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise ValueError(f"seed {min(seeds)} is not in 0 .. 2**63 - 1; give a non-negative integer")
    return np.array(seeds, np.int64)


class Batch:
    """N environments of one kind behind one kernel: seeding, stepping, statistics, saving.

    A subclass sets the attributes below and implements ``is_compiled``, ``compile``, ``_begin``,
    ``_advance``, ``_check``, ``clairvoyant`` and ``level_codes``.

    Attributes:
        config: the parameters of all N environments.
        state: named tuple of arrays: the complete state.
        outcome: results of the last step; the next step overwrites them.
        observations: uint8 [N, H, W], a view of the state; or a dictionary of arrays.
        final_observations: uint8 [N, H, W], a view of the outcome; or a dictionary of arrays.
        actions: which there are, for messages.
    """

    config: Any
    state: Any
    outcome: Any
    observations: Any
    final_observations: Any
    actions = "0, 1, 2 or 3 (N, E, S, W)"

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seeded = False

    def _begin(self) -> None:
        """Begin the next episode of every environment."""
        raise NotImplementedError

    def _advance(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        """Step; the number of episodes that ended, or ``-1 - i`` if action i is invalid."""
        raise NotImplementedError

    def _check(self, state: Any) -> None:
        """``ValueError`` unless environments in the middle of an episode can be in ``state`` (as ``self.state``)."""
        raise NotImplementedError

    def clairvoyant(self) -> NDArray[np.int32]:
        """Earliest possible arrival in steps from now: int32 [N], -1 where impossible in time."""
        raise NotImplementedError

    def level_codes(self) -> NDArray[np.uint64]:
        """A hash of what the level of each episode that begins now holds, its schedule included: uint64 [N]."""
        raise NotImplementedError

    def known_doors(self, i: int) -> list[int]:
        """Flat positions of the doors that environment i keeps for the whole episode, open or closed."""
        return []

    def limits(self) -> NDArray[np.int64]:
        """Steps after which the current episode of each environment is truncated: int64 [N]."""
        return np.full(self.num_envs, self.config.max_episode_steps, np.int64)

    def windows(self) -> NDArray[np.int64]:
        """Where in the observed grid each maze lies: int64 [N, 4], first row and column, rows and columns."""
        return np.tile(np.array([0, 0, self.config.height, self.config.width], np.int64), (self.num_envs, 1))

    def is_compiled(self) -> bool:
        """Whether the machine code of reset and step is available, so that neither has to compile for seconds."""
        raise NotImplementedError

    def compile(self) -> None:
        """Compile or load the kernels of reset and step, which they would otherwise do on their first call."""
        raise NotImplementedError

    def reset(self, seed: Any, generator: np.random.Generator | None) -> None:
        """Begin episode 0 of ``seed``, or each environment's next episode when ``seed`` is None.

        If no seed was ever given, ``generator`` draws one.
        """
        if seed is None and not self.seeded:
            assert generator is not None
            seed = int(generator.integers(2**62))
        if seed is not None:
            self.state.env_seed[:] = check_seeds(seed, self.num_envs)
            self.state.episode[:] = -1
            self.seeded = True
        self._begin()

    def step(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        """Step every environment and return the number of episodes that ended. ``actions``: int64 [N]."""
        ended = self._advance(actions, autoreset)
        if ended < 0:
            i = -1 - ended
            raise ValueError(f"action {actions[i]} of environment {i} is not {self.actions}; give one of these")
        return int(ended)

    def info(self, final: bool = False) -> dict[str, NDArray]:
        """The infos of the current state, or (``final``) of the last state of episodes that just ended."""
        return self.oracle_info(final) if self.config.oracle else {}

    def oracle_info(self, final: bool = False) -> dict[str, NDArray]:
        """The oracle's values for the current state, or (``final``) for the last state of episodes that just ended."""
        masks = self.outcome.final_masks if final else self.outcome.masks
        distance = self.outcome.final_distance if final else self.outcome.distance
        return {
            "distance": distance.copy(),
            "optimal_actions": masks[:, OPTIMAL].copy(),
            "stale_optimal_actions": masks[:, STALE].copy(),
            "changed": masks[:, CHANGED].copy(),
            "material": masks[:, MATERIAL].copy(),
        }

    def get_state(self) -> dict[str, NDArray]:
        """Copies of the arrays of the complete state, by name."""
        saved = {name: np.copy(array) for name, array in zip(self.state._fields, self.state, strict=True)}
        return {**saved, "seeded": np.array([self.seeded])}

    def set_state(self, state: Mapping[str, Any], autoreset: bool = False) -> None:
        """Restore what ``get_state`` returned; everything is checked before anything is changed.

        Args:
            state: arrays by name.
            autoreset: environments begin their next episode at once, so that none can be at its end.

        Raises:
            ValueError: an array is missing or of another shape or dtype, or no environment can be in this state.
        """
        own = {**self.state._asdict(), "seeded": np.array([self.seeded])}
        given = {name: _as_saved(state, name, array) for name, array in own.items()}
        seeded = bool(given.pop("seeded")[0])
        saved = type(self.state)(**given)
        check_episodes(saved, seeded, self._limits_of(saved), self.config.split, autoreset)
        if seeded:
            self._check(saved)
        for array, value in zip(self.state, saved, strict=True):
            array[...] = value
        self.seeded = seeded

    def _limits_of(self, state: Any) -> Any:
        """Time limits in ``state`` (as ``self.state``), one for all or int64 [N]; ``ValueError`` where it has none."""
        return self.config.max_episode_steps


def _as_saved(state: Mapping[str, Any], name: str, expected: NDArray) -> NDArray:
    """``state[name]``; ``ValueError`` unless it is an array of the shape and dtype of ``expected``."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state is a {type(state).__name__}; pass the dictionary that get_state() returned")
    if name not in state:
        raise ValueError(f"the state lacks {name!r}; pass the result of get_state()")
    try:
        given = np.asarray(state[name])
    except ValueError:  # lists of different lengths
        raise ValueError(f"state[{name!r}] is no array, expected {expected.dtype}{list(expected.shape)}") from None
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise ValueError(
            f"state[{name!r}] is {given.dtype}{list(given.shape)}, expected {expected.dtype}"
            f"{list(expected.shape)}; use the parameters and number of environments it was saved with"
        )
    return given


class MazeBatch(Batch):
    """N mazes with the same parameters.

    ``geometry`` is that of the whole observation, of which a maze in a frame has a part (``windows``).

    Args:
        num_envs: N.
        config: the parameters.
    """

    def __init__(self, num_envs: int, config: MazeConfig) -> None:
        super().__init__(num_envs)
        self.config = config
        self.geometry = build_geometry(config)
        self.rules = build_rules(config)
        self.sizes = build_sizes(config)
        self._parts = needed_parts(config)
        self.state = build_state(config, self.geometry, self.sizes, num_envs)
        self.outcome = build_outcome(num_envs, config.height * config.width, config.oracle)
        self._scratch = build_scratch(config.height * config.width)
        shown = self.state.grid if config.view == "full" else self.state.shown
        self.observations = shown.reshape(num_envs, config.height, config.width)
        self.final_observations = self.outcome.final_obs.reshape(self.observations.shape)

    def is_compiled(self) -> bool:
        """Whether the machine code of reset and step is available, so that neither has to compile for seconds."""
        return is_cached(run_batch, *self._arguments(_NO_ACTIONS, RESET))

    def compile(self) -> None:
        """Compile or load the kernels of reset and step, which they would otherwise do on their first call."""
        compile_for(run_batch, *self._arguments(_NO_ACTIONS, RESET))

    def _arguments(self, actions: NDArray[np.int64], command: int) -> tuple[Any, ...]:
        parts = (self.rules, self.geometry, self.state, self.outcome, self._scratch)
        return (*parts, actions, command, *self._parts, self.sizes)

    def _begin(self) -> None:
        run_batch(*self._arguments(_NO_ACTIONS, RESET))

    def _advance(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        command = STEP_AND_RESET if autoreset else STEP
        return run_batch(*self._arguments(actions, command))

    def _limits_of(self, state: Any) -> Any:
        if self.sizes is None:
            return self.config.max_episode_steps
        check_frame(self.config, self.sizes, state)
        return self.sizes.limits[state.size].astype(np.int64)

    def _check(self, state: Any) -> None:
        check_maze(self.config, self.geometry, self.sizes, state)

    def limits(self) -> NDArray[np.int64]:
        """Steps after which the current episode of each environment is truncated: int64 [N]."""
        return super().limits() if self.sizes is None else self._limits_of(self.state)

    def windows(self) -> NDArray[np.int64]:
        """Where in the observed grid each maze lies: int64 [N, 4], first row and column, rows and columns."""
        if self.sizes is None:
            return super().windows()
        top, left = np.divmod(self.state.corner.astype(np.int64), self.config.width)
        size = self.state.size
        return np.stack([top, left, self.sizes.height[size], self.sizes.width[size]], 1).astype(np.int64)

    def is_inside(self, i: int) -> NDArray[np.bool_]:
        """Which positions are inside the border of the maze of environment i: bool [G]."""
        top, left, height, width = self.windows()[i]
        inside = np.zeros((self.config.height, self.config.width), np.bool_)
        inside[top + 1 : top + height - 1, left + 1 : left + width - 1] = True
        return inside.ravel()

    def known_doors(self, i: int) -> list[int]:
        """Flat positions of the doors that environment i keeps for the whole episode, open or closed."""
        return [] if self.config.door_process == "reroll" else self.state.doors[i].tolist()

    def clairvoyant(self) -> NDArray[np.int32]:
        """Earliest possible arrival in steps from now: int32 [N], -1 where impossible in time."""
        return clairvoyant_arrival(self.rules, self.geometry, self.state, self.sizes)

    def level_codes(self) -> NDArray[np.uint64]:
        """A hash of what the level of each episode that begins now holds, its schedule included: uint64 [N]."""
        return level_codes(self.rules, self.geometry, self.state, self.sizes)
