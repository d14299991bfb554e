"""`--help` and the reference: every setting has a meaning, and shipped files hold what differs from the code."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from commands import run_command
from hrm_agent import evaluate, probe, shifts, solve, sweep_table, watch
from hrm_agent.agents.onnx import export
from hrm_agent.baselines.config import Options
from hrm_agent.launch.cli import compose_config, group_choices
from hrm_agent.launch.help import brief, explain, plain, reference, settings_of
from hrm_agent.launch.pages import layout
from hrm_agent.launch.plot import PlotOptions
from hrm_agent.launch.search import SearchOptions
from hrm_agent.launch.settings import ALGORITHMS, config_folder, train_defaults
from hrm_agent.launch.study import StudyOptions
from hrm_agent.launch.supervised_settings import supervise_defaults

COMMANDS = [
    evaluate.evaluate, watch.watch, probe.probe, shifts.shifts, export, solve.solve, sweep_table.sweep_table,
    PlotOptions, StudyOptions, SearchOptions, Options,
]  # fmt: skip


def test_every_setting_has_a_meaning_and_a_place() -> None:
    pages = dict(reference())
    for title, settings in [*pages.items(), *((command.__name__, settings_of(command)) for command in COMMANDS)]:
        assert settings, title
        for setting in settings:
            assert brief(setting.meaning), f"{title}: {setting.name}"
            assert not setting.meaning.startswith("see "), f"{title}: {setting.name}"
    for name in ("train", "supervise"):  # nothing of the configuration is left out
        shown = {
            s.name for title, settings in pages.items() if title.startswith((name, "train core")) for s in settings
        }
        values: Any = OmegaConf.to_container(compose_config([], name))
        nested = ["cuda", "algo", "core", "model", "training", "task"]
        settings = {key for key in values if not isinstance(values[key], dict)} - {"encoder"}
        settings |= {f"{part}.{key}" for part in nested for key in values.get(part, {}) if key != "name"}
        assert settings <= shown


def test_algorithms_are_shipped() -> None:
    assert group_choices("algo") == sorted(ALGORITHMS)


@pytest.mark.parametrize(("name", "code"), [("train", train_defaults), ("supervise", supervise_defaults)])
def test_a_file_of_defaults_holds_what_differs_from_the_code(name: str, code: Any) -> None:
    def compare(shipped: dict[str, Any], own: dict[str, Any]) -> None:
        for key, value in shipped.items():
            if isinstance(value, dict):
                compare(value, own.get(key, {}))
            else:
                assert value != own.get(key, "not there"), key

    shipped = yaml.safe_load((config_folder() / f"{name}.yaml").read_text())
    compare({key: value for key, value in shipped.items() if key not in ("defaults", "hydra")}, code())
    for choice in group_choices("algo") if name == "train" else group_choices("task"):
        file = config_folder() / ("algo" if name == "train" else "task") / f"{choice}.yaml"
        assert set(yaml.safe_load(file.read_text())) < {"defaults", "version", "rows", "cols", "loops", "min_path",
                                                        "train_puzzles", "train_disks", "min_guesses",
                                                        "max_guesses"}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train"], ["Settings:", "  env=DynamicMaze-v0  ", "  algo.window=16  ", "  core.mixing=conv  ", "Examples:"]),
        (["train", "algo=dqn", "segments=3"], ["Settings of algo=dqn:", "  segments=3  ", "  algo.capacity=100000  "]),
        (["supervise", "task=sudoku"], ["  task=sudoku  ", "  training.batch_size=32  ", "published/trm_sudoku"]),
        (["evaluate"], ["  episodes=1000  ", "  stop=null  ", "  which=best  ", "Examples:"]),
        (["sweep_table"], ["  folder=...  ", "Examples:"]),
    ],
)
def test_help_is_short_and_names_settings_with_their_values(
    command: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with suppress(SystemExit):
        run_command(monkeypatch, command[0], "--help", *command[1:])
    shown = capsys.readouterr().out
    for text in expected:
        assert text in shown
    lines = shown.splitlines()
    assert lines[0].startswith(f"python -m hrm_agent.{command[0]} ")
    assert len(lines) < 130
    assert max(map(len, lines)) <= 120
    assert len([line for line in lines if line.startswith("  python -m hrm_agent.")]) == 3


def test_help_of_what_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(monkeypatch, "train", "--help", "algo=pop")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: algo=pop: no such algo; did you mean ppo?")


def test_what_a_function_says_of_its_arguments_is_read() -> None:
    def play(first: int, second: str = "x", third: Any = None, best: bool = True) -> None:
        """What it does.

        Args:
            first, second: what both
                mean. More of it.
            third: see `Other`.
            best: the best.
        """

    assert explain(play)["first"] == explain(play)["second"] == "what both mean. More of it."
    assert [s.given for s in settings_of(play)] == ["first=???", "second=x", "third=null", "which=best"]
    assert brief("Levels `a ... b`, e.g. none. Without: None.") == "Levels a ... b, e.g. none"
    assert [plain(v) for v in ([1, None], {"a": True}, 0.5)] == ["[1,null]", "{a: true}", "0.5"]
    left = " " * 36
    assert layout([("a=1", "one"), ("b" * 40, "two")]).splitlines() == [
        f"  a=1{left[5:]}one",
        f"  {'b' * 40}",
        f"{left}two",
    ]
