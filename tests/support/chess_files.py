"""Small files of judged positions, as `hrm_agent.chess_positions` writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from hrm_agent.supervised.chess.board import START, read_fen, write_fen, write_uci


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
