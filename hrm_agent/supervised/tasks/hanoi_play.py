"""Games of the Towers of Hanoi by a model, at random and by looking one move ahead, and reports on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.evaluation.metrics import wilson_interval
from hrm_envs.hanoi_rules import NO_DISK, PAIRS, legal_moves, legal_pairs, optimal_moves, top_disks

EXCESS = (1, 2, 4)
"""Games count as solved in so many times the moves of a shortest solution; none is played for longer."""

Pegs = NDArray[np.int64]
"""States int64 [N, n], the largest disk first; see `hrm_envs.hanoi_rules`."""
Choose = Callable[[Pegs, Pegs], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""States and goals -> the disks to move, as columns, and the pegs they move to, each int64 [N]."""


class Games(NamedTuple):
    """N games that were played to their end.

    Attributes:
        distance: int64 [N], moves of a shortest solution.
        moves: int64 [N], legal moves that were made.
        solved: bool [N], the last of them reached the goal.
        illegal: bool [N], an illegal move ended the game.
    """

    distance: NDArray[np.int64]
    moves: NDArray[np.int64]
    solved: NDArray[np.bool_]
    illegal: NDArray[np.bool_]


def play_out(
    choose: Choose, pegs: Pegs, goals: Pegs, repeats: bool = False, ended: Callable[[int], Any] | None = None
) -> Games:
    """Play from states to goals, each game until it is solved, a move is illegal, or 4 times its distance is played.

    Args:
        choose: the player; it is asked for the games that go on.
        repeats: the player may choose otherwise in the same state. A game of one that does not ends when it comes back
            to a state (Brent 1980, An improved Monte Carlo factorization algorithm: it is compared with one earlier
            state, which is replaced at every power of two).
        ended: called after every move with the number of games that have ended.
    """
    pegs, distance = pegs.copy(), optimal_moves(pegs, goals).distance
    moves, illegal = np.zeros(len(pegs), np.int64), np.zeros(len(pegs), np.bool_)
    going, earlier = np.flatnonzero(distance), pegs.copy()
    step = 0
    while len(going):
        disk, to = choose(pegs[going], goals[going])
        legal = legal_moves(pegs[going], disk, to)
        illegal[going[~legal]] = True
        going, disk, to = going[legal], disk[legal], to[legal]
        pegs[going, disk] = to
        moves[going] += 1
        step += 1
        over = (pegs[going] == goals[going]).all(1) | (moves[going] >= max(EXCESS) * distance[going])
        if not repeats:
            over |= (pegs[going] == earlier[going]).all(1)
        if step & (step - 1) == 0:
            earlier[going] = pegs[going]
        going = going[~over]
        if ended is not None:
            ended(len(pegs) - len(going))
    return Games(distance, moves, (pegs == goals).all(1), illegal)


