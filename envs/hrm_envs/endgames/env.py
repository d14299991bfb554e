"""The environments `ChessEndgame-v0`: single, and vectorised over one kernel."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hrm_envs.batch import check_seeds, config_from
from hrm_envs.config import check_choice, check_integer
from hrm_envs.endgames.batch import ENEMY_KING, EndgameBatch, EndgameConfig
from hrm_envs.endgames.drawing import board_text, draw_board
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD
from hrm_envs.limits import LevelEnv, Unlimited
from hrm_envs.vector import RENDER_MODES, as_actions

LETTERS = ".KQRk"
"""The pieces by their ids, as FEN writes them."""
Observation = dict[str, NDArray]


def _spaces(config: EndgameConfig) -> tuple[spaces.Dict, spaces.Discrete]:
    board = spaces.Box(0, ENEMY_KING, (8, 8), np.uint8)
    return spaces.Dict({"action_mask": spaces.MultiBinary(config.actions), "board": board}), spaces.Discrete(
        config.actions
    )


def _letters(grid: NDArray[np.uint8]) -> list[str]:
    """The board's rows, rank 1 first."""
    return ["".join(LETTERS[int(cell)] for cell in row) for row in grid]


class ChessEndgameVectorEnv(VectorEnv):
    """N endgames in SAME_STEP autoreset mode; environment i, seeded s, is a ``ChessEndgameEnv`` seeded s + i.

    Observations, ``infos["final_obs"]`` and rewards are as those of the single environment, with N rows;
    ``infos["action_mask"]`` int8 [N, A] is the mask of the returned observation. Where an episode ended, ``infos``
    holds ``final_obs``, ``episode`` (``r``, ``l``, ``success``) and ``final_info`` as ``MazeVectorEnv`` does.

    Args:
        num_envs: N.
        copy: return copies; with False, the arrays are buffers that the next step overwrites.
        render_mode: ``rgb_array`` or ``ansi``; ``render()`` returns a tuple of N frames.
        parameters: see ``EndgameConfig``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - the name and form Gymnasium prescribes
        "render_modes": list(RENDER_MODES),
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, num_envs: int = 1, *, copy: bool = True, render_mode: str | None = None, **parameters: Any
    ) -> None:
        check_integer("num_envs", num_envs, 1, None, "give the number of environments")
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.num_envs = int(num_envs)
        self.config: EndgameConfig = config_from(EndgameConfig, parameters)
        self.batch = EndgameBatch(self.num_envs, self.config)
        self.render_mode = render_mode
        self._copy = copy
        self.single_observation_space, self.single_action_space = _spaces(self.config)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begin new episodes everywhere; arguments as ``MazeVectorEnv.reset``."""
        if seed is not None:
            check_seeds(seed, self.num_envs)
        super().reset(seed=seed if isinstance(seed, int) else None)
        self.batch.reset(seed, None if seed is not None else self.np_random)
        return self.observe(), self._infos()

    def step(
        self, actions: Any
    ) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every game once.

        Raises:
            ValueError: actions of a wrong shape, dtype or range; then no game has been stepped.
        """
        if self.batch.state.episode[0] < 0:
            raise ValueError("step() was called before reset(); call reset() first")
        batch, outcome = self.batch, self.batch.outcome
        ended = batch.step(as_actions(actions, self.num_envs), True)
        infos = self._infos()
        if ended:
            self._describe_ends(infos)
        results = (outcome.reward, outcome.terminated, outcome.truncated)
        reward, terminated, truncated = (array.copy() for array in results) if self._copy else results
        return self.observe(), reward, terminated, truncated, infos

    def _infos(self) -> dict[str, Any]:
        mask = self.batch.state.mask
        infos: dict[str, Any] = {"action_mask": mask.copy() if self._copy else mask}
        if self.config.labels:
            infos["optimal_actions"] = self.batch.judge()[1]
        return infos

    def _describe_ends(self, infos: dict[str, Any]) -> None:
        outcome = self.batch.outcome
        ended = outcome.ended.copy()
        episode = {
            "r": outcome.episode_return.copy(),
            "l": outcome.episode_length.copy(),
            "success": outcome.success.copy(),
        }
        mask = outcome.final_mask.copy()
        infos["final_obs"] = {"action_mask": mask, "board": self.batch.final_observations.copy()}
        infos["episode"] = episode
        infos["final_info"] = {"action_mask": mask, "_action_mask": ended, "episode": episode, "_episode": ended}
        infos["_final_obs"] = infos["_episode"] = infos["_final_info"] = ended

    def observe(self) -> Observation:
        """The current observations, for instance after ``set_state``."""
        seen = {"action_mask": self.batch.state.mask, "board": self.batch.observations}
        return {name: array.copy() for name, array in seen.items()} if self._copy else seen

    def clairvoyant(self) -> NDArray[np.int32]:
        """Moves to mate with best play, int32 [N]; -1 where the time limit comes first."""
        return self.batch.clairvoyant()

    def level_codes(self) -> NDArray[np.uint64]:
        """The starting positions, right after a reset: uint64 [N]."""
        return self.batch.level_codes()

    @property
    def level_seeds(self) -> NDArray[np.int64]:
        """The current level of each environment: int64 [N]; its two highest bits are the split."""
        return self.batch.state.level_seed.copy()

    def get_state(self) -> dict[str, NDArray]:
        """The complete state as arrays by name; ``set_state`` restores it exactly."""
        return self.batch.get_state()

    def set_state(self, state: dict[str, NDArray]) -> None:
        """Restore ``get_state`` of an environment with the same parameters and N.

        Raises:
            ValueError: an array is missing or does not fit, or no such games can be in this state; then nothing has
                changed.
        """
        self.batch.set_state(state, autoreset=True)

    def render(self) -> tuple[Any, ...] | None:
        """One frame for each environment: uint8 [h, w, 3] arrays or strings, by ``render_mode``."""
        if self.render_mode is None:
            return None
        draw = board_text if self.render_mode == "ansi" else draw_board
        return tuple(draw(_letters(grid)) for grid in self.batch.observations)


class ChessEndgameEnv(LevelEnv):
    """Mate a bare king, with king and rook or king and queen, against the defence that lasts longest.

    ## Description
    The agent has the white pieces and moves first. The other king answers with a move after which mate takes longest,
    by a table of the endgame; it takes an unprotected piece, and any other draw, where it can. Among moves that are
    equally good, the level's seed draws one.

    ## Action Space
    ``Discrete(36)`` with a rook, ``Discrete(64)`` with a queen. Actions 0 to 7 move the king one square to the north,
    east, south, west, north-east, south-east, south-west, north-west; north is towards rank 8. Action
    ``8 + 7 * d + n - 1`` moves the piece n squares in direction d of the same order (the first four with a rook). A
    move that ``action_mask`` forbids changes nothing and counts as a step.

    ## Observation Space
    ``Dict`` of ``board``: ``Box(0, 4, (8, 8), uint8)``, rank 1 and file a first; 0 empty, 1 king, 2 queen, 3 rook,
    4 the other king; and ``action_mask``: ``MultiBinary``, 1 for legal moves, which ``info`` has too. After the piece
    is captured no move is left.

    ## Starting State
    A won position, drawn uniformly from those of the split that are won in ``max_distance`` moves; seed s determines
    all following episodes. A position and its mirror images are in one split: 13 of 16 in ``train``.

    ## Rewards
    +1 for mate, otherwise -0.01 per move.

    ## Episode End
    Terminated by mate (``info["is_success"]``), stalemate or the capture of the piece; truncated after
    ``max_episode_steps`` moves of the agent. The best play mates within 16 moves with a rook, 10 with a queen.

    ## Arguments
    ``piece`` (``rook``), ``max_distance`` (16), ``max_episode_steps`` (50), ``labels``, ``split``, ``render_mode``: see
    ``EndgameConfig``. With ``labels=True``, ``info["optimal_actions"]`` (bool) holds the moves that mate soonest.

    ## Version History
    * v0: first version.

    ## References
    K. Thompson, Retrograde analysis of certain endgames, ICCA Journal 9(3), 1986.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **parameters: Any) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        self.batch: EndgameBatch = EndgameBatch(1, config_from(EndgameConfig, parameters))
        self.observation_space, self.action_space = _spaces(self.batch.config)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin episode 0 of ``seed``, or the next episode if it is None. ``options`` is not used."""
        if seed is not None:
            check_seeds(seed, 1)
        super().reset(seed=seed)
        self.batch.reset(seed, None if seed is not None else self.np_random)
        return self.observe(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move, then let the other king answer.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, and after an episode's end.
            ValueError: for an action out of range.
        """
        batch, outcome = self.batch, self.batch.outcome
        if batch.state.episode[0] < 0 or batch.state.done[0]:
            raise gymnasium.error.ResetNeeded("no episode is in progress; call reset() before step()")
        if np.ndim(action) != 0 or np.asarray(action).dtype.kind not in "iu":
            raise ValueError(f"action={action!r} is not an integer; give one from 0 to {batch.config.actions - 1}")
        batch.step(np.array([action], np.int64), False)
        success = bool(outcome.success[0])
        info = {**self._info(), "is_success": success}
        reward = GOAL_REWARD if success else STEP_REWARD
        return self.observe(), reward, bool(outcome.terminated[0]), bool(outcome.truncated[0]), info

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.batch.state.mask[0].copy()}
        if self.batch.config.labels:
            info["optimal_actions"] = self.batch.judge()[1][0]
        return info

    def observe(self) -> Observation:
        """The current observation, for instance after ``set_state``."""
        return {"action_mask": self.batch.state.mask[0].copy(), "board": self.batch.observations[0].copy()}

    def clairvoyant(self) -> int:
        """Moves to mate with best play; -1 where the time limit comes first."""
        return int(self.batch.clairvoyant()[0])

    def get_state(self) -> dict[str, NDArray]:
        """The complete state as arrays by name; ``set_state`` restores it exactly."""
        return self.batch.get_state()

    def set_state(self, state: dict[str, NDArray]) -> None:
        """Restore ``get_state`` of an environment with the same parameters.

        Raises:
            ValueError: an array is missing or does not fit, or no such game can be in this state; then nothing has
                changed.
        """
        self.batch.set_state(state)

    def render(self) -> Any:
        """The current frame, by ``render_mode``; None without one."""
        if self.render_mode is None:
            return None
        letters = _letters(self.batch.observations[0])
        return board_text(letters) if self.render_mode == "ansi" else draw_board(letters)


make_chess_endgame = Unlimited(ChessEndgameEnv)
