# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""A memory test: only the first observation shows which arm of a T-maze holds the goal."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.batch import Batch, config_from
from hrm_envs.cells import AGENT, EMPTY, GOAL, WALL
from hrm_envs.config import MAX_SIDE, MAX_STEPS, SPLITS, check_choice, check_integer, whole
from hrm_envs.jit import assign, compile_for, hot_kernel, inner, is_cached
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD, build_outcome
from hrm_envs.limits import Unlimited
from hrm_envs.maze import MazeEnv
from hrm_envs.rng import STREAM_LAYOUT, below, draw, level_seed
from hrm_envs.states import require
from hrm_envs.vector import MazeVectorEnv

_HEIGHT, _MIDDLE = 5, 2
_NORTH, _EAST, _SOUTH = 0, 1, 2


@dataclass(frozen=True)
class CueConfig:
    """The parameters of the memory test.

    Attributes:
        length: positions of the corridor before the junction; ``length + 1`` steps reach an arm's end.
        max_episode_steps: steps after which an episode is truncated.
        oracle: add the oracle's values to ``info``.
        split: ``train``, ``validation``, ``development`` or ``test``.

    Raises:
        ValueError: for a value out of range.
    """

    length: int = 5
    max_episode_steps: int = 20
    oracle: bool = False
    split: str = "train"

    def __post_init__(self) -> None:
        for name in ("length", "max_episode_steps"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        check_integer("length", self.length, 1, 2 * MAX_SIDE, "choose another corridor")
        check_integer("max_episode_steps", self.max_episode_steps, 1, MAX_STEPS, "choose another time limit")
        check_choice("split", self.split, SPLITS)
        if not isinstance(self.oracle, bool):
            raise ValueError(f"oracle={self.oracle!r} is not a bool; give True or False")

    @property
    def height(self) -> int:
        """Grid rows."""
        return _HEIGHT

    @property
    def width(self) -> int:
        """Grid columns."""
        return int(self.length) + 3


class CueState(NamedTuple):
    """Complete state of N environments; ``grid`` is the observation."""

    env_seed: NDArray[np.int64]  # [N]
    episode: NDArray[np.int64]  # [N]
    level_seed: NDArray[np.int64]  # [N]
    steps: NDArray[np.int32]  # [N]
    agent: NDArray[np.int32]  # [N]
    goal: NDArray[np.int32]  # [N]
    done: NDArray[np.uint8]  # [N]
    grid: NDArray[np.uint8]  # [N, G]


@inner
def _update_oracle(width, state, outcome, i):
    """The oracle's values of environment i: along the corridor, then into the goal's arm. Nothing ever changes."""
    outcome.masks[i] = False
    column = state.agent[i] % width
    if state.agent[i] == state.goal[i]:
        outcome.distance[i] = 0
    elif state.agent[i] // width != _MIDDLE:
        outcome.distance[i] = -1
    else:
        action = _EAST if column < width - 2 else (_NORTH if state.goal[i] < _MIDDLE * width else _SOUTH)
        outcome.distance[i] = width - 2 - column + 1
        outcome.masks[i, action] = True
        outcome.masks[i, 4 + action] = True


@inner
def _reset_one(template, width, split, oracle, state, outcome, i):
    state.episode[i] += 1
    seed = level_seed(state.env_seed[i], state.episode[i], split)
    state.level_seed[i] = seed
    row = 1 if below(draw(seed, STREAM_LAYOUT, 0, 0), 2) == 0 else _HEIGHT - 2
    state.goal[i] = row * width + width - 2
    state.agent[i] = _MIDDLE * width + 1
    state.steps[i] = 0
    state.done[i] = 0
    assign(state.grid[i], template)
    state.grid[i, state.agent[i]] = AGENT
    state.grid[i, state.goal[i]] = GOAL
    if oracle:
        _update_oracle(width, state, outcome, i)


@hot_kernel
def _reset_all(template, width, split, oracle, state, outcome):
    for i in range(len(state.agent)):
        _reset_one(template, width, split, oracle, state, outcome, i)


@hot_kernel
def _step_all(template, width, split, oracle, limit, state, outcome, actions, autoreset):
    """Step every environment; the number of episodes that ended, or ``-1 - i`` if action i is invalid."""
    for i in range(len(actions)):
        if actions[i] < 0 or actions[i] > 3:
            return -1 - i
    offsets = (-width, 1, width, -1)
    count = 0
    for i in range(len(actions)):
        state.grid[i, state.goal[i]] = EMPTY
        new = state.agent[i] + offsets[actions[i]]
        if template[new] != WALL:
            state.grid[i, state.agent[i]] = EMPTY
            state.agent[i] = new
        state.grid[i, state.agent[i]] = AGENT
        state.steps[i] += 1
        success = state.agent[i] == state.goal[i]
        terminated = state.agent[i] // width != _MIDDLE
        truncated = not terminated and state.steps[i] >= limit
        outcome.success[i] = success
        outcome.terminated[i] = terminated
        outcome.truncated[i] = truncated
        outcome.ended[i] = terminated or truncated
        outcome.reward[i] = GOAL_REWARD if success else STEP_REWARD
        outcome.episode_return[i] = 0.0
        outcome.episode_length[i] = 0
        if oracle:
            _update_oracle(width, state, outcome, i)
        if terminated or truncated:
            count += 1
            assign(outcome.final_obs[i], state.grid[i])
            outcome.episode_length[i] = state.steps[i]
            last = GOAL_REWARD if success else STEP_REWARD
            outcome.episode_return[i] = STEP_REWARD * (state.steps[i] - 1) + last
            if oracle:
                outcome.final_distance[i] = outcome.distance[i]
                assign(outcome.final_masks[i], outcome.masks[i])
            if autoreset:
                _reset_one(template, width, split, oracle, state, outcome, i)
            else:
                state.done[i] = 1
    return count


class CueBatch(Batch):
    """N memory tests with the same parameters."""

    def __init__(self, num_envs: int, config: CueConfig) -> None:
        super().__init__(num_envs)
        self.config = config
        grid = np.full((_HEIGHT, config.width), WALL, np.uint8)
        grid[_MIDDLE, 1:-1] = EMPTY
        grid[1:-1, -2] = EMPTY
        self._template = grid.ravel()
        self.state = CueState(
            env_seed=np.zeros(num_envs, np.int64),
            episode=np.full(num_envs, -1, np.int64),
            level_seed=np.zeros(num_envs, np.int64),
            steps=np.zeros(num_envs, np.int32),
            agent=np.zeros(num_envs, np.int32),
            goal=np.zeros(num_envs, np.int32),
            done=np.zeros(num_envs, np.uint8),
            grid=np.zeros((num_envs, grid.size), np.uint8),
        )
        self.outcome = build_outcome(num_envs, grid.size, config.oracle)
        self.observations = self.state.grid.reshape(num_envs, *grid.shape)
        self.final_observations = self.outcome.final_obs.reshape(self.observations.shape)

    @property
    def _fixed(self) -> tuple[Any, ...]:
        config = self.config
        return self._template, config.width, SPLITS.index(config.split), config.oracle

    def compile(self) -> None:
        """Compile or load the kernels of reset and step, which they would otherwise do on their first call."""
        compile_for(_reset_all, *self._fixed, self.state, self.outcome)
        compile_for(_step_all, *self._step_arguments(np.zeros(self.num_envs, np.int64), True))

    def is_compiled(self) -> bool:
        """Whether the machine code of reset and step is available, so that neither has to compile for seconds."""
        return is_cached(_step_all, *self._step_arguments(np.zeros(self.num_envs, np.int64), True))

    def _begin(self) -> None:
        _reset_all(*self._fixed, self.state, self.outcome)

    def _step_arguments(self, actions: NDArray[np.int64], autoreset: bool) -> tuple[Any, ...]:
        limit = int(self.config.max_episode_steps)
        return *self._fixed, limit, self.state, self.outcome, actions, autoreset

    def _advance(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        return _step_all(*self._step_arguments(actions, autoreset))

    def _check(self, state: CueState) -> None:
        width, last = self.config.width, self.config.width - 2
        ends = [row * width + last for row in (1, _HEIGHT - 2)]
        require(np.isin(state.goal, ends), "goal", state.goal, f"the end of an arm, {ends[0]} or {ends[1]}")
        inside = (state.agent >= 0) & (state.agent < len(self._template))
        row, col = state.agent // width, state.agent % width
        free = self._template[np.where(inside, state.agent, 0)] != WALL
        # Either arm ends the episode, and every position of the corridor is a step further from its west end.
        going = (row == _MIDDLE) & (state.done == 0) | (state.done == 1)
        require(inside & free & going, "agent", state.agent, "a position in the corridor, or in an arm at the end")
        travelled = col - 1 + abs(row - _MIDDLE)
        require(travelled <= state.steps, "agent", state.agent, "a position within as many moves as steps were taken")
        over = (row != _MIDDLE) | (state.steps >= self.config.max_episode_steps)
        require(over | (state.done == 0), "done", state.done, "0 before an episode's end")
        grid = np.repeat(self._template[None], len(state.grid), 0)
        rows = np.arange(len(grid))
        grid[rows, state.goal] = np.where(state.steps == 0, GOAL, EMPTY)
        grid[rows, state.agent] = AGENT
        require(state.grid == grid, "grid", state.grid, "the corridor, the agent and at first the goal", grid)

    def clairvoyant(self) -> NDArray[np.int32]:
        """Earliest arrival at the goal in steps from now: int32 [N], -1 where impossible in time."""
        width, state = self.config.width, self.state
        steps = np.where(state.agent == state.goal, 0, width - 1 - state.agent % width)
        wrong_arm = (state.agent // width != _MIDDLE) & (state.agent != state.goal)
        late = state.steps + steps > self.config.max_episode_steps
        return np.where(wrong_arm | late, -1, steps).astype(np.int32)

    def level_codes(self) -> NDArray[np.uint64]:
        """The goal's position, in which alone two levels differ: uint64 [N]."""
        return self.state.goal.astype(np.uint64)


class CueMazeVectorEnv(MazeVectorEnv):
    """N memory tests in SAME_STEP autoreset mode; see ``CueMazeEnv`` and ``MazeVectorEnv``."""

    def _build_batch(self, num_envs: int, parameters: dict[str, Any]) -> Batch:
        return CueBatch(num_envs, config_from(CueConfig, parameters))


class CueMazeEnv(MazeEnv):
    """A T-maze that requires memory.

    ## Description
    A corridor of ``length`` positions leads east to a junction with an arm to the north and one to the south.
    The goal is at the end of either arm, with probability 1/2 each. Only the first observation shows it;
    afterwards both ends look empty. A memoryless policy succeeds in half of the episodes at best.

    ## Action Space
    ``Discrete(4)``: 0 north, 1 east, 2 south, 3 west. A blocked move leaves the agent where it is and counts as a step.

    ## Observation Space
    ``Box(0, 5, (5, length + 3), uint8)`` of ``Cell`` ids.

    ## Starting State
    The agent at the corridor's west end; the goal's arm is a hash of (seed, episode).

    ## Rewards
    +1 for entering the goal's arm, otherwise -0.01 per step.

    ## Episode End
    Terminated in either arm (``info["is_success"]`` says whether it was the goal's); truncated after
    ``max_episode_steps``.

    ## Arguments
    ``length`` (5), ``max_episode_steps`` (20), ``oracle``, ``split``, ``render_mode``: see ``CueConfig``.

    ## Version History
    * v0: first version.

    ## References
    The T-maze of Bakker, Reinforcement learning with long short-term memory (NIPS 2001).
    """

    def _build_batch(self, parameters: dict[str, Any]) -> Batch:
        return CueBatch(1, config_from(CueConfig, parameters))


make_cue_maze = Unlimited(CueMazeEnv)
