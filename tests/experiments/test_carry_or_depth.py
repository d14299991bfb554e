"""The study of carrying, freshness and depth: arms that differ in what they name, settings chosen before the runs."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.carry_or_depth import draw
from experiments.carry_or_depth.run import HERE, Study
from experiments.carry_or_depth.tune import Search, chosen_rates, rates_to_try
from experiments.engine.records import put, save
from experiments.engine.runner import Job

ROLLOUT = 16  # algo.rollout_steps, which no arm changes


def test_arms_train_on_as_many_decisions_in_as_many_steps() -> None:
    study = Study(HERE)
    for name in study.arms():
        given = dict(word.lstrip("+").split("=", 1) for word in study.arm(name)["overrides"])
        window, windows = int(given["algo.window"]), int(given["algo.minibatch_windows"])
        assert window * windows == 512
        assert ROLLOUT % window == 0
        assert not {"algo.epochs", "algo.num_envs", "algo.rollout_steps", "algo.learning_rate", "total_steps"} & set(
            given
        )
        assert given["core"] == {"feedforward-8": "feedforward", "hrm-gate-K1": "hrm"}.get(name, "trm")


def test_seeds_share_no_streams_and_none_with_the_tuning() -> None:
    study, search = Study(HERE), Search(HERE)
    seeds = {seed for name in study.arms() for seed in study.arm(name)["seeds"]}
    tuned = {seed for name in search.arms() for seed in search.arm(name)["seeds"]}
    far = sorted(seeds | tuned)
    assert not seeds & tuned
    assert min(b - a for a, b in pairwise(far)) >= 1000
    assert len(search.arms()) >= 3 * len(study.arms())


def test_what_is_compared_is_what_is_run() -> None:
    study = Study(HERE)
    lesions = study.settings["lesions"]
    for pairs in study.settings["comparisons"].values():
        for side in (side for pair in pairs for side in pair):
            arm, _, lesion = side.partition(" @ ")
            assert arm in study.arms()
            assert not lesion or arm in lesions[lesion]["arms"]
    for lesion in lesions.values():
        assert all(set(lesion["seeds"]) <= set(study.arm(arm)["seeds"]) for arm in lesion["arms"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(HERE / "study.yaml", tmp_path)
    return tmp_path


def test_every_arm_trains_with_its_own_learning_rate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        Study(folder).overrides(Job("gate-K1", 0))
    assert "tuned.json: no learning rate for gate-K1" in capsys.readouterr().err
    names = list(Study(folder).arms())
    rates = {name: (3e-3, 6e-3)[i % 2] for i, name in enumerate(names)}
    trials = [
        {
            "arm": name, "learning_rate": rate, "seed": seed, "success": 0.5,
            "sampled_success": 0.7 if rate == rates[name] else 0.6,
        }
        for name in names for rate in (1.5e-3, 3e-3, 6e-3, 1.2e-2) for seed in (50000, 51000, 52000)
    ]  # fmt: skip
    found = chosen_rates(trials)
    assert {name: entry["learning_rate"] for name, entry in found.items()} == rates
    assert all(len(entry["tried"]) == 4 for entry in found.values())
    (folder / "tuned.json").write_text(json.dumps(found))
    for name in names:
        assert Study(folder).overrides(Job(name, 0))[-1] == f"algo.learning_rate={rates[name]}"
    two_rates = [trial for trial in trials if trial["learning_rate"] > 4e-3]
    one_seed = [trial for trial in trials if trial["seed"] == 50000]
    for some in (two_rates, one_seed):  # a search that has not ended chooses nothing
        (folder / "tuned.json").write_text(json.dumps(chosen_rates(some)))
        with pytest.raises(SystemExit, match="2"):
            Study(folder).overrides(Job("gate-K1", 0))


@pytest.mark.parametrize(
    ("scores", "more"),
    [
        ({3e-3: 0.2, 6e-3: 0.4, 1.2e-2: 0.3}, []),
        ({3e-3: 0.2, 6e-3: 0.4, 1.2e-2: 0.5}, [2.4e-2]),
        ({3e-3: 0.2, 6e-3: 0.4, 1.2e-2: 0.5, 2.4e-2: 0.6}, [4.8e-2]),
        ({3e-3: 0.2, 6e-3: 0.4, 1.2e-2: 0.5, 2.4e-2: 0.6, 4.8e-2: 0.7}, []),  # a bound
        ({3e-3: 0.5, 6e-3: 0.4, 1.2e-2: 0.3}, [1.5e-3]),
        ({6e-3: 0.4, 1.2e-2: 0.5}, [3e-3]),  # the grid first
    ],
)
def test_the_grid_grows_until_its_best_is_no_end(scores: dict[float, float], more: list[float]) -> None:
    trials = [
        {"arm": "a", "learning_rate": rate, "seed": 50000, "success": score, "sampled_success": score}
        for rate, score in scores.items()
    ]
    found = chosen_rates(trials)["a"]
    assert rates_to_try(found, [3e-3, 6e-3, 1.2e-2], [7e-4, 5e-2]) == sorted([*scores, *more])


def test_a_search_ends_with_three_seeds_of_the_two_best_rates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first seed every arm is best at 0.024, beyond the grid; with the others that fails."""

    def run(self: Search, job: Job) -> bool:
        arm, text = job.arm.split("@")
        rate = float(text)
        score = rate if rate < (0.03 if job.seed == 50000 else 0.02) else 0.0
        own = {"agent": job.arm, "arm": arm, "learning_rate": rate, "seed": job.seed}
        put(self.folder / "tuning.json", [{**own, "success": score, "sampled_success": score}], self.key)
        return True

    monkeypatch.setattr(Search, "run", run)
    search = Search(folder)
    for job in search.missing():
        search.run(job)
    search.finish()
    search.draw()
    tuned = json.loads((folder / "tuned.json").read_text())
    assert {entry["learning_rate"] for entry in tuned.values()} == {1.2e-2}
    for entry in tuned.values():
        assert {t["learning_rate"]: t["seeds"] for t in entry["tried"]} == {
            3e-3: 1,
            6e-3: 1,
            1.2e-2: 3,
            2.4e-2: 3,
            4.8e-2: 1,
        }
    assert Study(folder).learning_rate("gate-K1") == 1.2e-2


