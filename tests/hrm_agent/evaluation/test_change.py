"""Measures of pairs of worlds, from numbers by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_agent.evaluation.change import (
    HORIZON,
    Pairs,
    difference,
    list_pairs,
    read_pairs,
    restricted_mean,
    summarize_pairs,
    survival,
)


def make_pairs(levels: list[int], **columns: Any) -> Pairs:
    """Pairs of an agent that re-plans at once, but for the columns given."""
    usual = {
        "level": 0,
        "step": 3,
        "chance": 0.25,
        "follows_old": False,
        "follows_old_unchanged": True,
        "reaction": 1.0,
        "old_action_drop": 1.0,
        "replanned": 0,
        "decisions": 20,
        "extra_steps": 0.0,
        "success": True,
        "success_unchanged": True,
        "waiting_wins": False,
    }
    pairs = Pairs(**{name: np.full(len(levels), value) for name, value in usual.items()})
    for name, values in {"level": levels, **columns}.items():
        getattr(pairs, name)[:] = values
    return pairs


def test_the_survival_of_pairs_by_hand() -> None:
    # One optimal at once, one after the third decision, one that ended before, one that never is.
    replanned, decisions = np.array([0, 2, -1, -1]), np.array([5, 4, 2, 30])
    curve = survival(replanned, decisions, horizon=4)
    # At decision 2 two of the four are left, of which one is optimal.
    np.testing.assert_allclose(curve, [3 / 4, 3 / 4, 3 / 8, 3 / 8, 3 / 8])
    assert restricted_mean(curve) == pytest.approx(3 / 4 + 3 / 4 + 3 / 8 + 3 / 8)


pairs_of_decisions = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 15)), min_size=1, max_size=30)


@given(pairs_of_decisions, st.data())
def test_survival_falls_and_resamples_as_it_is(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    when, decisions = (np.array(column) for column in zip(*rows, strict=True))
    replanned = np.where(when < decisions, when, -1)
    curve = survival(replanned, decisions)
    assert (np.diff(curve) <= 0).all()
    assert ((curve >= 0) & (curve <= 1)).all()
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))), float)
    drawn = survival(replanned, decisions, weights=np.stack([np.ones(len(rows)), times]))
    repeated = np.repeat(np.arange(len(rows)), times.astype(int))
    np.testing.assert_allclose(drawn[0], curve)
    np.testing.assert_allclose(drawn[1], survival(replanned[repeated], decisions[repeated]))
    # Where no episode ends early, it is the share of those that took longer, and the mean is that of the numbers.
    long = np.full(len(rows), 100)
    whole = survival(when, long)
    np.testing.assert_allclose(whole, [(when > t).mean() for t in range(HORIZON + 1)])
    assert restricted_mean(whole) == pytest.approx(np.minimum(when, HORIZON).mean())


def test_every_level_counts_once_and_those_where_waiting_wins_not_at_all() -> None:
    pairs = make_pairs(
        [4, 6, 9, 11],
        follows_old=[True, False, False, True],
        replanned=[-1, 0, 2, -1],
        decisions=[12, 6, 8, 1],
        extra_steps=[10.0, 0.0, np.nan, 3.0],
        reaction=[0.0, 1.0, 0.5, 0.0],
        waiting_wins=[False, False, False, True],
    )
    measured = summarize_pairs(pairs, 50)
    assert (measured["levels_played"], measured["pairs"], measured["waiting_wins"]) == (50, 3, 0.25)
    assert measured["follow_old"] == pytest.approx(1 / 3)
    assert (measured["follow_old_unchanged"], measured["follow_old_chance"]) == (1.0, 0.25)
    assert measured["not_replanned"] == pytest.approx([2 / 3, 2 / 3] + [1 / 3] * 9)
    assert measured["decisions_to_replan"] == pytest.approx((0 + 2 + 10) / 3)
    assert (measured["extra_steps"], measured["extra_steps_pairs"]) == (5.0, 2)
    assert measured["reaction"] == 0.5
    for name, ends in measured.items():
        if name.endswith("_ci95"):
            assert ends[0] <= measured[name.removesuffix("_ci95")] <= ends[1], name
    # The shares of three levels that agree say little.
    assert measured["follow_old_unchanged_ci95"][0] < 0.5


def test_without_a_pair_nothing_is_said() -> None:
    none = make_pairs([])
    measured = summarize_pairs(none, 20)
    counts = {name: value for name, value in measured.items() if value is not None}
    assert counts == {"levels_played": 20, "pairs": 0, "extra_steps_pairs": 0}
    assert difference(none, make_pairs([1, 2]))["pairs"] == 0
    assert difference(none, none)["decisions_to_replan"] is None


def test_pairs_are_read_as_they_were_written() -> None:
    pairs = make_pairs([4, 6], extra_steps=[np.nan, 2.0], reaction=[0.12344, 1.0], success=[True, False])
    again = read_pairs(list_pairs(pairs))
    for name in Pairs._fields:
        assert getattr(again, name).dtype == getattr(pairs, name).dtype
        np.testing.assert_allclose(getattr(again, name), getattr(pairs, name), atol=1e-4, err_msg=name)


def test_agents_are_compared_on_the_levels_that_both_have_a_pair_on() -> None:
    one = make_pairs(
        [1, 3, 5, 8], follows_old=[True, True, False, True], replanned=[3, 5, 0, 9], extra_steps=[4.0, np.nan, 0.0, 9.0]
    )
    other = make_pairs([0, 3, 5, 8], replanned=[7, 1, 0, 0], waiting_wins=[False, False, False, True])
    found = difference(one, other)
    assert found["pairs"] == 2  # levels 3 and 5
    assert found["follow_old"] == 0.5
    assert found["decisions_to_replan"] == 2.0  # 5 against 1, and 0 against 0
    assert found["extra_steps"] == 0.0  # level 5 alone: the other has no number for one agent
    assert found["reaction"] == found["success"] == 0.0
    low, high = found["decisions_to_replan_ci95"]
    assert (low, high) == (0.0, 4.0)
