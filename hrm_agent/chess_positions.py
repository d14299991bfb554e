"""`python -m hrm_agent.chess_positions out=FILE [KEY=VALUE] ...`: positions judged by a chess engine, for `task=chess`.

A file that is there is continued, after a kill as well.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

from msgspec import Meta

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import check_output
from hrm_agent.launch.cli import fail, parse_options, usage_errors
from hrm_agent.names.values import Many, Positive, Seed, ThreadCount
from hrm_agent.supervised.chess.engine import Engine, EngineError, find_engine
from hrm_agent.supervised.chess.factory import Recipe, make_positions
from hrm_agent.supervised.chess.judged import MOST_MOVES

USAGE = "python -m hrm_agent.chess_positions out=FILE [KEY=VALUE] ..."
EXAMPLES = (
    "python -m hrm_agent.chess_positions out=positions.jsonl positions=50_000 nodes=2000 workers=2",
    "python -m hrm_agent.supervise task=chess task.source=positions.jsonl",
)
Plies = Annotated[int, Meta(ge=1, le=1000)]
Moves = Annotated[int, Meta(ge=1, le=MOST_MOVES)]


def chess_positions(
    out: str,
    positions: Many = 200_000,
    nodes: Many = 5000,
    moves: Moves = 5,
    engine: str = "stockfish",
    workers: ThreadCount = 2,
    seed: Seed = 0,
    opening: Plies = 10,
    max_plies: Plies = 160,
    hash_mb: Plies = 16,
    timeout: Positive = 60.0,
) -> tuple[int, int]:
    """Let an engine play weaker forms of itself from random openings, and score several moves of every position.

    Games are added to the file whole and in order, each a function of the engine, the settings and the seed alone, so
    that neither the number of workers nor an interruption changes what is in it.

    Args:
        out: regular file to write, or to continue.
        positions: that it shall hold at least.
        nodes: of the search of a position, for all of its moves together.
        moves: scored in each position (UCI's MultiPV).
        engine: any UCI engine: its path, or a name looked for in PATH, then in /usr/games.
        workers: engines that play at the same time, with one thread each.
        seed: of the games.
        opening: random plies at a game's beginning at most.
        max_plies: after which a game is broken off.
        hash_mb: memory of each engine's table, in MB.
        timeout: seconds without an answer after which an engine counts as hung; it is started again once in a game.

    Returns:
        Positions and games in the file.

    Raises:
        ValueError: there is no engine, or the file cannot be used.
        EngineError: an engine died or hung twice in one game; what was made before is kept.
    """
    path, program = check_output(out, continued=True), find_engine(engine)
    options = {"Threads": 1, "Hash": hash_mb}
    start = partial(Engine, program, options, timeout)
    recipe = Recipe(nodes, moves, opening, max_plies, hash_mb)
    return make_positions(path, positions, start, recipe, workers, seed, _say)


def _say(made: int, games: int, seconds: float) -> None:
    print(f"{made:,} positions in {games:,} games, {seconds:.0f} s", flush=True)


@outliving_the_terminal()
def main() -> None:
    with usage_errors():
        options = parse_options(sys.argv[1:], chess_positions, USAGE, EXAMPLES)
        try:
            made, games = chess_positions(**options)
        except EngineError as error:
            fail(f"{error}; what was made is kept in {options['out']}, the same command goes on from there", 2)
    print(f"{options['out']}: {made:,} positions in {games:,} games")


if __name__ == "__main__":
    main()