def test_comparisons_are_corrected_over_both_ways_of_playing(folder: Path) -> None:
    levels = [
        {"agent": agent, "seed": seed, "success": one * 20, "sampled": other * 20}
        for agent, one, other in (("bptt-w8-K1", "1110", "1010"), ("detached-w8-K1", "0010", "1001"))
        for seed in (0, 1000, 2000)
    ]
    save(folder / "levels.json", levels)
    rows = draw.comparisons_table(draw.Outcomes(folder))
    assert [(row["question"], row["a"], row["b"]) for row in rows] == [("gradient", "bptt-w8-K1", "detached-w8-K1")]
    assert rows[0]["greedy, a - b [95%]"].startswith("+0.500 [")
    assert rows[0]["sampled, a - b [95%]"].startswith("+0.000 [")
    assert {"p, greedy, of 2", "p, sampled, of 2"} < set(rows[0])


def test_pairs_thought_of_afterwards_are_corrected_with_the_chosen_ones() -> None:
    study = draw.Outcomes(HERE)
    chosen, after = draw.comparisons_table(study), draw.afterwards_table(study)
    pairs = [tuple(pair) for found in study.settings["afterwards"].values() for pair in found]
    assert [(row["a"], row["b"]) for row in after] == pairs
    assert not set(pairs) & {(row["a"], row["b"]) for row in chosen}
    assert f"p, greedy, of {2 * (len(chosen) + len(after))}" in after[0]
