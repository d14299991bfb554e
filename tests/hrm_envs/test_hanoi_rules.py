"""The rules of the Towers of Hanoi against a solver that knows legal moves and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_envs.hanoi_rules import NO_DISK, PAIRS, legal_moves, legal_pairs, optimal_moves, top_disks

State = tuple[int, ...]


def moves(state: State) -> Iterator[tuple[int, int, State]]:
    """Disk, peg and state after each legal move: no smaller disk lies on the disk, nor on the peg it goes to."""
    for disk, peg in enumerate(state):
        smaller = state[disk + 1 :]
        for to in {0, 1, 2} - {peg}:
            if peg not in smaller and to not in smaller:
                yield disk, to, (*state[:disk], to, *state[disk + 1 :])


def distances(goal: State) -> dict[State, int]:
    """Moves from every state to the goal, by breadth-first search: moves can be taken back."""
    found, queue = {goal: 0}, [goal]
    for state in queue:
        for _, _, after in moves(state):
            if after not in found:
                found[after] = found[state] + 1
                queue.append(after)
    return found


@pytest.mark.parametrize("disks", [1, 2, 3, 4])
def test_all_pairs_have_the_distance_and_the_first_moves_of_a_search(disks: int) -> None:
    compare_with_search(disks, list(product(range(3), repeat=disks)))


@pytest.mark.thorough
def test_all_pairs_of_five_and_six_disks() -> None:
    for disks in (5, 6):
        compare_with_search(disks, list(product(range(3), repeat=disks)))


def compare_with_search(disks: int, goals: list[State]) -> None:
    states = list(product(range(3), repeat=disks))
    pegs = np.array(states)
    for goal in goals:
        found = distances(goal)
        best = optimal_moves(pegs, np.broadcast_to(goal, pegs.shape))
        assert best.distance.tolist() == [found[state] for state in states]
        for state, disk, to in zip(states, best.disk.tolist(), best.to.tolist(), strict=True):
            ours = {(d, peg) for d, peg in zip(disk, to, strict=True) if d != NO_DISK}
            assert ours == {(d, peg) for d, peg, after in moves(state) if found[after] == found[state] - 1}
            assert len(ours) == sum(d != NO_DISK for d in disk)  # no move is given twice


def test_the_largest_disk_may_move_twice_and_two_moves_may_be_best() -> None:
    """Both are rare, and what makes the rule between two states more than that of a tower."""
    states = np.array(list(product(range(3), repeat=4)))
    pegs, goals = (side.reshape(-1, 4) for side in np.broadcast_arrays(states[:, None], states[None]))
    both = (optimal_moves(pegs, goals).disk != NO_DISK).all(1)
    assert both.sum() == 282
    twice = optimal_moves(np.array([[0, 1, 1, 1]]), np.array([[1, 0, 0, 0]]))  # 7 moves twice, and 2
    assert twice.distance.tolist() == [9]
    assert (twice.disk[0].tolist(), twice.to[0].tolist()) == ([0, -1], [2, -1])


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_columns_without_a_disk_change_nothing(pairs: list[tuple[int, int]], front: int, behind: int) -> None:
    bare = np.array(pairs).T[:, None]
    padded = np.pad(bare, ((0, 0), (0, 0), (front, behind)), constant_values=NO_DISK)
    one, other = optimal_moves(*bare), optimal_moves(*padded)
    assert one.distance.tolist() == other.distance.tolist()
    assert np.where(one.disk >= 0, one.disk + front, -1).tolist() == other.disk.tolist()
    assert one.to.tolist() == other.to.tolist()
    assert (legal_pairs(bare[0]) == legal_pairs(padded[0])).all()


def test_following_first_moves_takes_as_many_moves_as_it_says() -> None:
    """Of more disks than a search is done for: every state on the way is one move nearer, up to the goal."""
    pegs, goals = np.random.default_rng(0).integers(0, 3, (2, 30, 9))
    best = optimal_moves(pegs, goals)
    for _ in range(int(best.distance.max())):
        rows = np.flatnonzero(best.distance)
        disk, to = best.disk[rows, 0], best.to[rows, 0]
        assert legal_moves(pegs[rows], disk, to).all()
        pegs[rows, disk] = to
        left, best = best.distance, optimal_moves(pegs, goals)
        assert (best.distance == np.maximum(left - 1, 0)).all()
    assert (pegs == goals).all()


@pytest.mark.parametrize("disks", [1, 3])
def test_legal_moves_are_those_that_leave_smaller_disks_above_larger_ones(disks: int) -> None:
    for state in product(range(3), repeat=disks):
        expected = {(d, to) for d, to, _ in moves(state)}
        pegs = np.array([state])
        top = top_disks(pegs)[0]
        pairs = {(int(top[a]), b) for (a, b), legal in zip(PAIRS, legal_pairs(pegs)[0], strict=True) if legal}
        assert pairs == expected
        for disk, to in product(range(disks), range(3)):
            assert legal_moves(pegs, np.array([disk]), np.array([to]))[0] == ((disk, to) in expected)
