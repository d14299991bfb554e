"""The interquartile mean and its bootstrap against slow loops, known limits and simulated coverage."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_agent.evaluation import statistics
from hrm_agent.evaluation.statistics import (
    bootstrap_difference,
    bootstrap_interval,
    crossed_difference,
    crossed_interval,
    holm,
    iqm,
)

NAN = float("nan")


def simulate(random: np.random.Generator, seeds: int, levels: int, mean: float = 0.5) -> np.ndarray:
    """Scores of seeds and levels that differ from each other: `mean` in expectation, and as interquartile mean."""
    of_seed = random.normal(0, 0.1, (seeds, 1))
    return mean + of_seed + random.normal(0, 0.3, (1, levels)) + random.normal(0, 0.2, (seeds, levels))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 5.0], 3.0),
        ([0.0, 0.0, 9.0], 3.0),
        ([-100.0, 1.0, 2.0, 100.0], 1.5),
        ([5.0, 1.0, 100.0, 3.0, -100.0], 3.0),
        ([*range(8)], 3.5),
        ([0.0, 1.0, 2.0, NAN], NAN),
    ],
)
def test_iqm_of_hand_made_seeds(values: list[float], expected: float) -> None:
    np.testing.assert_equal(float(iqm(values)), expected)
    np.testing.assert_equal(iqm([values, values]), [expected, expected])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.randoms())
def test_iqm_forgets_the_order_and_stays_inside(values: list[float], random: object) -> None:
    middle = float(iqm(values))
    assert min(values) - 1e-9 <= middle <= max(values) + 1e-9
    assert float(iqm(values[::-1])) == pytest.approx(middle)
    assert float(iqm(np.array(values) + 7)) == pytest.approx(middle + 7, abs=1e-6)


def test_replicates_are_those_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, resampled one by one; levels without a score are left out of a seed's mean."""
    random = np.random.default_rng(0)
    scores = random.random((4, 6))
    scores[1, 2] = scores[3, 5] = scores[3, 0] = NAN
    drawn = np.random.default_rng(9)
    levels, replicates = drawn.integers(6, size=(50, 6)), []
    seeds = drawn.integers(4, size=(50, 4))
    for of_level, of_seed in zip(levels, seeds, strict=True):
        means = [np.nanmean([scores[s, e] for e in of_level]) for s in of_seed]
        replicates.append(np.mean(sorted(means)[1:3]))
    found = bootstrap_interval(scores, replicates=50, seed=9, level=0.8)
    assert found.value == pytest.approx(np.mean(sorted(np.nanmean(scores, 1))[1:3]))
    assert found[1:] == pytest.approx(np.quantile(replicates, [0.1, 0.9]))


def test_replicates_have_the_exact_distribution_of_every_possible_draw() -> None:
    """One seed, four levels: every multiset of levels with its probability, against the bootstrap's quantiles."""
    scores = np.array([0.0, 0.1, 0.4, 1.0])
    weighted = [
        (scores[list(draw)].mean(), factorial(4) / prod(factorial(draw.count(e)) for e in range(4)) / 4**4)
        for draw in combinations_with_replacement(range(4), 4)
    ]
    values, weights = (np.array(column) for column in zip(*sorted(weighted), strict=True))
    assert weights.sum() == pytest.approx(1)
    found = bootstrap_interval(scores[None], replicates=40_000)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        assert weights[values < end - 1e-9].sum() <= share + 0.004
        assert weights[values <= end + 1e-9].sum() >= share - 0.004


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(statistic: str) -> None:
    random = np.random.default_rng(1)
    runs = 150
    intervals = [bootstrap_interval(simulate(random, 12, 60), statistic, 300, seed=i) for i in range(runs)]
    covered = np.mean([i.low <= 0.5 <= i.high for i in intervals])
    assert 0.87 <= covered <= 0.99
    halves = [bootstrap_interval(simulate(random, 12, 60), statistic, 300, seed=i, level=0.5) for i in range(runs)]
    assert 0.38 <= np.mean([i.low <= 0.5 <= i.high for i in halves]) <= 0.62


