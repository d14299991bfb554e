"""Files of chess positions with an engine's evaluation of several moves, as JSON lines: a heading, then one game each.

    {"format": "hrm_agent chess positions", "version": 1, "engine": "Stockfish 15.1", "nodes": 5000, "moves": 5, ...}
    {"game": 0, "result": "1-0", "positions": [{"fen": "...", "moves": ["e2e4", "d2d4"], "scores": [31, 28]}, ...]}

Scores are centipawns for the side to move; `MATE - n` is a mate in n moves, `n - MATE` being mated in n.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hrm_agent.files.reading import CheckpointError, open_regular
from hrm_agent.supervised.chess.board import Position, read_fens, read_uci
from hrm_agent.supervised.chess.rules import legal_moves

FORMAT, VERSION = "hrm_agent chess positions", 1
MATE = 32_000
NEAR_MATE = MATE - 1000
MOST_MOVES = 64
LONGEST_LINE = 2_000_000
"""Bytes; a game of a thousand positions has some 200,000."""
STEEPNESS = 0.00368208
CEILING = 1000
"""Centipawns; beyond it, and for a mate, the probability does not change any more."""
BLUNDER = 0.15


Line = TypeVar("Line")


class Judgement(msgspec.Struct):
    """A position, and moves of it from the best down with their scores."""

    fen: str
    moves: list[str]
    scores: list[Annotated[int, Meta(ge=-MATE, le=MATE)]]


class Game(msgspec.Struct):
    """A whole game; `game` is its number, which with the heading's seed determines it."""

    game: Annotated[int, Meta(ge=0, le=10**12)]
    result: str
    positions: list[Judgement]


class Heading(msgspec.Struct):
    """How a file was made."""

    format: str
    version: int
    engine: str
    nodes: Annotated[int, Meta(ge=1)]
    moves: Annotated[int, Meta(ge=1, le=MOST_MOVES)]
    seed: Annotated[int, Meta(ge=0)]
    settings: dict[str, int | float | str] = {}


class JudgedPositions(NamedTuple):
    """N positions of a file.

    Attributes:
        heading: of the file.
        tokens: uint8 `[N, 64]`, boards as the side to move sees them.
        white: bool `[N]`, whether that is white.
        moves: int16 `[N, M]`, numbers of moves, the best first, -1 behind the last.
        scores: int16 `[N, M]`.
        games: int64 `[N]`, the number of each position's game.
    """

    heading: Heading
    tokens: NDArray[np.uint8]
    white: NDArray[np.bool_]
    moves: NDArray[np.int16]
    scores: NDArray[np.int16]
    games: NDArray[np.int64]


def win_probability(scores: NDArray) -> NDArray[np.float64]:
    """What a score in centipawns is worth to the side to move, by Lichess's fit to games of people.

    `1 / (1 + exp(-0.00368208 * centipawns))`, with scores beyond 1,000 centipawns, and mates, as 1,000
    (https://lichess.org/page/accuracy; `WinPercent` in lichess-org/scalachess).
    """
    bounded = np.clip(np.asarray(scores, np.float64), -CEILING, CEILING)
    return 1 / (1 + np.exp(-STEEPNESS * bounded))


def is_blunder(loss: NDArray) -> NDArray[np.bool_]:
    """Losses of win probability of 0.15 or more: 0.3 on the scale from -1 to 1 of lichess-org/lila's `CpAdvice`."""
    return np.asarray(loss) >= BLUNDER


def preferences(scores: NDArray[np.int16], moves: NDArray[np.int16], temperature: float) -> NDArray[np.float32]:
    """Target probabilities float32 `[N, M]`: a softmax of win probability over the moves of a position.

    Args:
        scores, moves: `[N, M]`, see `JudgedPositions`.
        temperature: of the softmax; 0: all to the moves with the highest score.
    """
    worth = np.where(moves >= 0, scores.astype(np.float64), -np.inf)
    best = worth.max(1, keepdims=True)
    if temperature == 0:
        weights = (worth == best).astype(np.float64)
    else:
        gap = win_probability(np.where(moves >= 0, scores, -MATE)) - win_probability(best)
        weights = np.where(moves >= 0, np.exp(gap / temperature), 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a file's complete lines; what follows the last line break is left out.

    Raises:
        CheckpointError: the file cannot be read, or a line is too long.
    """
    with open_regular(path) as file:
        for number in range(1, 2**40):
            line = file.readline(LONGEST_LINE + 1)
            if not line.endswith(b"\n"):
                if len(line) > LONGEST_LINE:
                    raise CheckpointError(f"{path}: line {number} is longer than {LONGEST_LINE:,} bytes")
                return
            yield number, line


def read_heading(path: Path) -> Heading:
    """The heading of a file.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    first = next(read_lines(path), None)
    if first is None:
        raise CheckpointError(f"{path}: empty; expected positions that `python -m hrm_agent.chess_positions` has made")
    heading = _decode(path, 1, first[1], Heading)
    if heading.format != FORMAT or heading.version != VERSION:
        raise CheckpointError(f"{path}: not version {VERSION} of {FORMAT}; make it by hrm_agent.chess_positions")
    return heading


def read_games(path: Path) -> Iterator[tuple[int, Game]]:
    """The games of a file with the numbers of their lines. Raises: CheckpointError."""
    for number, line in read_lines(path):
        if number > 1:
            yield number, _decode(path, number, line, Game)


def read_judged(path: str | Path) -> JudgedPositions:
    """All positions of a file, checked: legal positions, legal moves, each once, as many scores.

    Raises:
        CheckpointError: the file cannot be read or holds something else; the message names the line.
    """
    path = Path(path)
    heading, games = read_heading(path), list(read_games(path))
    where = [(line, game.game) for line, game in games for _ in game.positions]
    judged = list(chain.from_iterable(game.positions for _, game in games))
    if not judged:
        raise CheckpointError(f"{path}: holds no game; let hrm_agent.chess_positions make some")
    moves = np.full((len(judged), heading.moves), -1, np.int16)
    scores = np.zeros((len(judged), heading.moves), np.int16)
    try:
        tokens, white = read_fens([entry.fen for entry in judged])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for row, (entry, legal) in enumerate(zip(judged, _legal(tokens), strict=True)):
        count = len(entry.moves)
        try:
            numbers = [read_uci(Position(tokens[row], bool(white[row])), move) for move in entry.moves]
        except ValueError as error:
            raise CheckpointError(f"{path}: line {where[row][0]}: {error}") from None
        if not 1 <= count == len(entry.scores) <= heading.moves or len(set(numbers)) < count:
            raise CheckpointError(
                f"{path}: line {where[row][0]}: {count} moves with {len(entry.scores)} scores; expected 1 to "
                f"{heading.moves} different moves with a score each"
            )
        if not legal.issuperset(numbers):
            raise CheckpointError(f"{path}: line {where[row][0]}: a move that is illegal in {entry.fen}")
        moves[row, :count], scores[row, :count] = numbers, entry.scores
    return JudgedPositions(heading, tokens, white, moves, scores, np.array([game for _, game in where], np.int64))


def _legal(tokens: NDArray[np.uint8], chunk: int = 10_000) -> Iterator[set[int]]:
    for at in range(0, len(tokens), chunk):
        for moves in legal_moves(tokens[at : at + chunk]):
            yield set(moves.tolist())


def _decode(path: Path, number: int, line: bytes, kind: type[Line]) -> Line:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: line {number}: {str(error).replace('`', '')}") from None
