"""Small files of judged positions, as `hrm_agent.chess_positions` writes them, and an engine that needs no process."""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hrm_agent.supervised.chess.board import START, read_fen, write_fen, write_uci
from hrm_agent.supervised.chess.engine import EngineError, Line


def heading(**changed: Any) -> dict[str, Any]:
    made = {
        "format": "hrm_agent chess positions",
        "version": 1,
        "engine": "made up",
        "nodes": 10,
        "moves": 3,
        "seed": 1,
    }
    return {**made, **changed}


def random_game(number: int, length: int = 12) -> dict[str, Any]:
    """A game of random moves, each position with up to three moves and falling scores."""
    rng, position, positions = random.Random(number), read_fen(START), []
    for _ in range(length):
        moves = position.moves().tolist()
        if not moves:
            break
        chosen = rng.sample(moves, min(3, len(moves)))
        scores = sorted((rng.randrange(-300, 300) for _ in chosen), reverse=True)
        texts = [write_uci(position, move) for move in chosen]
        positions.append({"fen": write_fen(position), "moves": texts, "scores": scores})
        position = position.after(rng.choice(moves))
    return {"game": number, "result": "*", "positions": positions}


def write_games(path: Path, games: int = 40, **changed: Any) -> Path:
    """A file of random games."""
    lines = [heading(**changed), *(random_game(number) for number in range(games))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Made:
    """Stands in for a process: scores moves by a hash. `fail`: numbers of searches, over all engines, that fail."""

    searches = 0
    name = "made"
    path = Path("made")

    def __init__(self, fail: Callable[[int], bool] = lambda search: False, wait: float = 0) -> None:
        self.fail, self.wait = fail, wait

    def new_game(self) -> None:
        pass

    def search(self, fen: str, nodes: int, lines: int = 1, moves: tuple[str, ...] = ()) -> list[Line]:
        Made.searches += 1
        time.sleep(self.wait * (zlib.crc32(fen.encode()) % 3))
        if self.fail(Made.searches):
            raise EngineError("engine=made: ended by itself (exit code 1)")
        position = read_fen(fen)
        texts = list(moves) or [write_uci(position, int(move)) for move in position.moves()]
        scored = [Line(text, zlib.crc32((fen + text).encode()) % 400 - 200) for text in texts]
        return sorted(scored, key=lambda line: -line.score)[:lines]

    def best_move(self, fen: str, nodes: int) -> str:
        return self.search(fen, nodes)[0].move

    def set_option(self, name: str, value: object) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Made:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