def test_both_seeds_and_levels_make_an_interval_wider() -> None:
    random = np.random.default_rng(2)
    seeds_only = np.repeat(random.random((5, 1)), 40, 1)
    levels_only = np.repeat(random.random((1, 40)), 5, 0)
    constant = np.full((5, 40), 0.7)
    assert bootstrap_interval(constant)[:] == pytest.approx((0.7, 0.7, 0.7))
    of_seeds, of_levels = bootstrap_interval(seeds_only), bootstrap_interval(levels_only)
    both = bootstrap_interval(seeds_only + levels_only)
    for one in (of_seeds, of_levels):
        assert 0.05 < one.high - one.low < both.high - both.low


def test_what_makes_levels_hard_for_both_arms_cancels() -> None:
    random = np.random.default_rng(3)
    hard = random.random((1, 200))
    b = np.repeat(hard, 5, 0) + random.normal(0, 0.01, (5, 1))
    a = np.repeat(hard, 6, 0) + 0.05 + random.normal(0, 0.01, (6, 1))
    found = bootstrap_difference(a, b)
    assert 0.02 < found.low < found.value < found.high < 0.08
    assert found.probability == 1
    # Each arm by itself is far less certain.
    alone = bootstrap_interval(a)
    assert alone.high - alone.low > 2 * (found.high - found.low)
    swapped = bootstrap_difference(b, a)
    assert swapped.value == pytest.approx(-found.value)
    assert swapped.probability == 0


def test_an_arm_against_itself_is_no_different() -> None:
    one = simulate(np.random.default_rng(4), 5, 50)
    found = bootstrap_difference(one, one)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert found.probability == pytest.approx(0.5, abs=0.05)
    same = bootstrap_difference(np.ones((3, 4)), np.ones((2, 4)))
    assert same == (0.0, 0.0, 0.0, 0.5)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**31))
