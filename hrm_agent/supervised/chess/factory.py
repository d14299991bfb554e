"""Positions from games of an engine with weaker forms of itself, each with the engine's evaluation of several moves."""

from __future__ import annotations

import fcntl
import itertools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from hrm_agent.supervised.chess.board import START, Position, read_fen, read_uci, write_fen, write_uci
from hrm_agent.supervised.chess.engine import Engine, EngineError
from hrm_agent.supervised.chess.judged import (
    FORMAT,
    VERSION,
    Game,
    Heading,
    Judgement,
    read_games,
    read_heading,
    win_probability,
)
from hrm_agent.supervised.chess.rules import ANSWERS, BISHOP, KING, KNIGHT, PAWN, THEIRS

STREAM = 9
"""First word of the seeds of games."""
TEMPERATURES = (0.0, 0.02, 0.1)
RANDOM_MOVES = (0.0, 0.05, 0.2)
"""A player's softmax over win probabilities, and its share of random moves; each side of a game draws its own."""
DECIDED, DECIDED_PLIES = 1500, 8
"""Centipawns beyond which a game that stays there for so many plies is over."""
Say = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How games are made; with the engine and the seed it determines them.

    Attributes:
        nodes: of the search of a position.
        moves: scored in each.
        opening: random plies at a game's beginning at most; positions are recorded from there on.
        max_plies: after which a game is broken off.
        hash_mb: memory of the engine's table in MB, which its searches depend on.
    """

    nodes: int
    moves: int
    opening: int
    max_plies: int
    hash_mb: int = 16


class _Player:
    """The engine, made weaker: it draws among the moves that it has scored, and at times among all."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.temperature = float(generator.choice(TEMPERATURES))
        self.random = float(generator.choice(RANDOM_MOVES))

    def choose(self, judged: Judgement, legal: list[str], generator: np.random.Generator) -> str:
        if generator.random() < self.random:
            return legal[int(generator.integers(len(legal)))]
        if self.temperature == 0:
            return judged.moves[0]
        worth = win_probability(np.array(judged.scores))
        weights = np.exp((worth - worth.max()) / self.temperature)
        return judged.moves[int(generator.choice(len(weights), p=weights / weights.sum()))]


def play_game(engine: Engine, number: int, recipe: Recipe, seed: int) -> Game:
    """One game from a random opening, a function of the engine, the number, the recipe and the seed.

    Raises:
        EngineError: the engine died, hung, or gave a move that is illegal.
    """
    generator = np.random.default_rng([STREAM, seed, number])
    players = (_Player(generator), _Player(generator))
    position = _open(generator, recipe.opening)
    engine.new_game()
    judged: list[Judgement] = []
    seen: Counter[bytes] = Counter()
    idle, decided = 0, 0
    for ply in range(recipe.max_plies):
        seen[position.tokens.tobytes() + bytes([position.white])] += 1
        result = result_of(position, idle, max(seen.values()))
        if result or decided >= DECIDED_PLIES:
            return Game(number, result or _winner(position.white == (judged[-1].scores[0] < 0)), judged)
        judged.append(_judge(engine, position, recipe))
        decided = decided + 1 if abs(judged[-1].scores[0]) >= DECIDED else 0
        legal = [write_uci(position, int(move)) for move in position.moves()]
        move = read_uci(position, players[ply % 2].choose(judged[-1], legal, generator))
        after = position.after(move)
        taken = (after.tokens >= PAWN).sum() < (position.tokens >= PAWN).sum()
        idle = 0 if taken or position.tokens[move // ANSWERS] == PAWN else idle + 1
        position = after
    return Game(number, "*", judged)


def _open(generator: np.random.Generator, plies: int) -> Position:
    """The position after some random moves; begun again where a game ends among them."""
    while True:
        position = read_fen(START)
        for _ in range(int(generator.integers(plies + 1))):
            moves = position.moves()
            if not len(moves):
                break
            position = position.after(int(generator.choice(moves)))
        if len(position.moves()):
            return position


def _judge(engine: Engine, position: Position, recipe: Recipe) -> Judgement:
    fen = write_fen(position)
    lines = engine.search(fen, recipe.nodes, recipe.moves)
    legal = {write_uci(position, int(move)) for move in position.moves()}
    for line in lines:
        if line.move not in legal:
            raise EngineError(f"engine={engine.path}: gave {line.move}, which is illegal in {fen}")
    return Judgement(fen, [line.move for line in lines], [line.score for line in lines])


def result_of(position: Position, idle: int, repeated: int) -> str:
    """A game's result by the rules; empty while it goes on."""
    if not len(position.moves()):
        return _winner(not position.white) if position.in_check() else "1/2-1/2"
    pieces = np.sort(np.where(position.tokens >= PAWN + THEIRS, position.tokens - THEIRS, position.tokens))
    bare = (pieces > 1).sum() <= 3 and set(pieces[pieces > 1].tolist()) <= {KNIGHT, BISHOP, KING}
    return "1/2-1/2" if bare or idle >= 100 or repeated >= 3 else ""


def _winner(white: bool) -> str:
    return "1-0" if white else "0-1"


class Crew:
    """Threads that play games by number, each with an engine of its own; results come in the order of the numbers.

    Args:
        start: starts an engine.
        play: plays a game.
        workers: threads.
        first: number of the first game.
    """

    def __init__(
        self, start: Callable[[], Engine], play: Callable[[Engine, int], Game], workers: int, first: int
    ) -> None:
        self._start, self._play = start, play
        self._numbers, self._lock = itertools.count(first), threading.Lock()
        self._results: queue.Queue[tuple[int, Game | Exception]] = queue.Queue()
        self._over = threading.Event()
        self._engines: list[Engine | None] = [None] * workers
        self._first = first
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(workers)]

    def games(self) -> Iterator[Game]:
        """Endless games.

        Raises:
            EngineError: an engine failed twice in one game; all games before that one have come.
        """
        for thread in self._threads:
            thread.start()
        waiting: dict[int, Game | Exception] = {}
        for number in itertools.count(self._first):
            while number not in waiting:
                played, result = self._results.get()
                waiting[played] = result
            game = waiting.pop(number)
            if isinstance(game, Exception):
                raise game
            yield game

    def stop(self) -> None:
        """End all engines and wait for the threads."""
        self._over.set()
        with self._lock:
            for engine in self._engines:
                if engine is not None:
                    engine.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5)

    def _work(self, place: int) -> None:
        while not self._over.is_set():
            with self._lock:
                number = next(self._numbers)
            try:
                result: Game | Exception = self._try(place, number)
            except Exception as error:  # passed on to the thread that waits
                result = error
            self._results.put((number, result))
            if isinstance(result, Exception):
                return

    def _try(self, place: int, number: int) -> Game:
        """A game; where the engine fails, it is started again and the game played from its beginning, once."""
        try:
            return self._play(self._engine(place, False), number)
        except EngineError:
            if self._over.is_set():
                raise
        return self._play(self._engine(place, True), number)

    def _engine(self, place: int, anew: bool) -> Engine:
        engine = self._engines[place]
        if engine is not None and not anew:
            return engine
        if engine is not None:
            engine.close()
        engine = self._start()
        with self._lock:
            self._engines[place] = engine
            if self._over.is_set():
                engine.close()
        return engine


