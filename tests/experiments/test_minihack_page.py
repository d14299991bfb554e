"""The records of experiments/minihack are whole, and its command refuses what it cannot do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.engine.records import load
from experiments.minihack import evaluate

FOLDER = Path(evaluate.__file__).parent


def test_successes_are_those_of_the_outcomes() -> None:
    records = load(FOLDER / "results.json")
    assert records
    for record in records:
        for prefix in ("", "minihack_"):
            outcomes = record[f"{prefix}outcomes"]
            assert len(outcomes) == record["episodes"]
            assert outcomes.count("1") / len(outcomes) == pytest.approx(record[f"{prefix}success"])
            low, high = record[f"{prefix}success_ci95"]
            assert low <= record[f"{prefix}success"] <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run=FOLDER or agent=ID"),
        (["run=x", "episode=5"], "episode=5: expected KEY=VALUE"),
        (["run=x", "episodes=0"], "episodes=0: expected a whole number"),
        (["run=/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (FOLDER / "results.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert (FOLDER / "results.json").read_bytes() == before
