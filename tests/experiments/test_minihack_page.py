"""The page of experiments/minihack says what its records say, and its command refuses what it cannot do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "minihack"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minihack_evaluate", FOLDER / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_says_what_the_records_say(script: ModuleType) -> None:
    page, records = (FOLDER / "README.md").read_text(), script.load(FOLDER / "results.json")
    assert records
    assert page == script.filled(page, records)
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
    script: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (FOLDER / "results.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert (FOLDER / "results.json").read_bytes() == before