def random_player(generator: np.random.Generator) -> Choose:
    """Every legal move equally likely."""

    def choose(pegs: Pegs, goals: Pegs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _moves(pegs, np.where(legal_pairs(pegs), generator.random((len(pegs), len(PAIRS))), -1.0).argmax(1))

    return choose


def look_ahead_player(generator: np.random.Generator) -> Choose:
    """One of the legal moves after which `misplaced` is least, each equally likely."""

    def choose(pegs: Pegs, goals: Pegs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        best = _look_ahead(pegs, goals)
        return _moves(pegs, np.where(best, generator.random(best.shape), -1.0).argmax(1))

    return choose


def misplaced(pegs: Pegs, goals: Pegs) -> NDArray[np.int64]:
    """Disks that are not where they are to go, each counting twice as much as the next smaller one: int64 [N].

    It is the number of moves that would be left if no disk lay in another's way and each counted as a tower.
    """
    there = pegs != NO_DISK
    smaller = there[:, ::-1].cumsum(1)[:, ::-1] - there
    return ((pegs != goals).astype(np.int64) << smaller).sum(1)


def _look_ahead(pegs: Pegs, goals: Pegs) -> NDArray[np.bool_]:
    """Which of `PAIRS` a look ahead chooses: bool [N, 6]."""
    left = np.full((len(pegs), len(PAIRS)), np.iinfo(np.int64).max)
    legal = legal_pairs(pegs)
    for pair in range(len(PAIRS)):
        rows = np.flatnonzero(legal[:, pair])
        after = pegs[rows]
        disk, to = _moves(after, np.full(len(rows), pair))
        after[np.arange(len(rows)), disk] = to
        left[rows, pair] = misplaced(after, goals[rows])
    return left == left.min(1, keepdims=True)


def _moves(pegs: Pegs, pair: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The disks and pegs of moves between pegs, by their numbers in `PAIRS`."""
    origin, to = np.array(PAIRS)[pair].T
    return top_disks(pegs)[np.arange(len(pegs)), origin], to


def _optimal_pairs(pegs: Pegs, goals: Pegs) -> NDArray[np.bool_]:
    """Which of `PAIRS` are optimal: bool [N, 6]."""
    best = optimal_moves(pegs, goals)
    found = np.zeros((len(pegs), len(PAIRS)), np.bool_)
    for pair in range(len(PAIRS)):
        disk, to = _moves(pegs, np.full(len(pegs), pair))
        found[:, pair] = ((best.disk == disk[:, None]) & (best.to == to[:, None])).any(1)
    return found & legal_pairs(pegs)


def report_states(scores: dict[str, NDArray[np.bool_]], pegs: Pegs, goals: Pegs) -> dict[str, Any]:
    """The scores of single states, each with its interval, and how often the two floors choose an optimal move."""
    optimal = _optimal_pairs(pegs, goals)
    report: dict[str, Any] = {"states": len(pegs)}
    for name, values in scores.items():
        report |= _rate(name, values)
    for name, chosen in (("random", legal_pairs(pegs)), ("look_ahead", _look_ahead(pegs, goals))):
        report[f"{name}_exact"] = float(((optimal & chosen).sum(1) / chosen.sum(1)).mean())
    return report


def report_games(
    choose: Choose, pegs: Pegs, goals: Pegs, wrong: float, ended: Callable[[int], Any] | None = None
) -> dict[str, Any]:
    """Whole games of a model and of the two floors.

    Args:
        choose: the model.
        wrong: the rate e at which its choice in a single state is no optimal move.
        ended: see `play_out`; of the model's games.

    Returns:
        `games`; their mean `distance`; `optimal` (solved in the fewest moves), `solved_2x` and `solved_4x` (within so
        many times as many) with intervals; `illegal`, games that an illegal move ended; `predicted`, the mean of
        (1 - e)^distance, which `optimal` would be if errors were independent and as frequent as in random states;
        `random` and `look_ahead`, the same shares of the floors.
    """
    played = play_out(choose, pegs, goals, ended=ended)
    report: dict[str, Any] = {"games": len(pegs), "distance": float(played.distance.mean())}
    for name, solved in _solved(played).items():
        report |= _rate(name, solved)
    report["illegal"] = float(played.illegal.mean())
    report["predicted"] = float(((1 - wrong) ** played.distance).mean())
    for name, player in (("random", random_player), ("look_ahead", look_ahead_player)):
        floor = play_out(player(np.random.default_rng(0)), pegs, goals, repeats=True)
        report[name] = {of: float(solved.mean()) for of, solved in _solved(floor).items()}
    return report


def describe(report: dict[str, Any]) -> str:
    """A report as a line for the terminal."""
    line = f"optimal move {report['exact']:.3f} (random {report['random_exact']:.3f}), legal {report['legal']:.3f}"
    if "games" in report:
        solved = f"{report['optimal']:.2f} optimally, {report['solved_2x']:.2f} in twice the moves"
        line += f"; games solved: {solved} (look-ahead {report['look_ahead']['solved_2x']:.2f})"
    return line


def _solved(games: Games) -> dict[str, NDArray[np.bool_]]:
    names = {factor: "optimal" if factor == 1 else f"solved_{factor}x" for factor in EXCESS}
    return {name: games.solved & (games.moves <= factor * games.distance) for factor, name in names.items()}


def _rate(name: str, values: NDArray[np.bool_]) -> dict[str, Any]:
    return {name: float(values.mean()), f"{name}_ci95": list(wilson_interval(int(values.sum()), len(values)))}
