"""All commands by one name, `hrm-agent`, and how soon their help is there."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import hrm_agent
from apart import run_apart
from forks import Forks
from hrm_agent import __main__ as one_command
from hrm_agent.launch import commands, pages
from hrm_agent.launch.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "hrm_agent"


@pytest.fixture(autouse=True)
def _spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_one_command", False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["hrm-agent", *arguments])
    one_command.main()


def test_every_command_is_in_the_table_and_nothing_else() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(COMMANDS) == (files | folders) - {"__main__"}
    assert all(find_spec(f"hrm_agent.{name}") for name in COMMANDS)
    assert all(about and about[-1] not in ".\n" for about in COMMANDS.values())


def test_the_script_is_installed_under_this_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {commands.NAME: "hrm_agent.__main__:main"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["evaluate", "-h"]])
def test_help_and_version_need_neither_torch_nor_numba(arguments: list[str]) -> None:
    code = (
        "import sys; from hrm_agent.__main__ import main\ntry: main()\n"
        "finally: print({'torch', 'numba', 'hydra', 'matplotlib', 'scipy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = run_apart(code, *arguments)
    assert done.returncode == 0
    assert done.stderr.strip() == "set()"
    assert done.stdout


def test_the_first_page_names_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, "--version")
    assert capsys.readouterr().out == f"hrm-agent {hrm_agent.__version__}\n"
    call(monkeypatch)
    shown = capsys.readouterr().out
    lines = " ".join(shown.split())  # broken where the terminal ends
    assert all(f"\n  {name} " in shown and f" {name} {about}" in lines for name, about in COMMANDS.items())


@pytest.mark.parametrize(
    ("given", "meant"),
    [("trian", "; did you mean train?"), ("evalute", "; did you mean evaluate?"), ("--verison", ""), ("\x1b[31m", "")],
)
def test_an_unknown_command_is_one_line(
    given: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, given)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert f"no such command{meant}" in said.err
    assert said.err[:-1].isprintable()


def test_it_does_what_python_m_does_and_spells_commands_as_typed(tmp_path: Path, forks: Forks) -> None:
    typed = [["agents"], ["sweep_table", f"folder={tmp_path}"], ["sweep_table", "--help", "x=1"]]
    long = [["-m", f"hrm_agent.{name}", *more] for name, *more in typed]
    short = [["-m", "hrm_agent", *each] for each in typed]
    ended = forks.run([*long, *short], [{}] * 2 * len(typed), tmp_path)
    for one, other in zip(ended[: len(typed)], ended[len(typed) :], strict=True):
        for part in ("stdout", "stderr"):
            spelled = getattr(one, part).replace("python -m hrm_agent.", "hrm-agent ")
            assert getattr(other, part) == spelled
        assert one.returncode == other.returncode
    assert [each.returncode for each in ended[: len(typed)]] == [0, 2, 0]
    assert "hrm-agent sweep_table folder=" in ended[-1].stdout


def test_the_pages_that_are_kept_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("write_help", ROOT / "docs" / "write_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads(pages.KEPT.read_text())
    made = json.loads(module.text())
    assert list(made) == list(kept)
    for name, page in made.items():
        assert page == kept[name], f"{name}: python docs/write_help.py"


def test_a_kept_page_is_shown_where_help_alone_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.kept_page("train", ["--help"]) is not None
    assert pages.kept_page("train", ["--help", "algo=dqn"]) is None
    assert pages.kept_page("bench", ["--help"]) is None
    monkeypatch.setattr(pages, "entry_points", lambda group: [group])  # another package has a core
    assert pages.kept_page("train", ["--help"]) is None


def test_every_setting_of_a_page_has_a_line_of_help() -> None:
    for name, page in json.loads(pages.KEPT.read_text()).items():
        for title, part in page["sections"].items():
            assert all(setting and about for setting, about in part), f"{name}: {title}"
