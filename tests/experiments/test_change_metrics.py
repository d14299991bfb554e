"""The former measures of changes, which a page compares with the present ones."""

import numpy as np
import pytest

from experiments.change_metrics import old
from hrm_agent.evaluation.episodes import RandomActor, ReplanActor, run_episodes
from hrm_agent.evaluation.report import summarize

NAN = float("nan")


def test_changes_of_a_hand_made_episode() -> None:
    #         0    1    2    3    4    5    6    7  | after the end
    regret = [0.0, 2.0, 1.0, 0.0, NAN, 1.0, 2.0, 0.0, 2.0, 2.0]
    material = [False, True, False, False, True, False, True, False, True, False]
    stale = [False, True, False, False, False, True, False, False, True, False]
    columns = (np.array(values)[:, None] for values in (regret, material, stale))
    found = old.follow(*columns, lengths=np.array([8]))
    assert found["regret"].tolist() == [3.0, 1.0, 2.0]
    # After the first change the third decision is the first optimal one; after the second there is none.
    assert found["replan"].tolist() == [2.0, 1.0, 1.0]
    # The decision right after the second change has no score: cut off.
    np.testing.assert_array_equal(found["stale"], [1.0, NAN, 0.0])
    measured = old.summarize(found)
    assert (measured["regret_after_material_change"], measured["stale_plan_rate"]) == (2.0, 0.5)
    assert measured["steps_to_replan"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("actor", [RandomActor, ReplanActor])
def test_the_levels_are_played_as_in_an_evaluation(actor: type[RandomActor] | type[ReplanActor]) -> None:
    options = {"p_change": 0.2, "max_episode_steps": 30}
    found = old.play(actor(), "DynamicMaze-v0", options, np.arange(40), "validation")
    played = run_episodes(actor(), "DynamicMaze-v0", options, 40, split="validation")
    np.testing.assert_array_equal(found["success"], played.success)
    np.testing.assert_array_equal(found["replaced"], played.replaced)
    assert len(found["regret"]) == summarize(played)["material_changes"] > 20
    if actor is ReplanActor:
        assert set(old.summarize(found).values()) == {0.0}
