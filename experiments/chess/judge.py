"""What a chess model's moves are worth to an engine, after every segment, and how it plays: a JSON record.

    python -m experiments.chess.judge model=RUN positions=FILE out=judged.json

Positions are those of the file's test games, which training does not see. Of each the engine searches the best move,
and every move that the model chose after any segment, each alone with the same number of nodes. The loss of a move is
the difference of their win probabilities (`hrm_agent.supervised.chess.judged.win_probability`), at least 0; a choice
that is no legal move loses all that the best move was worth. Blunders lose 0.15 or more.

Games begin with some random moves, which both sides of a pair of games play on from. The model plays the most probable
of its ten choices that is legal, and a random move where none is. A win counts 1, a draw 1/2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine import machine
from hrm_agent.evaluation.metrics import wilson_interval
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import parse_options, usage_errors
from hrm_agent.names.values import DepthOrNone, Episodes, EpisodesOrNone, Many, Seed, ThreadCount
from hrm_agent.supervised.chess.board import START, Position, read_fen, read_uci, start_and_end, write_fen, write_uci
from hrm_agent.supervised.chess.engine import Engine, EngineError, find_engine
from hrm_agent.supervised.chess.factory import result_of
from hrm_agent.supervised.chess.judged import is_blunder, win_probability
from hrm_agent.supervised.chess.mating import unlabelled
from hrm_agent.supervised.chess.rules import ANSWERS, KNIGHT, PASSANT, PAWN, QUEEN, THEIRS, legal_moves
from hrm_agent.supervised.evaluation import Solver
from hrm_agent.supervised.files import load_model, read_info
from hrm_agent.supervised.tasks.base import Solve
from hrm_agent.supervised.tasks.chess import ChessTask
from hrm_agent.training.model_folder import find_model

USAGE = "python -m experiments.chess.judge model=RUN positions=FILE out=FILE [KEY=VALUE] ..."
STREAM = 11
OPENING, MOST_PLIES = 6, 200
WORTH = {PAWN: 1, KNIGHT: 3, KNIGHT + 1: 3, KNIGHT + 2: 5, QUEEN: 9, QUEEN + 1: 0, QUEEN + 2: 5}
"""Of pieces, in pawns, for the player that captures the most."""
Start = Callable[[], Engine]
Choose = Callable[[list[Position]], list[int]]
"""A player: a legal move for each of some positions."""


def judge(
    model: str,
    positions: str,
    out: str,
    count: Episodes = 500,
    segments: DepthOrNone = 0,
    nodes: Many = 5000,
    games: EpisodesOrNone = 100,
    engine: str = "stockfish",
    engine_nodes: Many = 1000,
    workers: ThreadCount = 2,
    best: bool = False,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Judge a model of `task=chess`, and let it play.

    Args:
        model: folder of a run or of a model.
        positions: file of `hrm_agent.chess_positions`; its test games are judged.
        out: file of the record.
        count: positions, the first of the test games.
        segments: of the model; 0: as many as in training.
        nodes: of the search of a move.
        games: against each opponent: a player of random moves, one that captures the most, and the engine at its lowest
            skill; half of them with white; 0: none.
        engine: any UCI engine.
        engine_nodes: of the engine's own moves in games.
        workers: engines at the same time.
        best: the model that was best on validation positions rather than the last.
        seed: of the games' openings and of random moves.

    Returns:
        The record.
    """
    path, program = check_output(out), find_engine(engine)
    file = find_model(Path(model), best)
    info = read_info(file.parent)
    solve = Solver(load_model(file), segments or int(info.get("max_segments", 16)))
    task = ChessTask(source=positions)
    examples = task.examples("test", count)
    start = partial(Engine, program, {"Threads": 1, "Hash": 16})
    answers = solve(examples)
    boards = [Position(board, True) for board in examples.inputs.astype(np.uint8)]
    record: dict[str, Any] = {
        "command": machine.command(),
        "commit": machine.commit_of_code(),
        "processor": machine.processor()["model"],
        "model": {name: info.get(name) for name in ("task_options", "core", "seed", "steps", "seconds", "parameters")},
        "positions": count,
        "nodes": nodes,
        "engine": name_of(start),
        "segments": judge_segments(boards, answers.tokens, start, nodes, workers),
    }
    for number, scores in enumerate(task.score(examples, tokens) for tokens in answers.tokens):
        record["segments"][number] |= {name: float(values.mean()) for name, values in scores.items()}
    if games:
        record["games"] = play_all(solve, games, start, engine_nodes, seed)
    write_output(path, (json.dumps(record, indent=1) + "\n").encode())
    return record


def name_of(start: Start) -> str:
    with start() as engine:
        return engine.name


