"""The vector environments: N levels stepped by one call."""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hrm_envs.batch import Batch, MazeBatch, check_seeds, config_from
from hrm_envs.cells import Cell
from hrm_envs.config import MazeConfig, check_choice, check_integer
from hrm_envs.rendering import render_ansi, render_grid

RENDER_MODES = ("rgb_array", "ansi")


def as_actions(actions: Any, num_envs: int) -> NDArray[np.int64]:
    """Integer actions of shape [N] as int64 [N]; ``ValueError`` for another dtype or shape."""
    array = np.asarray(actions)
    if array.dtype.kind not in "iu" or array.shape != (num_envs,):
        raise ValueError(
            f"actions are {array.dtype}{list(array.shape)}, expected integers of shape [{num_envs}]; "
            "give one action for each environment"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


class LevelVectorEnv(VectorEnv):
    """N environments of one kind in Gymnasium's SAME_STEP autoreset mode.

    A subclass implements ``_build_batch`` and ``_build_spaces``, and ``render`` if it draws.

    Args:
        num_envs: N.
        copy: return copies; with False, the arrays are buffers that the next step overwrites.
        render_mode: one of ``RENDER_MODES``, or None.
        parameters: of the configuration.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - the name and form Gymnasium prescribes
        "render_modes": list(RENDER_MODES),
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, num_envs: int = 1, *, copy: bool = True, render_mode: str | None = None, **parameters: Any
    ) -> None:
        check_integer("num_envs", num_envs, 1, None, "give the number of environments")
        if render_mode is not None:
            check_choice("render_mode", render_mode, tuple(self.metadata["render_modes"]))
        self.num_envs = int(num_envs)
        self.batch = self._build_batch(self.num_envs, parameters)
        self.config = self.batch.config
        self.render_mode = render_mode
        self._copy = copy
        self.single_observation_space, self.single_action_space = self._build_spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _build_batch(self, num_envs: int, parameters: dict[str, Any]) -> Batch:
        raise NotImplementedError

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        """Of one environment: the observation space and the action space."""
        raise NotImplementedError

    def _begin_trails(self) -> None:
        """Called when all environments have a new state: after a reset, or when one is restored."""

    def _extend_trails(self) -> None:
        """Called after a step where frames are drawn."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes everywhere.

        Args:
            seed: an integer s (environment i takes s + i) or a list of N integers: episode 0 of those seeds.
                None begins each environment's next episode (the first time, of a random seed).
            options: not used.
        """
        if seed is not None:
            check_seeds(seed, self.num_envs)
        super().reset(seed=seed if isinstance(seed, int) else None)
        self.batch.reset(seed, None if seed is not None else self.np_random)
        self._begin_trails()
        return self.observe(), self.batch.info()

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment once; see the class for the returned values.

        Raises:
            ValueError: actions of a wrong shape, dtype or range; then no environment has been stepped.
        """
        if self.batch.state.episode[0] < 0:
            raise ValueError("step() was called before reset(); call reset() first")
        batch, outcome = self.batch, self.batch.outcome
        ended = batch.step(as_actions(actions, self.num_envs), True)
        infos = batch.info()
        if ended:
            self._describe_ends(infos)
        if self.render_mode is not None:
            self._extend_trails()
        results = (outcome.reward, outcome.terminated, outcome.truncated)
        if self._copy:
            results = tuple(array.copy() for array in results)
        return self.observe(), *results, infos

    def _describe_ends(self, infos: dict[str, Any]) -> None:
        outcome = self.batch.outcome
        ended = outcome.ended.copy()
        episode = {
            "r": outcome.episode_return.copy(),
            "l": outcome.episode_length.copy(),
            "success": outcome.success.copy(),
        }
        infos["final_obs"] = self._own(self.batch.final_observations)
        infos["episode"] = episode
        final_info: dict[str, Any] = self.batch.info(final=True)
        final_info["episode"] = episode
        final_info["_episode"] = ended
        infos["final_info"] = final_info
        infos["_final_obs"] = infos["_episode"] = infos["_final_info"] = ended

    def _own(self, observations: Any) -> Any:
        """The batch's buffers, or copies of them."""
        if not self._copy:
            return observations
        if isinstance(observations, dict):
            return {name: array.copy() for name, array in observations.items()}
        return observations.copy()

    def observe(self) -> Any:
        """The current observations ``[N, ...]``, for instance after ``set_state``."""
        return self._own(self.batch.observations)

    def clairvoyant(self) -> NDArray[np.int32]:
        """Earliest possible arrival in steps from now, given the future schedule: int32 [N], -1 if impossible."""
        return self.batch.clairvoyant()

    def level_codes(self) -> NDArray[np.uint64]:
        """A hash of what each level holds, right after a reset: uint64 [N].

        Two levels of the same parameters have the same code exactly if nothing tells them apart up to the time limit:
        not the first map, agent and goal, nor the schedule of doors and goal. Seeds and fog do not enter, nor does the
        place of a maze in a frame.
        """
        return self.batch.level_codes()

    @property
    def level_seeds(self) -> NDArray[np.int64]:
        """The current level of each environment: int64 [N]; its two highest bits are the split."""
        return self.batch.state.level_seed.copy()

    @property
    def limits(self) -> NDArray[np.int64]:
        """Steps after which the current episode of each environment is truncated: int64 [N]."""
        return self.batch.limits()

    def get_state(self) -> dict[str, NDArray]:
        """The complete state as arrays by name; ``set_state`` restores it exactly."""
        return self.batch.get_state()

    def set_state(self, state: dict[str, NDArray]) -> None:
        """Restore ``get_state`` of an environment with the same parameters and N.

        Raises:
            ValueError: an array is missing or does not fit, or no such environments can be in this state; then nothing
                has changed.
        """
        self.batch.set_state(state, autoreset=True)
        self._begin_trails()


class MazeVectorEnv(LevelVectorEnv):
    """N dynamic mazes in Gymnasium's SAME_STEP autoreset mode.

    Environment i, seeded s, behaves exactly as a single ``MazeEnv`` seeded s + i. The rules are those of
    ``MazeEnv``; only the differences are listed here.

    ## Action Space
    ``MultiDiscrete([4] * N)``: any integer array [N]; 0 N, 1 E, 2 S, 3 W.

    ## Observation Space
    ``Box(0, 5, (N, H, W), uint8)`` of ``Cell`` ids.

    ## Rewards
    float32 [N]: +1 on reaching the goal, otherwise -0.01 per step.

    ## Episode End
    Where an episode ended, the returned observation is the first of the next episode, and ``infos`` holds

    - ``final_obs`` uint8 [N, H, W] (rows are valid where ``_final_obs`` bool [N]),
    - ``episode``: ``r`` float64 [N], ``l`` int64 [N], ``success`` bool [N] (valid where ``_episode``),
    - ``final_info``: the same statistics, and the oracle's values at the end of the episode (``_final_info``).

    On steps at which no episode ended, ``infos`` holds the oracle's values only.

    ## Arguments
    num_envs: N. copy: return copies; with False, the arrays are buffers that the next step overwrites (faster
    for callers that copy anyway; never write into them). render_mode: ``rgb_array`` or
    ``ansi``; ``render()`` returns a tuple of N frames. Everything else:
    ``MazeConfig``.
    """

    def _build_batch(self, num_envs: int, parameters: dict[str, Any]) -> Batch:
        return MazeBatch(num_envs, config_from(MazeConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Space, spaces.Space]:
        shape = (self.config.height, self.config.width)
        return spaces.Box(0, int(max(Cell)), shape, np.uint8), spaces.Discrete(4)

    def maps(self) -> NDArray[np.uint8]:
        """The full map of each environment as it is now, without fog: uint8 [N, H, W]."""
        return self.batch.state.grid.reshape(self.num_envs, self.config.height, self.config.width).copy()

    @property
    def windows(self) -> NDArray[np.int64]:
        """Where in the observation each maze lies: int64 [N, 4], first row and column, rows and columns."""
        return self.batch.windows()

    @property
    def sides(self) -> NDArray[np.int64] | None:
        """Side of the grid of each current level: int64 [N]; None where all levels have one size."""
        sizes = getattr(self.config, "sizes", None)
        return None if sizes is None or len(sizes) == 1 else self.windows[:, 2].copy()

    def _begin_trails(self) -> None:
        self._trails = [[int(position)] for position in self.batch.state.agent]

    def _extend_trails(self) -> None:
        agents = self.batch.state.agent.tolist()
        for trail, agent, ended in zip(self._trails, agents, self.batch.outcome.ended.tolist(), strict=True):
            if ended:
                trail.clear()
            trail.append(agent)

    def render(self) -> tuple[Any, ...] | None:
        """One frame for each environment: uint8 [h, w, 3] arrays or strings, by ``render_mode``."""
        if self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return tuple(render_ansi(grid) for grid in self.batch.observations)
        doors = [self.batch.known_doors(i) for i in range(self.num_envs)]
        return tuple(
            render_grid(grid, trail=trail, doors=known)
            for grid, trail, known in zip(self.batch.observations, self._trails, doors, strict=True)
        )
