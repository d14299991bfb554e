"""Towers of Hanoi as puzzles: tokens, labels, splits, and games that are played to their end."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hrm_agent.supervised.tasks import Answers, Examples, build_task
from hrm_agent.supervised.tasks.base import SPLITS
from hrm_agent.supervised.tasks.hanoi import HanoiTask, choose_moves, read_tokens, split_of
from hrm_agent.supervised.tasks.hanoi_play import (
    look_ahead_player,
    misplaced,
    play_out,
    random_player,
    report_games,
    report_states,
)
from hrm_envs.hanoi_rules import NO_DISK, legal_moves, optimal_moves


def make(**options: Any) -> HanoiTask:
    task = build_task("hanoi", options)
    assert isinstance(task, HanoiTask)
    return task


def all_pairs(disks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    states = np.array(list(product(range(3), repeat=disks)))
    pegs, goals = np.broadcast_arrays(states[:, None], states[None])
    return pegs.reshape(-1, disks), goals.reshape(-1, disks)


def optimal(examples: Examples) -> Answers:
    """A model that knows: the first of the optimal moves."""
    pegs, goals = read_tokens(examples.inputs)
    best = optimal_moves(pegs, goals)
    return answers(3 * best.disk[:, :1] + best.to[:, :1])


def answers(choices: NDArray) -> Answers:
    count = len(choices)
    return Answers(choices[None].astype(np.int16), np.zeros((1, count), np.float32), np.ones(count, np.int64))


def test_labels_are_the_optimal_moves_with_equal_weights_and_nothing_tells_which_disk_is_which() -> None:
    task = make(disks=7, min_disks=2, train_disks=5)
    examples = task.draw(np.random.default_rng(0), 500)
    pegs, goals = read_tokens(examples.inputs)
    assert examples.weights is not None
    numbers, fronts = set(), set()
    for row in range(500):
        there = pegs[row] != NO_DISK
        front = int(there.argmax())
        assert there[front : front + there.sum()].all()  # padding is at the ends alone
        numbers.add(int(there.sum()))
        fronts.add(front)
        own = optimal_moves(pegs[row][there][None], goals[row][there][None])
        moves = [3 * (front + d) + to for d, to in zip(own.disk[0], own.to[0], strict=True) if d >= 0]
        labels = examples.labels[row]
        assert labels[labels >= 0].tolist() == moves
        assert examples.weights[row].tolist() == ([1.0, 0.0] if len(moves) == 1 else [0.5, 0.5])
    assert numbers == {2, 3, 4, 5}
    assert fronts == {0, 1, 2, 3, 4, 5}
    assert examples.inputs.max() < task.spec.input_ids


@pytest.mark.parametrize("disks", [3, 4])
def test_the_names_of_the_pegs_do_not_choose_the_split(disks: int) -> None:
    pegs, goals = all_pairs(disks)
    split = split_of(pegs, goals)
    for names in permutations(range(3)):
        assert (split_of(np.array(names)[pegs], np.array(names)[goals]) == split).all()
    shares = np.bincount(split, minlength=3) / len(split)
    assert np.allclose(shares, [6 / 8, 1 / 8, 1 / 8], atol=0.06)
    padded = [np.pad(side, ((0, 0), (2, 0)), constant_values=NO_DISK) for side in (pegs, goals)]
    assert (split_of(*padded) == split).all()


def test_no_set_holds_a_pair_of_another() -> None:
    task = make(disks=4, min_disks=3, test_disks=3)
    drawn = [task.draw(np.random.default_rng(0), 4000), task.examples("validation", 300), task.examples("test", 300)]
    found = []
    for examples in drawn:
        pegs, goals = read_tokens(examples.inputs)
        found.append({(tuple(p[p >= 0]), tuple(g[p >= 0])) for p, g in zip(pegs, goals, strict=True)})
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]
    assert len(found[2]) > 30


@pytest.mark.parametrize("disks", [1, 2])
def test_few_disks_are_in_every_set(disks: int) -> None:
    task = make(disks=disks, min_disks=disks)
    for examples in (task.draw(np.random.default_rng(0), 2000), *(task.examples(s, 2000) for s in SPLITS[1:])):
        assert len(np.unique(examples.inputs, axis=0)) == 9**disks - 3**disks


def test_puzzle_i_is_a_function_of_i_and_all_numbers_of_disks_are_tested_alike() -> None:
    task = make(disks=6, min_disks=4, train_disks=4)
    many, few = task.examples("test", 700), task.examples("test", 300)
    for whole, part in zip(many, few, strict=True):
        assert whole is not None
        assert part is not None
        assert (whole[:300] == part).all()
    assert np.bincount((many.inputs > 0).sum(1)).tolist() == [0, 0, 0, 0, 234, 233, 233]
    assert (make(disks=6, test_disks=5).examples("test", 20).inputs > 0).sum(1).tolist() == [5] * 20


def test_scores_of_optimal_of_legal_and_of_illegal_moves() -> None:
    task = make(disks=3, min_disks=3)
    examples = task.examples("test", 60)
    scores = task.score(examples, optimal(examples).last)
    assert scores["exact"].all()
    assert scores["legal"].all()
    pegs, goals = read_tokens(examples.inputs)
    every = np.arange(9)
    for choice in every:
        chosen = task.score(examples, np.full((60, 1), choice))
        expected = legal_moves(pegs, np.full(60, choice // 3), np.full(60, choice % 3))
        assert (chosen["legal"] == expected).all()
        assert (chosen["exact"] <= chosen["legal"]).all()
    shares = report_states(scores, pegs, goals)
    chance = np.mean([task.score(examples, np.full((60, 1), c))["exact"] for c in every], 0) * 9  # optimal moves
    legal = np.mean([task.score(examples, np.full((60, 1), c))["legal"] for c in every], 0) * 9
    assert shares["random_exact"] == pytest.approx(float((chance / legal).mean()))


def test_an_optimal_player_solves_every_game_in_as_many_moves_as_it_takes() -> None:
    pegs, goals = np.random.default_rng(0).integers(0, 3, (2, 40, 6))
    pegs[0] = goals[0]
    report = report_games(lambda now, to: choose_moves(optimal, now, to), pegs, goals, wrong=0.0)
    assert report["optimal"] == report["solved_2x"] == report["predicted"] == 1.0
    assert report["distance"] == optimal_moves(pegs, goals).distance.mean()
    assert report["random"]["solved_4x"] < 0.5
    half = report_games(lambda now, to: choose_moves(optimal, now, to), pegs[:1], goals[:1], wrong=0.5)
    assert half["predicted"] == 1.0  # nothing is to be moved
    one = optimal_moves(pegs[1:2], goals[1:2]).distance[0]
    game = report_games(lambda now, to: choose_moves(optimal, now, to), pegs[1:2], goals[1:2], wrong=0.25)
    assert game["predicted"] == pytest.approx(0.75**one)


def test_a_game_ends_at_an_illegal_move_in_a_circle_and_after_four_times_the_moves() -> None:
    tower, away = np.zeros((1, 3), np.int64), np.full((1, 3), 2)
    illegal = play_out(lambda pegs, goals: (np.array([0]), np.array([1])), tower, away)
    assert (illegal.moves[0], illegal.solved[0], illegal.illegal[0]) == (0, False, True)
    calls: list[int] = []

    def circling(pegs: NDArray[np.int64], goals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        calls.append(len(pegs))
        return np.full(len(pegs), 2), (pegs[:, 2] + 1) % 3

    circle = play_out(circling, tower, away)
    assert (circle.solved[0], circle.illegal[0]) == (False, False)
    assert len(calls) <= 8  # its three states are seen to repeat
    endless = play_out(circling, tower, away, repeats=True)
    assert endless.moves[0] == 4 * 7


def test_the_floors_make_legal_moves_and_looking_ahead_takes_what_is_best_after_one() -> None:
    pegs, goals = np.random.default_rng(1).integers(0, 3, (2, 200, 5))
    for player in (random_player, look_ahead_player):
        disk, to = player(np.random.default_rng(0))(pegs, goals)
        assert legal_moves(pegs, disk, to).all()
        after = pegs.copy()
        after[np.arange(200), disk] = to
        others = np.full((200, 15), 10**6)
        for choice in range(15):
            d, peg = np.full(200, choice // 3), np.full(200, choice % 3)
            made = pegs.copy()
            made[np.arange(200), d] = peg
            others[:, choice] = np.where(legal_moves(pegs, d, peg), misplaced(made, goals), 10**6)
        best = misplaced(after, goals) == others.min(1)
        assert best.all() if player is look_ahead_player else 0.2 < best.mean() < 0.9
    assert misplaced(np.array([[NO_DISK, 0, 1, 2]]), np.array([[NO_DISK, 1, 1, 0]])).tolist() == [5]


def test_a_report_has_every_number_of_disks_in_a_line() -> None:
    report = make(disks=4, min_disks=2, solutions=10).evaluate(optimal, "validation", 60)
    assert list(report) == ["by_disks", "2 disks", "3 disks", "4 disks"]
    assert {name: own["games"] for name, own in report["by_disks"].items()} == {"2": 10, "3": 10, "4": 10}
    assert all(own["exact"] == own["optimal"] == 1.0 for own in report["by_disks"].values())
    assert "optimal move 1.000" in report["3 disks"]
    assert "games" not in make(disks=3, solutions=0).evaluate(optimal, "test", 20)["by_disks"]["3"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"disks": 0}, "task.disks=0: expected an integer from 1 to 20"),
        ({"disks": -3}, "task.disks=-3"),
        ({"disks": "many"}, "task.disks='many'"),
        ({"disks": 2}, "min_disks=3 is above disks=2; give fewer, or more disks"),
        ({"disks": 6, "train_disks": 7}, "train_disks=7: expected a number from 3 to disks=6"),
        ({"disks": 6, "train_disks": 2}, "train_disks=2: expected a number from 3 to disks=6"),
        ({"disks": 6, "test_disks": 9}, "test_disks=9: expected a number from 1 to disks=6"),
        ({"disc": 3}, "no such option of hanoi"),
    ],
)
def test_options_out_of_range_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        make(**options)
    assert "\n" not in str(refusal.value)