def make_positions(
    out: Path, positions: int, start: Callable[[], Engine], recipe: Recipe, workers: int, seed: int, say: Say
) -> tuple[int, int]:
    """Append games to a file until it holds so many positions; those that are there are kept.

    The file depends on the engine, the recipe and the seed, not on the number of workers or on interruptions. Games are
    written whole, in order; after a kill an incomplete last line is cut off.

    Args:
        start: starts an engine.
        say: called after every game with positions and games in the file, and seconds since the start.

    Returns:
        Positions and games in the file.

    Raises:
        ValueError: the file is in use, or was made otherwise.
        EngineError: an engine failed twice in one game; the games before it have been written.
    """
    with start() as engine:
        heading = Heading(FORMAT, VERSION, engine.name, recipe.nodes, recipe.moves, seed, _settings(recipe))
    with _appending(out) as file:
        games, made = _resume(file, out, heading)
        if made >= positions:
            return made, games
        crew = Crew(start, lambda engine, number: play_game(engine, number, recipe, seed), workers, games)
        begun = time.monotonic()
        try:
            for game in crew.games():
                file.write(msgspec.json.encode(game) + b"\n")
                file.flush()
                os.fsync(file.fileno())
                games, made = games + 1, made + len(game.positions)
                say(made, games, time.monotonic() - begun)
                if made >= positions:
                    break
        finally:
            crew.stop()
    return made, games


def _settings(recipe: Recipe) -> dict[str, int | float | str]:
    return {"opening": recipe.opening, "max_plies": recipe.max_plies, "hash_mb": recipe.hash_mb}


@contextmanager
def _appending(out: Path) -> Iterator[BinaryIO]:
    """A file open for reading and appending, locked. Raises: ValueError where another process has it."""
    with open(out, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out={out}: another process writes to it; wait for it, or give another file") from None
        yield file


def _resume(file: BinaryIO, out: Path, heading: Heading) -> tuple[int, int]:
    """Games and positions that are there, behind which writing goes on.

    Raises:
        ValueError: the file was made with other settings, or its games are not numbered from 0.
    """
    begins = msgspec.json.encode(heading) + b"\n"
    file.seek(0)
    first = file.readline()
    if not first.endswith(b"\n"):  # nothing, or a heading that was cut off
        if not begins.startswith(first):
            raise ValueError(f"out={out}: is no file of positions; give another file, which is then made")
        file.truncate(0)
        file.write(begins)
        file.flush()
        return 0, 0
    there = read_heading(out)
    for name in ("engine", "nodes", "moves", "seed", "settings"):
        if getattr(there, name) != getattr(heading, name):
            raise ValueError(
                f"out={out}: made with {name}={getattr(there, name)}, not {getattr(heading, name)}; "
                "give what it was made with, or another file"
            )
    content = len(first)
    for line in file:
        content += len(line) if line.endswith(b"\n") else 0
    file.truncate(content)
    games = positions = 0
    for number, game in read_games(out):
        if game.game != games:
            raise ValueError(f"out={out}: line {number} is game {game.game}, expected {games}; give another file")
        games, positions = games + 1, positions + len(game.positions)
    return games, positions
