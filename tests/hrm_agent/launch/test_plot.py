"""Learning curves of runs by group, and the table of what they achieved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import run_command
from folders import make_run
from hrm_agent.evaluation.statistics import crossed_interval, mean_interval
from hrm_agent.launch import plot as plotting
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.groups import group_runs, mean_curve, show
from hrm_agent.launch.plot import PlotOptions, plot, read_runs
from refusals import refusal

OUTCOMES = {"full": ("1" * 18 + "01", "1" * 20), "reset": ("0" * 10 + "1" * 10, "01" * 10)}


def settings(carry: str, seed: int, gamma: float = 0.9, env: str = "Maze-v0") -> dict:
    return {"seed": seed, "env": {"id": env}, "carry": {"rule": carry}, "algo": {"name": "ppo", "gamma": gamma}}


def curves(seed: int, level: float) -> dict[str, list[tuple[int, float]]]:
    return {
        "validation/success": [(100, level), (200, level + 0.1 * seed)],
        "train/success": [(50, 0.1), (150, level), (200, level)],
        "validation/return": [(100, -1.0), (200, -float(seed))],
        "loss/entropy": [(50, 1.0), (200, 0.5)],
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for carry, level in (("full", 0.6), ("reset", 0.3)):
        for seed in (0, 1, 2):
            folder = tmp_path / "runs" / carry / str(seed)
            make_run(folder, settings(carry, seed), curves(seed, level), OUTCOMES[carry])
    return tmp_path / "runs"


def test_runs_are_grouped_and_measured_over_seeds_and_levels(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs.parent / "x.png"
    rows = plot([str(runs)], PlotOptions(out=str(out)))
    assert [row["group"] for row in rows] == ["carry=full", "carry=reset"]
    assert {row["seeds"] for row in rows} == {"0 1 2"}
    for row in rows:
        carry = row["group"].partition("=")[2]
        for way, outcome in zip(("greedy", "sampled"), OUTCOMES[carry], strict=True):
            expected = crossed_interval([[int(o) for o in outcome]] * 3)
            assert row[f"success, {way}, test levels"] == show(expected)
    with Image.open(out) as picture:
        assert picture.size[0] > picture.size[1] > 300
    run_command(monkeypatch, "plot", str(runs), "group=carry", f"out={out}")
    said = capsys.readouterr().out
    assert "carry=reset" in said
    assert said.endswith(f"wrote {out}\n")


def test_without_test_levels_the_end_of_the_curves_counts(runs: Path) -> None:
    (runs / "full" / "0" / "eval.json").unlink()
    rows = plot([str(runs)], PlotOptions(out=str(runs / "x.svg")))
    assert rows[0]["last success, greedy, validation levels"] == show(mean_interval([0.6, 0.7, 0.8], (0, 1)))
    assert rows[0]["last success, sampled, in training"] == "0.600 [0.600, 0.600]"
    assert (runs / "x.svg").read_bytes().startswith(b"<?xml")
    (row,) = plot([str(runs / "reset" / "1")], PlotOptions(metric="loss/entropy", out=str(runs / "y.pdf")))
    assert row == {"group": "all runs", "seeds": "1", "last loss/entropy, loss/entropy": "0.500"}


def test_a_run_is_counted_once_and_one_that_has_logged_nothing_is_left_out(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "begun", settings("full", 3), {})
    assert len(read_runs([str(runs), str(runs / "full")])) == 7
    rows = plot([str(runs), str(runs / "full" / "0")], PlotOptions(out=str(runs / "x.png")))
    assert {row["seeds"] for row in rows} == {"0 1 2"}
    assert capsys.readouterr().err == f"left out, nothing logged yet: {runs / 'begun'}\n"


def test_groups_are_by_any_setting(runs: Path) -> None:
    make_run(runs / "other", settings("full", 0, gamma=0.5), curves(0, 0.6))
    found = read_runs([str(runs)])
    assert [group.label for group in group_runs(found, None)] == [
        "carry=full, algo.gamma=0.9", "carry=full, algo.gamma=0.5", "carry=reset, algo.gamma=0.9",
    ]  # fmt: skip
    assert {group.label: len(group.runs) for group in group_runs(found, ["algo.gamma"])} == {
        "algo.gamma=0.9": 6, "algo.gamma=0.5": 1,
    }  # fmt: skip
    assert [group.label for group in group_runs(found[:1], None)] == ["all runs"]


def test_the_mean_of_curves_is_over_the_frames_that_all_have() -> None:
    frames, values = mean_curve([[(0, 0.0), (10, 1.0)], [(5, 0.0), (20, 0.0)]], (0.0, 1.0))
    assert frames.tolist() == [5, 10]
    np.testing.assert_allclose(values[:, 0], [0.25, 0.5])
    assert (values[:, 1] >= 0).all()
    assert (values[:, 2] <= 1).all()
    frames, values = mean_curve([[(0, 0.5), (10, 1.0)]], (0.0, 1.0))
    assert np.isnan(values[:, 1:]).all()
    np.testing.assert_array_equal(values[:, 0], [0.5, 1.0])


@pytest.mark.parametrize(("good", "bad"), [('"success": 0.95', '"success": 95'), ('"1111', '"won!'), (": 20", ": -20")])
def test_outcomes_that_cannot_be_are_damage_and_no_failures(good: str, bad: str, runs: Path) -> None:
    file = runs / "full" / "0" / "eval.json"
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, bad))
    with pytest.raises(UsageError, match="full/0: a damaged run"):
        plot([str(runs)], PlotOptions(out=str(runs.parent / "x.png")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "of which runs?"),
        (["absent"], "run=absent: no such folder"),
        (["empty"], "empty: no run of hrm_agent.train in it"),
        (["runs", "out=curves.txt"], "expected a name that ends in .png, .svg, .pdf"),
        (["runs", "group=cary"], "group=cary: no run has such a setting; did you mean carry?"),
        (["runs", "metric=sucess"], "metric=sucess: not logged by "),
        (["runs", "metric=spl"], "metric=spl: not logged by "),
        (["runs", "metrics=spl"], "metrics: no such setting; did you mean metric?"),
        (["runs", "other"], "runs of different environments, Maze-v0, Cart-v1; expected runs of one"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    arguments: list[str],
    message: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (runs.parent / "empty").mkdir()
    make_run(runs.parent / "other", settings("full", 0, env="Cart-v1"), curves(0, 0.5))
    monkeypatch.setattr(plotting, "write_output", lambda *_: pytest.fail("written"))
    assert message in refusal(monkeypatch, capsys, "plot", arguments, runs.parent)
