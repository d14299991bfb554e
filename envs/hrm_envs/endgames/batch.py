# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: SIM109 - numba compiles comparisons faster than membership in tuples of different integers
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Mating with king and rook, or king and queen, against the defence that lasts longest: N games behind one kernel."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.batch import Batch
from hrm_envs.config import MAX_STEPS, SPLITS, check_choice, check_integer, whole
from hrm_envs.endgames.geometry import QUEEN, ROOK_DIRECTIONS
from hrm_envs.endgames.shares import splits_of
from hrm_envs.endgames.tables import (
    BLACK,
    DRAW,
    MOST_MOVES,
    NOBODY,
    WHITE,
    Table,
    black_moves,
    endgame_table,
    in_check,
    is_legal,
    place,
    unplace,
    value_after,
)
from hrm_envs.jit import compile_for, hot_kernel, inner, is_cached, kernel
from hrm_envs.kernel import GOAL_REWARD, STEP_REWARD
from hrm_envs.rng import STREAM_GOAL_PICK, STREAM_LAYOUT, below, draw, level_seed
from hrm_envs.states import require

PIECES = {"rook": "KRK", "queen": "KQK"}
KING_MOVES = 8
DISTANCES = 7
NO_ID, KING, QUEEN_ID, ROOK_ID, ENEMY_KING = range(5)


