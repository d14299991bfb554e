"""The environments `ChessEndgame-v0`: single, and vectorised over one kernel."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hrm_envs.batch import config_from
from hrm_envs.endgames.batch import ENEMY_KING, EndgameBatch, EndgameConfig
from hrm_envs.endgames.drawing import board_text, draw_board
from hrm_envs.limits import LevelEnv, Unlimited
from hrm_envs.vector import RENDER_MODES, LevelVectorEnv

LETTERS = ".KQRk"
"""The pieces by their ids, as FEN writes them."""


def _spaces(config: EndgameConfig) -> tuple[spaces.Dict, spaces.Discrete]:
    board = spaces.Box(0, ENEMY_KING, (8, 8), np.uint8)
    return spaces.Dict({"action_mask": spaces.MultiBinary(config.actions), "board": board}), spaces.Discrete(
        config.actions
    )


def _letters(grid: NDArray[np.uint8]) -> list[str]:
    """The board's rows, rank 1 first."""
    return ["".join(LETTERS[int(cell)] for cell in row) for row in grid]


class ChessEndgameVectorEnv(LevelVectorEnv):
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

    metadata = {**LevelVectorEnv.metadata, "render_fps": 2}  # noqa: RUF012
    batch: EndgameBatch

    def _build_batch(self, num_envs: int, parameters: dict[str, Any]) -> EndgameBatch:
        return EndgameBatch(num_envs, config_from(EndgameConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Dict, spaces.Discrete]:
        return _spaces(self.config)

    def render(self) -> tuple[Any, ...] | None:
        """One frame for each environment: uint8 [h, w, 3] arrays or strings, by ``render_mode``."""
        if self.render_mode is None:
            return None
        draw = board_text if self.render_mode == "ansi" else draw_board
        return tuple(draw(_letters(grid)) for grid in self.batch.observations["board"])


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
    batch: EndgameBatch

    def _build_batch(self, parameters: dict[str, Any]) -> EndgameBatch:
        return EndgameBatch(1, config_from(EndgameConfig, parameters))

    def _build_spaces(self) -> tuple[spaces.Dict, spaces.Discrete]:
        return _spaces(self.config)

    def render(self) -> Any:
        """The current frame, by ``render_mode``; None without one."""
        if self.render_mode is None:
            return None
        letters = _letters(self.batch.observations["board"][0])
        return board_text(letters) if self.render_mode == "ansi" else draw_board(letters)


make_chess_endgame = Unlimited(ChessEndgameEnv)
