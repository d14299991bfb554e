"""Games of a puzzle model in `ChessEndgame-v0`: does it mate the bare king?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.supervised.chess.endgames import tokens_of
from hrm_agent.supervised.chess.rules import ANSWERS
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.base import Examples, Solve
from hrm_envs.endgames.batch import DISTANCES, KING_MOVES
from hrm_envs.endgames.env import ChessEndgameVectorEnv
from hrm_envs.endgames.geometry import DIRECTIONS
from hrm_envs.endgames.tables import MOST_MOVES

LIMIT = 50
"""Moves of the attacker."""


class Mates(NamedTuple):
    """N games: `mated` bool `[N]`; `moves` int64 `[N]`, played; `shortest` int64 `[N]`, with best play; `stuck` bool
    `[N]`: the game ended because none of the answers was legal."""

    mated: NDArray[np.bool_]
    moves: NDArray[np.int64]
    shortest: NDArray[np.int64]
    stuck: NDArray[np.bool_]


def legal_actions(king: int, piece: int, mask: NDArray[np.int8]) -> dict[int, int]:
    """The environment's legal actions by the number of the move that each of them makes.

    Args:
        king, piece: squares of the attacker's king and of its rook or queen.
        mask: int8 `[A]`, see `hrm_envs.ChessEndgameEnv`.
    """
    found = {}
    for action in np.flatnonzero(mask).tolist():
        start, direction, distance = king, action, 1
        if action >= KING_MOVES:
            start, (direction, distance) = piece, divmod(action - KING_MOVES, DISTANCES)
            distance += 1
        up, right = DIRECTIONS[direction]
        found[ANSWERS * start + start + distance * (8 * up + right)] = action
    return found


def play_out(
    solve: Solve,
    piece: str,
    split: str,
    games: int,
    limit: int = LIMIT,
    ended: Callable[[int], Any] | None = None,
) -> Mates:
    """Play the most probable legal moves, against the defence that lasts longest.

    Args:
        solve: gives answers to boards.
        piece: `rook` or `queen`.
        split: of the starting positions.
        games: N.
        limit: moves.
        ended: called after every move with the number of games that have ended.
    """
    env = ChessEndgameVectorEnv(games, piece=piece, split=split, max_episode_steps=limit)
    _, infos = env.reset(seed=0)
    shortest = env.clairvoyant().astype(np.int64)
    mated, stuck = np.zeros(games, bool), np.zeros(games, bool)
    moves, on = np.zeros(games, np.int64), np.ones(games, bool)
    while on.any():
        rows = np.flatnonzero(on)
        actions = infos["action_mask"].argmax(1)  # of games that are over: any legal move
        for row, choices in zip(rows, _ask(solve, env, rows).tolist(), strict=True):
            state = env.batch.state
            legal = legal_actions(int(state.king[row]), int(state.piece[row]), state.mask[row])
            chosen = [legal[choice] for choice in choices if choice in legal]
            stuck[row] = not chosen
            actions[row] = chosen[0] if chosen else actions[row]
        on &= ~stuck
        moves[on] += 1
        _, _, terminated, truncated, infos = env.step(actions)
        over = on & (terminated | truncated)
        if over.any():
            mated[over] = infos["episode"]["success"][over]
        on &= ~over
        if ended is not None:
            ended(int((~on).sum()))
    return Mates(mated, moves, shortest, stuck)


def _ask(solve: Solve, env: ChessEndgameVectorEnv, rows: NDArray[np.int64]) -> NDArray[np.int16]:
    """The most probable choices int16 `[len(rows), T]`."""
    state = env.batch.state
    squares = np.stack([state.king, state.enemy, state.piece], 1)[rows].astype(np.int64)
    boards = tokens_of(env.batch.table, np.zeros(len(rows), np.int64), squares)
    return solve(unlabelled(boards)).last


def unlabelled(boards: NDArray) -> Examples:
    """Puzzles of boards int `[N, 64]` whose answer is not known: a model is shown no labels in any case."""
    labels = np.full((len(boards), MOST_MOVES), IGNORED_LABEL, np.int32)
    labels[:, 0] = 0
    weights = (labels >= 0).astype(np.float32)
    return Examples(boards.astype(np.int32), labels, np.zeros(len(boards), np.int32), weights)