def judge_segments(
    positions: list[Position], tokens: NDArray[np.int16], start: Start, nodes: int, workers: int = 1
) -> list[dict[str, Any]]:
    """The worth of a model's moves after each segment; see the module.

    Args:
        positions: N boards, as the side to move sees them.
        tokens: int16 `[S, N, T]`, the most probable choices.
        start: starts an engine.
        nodes: of a search.
        workers: engines at the same time.

    Returns:
        For every segment the share of legal choices, mean `loss` and `loss_legal` (of the most probable choice, and of
        the most probable legal one of the T) with 95% intervals, and the shares of blunders.
    """
    legal = [set(moves.tolist()) for moves in legal_moves(np.stack([p.tokens for p in positions]))]
    first_legal = [
        [next((int(c) for c in choices if int(c) in legal[n]), None) for n, choices in enumerate(segment)]
        for segment in tokens
    ]
    wanted = [
        legal[n] & {int(move) for row in (*tokens[:, :, 0], *first_legal) if (move := row[n]) is not None}
        for n in range(len(positions))
    ]
    shares = [range(worker, len(positions), workers) for worker in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda rows: search_moves(positions, wanted, rows, start, nodes), shares)
        worth = {n: found for part in parts for n, found in part.items()}
    rows = []
    for segment, firsts in zip(tokens, first_legal, strict=True):
        losses = np.array([loss_of(worth[n], int(segment[n, 0])) for n in range(len(positions))])
        losses_legal = np.array([loss_of(worth[n], firsts[n]) for n in range(len(positions))])
        rows.append(
            {
                "legal_choice": float(np.mean([int(c) in legal[n] for n, c in enumerate(segment[:, 0])])),
                "no_legal_choice": float(np.mean([first is None for first in firsts])),
                **summary("loss", losses),
                **summary("loss_legal", losses_legal),
            }
        )
    return rows


def search_moves(
    positions: list[Position], wanted: list[set[int]], rows: range, start: Start, nodes: int
) -> dict[int, dict[int | None, float]]:
    """Win probabilities of some moves of some positions, and of the best (key None)."""
    found: dict[int, dict[int | None, float]] = {}
    with start() as engine:
        for n in rows:
            fen = write_fen(positions[n])
            engine.new_game()
            line = engine.search(fen, nodes)[0]
            found[n] = {None: float(win_probability(np.array(line.score)))}
            for move in sorted(wanted[n]):
                text = write_uci(positions[n], move)
                if text != line.move:
                    engine.new_game()
                    score = engine.search(fen, nodes, moves=(text,))[0].score
                    found[n][move] = float(win_probability(np.array(score)))
                else:
                    found[n][move] = found[n][None]
    return found


def loss_of(worth: dict[int | None, float], move: int | None) -> float:
    """The loss of a move; of one that is illegal, or of none, all that the best is worth."""
    if move is None or move not in worth:
        return worth[None]
    return max(0.0, worth[None] - worth[move])


def summary(name: str, losses: NDArray[np.float64]) -> dict[str, Any]:
    half = 1.96 * float(losses.std()) / len(losses) ** 0.5
    blunders = int(is_blunder(losses).sum())
    return {
        name: float(losses.mean()),
        f"{name}_ci95": [float(losses.mean()) - half, float(losses.mean()) + half],
        f"{name}_blunders": blunders / len(losses),
        f"{name}_blunders_ci95": list(wilson_interval(blunders, len(losses))),
    }


def play_all(solve: Solve, games: int, start: Start, nodes: int, seed: int) -> dict[str, Any]:
    """The results against each opponent."""
    results = {}
    with start() as engine:
        engine.set_option("Skill Level", 0)
        opponents: dict[str, Callable[[np.random.Generator], Choose]] = {
            "random": lambda generator: partial(at_random, generator),
            "greedy": lambda generator: partial(greedy, generator),
            "engine at skill 0": lambda generator: partial(by_engine, engine, nodes),
        }
        for number, (name, make) in enumerate(opponents.items()):
            generator = np.random.default_rng([STREAM, seed, number])
            results[name] = play_games(partial(by_model, solve, generator), make(generator), games, generator)
    return results


