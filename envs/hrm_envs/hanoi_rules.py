"""The rules of the Towers of Hanoi between any two states: legal moves, distances, and all optimal first moves.

A state of n disks on pegs 0, 1, 2 is the peg of every disk, the largest disk first. It is regular whatever the pegs,
since disks on a peg lie in order of size, so there are 3^n of them.

Distances follow from the largest disk that is not where it should be (Hinz, Klavzar and Petr, The Tower of Hanoi: Myths
and Maths, 2018; Romik, Shortest paths in the Tower of Hanoi graph and finite automata, 2006, arXiv math/0310109). It
moves once, straight to its goal, while all smaller disks are on the third peg; or twice, by way of the third peg, with
all smaller disks on its goal and then on its first peg. How far all smaller disks are from one peg is read off in one
scan from the largest to the smallest: a disk that is not on the target must go there, and those below it in size then
have the third peg as their target. Either way may be shorter, and if both are equal two first moves may be optimal.

All functions take N states at once, and are plain numpy. States of fewer disks than there are columns have
``NO_DISK`` in the others, in front of the disks or behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_envs.rng import mix_array

PEGS = 3
MAX_DISKS = 30
"""Distances are below 2^31 then."""
NO_DISK = -1
"""The peg of a column without a disk."""
FEW_DISKS = 2
"""Of so many disks or fewer there are too few pairs of states to be divided: all are for every split."""
SHARES = 8
"""Of the other pairs 6 are for training, 1 for validation and 1 for test."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
"""The ordered pairs of pegs: from, to."""


class Moves(NamedTuple):
    """Of N states, the distance to their goals and the optimal first moves.

    Attributes:
        distance: int64 [N], moves of a shortest solution.
        disk: int64 [N, 2], the disks that may move first; -1 where there is no first, or no second, such move.
        to: int64 [N, 2], the peg each of them moves to; -1 likewise.
    """

    distance: NDArray[np.int64]
    disk: NDArray[np.int64]
    to: NDArray[np.int64]


def _gather(
    pegs: NDArray[np.int64], tower: NDArray[np.int64], largest: NDArray[np.int64], target: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Bring all disks smaller than ``largest`` to one peg.

    Args:
        pegs, tower: [N, n]; see ``_towers``. largest, target: [N].

    Returns:
        Moves that it takes, and the disk that moves first and its peg, each int64 [N]; -1 where none has to.
    """
    moves, disk = np.zeros(len(pegs), np.int64), np.full(len(pegs), -1)
    to = disk.copy()
    for k in range(pegs.shape[1]):
        away = (largest < k) & (pegs[:, k] != target) & (pegs[:, k] != NO_DISK)
        moves += away * tower[:, k]
        disk[away], to[away] = k, target[away]
        target = np.where(away, 3 - pegs[:, k] - target, target)
    return moves, disk, to


def optimal_moves(pegs: NDArray, goals: NDArray) -> Moves:
    """Distances and all optimal first moves from states to goals, each int [N, n] of pegs, the largest disk first.

    From the goal itself the distance is 0 and there is no move.
    """
    pegs, goals = pegs.astype(np.int64), goals.astype(np.int64)
    rows, differ = np.arange(len(pegs)), pegs != goals
    largest = np.where(differ.any(1), differ.argmax(1), 0)
    here, there = pegs[rows, largest], goals[rows, largest]
    third = 3 - here - there
    tower = _towers(pegs)
    twice_between = 1 + tower[rows, largest]  # the moves of the smaller disks from peg to peg, and two of its own
    ways = []
    for first, last, between, own in ((third, third, 1, there), (there, here, twice_between, third)):
        before, disk, to = _gather(pegs, tower, largest, first)
        after, _, _ = _gather(goals, tower, largest, last)
        ready = disk < 0  # the largest disk moves first
        ways.append((before + between + after, np.where(ready, largest, disk), np.where(ready, own, to)))
    (once, *by_one), (twice, *by_two) = ways
    distance = np.minimum(once, twice)
    disk, to = (np.stack([np.where(once <= twice, a, b), b], 1) for a, b in zip(by_one, by_two, strict=True))
    both = (once == twice) & ((disk[:, 0] != disk[:, 1]) | (to[:, 0] != to[:, 1]))
    disk[~both, 1] = to[~both, 1] = -1
    away = differ.any(1)
    disk[~away], to[~away] = -1, -1
    return Moves(np.where(away, distance, 0), disk, to)


def _towers(pegs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The moves of a disk with all smaller ones as a tower on it, when that has been brought there: int64 [N, n]."""
    there = pegs != NO_DISK
    return np.int64(1) << (there[:, ::-1].cumsum(1)[:, ::-1] - there)


def top_disks(pegs: NDArray) -> NDArray[np.int64]:
    """The smallest disk on every peg, by its column: int64 [N, 3] of states int [N, n], -1 for an empty peg."""
    columns = np.arange(pegs.shape[1])[:, None]
    on = pegs[:, :, None] == np.arange(PEGS)
    return np.where(on, columns, -1).max(1)


def legal_pairs(pegs: NDArray) -> NDArray[np.bool_]:
    """Which of ``PAIRS`` may be moved: bool [N, 6] of states int [N, n]."""
    top = top_disks(pegs)
    origin, target = np.array(PAIRS).T
    return top[:, origin] > top[:, target]


def legal_moves(pegs: NDArray, disk: NDArray, to: NDArray) -> NDArray[np.bool_]:
    """Whether moves of disks (columns) to pegs, each int [N] within range, are legal in states int [N, n]."""
    rows, top = np.arange(len(pegs)), top_disks(pegs)
    origin = pegs[rows, disk]
    return (origin != to) & (top[rows, origin] == disk) & (top[rows, to] < disk)


def split_of(pegs: NDArray[np.int64], goals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of train (0), validation (1) and test (2) each pair of states [N, n] is for: int64 [N].

    It is the same however the pegs are called. ``NO_DISK`` may stand in front, and does not count.
    """
    both = np.stack([pegs, goals], 2).reshape(len(pegs), -1)
    rows = np.arange(len(both))
    names, known = np.full((len(both), PEGS), NO_DISK), np.zeros(len(both), np.int64)
    code = np.zeros(len(both), np.uint64)
    for peg in both.T:
        there = peg != NO_DISK
        new = there & (names[rows, peg] == NO_DISK)
        names[rows[new], peg[new]] = known[new]
        known[new] += 1
        code = np.where(there, mix_array(code * _ODD + (names[rows, peg] + 1).astype(np.uint64)), code)
    return np.maximum((code % np.uint64(SHARES)).astype(np.int64) - (SHARES - 3), 0)
