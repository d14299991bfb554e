"""The best move of a chess position: exact endgames, or positions that an engine has judged."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.names.values import EpisodesOrNone, NonNegative
from hrm_agent.supervised.chess import endgames
from hrm_agent.supervised.chess.judged import JudgedPositions, preferences, read_judged
from hrm_agent.supervised.chess.mating import LIMIT, Mates, play_out
from hrm_agent.supervised.chess.rules import ANSWERS, TOKENS, legal_moves
from hrm_agent.supervised.losses import IGNORED_LABEL
from hrm_agent.supervised.tasks.base import (
    SPLITS,
    Examples,
    Say,
    Solve,
    Task,
    TaskSpec,
    check_split,
    say_games,
    say_nothing,
)
from hrm_envs.endgames.tables import ENDINGS, MOST_MOVES
from hrm_envs.rng import level_seeds

EMBEDDED = "endgames"
STREAM = 7
"""First word of the seeds of held-out endgames."""
TRIES = 50
"""Positions drawn for each that is asked for, as validation and test hold none twice."""
_SHARES = 16


class ChessTask(Task):
    """Choose a legal move, the best one, from the 64 squares alone.

    The board is turned to the side to move. A square is one of 16 ids: empty, empty with a capture en passant, and of
    either side pawn, knight, bishop, rook, queen, king, and a rook that may castle. The history is not shown, so
    repetitions and the fifty-move rule are no part of it. An answer is one choice among 64 squares to move from times
    73 ids: 64 squares to move to (a pawn on the last rank becomes a queen) and nine under-promotions.

    `source=endgames` needs no engine: positions with king and queen, rook or pawn against a king, and queen against
    rook, with either side to move, drawn from tables of their exact values. All moves that mate soonest, hold out
    longest or keep a draw are labels of equal weight. A position and its mirror images are in one of the splits.

    `source=FILE` is a file that `python -m hrm_agent.chess_positions` made with an engine. Labels are the moves that it
    evaluated, weighted by a softmax of their win probability. Whole games go to training (14 of 16), validation or
    test; what has occurred in training is left out of the others.

    Args:
        source: `endgames`, or a file of positions.
        endings: of `endgames`, joined by `+`; each is drawn equally often.
        temperature: of the softmax over win probabilities (`FILE`); 0: the best move alone.
        mates: games in the task's own evaluation of `endgames`: mates with a rook and with a queen against the
            defence that lasts longest, within 50 moves; 0: none.
        seed: plays no part.

    Raises:
        ValueError: an unknown ending, a number out of range, or a file that cannot be used; the message names the line.
    """

    def __init__(
        self,
        *,
        source: str = EMBEDDED,
        endings: str = "KQK+KRK+KPK+KQKR",
        temperature: NonNegative = 0.02,
        mates: EpisodesOrNone = 100,
        seed: int = 0,
    ) -> None:
        self.endings = endings.split("+")
        wrong = [name for name in self.endings if name not in ENDINGS]
        if wrong or len(set(self.endings)) < len(self.endings):
            raise ValueError(f"endings={endings}: expected some of {'+'.join(ENDINGS)}, each once")
        self.source, self.temperature, self.mates = source, temperature, mates
        self._held_out: dict[str, NDArray[np.int32]] = {}
        self._file: JudgedPositions | None = None
        choices = MOST_MOVES
        if source != EMBEDDED:
            self._file = _read_once(source, _stamp(source))
            choices = self._file.moves.shape[1]
            self._rows = split_games(self._file)
            self._weights = preferences(self._file.scores, self._file.moves, temperature)
            if not len(self._rows["train"]):
                raise ValueError(
                    f"source={source}: no game of its {len(set(self._file.games.tolist()))} is for training"
                )
        self.spec = TaskSpec(64, TOKENS, ANSWERS, grid=(8, 8), choices=choices)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training positions; see `Task.draw`."""
        if self._file is None:
            return self._label(endgames.draw(self.endings, "train", generator, count))
        rows = self._rows["train"]
        return self._from_file(rows[generator.integers(len(rows), size=count)])

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` positions of `validation` or `test`, none twice."""
        check_split(split)
        if self._file is None:
            return self._label(self._held_out_boards(split, count))
        rows = self._rows[split]
        if len(rows) < count:
            raise ValueError(
                f"{split}: {count} positions asked for, {self.source} has {len(rows)}; ask for fewer or make more games"
            )
        return self._from_file(rows[:count])

    def score(self, examples: Examples, answers: NDArray) -> dict[str, NDArray]:
        """Beside `exact`, `top_3` and `top_5` (all bool `[N]`):

        `legal`: the most probable choice is a legal move. Of endgames also `keeps`: it is legal, and keeps a win won or
        a draw drawn; `best_legal`: the most probable legal move, if it is among the ten answers, is one of the best.
        """
        scores = super().score(examples, answers)
        if self._file is None:
            judged = endgames.judge_boards(examples.inputs)
            same = np.asarray(answers)[:, :, None] == judged.moves[:, None]  # [N, T, M]
            legal, optimal, keeps = (
                (same & of[:, None]).any(2) for of in (judged.moves >= 0, judged.optimal, judged.keeps)
            )
            first = (np.arange(len(legal)), legal.argmax(1))
            return {**scores, "legal": legal[:, 0], "keeps": keeps[:, 0], "best_legal": optimal[first]}
        moves = legal_moves(examples.inputs.astype(np.uint8))
        return {**scores, "legal": np.array([answer[0] in row for answer, row in zip(answers, moves, strict=True)])}

    def evaluate(self, solve: Solve, split: str, count: int, say: Say = say_nothing) -> dict[str, Any] | None:
        """Of `endgames`: the share of games mated, with Wilson's interval, and the moves that took; also in words."""
        if self._file is not None or not self.mates:
            return None
        report: dict[str, Any] = {}
        for name, piece in (("KRK", "rook"), ("KQK", "queen")):
            if name in self.endings:
                ended = say_games(say, f"playing {self.mates} games with king and {piece} against the longest defence")
                games = play_out(solve, piece, split, self.mates, ended=ended)
                mated = int(games.mated.sum())
                excess = (games.moves - games.shortest)[games.mated]
                report |= {
                    f"{name}_mated": mated / self.mates,
                    f"{name}_mated_ci95": list(wilson_interval(mated, self.mates)),
                    f"{name}_games": self.mates,
                    f"{name}_excess_moves": float(excess.mean()) if mated else None,
                    f"{name}_no_legal_answer": float(games.stuck.mean()),
                    f"king and {piece}": _describe(games),
                }
        return report

    def _held_out_boards(self, split: str, count: int) -> NDArray[np.int32]:
        known = self._held_out.get(split, np.zeros((0, 64), np.int32))
        if len(known) < count:
            generator = np.random.default_rng([STREAM, SPLITS.index(split)])
            found: dict[bytes, NDArray[np.int32]] = {}
            for _ in range(TRIES):
                for board in endgames.draw(self.endings, split, generator, 1024):
                    found.setdefault(board.tobytes(), board)
                if len(found) >= count:
                    break
            known = np.array(list(found.values()), np.int32)
            self._held_out[split] = known
        if len(known) < count:
            raise ValueError(f"{split}: {count} positions asked for, found {len(known)} different ones; ask for fewer")
        return known[:count]

    def _label(self, boards: NDArray[np.int32]) -> Examples:
        judged = endgames.judge_boards(boards)
        labels = np.where(judged.optimal, judged.moves, IGNORED_LABEL).astype(np.int32)
        weights = judged.optimal / judged.optimal.sum(1, keepdims=True)
        return Examples(boards, labels, np.zeros(len(boards), np.int32), weights.astype(np.float32))

    def _from_file(self, rows: NDArray[np.int64]) -> Examples:
        assert self._file is not None
        moves = self._file.moves[rows].astype(np.int32)
        labels = np.where(moves >= 0, moves, IGNORED_LABEL).astype(np.int32)
        boards = self._file.tokens[rows].astype(np.int32)
        return Examples(boards, labels, np.zeros(len(rows), np.int32), self._weights[rows])


def _describe(games: Mates) -> str:
    """Games as a line for the terminal."""
    mated = games.mated
    line = f"mated in {mated.mean():.3f} of {len(mated)} games, within {LIMIT} moves"
    if mated.any():
        line += f", {(games.moves - games.shortest)[mated].mean():.1f} more than the fewest on average"
    return f"{line}; {games.stuck.mean():.3f} ended without a legal answer"


@lru_cache(maxsize=1)
def _read_once(source: str, stamp: tuple[int, ...]) -> JudgedPositions:
    """The positions of a file, read once as long as it stays the same: a run checks its task before it begins."""
    return read_judged(source)


def _stamp(source: str) -> tuple[int, ...]:
    """What changes when a file does; empty where there is none."""
    try:
        status = Path(source).stat()
    except (OSError, ValueError):
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def split_games(positions: JudgedPositions) -> dict[str, NDArray[np.int64]]:
    """The rows of each split: whole games, and of validation and test no position that occurs in training, or twice."""
    games, seed = positions.games, np.full(len(positions.games), positions.heading.seed % 2**62, np.int64)
    shares = level_seeds(seed, games, 0) % _SHARES
    rows = {"train": np.flatnonzero(shares < _SHARES - 2)}
    seen = {board.tobytes() for board in positions.tokens[rows["train"]]}
    for place, split in enumerate(SPLITS[1:]):
        kept = []
        for row in np.flatnonzero(shares == _SHARES - 2 + place):
            board = positions.tokens[row].tobytes()
            if board not in seen:
                seen.add(board)
                kept.append(row)
        rows[split] = np.array(kept, np.int64)
    return rows
