"""The metrics against published values, hand-made tables and their own bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm_agent.evaluation import metrics


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_gives_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 5000), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = metrics.wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = metrics.wilson_interval(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    wider = metrics.wilson_interval(successes, n, z=2.58)
    assert wider[0] <= low
    assert wider[1] >= high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_what_cannot_be(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        metrics.wilson_interval(successes, n)


episode = st.tuples(st.booleans(), st.integers(1, 60), st.integers(1, 60))


@given(st.lists(episode, min_size=1, max_size=50))
def test_spl_lies_between_zero_and_success_and_is_one_only_for_the_shortest(rows: list) -> None:
    success, steps, shortest = (np.array(column) for column in zip(*rows, strict=True))
    score = metrics.spl(success, steps, shortest)
    assert (score >= 0).all()
    assert (score <= success).all()
    np.testing.assert_array_equal(score == 1, success & (steps <= shortest))
    np.testing.assert_allclose(
        metrics.spl(success, steps * 2, shortest)[steps >= shortest], score[steps >= shortest] / 2
    )


def test_spl_of_hopeless_levels_is_zero_and_a_beaten_bound_is_an_error() -> None:
    hopeless = metrics.spl(np.array([False]), np.array([60]), np.array([-1]))
    assert hopeless.tolist() == [0.0]
    with pytest.raises(ValueError, match="impossible"):
        metrics.spl(np.array([True]), np.array([5]), np.array([-1]))


def test_excess_steps_counts_successes_only() -> None:
    excess = metrics.excess_steps(np.array([True, False, True]), np.array([9, 60, 4]), np.array([7, 3, 4]))
    assert excess.tolist() == [2, 0]


def _distances(free: np.ndarray, goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """A plain breadth-first search."""
    found, frontier = {goal: 0}, [goal]
    while frontier:
        row, col = frontier.pop(0)
        for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1)):
            near = (row + down, col + right)
            if free[near] and near not in found:
                found[near] = found[row, col] + 1
                frontier.append(near)
    return found


@given(st.integers(0, 2**32 - 1))
def test_action_regret_is_one_plus_the_change_in_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    free = np.zeros((9, 9), bool)
    free[1:-1, 1:-1] = rng.random((7, 7)) < 0.7
    goal, agent = (tuple(int(x) for x in p) for p in rng.integers(1, 8, (2, 2)))
    free[goal] = free[agent] = True
    if goal == agent:
        return
    distance = _distances(free, goal)
    here = distance.get(agent, -1)
    beside = [(agent[0] + down, agent[1] + right) for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1))]
    blocked = np.array([not free[p] for p in beside])
    optimal = np.array([here > 0 and distance.get(p) == here - 1 for p in beside])
    for action in range(4):
        regret = metrics.action_regret(np.array(here), optimal, np.array(action), blocked)
        if here < 0:
            assert np.isnan(regret)
        else:
            after = here if blocked[action] else distance[beside[action]]
            assert regret == 1 + after - here


NAN = float("nan")


decision = st.tuples(st.sampled_from([0.0, 1.0, 2.0, NAN]), st.booleans(), st.booleans())


def _total(regret: list, changed: list, material: list, length: int, segments: list | None = None) -> metrics.Totals:
    real, changed_, material_ = (np.array(values)[:, None] for values in (regret, changed, material))
    used = None if segments is None else np.array(segments)[:, None]
    decisions = metrics.Decisions(real, changed_, material_, np.zeros_like(changed_), used)
    return metrics.total_decisions(decisions, np.array([length]))


def test_totals_of_a_hand_made_episode() -> None:
    #         0     1     2     3     4     5     6     | after the end
    regret = [2.0, 0.0, 1.0, 2.0, NAN, 1.0, 2.0, 2.0]
    changed = [False, False, True, True, True, False, True, True]
    material = [False, False, True, False, True, False, True, False]
    totals = _total(regret, changed, material, 7, segments=[8, 1, 4, 2, 6, 1, 5, 9])
    # The first decision follows no step: it counts to the episode, and to no kind of step.
    assert (totals.regret.tolist(), totals.scored.tolist()) == ([8.0], [6])
    assert metrics.regret_by_change(totals) == {"unchanged": 0.5, "immaterial": 2.0, "material": 1.5}
    assert metrics.decisions_by_change(totals) == {"unchanged": 2, "immaterial": 1, "material": 2}
    # The decision that is cut off from the goal has no score, but it used segments.
    assert metrics.segments_by_change(totals) == {"unchanged": 1.0, "immaterial": 2.0, "material": 5.0}
    assert metrics.regret_per_decision(totals).tolist() == [8 / 6]


def test_a_plan_is_replaced_after_two_optimal_decisions() -> None:
    def met(regret: list, replaced: list, length: int) -> bool:
        real, replaced_ = np.array(regret)[:, None], np.array(replaced)[:, None]
        decisions = metrics.Decisions(real, replaced_, replaced_, replaced_, None)
        return bool(metrics.met_replaced_plan(decisions, np.array([length]))[0])

    assert met([0.0, 0.0, 2.0], [False, False, True], 3)
    assert not met([0.0, 2.0, 0.0], [False, False, True], 3)  # it followed no plan
    assert not met([2.0, 0.0, 2.0], [False, False, True], 3)  # or goes to and fro
    assert not met([0.0, NAN, 0.0], [False, False, True], 3)  # there was none
    assert not met([0.0, 0.0, 0.0], [False, True, False], 3)  # too early
    assert not met([0.0, 0.0, 0.0], [False, False, True], 2)  # the episode was over
    assert not met([0.0], [True], 1)


def test_actions_are_replaced_where_none_stays_optimal() -> None:
    masks = {"none": [0, 0, 0, 0], "north": [1, 0, 0, 0], "east": [0, 1, 0, 0], "both": [1, 1, 0, 0]}
    replaced = {
        (before, after)
        for before, old in masks.items()
        for after, new in masks.items()
        if metrics.replaces_all(np.array(old, bool), np.array(new, bool))
    }
    assert replaced == {("north", "east"), ("east", "north")}


def test_nothing_changed_nothing_said() -> None:
    totals = _total([NAN], [False], [False], 1)
    assert metrics.regret_by_change(totals) == dict.fromkeys(metrics.CHANGE_KINDS)
    assert set(metrics.decisions_by_change(totals).values()) == {0}
    assert metrics.segments_by_change(totals) is None
    assert np.isnan(metrics.regret_per_decision(totals)).all()


@given(st.lists(decision, min_size=1, max_size=40), st.data())
def test_every_decision_but_the_first_is_of_one_kind(rows: list, data: st.DataObject) -> None:
    regret, changed, material = (list(column) for column in zip(*rows, strict=True))
    length = data.draw(st.integers(1, len(rows)))
    totals = _total(regret, changed, material, length, segments=list(range(len(rows))))
    assert totals.decisions_by_change.sum() == length - 1
    first = 0.0 if np.isnan(regret[0]) else regret[0]
    assert totals.regret_by_change.sum() == totals.regret.sum() - first
    assert totals.scored_by_change.sum() == totals.scored.sum() - (not np.isnan(regret[0]))
    assert totals.segments_by_change is not None
    assert totals.segments_by_change.sum() == sum(range(length))