@dataclass(frozen=True)
class EndgameConfig:
    """The parameters of an endgame that is to be won.

    Attributes:
        piece: what the agent has beside its king, ``rook`` or ``queen``.
        max_distance: moves to mate, with best play, in starting positions at most (16 is all of them with a rook, 10
            with a queen).
        max_episode_steps: the agent's moves after which an episode is truncated.
        labels: add ``optimal_actions`` to ``info``: the moves that mate soonest.
        split: ``train``, ``validation``, ``development`` or ``test``.

    Raises:
        ValueError: for a value out of range.
    """

    piece: str = "rook"
    max_distance: int = 16
    max_episode_steps: int = 50
    labels: bool = False
    split: str = "train"

    def __post_init__(self) -> None:
        for name in ("max_distance", "max_episode_steps"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        check_choice("piece", self.piece, tuple(PIECES))
        check_integer("max_distance", self.max_distance, 1, 100, "give moves to mate, 16 for all positions")
        check_integer("max_episode_steps", self.max_episode_steps, 1, MAX_STEPS, "choose another time limit")
        check_choice("split", self.split, SPLITS)
        if not isinstance(self.labels, bool):
            raise ValueError(f"labels={self.labels!r} is not a bool; give True or False")

    @property
    def directions(self) -> int:
        """Directions in which the piece moves."""
        return ROOK_DIRECTIONS if self.piece == "rook" else 8

    @property
    def actions(self) -> int:
        """Number of actions."""
        return KING_MOVES + DISTANCES * self.directions


class EndgameState(NamedTuple):
    """Complete state of N games; ``grid`` and ``mask`` are the observation, and follow from the squares."""

    env_seed: NDArray[np.int64]  # [N]
    episode: NDArray[np.int64]  # [N]
    level_seed: NDArray[np.int64]  # [N]
    steps: NDArray[np.int32]  # [N]
    king: NDArray[np.int32]  # [N] square of the agent's king
    piece: NDArray[np.int32]  # [N] square of its rook or queen; -1: captured
    enemy: NDArray[np.int32]  # [N] square of the other king
    done: NDArray[np.uint8]  # [N]
    grid: NDArray[np.uint8]  # [N, 64]
    mask: NDArray[np.int8]  # [N, A]


class EndgameOutcome(NamedTuple):
    """Results of a step; the next step overwrites every array."""

    reward: NDArray[np.float32]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    ended: NDArray[np.bool_]  # [N]
    success: NDArray[np.bool_]  # [N]
    final_grid: NDArray[np.uint8]  # [N, 64] valid where ended
    final_mask: NDArray[np.int8]  # [N, A] valid where ended
    episode_return: NDArray[np.float64]  # [N] 0 where not ended
    episode_length: NDArray[np.int64]  # [N] 0 where not ended
    moves: NDArray[np.int8]  # [MOST_MOVES, 3] scratch
    values: NDArray[np.int8]  # [MOST_MOVES] scratch


@inner
def target_of(board, king, piece, action):
    """Start and end of an action, ``NOBODY`` as the end beyond the board's edge; what stands there is not looked at."""
    if action < KING_MOVES:
        return king, np.int64(board.steps[king, action])
    ray, step = (action - KING_MOVES) // DISTANCES, (action - KING_MOVES) % DISTANCES
    return piece, np.int64(board.rays[piece, ray, step])


@inner
def _may(board, king, enemy, piece, start, end):
    """Whether a move of the agent is legal."""
    if end < 0 or end == king or end == piece or end == enemy:
        return False
    if start == king:
        return not board.near[end, enemy]
    passed = (np.uint64(1) << np.uint64(king)) | (np.uint64(1) << np.uint64(enemy))
    return (board.between[start, end] & passed) == 0


@inner
def _show(board, rules, state, i):
    """Write ``grid`` and ``mask`` of game i."""
    king, piece, enemy = np.int64(state.king[i]), np.int64(state.piece[i]), np.int64(state.enemy[i])
    for k in range(64):
        state.grid[i, k] = NO_ID
    state.grid[i, king], state.grid[i, enemy] = KING, ENEMY_KING
    if piece >= 0:
        state.grid[i, piece] = QUEEN_ID if rules.piece == QUEEN else ROOK_ID
    for action in range(state.mask.shape[1]):
        state.mask[i, action] = 0
        if piece >= 0:
            start, end = target_of(board, king, piece, action)
            state.mask[i, action] = 1 if _may(board, king, enemy, piece, start, end) else 0


@inner
def _reset_one(board, rules, starts, split, state, i):
    state.episode[i] += 1
    seed = level_seed(state.env_seed[i], state.episode[i], split)
    state.level_seed[i] = seed
    index = np.int64(starts[below(draw(seed, STREAM_LAYOUT, 0, 0), len(starts))])
    _, king, enemy, piece, _ = unplace(board, False, index)
    state.king[i], state.enemy[i], state.piece[i] = king, enemy, piece
    state.steps[i] = 0
    state.done[i] = 0
    _show(board, rules, state, i)


@hot_kernel
def _reset_all(board, rules, starts, split, state):
    for i in range(len(state.king)):
        _reset_one(board, rules, starts, split, state, i)


@inner
def _reply(board, rules, state, outcome, i):
    """The defence's move: a capture or another draw, else the longest way to mate; the level draws among equals.

    Returns:
        1: it is mate, 0: the game goes on, -1: it is drawn.
    """
    king, piece, enemy = np.int64(state.king[i]), np.int64(state.piece[i]), np.int64(state.enemy[i])
    moves, values = outcome.moves, outcome.values
    count = black_moves(board, rules, king, enemy, piece, NOBODY, moves, values, False)
    if count == 0:
        return 1 if in_check(board, rules, BLACK, king, enemy, piece, NOBODY) else -1
    best = np.int64(-1)
    for k in range(count):
        worth = np.int64(127) if values[k] == DRAW else np.int64(values[k])
        best = max(best, worth)
    equal = 0
    for k in range(count):
        equal += (127 if values[k] == DRAW else values[k]) == best
    chosen = below(draw(state.level_seed[i], STREAM_GOAL_PICK, state.steps[i], 0), equal)
    for k in range(count):
        if (127 if values[k] == DRAW else values[k]) == best:
            if chosen == 0:
                state.enemy[i] = moves[k, 1]
                break
            chosen -= 1
    if state.enemy[i] == piece:
        state.piece[i] = NOBODY
    return -1 if best == 127 else 0


@hot_kernel
def _step_all(board, rules, starts, split, limit, state, outcome, actions, autoreset):
    """Step every game; the number of episodes that ended, or ``-1 - i`` if action i is out of range."""
    for i in range(len(actions)):
        if actions[i] < 0 or actions[i] >= state.mask.shape[1]:
            return -1 - i
    count = 0
    for i in range(len(actions)):
        state.steps[i] += 1
        result = 0
        if state.mask[i, actions[i]]:
            start, end = target_of(board, np.int64(state.king[i]), np.int64(state.piece[i]), actions[i])
            if start == state.king[i]:
                state.king[i] = end
            else:
                state.piece[i] = end
            result = _reply(board, rules, state, outcome, i)
            _show(board, rules, state, i)
        terminated = result != 0
        truncated = not terminated and state.steps[i] >= limit
        outcome.success[i] = result == 1
        outcome.terminated[i] = terminated
        outcome.truncated[i] = truncated
        outcome.ended[i] = terminated or truncated
        outcome.reward[i] = GOAL_REWARD if result == 1 else STEP_REWARD
        outcome.episode_return[i] = 0.0
        outcome.episode_length[i] = 0
        if terminated or truncated:
            count += 1
            for k in range(64):
                outcome.final_grid[i, k] = state.grid[i, k]
            for k in range(state.mask.shape[1]):
                outcome.final_mask[i, k] = state.mask[i, k]
            outcome.episode_length[i] = state.steps[i]
            last = GOAL_REWARD if result == 1 else STEP_REWARD
            outcome.episode_return[i] = STEP_REWARD * (state.steps[i] - 1) + last
            if autoreset:
                _reset_one(board, rules, starts, split, state, i)
            else:
                state.done[i] = 1
    return count


@kernel
def _judge(board, rules, king, enemy, piece, mask, distance, optimal):
    """Fill moves to mate int32 [N] (-1: none) and optimal actions bool [N, A] of games with the agent to move."""
    for i in range(len(king)):
        distance[i] = -1
        for action in range(mask.shape[1]):
            optimal[i, action] = False
        if piece[i] < 0 or not is_legal(board, rules, WHITE, king[i], enemy[i], piece[i], NOBODY):
            continue
        value = rules.table[place(board, False, WHITE, king[i], enemy[i], piece[i], NOBODY)]
        distance[i] = (value + 1) // 2
        for action in range(mask.shape[1]):
            if mask[i, action]:
                start, end = target_of(board, king[i], piece[i], action)
                new = (end, piece[i]) if start == king[i] else (king[i], end)
                after = value_after(board, rules, BLACK, new[0], enemy[i], new[1], NOBODY)
                optimal[i, action] = after == value - 1


@cache
def starting_positions(piece: str, split: str, max_distance: int) -> NDArray[np.int32]:
    """Indices in the table of positions with white to move that are won in ``max_distance`` moves, int32 [P].

    A position and its images under the board's symmetries are in one split.

    Raises:
        ValueError: there are none.
    """
    table = endgame_table(PIECES[piece])
    inside = splits_of(PIECES[piece]) == SPLITS.index(split)
    values = table.values.astype(np.int32)
    won = (values > 0) & (values % 2 == 1) & (values <= 2 * max_distance - 1)
    won[len(won) // 2 :] = False  # black to move
    found = np.flatnonzero(won & inside).astype(np.int32)
    if not len(found):
        raise ValueError(f"max_distance={max_distance}: no such {split} position with a {piece}; give a larger one")
    found.flags.writeable = False
    return found


class EndgameBatch(Batch):
    """N endgames with the same parameters."""

    def __init__(self, num_envs: int, config: EndgameConfig) -> None:
        super().__init__(num_envs)
        self.config = config
        self.table: Table = endgame_table(PIECES[config.piece])
        self.starts = starting_positions(config.piece, config.split, config.max_distance)
        count = config.actions
        self.state = EndgameState(
            env_seed=np.zeros(num_envs, np.int64),
            episode=np.full(num_envs, -1, np.int64),
            level_seed=np.zeros(num_envs, np.int64),
            steps=np.zeros(num_envs, np.int32),
            king=np.zeros(num_envs, np.int32),
            piece=np.zeros(num_envs, np.int32),
            enemy=np.zeros(num_envs, np.int32),
            done=np.zeros(num_envs, np.uint8),
            grid=np.zeros((num_envs, 64), np.uint8),
            mask=np.zeros((num_envs, count), np.int8),
        )
        self.outcome: Any = EndgameOutcome(
            reward=np.zeros(num_envs, np.float32),
            terminated=np.zeros(num_envs, np.bool_),
            truncated=np.zeros(num_envs, np.bool_),
            ended=np.zeros(num_envs, np.bool_),
            success=np.zeros(num_envs, np.bool_),
            final_grid=np.zeros((num_envs, 64), np.uint8),
            final_mask=np.zeros((num_envs, count), np.int8),
            episode_return=np.zeros(num_envs, np.float64),
            episode_length=np.zeros(num_envs, np.int64),
            moves=np.zeros((MOST_MOVES, 3), np.int8),
            values=np.zeros(MOST_MOVES, np.int8),
        )
        self.actions = f"from 0 to {count - 1}"
        self.boards = self.state.grid.reshape(num_envs, 8, 8)
        self.final_boards = self.outcome.final_grid.reshape(num_envs, 8, 8)

    @property
    def observations(self) -> dict[str, NDArray]:
        """The current observations: views of the state."""
        return {"action_mask": self.state.mask, "board": self.boards}

    @property
    def final_observations(self) -> dict[str, NDArray]:
        """The last observations of the episodes that just ended, in the rows of these."""
        return {"action_mask": self.outcome.final_mask, "board": self.final_boards}

    def info(self, final: bool = False) -> dict[str, NDArray]:
        """The mask of legal moves and, of the current state with ``labels``, the moves that mate soonest."""
        if final:
            return {"action_mask": self.outcome.final_mask.copy()}
        labels = {"optimal_actions": self.judge()[1]} if self.config.labels else {}
        return {"action_mask": self.state.mask.copy(), **labels}

    @property
    def _fixed(self) -> tuple[Any, ...]:
        return self.table.board, self.table.rules, self.starts, SPLITS.index(self.config.split)

    def compile(self) -> None:
        """Compile or load the kernels of reset and step, which they would otherwise do on their first call."""
        compile_for(_reset_all, *self._fixed, self.state)
        compile_for(_step_all, *self._step_arguments(np.zeros(self.num_envs, np.int64), True))

    def is_compiled(self) -> bool:
        """Whether the machine code of reset and step is available, so that neither has to compile for seconds."""
        return is_cached(_step_all, *self._step_arguments(np.zeros(self.num_envs, np.int64), True))

    def _begin(self) -> None:
        _reset_all(*self._fixed, self.state)

    def _step_arguments(self, actions: NDArray[np.int64], autoreset: bool) -> tuple[Any, ...]:
        limit = int(self.config.max_episode_steps)
        return *self._fixed, limit, self.state, self.outcome, actions, autoreset

    def _advance(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        return _step_all(*self._step_arguments(actions, autoreset))

    def step(self, actions: NDArray[np.int64], autoreset: bool) -> int:
        """Step every game and return the number of episodes that ended. ``actions``: int64 [N]."""
        ended = self._advance(actions, autoreset)
        if ended < 0:
            i = -1 - ended
            raise ValueError(
                f"action {actions[i]} of environment {i} is not from 0 to {self.config.actions - 1}; give a move of "
                f"the king (below {KING_MOVES}) or of the {self.config.piece}"
            )
        return int(ended)

    def judge(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Moves to mate with best play, int32 [N], -1 where there is none, and optimal actions, bool [N, A]."""
        state, count = self.state, self.config.actions
        distance, optimal = np.zeros(self.num_envs, np.int32), np.zeros((self.num_envs, count), np.bool_)
        squares = (state.king, state.enemy, state.piece)
        _judge(self.table.board, self.table.rules, *squares, state.mask, distance, optimal)
        return distance, optimal

    def clairvoyant(self) -> NDArray[np.int32]:
        """Moves to mate with best play, int32 [N]; -1 where the time limit comes first."""
        distance = self.judge()[0]
        late = self.state.steps + distance > self.config.max_episode_steps
        return np.where(late | (self.state.done == 1), -1, distance).astype(np.int32)

    def level_codes(self) -> NDArray[np.uint64]:
        """The squares of the three pieces, in which alone two starting positions differ: uint64 [N].

        Among moves that hold out equally long the defence's choice is drawn from the level's seed, too.
        """
        state = self.state
        return ((state.king.astype(np.uint64) * 64) + state.enemy.astype(np.uint64)) * 64 + state.piece.astype(
            np.uint64
        )

    def _check(self, state: EndgameState) -> None:
        for name in ("king", "enemy"):
            array = getattr(state, name)
            require((array >= 0) & (array < 64), name, array, "a square from 0 to 63")
        over = state.done == 1
        captured = state.piece == NOBODY
        on_board = (state.piece >= 0) & (state.piece < 64)
        require(on_board | (captured & over), "piece", state.piece, "a square from 0 to 63, or -1 once captured")
        self._check_position(state, over, captured)
        scratch = EndgameBatch(self.num_envs, self.config)
        for own, given in zip(scratch.state, state, strict=True):
            own[...] = given
        _show_all(self.table.board, self.table.rules, scratch.state)
        for name in ("grid", "mask"):
            own, given = getattr(scratch.state, name), getattr(state, name)
            require(given == own, name, given, "what follows from the pieces' squares", own)

    def _check_position(self, state: EndgameState, over: NDArray[np.bool_], captured: NDArray[np.bool_]) -> None:
        """The agent is to move in a won position, unless the episode is over."""
        squares = (state.king.astype(np.int64), state.enemy.astype(np.int64))
        index = (squares[0] * 64 + squares[1]) * 64 + np.where(captured, 0, state.piece)
        values = self.table.values.astype(np.int64)
        to_move = ~captured & (values[index] > 0)
        black = values[index + 64**3]
        ends = over & (captured | (black == 0) | (black == DRAW))
        require(to_move | ends, "enemy", state.enemy, "a square that makes the position won, or the game over")
        late = state.steps >= self.config.max_episode_steps
        require(~over | ends | late, "done", state.done, "0 before an episode's end")
        begun = (state.steps > 0) | np.isin(index, self.starts)
        require(begun, "king", state.king, "a starting position's before the first move")


@hot_kernel
def _show_all(board, rules, state):
    for i in range(len(state.king)):
        _show(board, rules, state, i)