def play_games(model: Choose, other: Choose, games: int, generator: np.random.Generator) -> dict[str, Any]:
    """Games of a model, in pairs from one opening with either colour.

    Returns:
        `games`, `won`, `drawn`, `lost`, `unfinished` (broken off, counted as drawn in `score`), the share won with
        Wilson's interval, and `score`.
    """
    openings = [open_game(generator) for _ in range((games + 1) // 2)]
    boards = [openings[n // 2] for n in range(games)]
    white = [n % 2 == 0 for n in range(games)]  # whether the model has it
    seen: list[dict[bytes, int]] = [{} for _ in range(games)]
    idle, results = [0] * games, [""] * games
    for _ in range(MOST_PLIES):
        for n in (n for n in range(games) if not results[n]):
            key = boards[n].tokens.tobytes() + bytes([boards[n].white])
            seen[n][key] = seen[n].get(key, 0) + 1
            results[n] = result_of(boards[n], idle[n], seen[n][key])
        on = [n for n in range(games) if not results[n]]
        if not on:
            break
        turns = [[n for n in on if (boards[n].white == white[n]) == mine] for mine in (True, False)]
        for player, turn in zip((model, other), turns, strict=True):
            for n, move in zip(turn, player([boards[n] for n in turn]) if turn else [], strict=True):
                after = boards[n].after(move)
                taken = (after.tokens >= PAWN).sum() < (boards[n].tokens >= PAWN).sum()
                idle[n] = 0 if taken or boards[n].tokens[start_and_end(move)[0]] == PAWN else idle[n] + 1
                boards[n] = after
    won = sum(result == ("1-0" if white[n] else "0-1") for n, result in enumerate(results))
    drawn, unfinished = results.count("1/2-1/2"), results.count("")
    return {
        "games": games,
        "won": won,
        "drawn": drawn,
        "lost": games - won - drawn - unfinished,
        "unfinished": unfinished,
        "won_share": won / games,
        "won_share_ci95": list(wilson_interval(won, games)),
        "score": (won + 0.5 * (drawn + unfinished)) / games,
    }


def open_game(generator: np.random.Generator) -> Position:
    """The position after six random moves; one in which there is a move."""
    while True:
        position = read_fen(START)
        for _ in range(OPENING):
            moves = position.moves()
            position = position.after(int(generator.choice(moves))) if len(moves) else position
        if len(position.moves()):
            return position


def by_model(solve: Solve, generator: np.random.Generator, positions: list[Position]) -> list[int]:
    """The most probable legal moves; random ones where none of the choices is legal."""
    choices = solve(unlabelled(np.stack([p.tokens for p in positions]))).last
    chosen = []
    for position, row in zip(positions, choices.tolist(), strict=True):
        legal = position.moves().tolist()
        found = [choice for choice in row if choice in legal]
        chosen.append(found[0] if found else int(generator.choice(legal)))
    return chosen


def at_random(generator: np.random.Generator, positions: list[Position]) -> list[int]:
    """A random legal move of each."""
    return [int(generator.choice(position.moves())) for position in positions]


def greedy(generator: np.random.Generator, positions: list[Position]) -> list[int]:
    """The move that captures, or promotes to, the most; a random one of several."""
    chosen = []
    for position in positions:
        moves = position.moves().tolist()
        gains = [gain_of(position.tokens, move) for move in moves]
        best = [move for move, gain in zip(moves, gains, strict=True) if gain == max(gains)]
        chosen.append(int(generator.choice(best)))
    return chosen


def gain_of(tokens: NDArray[np.uint8], move: int) -> int:
    """Pawns that a move wins at once."""
    start, end = start_and_end(move)
    pawn, taken = tokens[start] == PAWN, int(tokens[end])
    gain = WORTH[taken - THEIRS] if taken >= PAWN + THEIRS else int(pawn and taken == PASSANT)
    if pawn and end >= 56:
        under = move % ANSWERS - 64
        gain += WORTH[QUEEN if under < 0 else KNIGHT + under // 3] - WORTH[PAWN]
    return gain


def by_engine(engine: Engine, nodes: int, positions: list[Position]) -> list[int]:
    """The moves that an engine plays, which at a low skill are not the best that it has found."""
    chosen = []
    for position in positions:
        engine.new_game()
        move = read_uci(position, engine.best_move(write_fen(position), nodes))
        if move not in position.moves():
            raise EngineError(f"engine={engine.path}: gave a move that is illegal in {write_fen(position)}")
        chosen.append(move)
    return chosen


def main() -> None:
    with usage_errors():
        options = parse_options(
            sys.argv[1:], judge, "python -m experiments.chess.judge model=RUN positions=FILE out=FILE"
        )
        try:
            record = judge(**options)
        except EngineError as error:
            raise ValueError(str(error)) from None
    for number, row in enumerate(record["segments"], 1):
        print(
            f"segment {number}: legal {row['legal_choice']:.3f}, loss {row['loss']:.4f}, legal {row['loss_legal']:.4f}"
        )
    for name, result in record.get("games", {}).items():
        print(f"{name}: {result['won']} won, {result['drawn']} drawn, {result['lost']} lost of {result['games']}")


if __name__ == "__main__":
    main()