def test_intervals_repeat_and_hold_only_what_can_be(seeds: int, levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((seeds, levels))
    scores[:, 1:][random.random((seeds, levels - 1)) < 0.3] = NAN
    found = bootstrap_interval(scores, replicates=60, seed=seed)
    assert found == bootstrap_interval(scores, replicates=60, seed=seed)
    assert np.nanmin(scores) - 1e-9 <= found.low <= found.high <= np.nanmax(scores) + 1e-9
    assert found.value == pytest.approx(float(iqm(np.nanmean(scores, 1))))


def test_memory_is_bounded_without_changing_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = simulate(np.random.default_rng(5), 5, 30)
    whole = bootstrap_interval(scores, replicates=4000)
    monkeypatch.setattr(statistics, "COUNTS_AT_ONCE", 100)
    assert bootstrap_interval(scores, replicates=4000) == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ([1.0, 2.0], {}, r"shape \(2,\): expected \[seeds, levels\]"),
        (np.zeros((0, 3)), {}, r"shape \(0, 3\)"),
        ([[1.0], [NAN]], {}, r"\[1\] has no score on any level"),
        ([[1.0, np.inf]], {}, "infinite"),
        ([[1.0]], {"statistic": "mode"}, "'mode': expected one of iqm, mean, median"),
        ([[1.0]], {"replicates": 0}, "replicates=0"),
        ([[1.0]], {"level": 95}, "level=95"),
    ],
)
def test_bad_input_is_refused_in_one_line(scores: object, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(scores, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        bootstrap_difference(scores, scores, **settings)  # type: ignore[arg-type]


def test_arms_on_other_levels_are_not_compared() -> None:
    with pytest.raises(ValueError, match="a has 3 levels and b has 4: expected the same levels"):
        bootstrap_difference(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="one or more seeds"):
        iqm([])


def draw_outcomes(random: np.random.Generator, seeds: int, levels: np.ndarray) -> np.ndarray:
    log_odds = 2.0 + 0.5 * random.normal(size=(seeds, 1)) + levels
    return (random.random(log_odds.shape) < 1 / (1 + np.exp(-log_odds))).astype(float)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_crossed_intervals_cover_seeds_and_levels(seeds: int) -> None:
    """The truth lies inside in nineteen of twenty studies, and a difference is found as often as its p-value says."""
    random, inside, apart, repeats = np.random.default_rng(0), 0, 0, 400
    truth = (1 / (1 + np.exp(-(2 + np.hypot(0.5, 1.0) * random.normal(size=10**6))))).mean()
    for _ in range(repeats):
        levels = random.normal(size=(1, 200))
        a, b = (draw_outcomes(random, seeds, levels) for _ in range(2))
        interval, difference = crossed_interval(a), crossed_difference(a, b)
        inside += interval.low <= truth <= interval.high
        apart += difference.p_value < 0.05
        assert interval.low < interval.value < interval.high
        assert (difference.low <= 0 <= difference.high) == (difference.p_value >= 0.05)
    assert 0.92 < inside / repeats < 0.99  # a standard deviation of the count is a hundredth
    assert apart / repeats < 0.085


def test_crossed_variance_is_that_of_the_model() -> None:
    """The mean squares find the variance of the mean, of many studies whose seeds and levels both vary."""
    random = np.random.default_rng(1)
    tables = [np.clip(simulate(random, 6, 40), 0, 1) for _ in range(2000)]
    found = [(max(t.seeds, t.rest) + max(t.levels - t.rest, 0)) / (6 * 40) for t in map(statistics._Table.of, tables)]
    assert np.mean(found) == pytest.approx(np.var([table.mean() for table in tables]), rel=0.1)


def test_seeds_that_agree_on_every_level_are_no_more_than_one_seed_says_of_levels() -> None:
    """Ten equal rows have the interval of 200 levels, not of 2,000 outcomes; so has their difference from others."""
    random = np.random.default_rng(2)
    a, b = (np.tile((random.random(200) < rate).astype(float), (10, 1)) for rate in (0.9, 0.7))
    interval, difference = crossed_interval(a), crossed_difference(a, b)
    error = (a[0].var(ddof=1) / 200) ** 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.97 * error, rel=0.1)
    paired = ((a[0] - b[0]).var(ddof=1) / 200) ** 0.5
    assert difference.high - difference.low == pytest.approx(2 * 1.97 * paired, rel=0.02)


def test_crossed_intervals_at_the_ends() -> None:
    all_won = crossed_interval(np.ones((5, 100)))
    assert all_won.value == 1
    assert 0.95 < all_won.low < 0.999
    assert all_won.high < 1
    one = crossed_interval([[1.0] * 90 + [0.0] * 10])
    assert (one.low, one.high) == pytest.approx((0.8256, 0.9448), abs=1e-3)  # Wilson's
    same = crossed_difference(np.ones((3, 10)), np.ones((3, 10)))
    assert (same.value, same.p_value) == (0, 1)
    assert 0.01 < same.high == -same.low < 0.3  # thirty outcomes of each do not show that the arms are equal
    few, many = (crossed_difference(np.ones((s, e)), np.zeros((s, e))) for s, e in ((2, 2), (5, 100)))
    assert 1e-3 < few.p_value < 0.5
    assert many.p_value < 1e-6
    assert few.low < many.low < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    going = True
    for rank, i in enumerate(order):
        going = going and p_values[i] * (len(p_values) - rank) <= 0.05
        assert (adjusted[i] <= 0.05) == going
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0.5, 1.0]], [[0, 1]], "two or more training seeds"),
        ([[0, 1], [1, 1]], [[0, 1, 1]] * 2, "the same levels"),
        ([[0, 2], [1, 1]], [[0, 1]] * 2, "0 to 1"),
        ([[0, NAN], [1, 1]], [[0, 1]] * 2, "0 to 1"),
        ([0, 1], [[0, 1]] * 2, r"expected \[seeds, levels\]"),
    ],
)
def test_tables_that_are_none_are_refused(a: list, b: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_difference(a, b)
