"""The suite's second edition: what its runs are asked for, and how curves are read at equal frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.engine.pages import settings_of
from experiments.engine.records import load, save
from experiments.suite import draw, run, tune
from hrm_agent.launch.cli import compose_config, open_options
from hrm_agent.launch.settings import resolve

LEVELS = settings_of(run.HERE)["levels"]


@pytest.mark.parametrize("level", LEVELS[::5])
def test_a_level_is_the_environment_of_its_experiment_without_its_core(level: str) -> None:
    own = resolve(compose_config(open_options([*run.of_level(level), "core=convlstm"]), "train"))
    assert (own["env"]["id"], own["env"]["options"]) == run.world_of(level)
    assert own["core"]["name"] == "convlstm"


def test_every_candidate_is_tried_as_often_and_as_long_as_its_rivals_of_a_round() -> None:
    arms = tune.Search(run.HERE).arms()
    tuning, candidates = settings_of(run.HERE)["tuning"], settings_of(run.HERE)["candidates"]
    first, rest = tuning["levels"][0], tuning["levels"][1:]
    rates = {f"{rate:.1e}" for rate in tuning["learning_rates"]}
    further = {f"{rate:.1e}" for rate in tuning["further_rates"]}
    for name in candidates:
        own = {arm for arm in arms if arm.startswith(f"{name}@")}
        expected = {f"{name}@{first}@{rate}" for rate in rates}
        if name in tuning["finalists"]:
            beyond = {f"{rate:.1e}" for rate in tuning["next_rates"].get(name, [])}
            expected |= {f"{name}@{level}@{rate}" for level in [first, *rest] for rate in rates | further | beyond}
        assert own == expected
    for name, arm in arms.items():
        candidate, level, rate = name.split("@")
        assert level in LEVELS
        assert set(candidates[candidate]) <= set(arm["overrides"])
        assert f"max_seconds={tuning['seconds']}" in arm["overrides"]
        assert f"algo.learning_rate={float(rate)}" in arm["overrides"]
        assert not set(arm["seeds"]) & set(settings_of(run.HERE)["seeds"])
        if level == first and float(rate) == tuning["learning_rates"][0]:
            resolve(compose_config(open_options(arm["overrides"]), "train"))  # its settings exist


def test_those_that_go_on_are_those_that_learnt_most() -> None:
    tuning, trials = settings_of(run.HERE)["tuning"], load(run.HERE / "tuning.json")
    first = [t for t in trials if t["level"] == tuning["levels"][0] and t["learning_rate"] in tuning["learning_rates"]]
    reached = {
        name: max(t["sampled_success"] for t in first if t["candidate"] == name)
        for name in settings_of(run.HERE)["candidates"]
    }
    on = {name: name in tuning["finalists"] for name in reached}
    assert min(reached[n] for n in reached if on[n]) > max(reached[n] for n in reached if not on[n])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 3000))
def test_a_curve_at_some_frames_is_its_last_point_up_to_there(values: list[float], frames: int) -> None:
    curve = [[100.0 * (i + 1), float(i), value] for i, value in enumerate(values)]
    found = draw.at_frames(curve, frames)
    assert found == (None if frames < 100 else values[min(frames // 100, len(values)) - 1])


def test_success_by_length_counts_each_level_in_the_bin_of_its_way(tmp_path: Path) -> None:
    save(tmp_path / "arrivals.json", [{"level": "size_13", "arrivals": [3, 10, 11, 90, -1, 500]}])
    levels = [
        {"agent": "ours@size_13", "seed": 0, "success": "1001", "sampled": "0000"},
        {"agent": "ours@size_13", "seed": 1, "success": "1011", "sampled": "0000"},
    ]
    (row,) = draw.ways_rows(tmp_path, ["ours", "another"], levels)
    assert row == {
        "level": "size_13",
        "agent": "ours",
        "1 to 10 steps": "0.50 (2)",
        "11 to 20 steps": "0.50 (1)",
        "21 to 40 steps": "",
        "41 to 80 steps": "",
        "81 to 400 steps": "1.00 (1)",
    }


def test_ways_of_all_still_levels_have_a_bin() -> None:
    for record in load(run.HERE / "arrivals.json"):
        if record["level"] in draw.STILL:
            arrivals = [arrival for arrival in record["arrivals"] if arrival >= 0]
            assert 0.98 * len(record["arrivals"]) < len(arrivals)
            assert draw.WAYS[0][0] <= min(arrivals)
            assert max(arrivals) <= draw.WAYS[-1][1]


def test_longer_runs_differ_from_the_others_in_time_and_seeds_alone() -> None:
    study = run.Study(run.HERE)
    arms, longer = study.arms(), study.settings["longer"]
    beside = [level for extra in study.settings["also"].values() for level in extra["levels"]]
    assert len(arms) == len(study.settings["agents"]) * (len(LEVELS) + len(longer["levels"])) + len(beside)
    for name in study.settings["agents"]:
        for level in longer["levels"]:
            short, long = arms[f"{name}@{level}"]["overrides"], arms[f"{name}_long@{level}"]["overrides"]
            times = {f"max_seconds={seconds}" for seconds in (longer["seconds"], study.settings["seconds"])}
            assert set(long) ^ set(short) == times
            assert arms[f"{name}_long@{level}"]["seeds"] == longer["seeds"]
