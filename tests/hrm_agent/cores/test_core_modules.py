"""`core=MODULE:CLASS` imports the module where it is typed; a file that names one imports nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import run_command, tiny_run
from hrm_agent import Agent
from hrm_agent.cores import CORES, find_core, import_core
from hrm_agent.launch.cli import compose_config
from refusals import refusal

MODULE = """
from worlds import Ring as _Ring

IMPORTS = open(__file__ + ".imported", "a").write("imported\\n")


class Ring(_Ring):
    pass


class Unfinished(_Ring):
    def __init__(self, hidden_size, length, grid=None, *, rounds):
        pass


def __getattr__(name):
    raise SystemExit(f"{name} was looked for")
"""
NAME = "own_cores:Ring"


def as_in_a_new_process() -> None:
    sys.modules.pop("own_cores", None)
    for name in [name for name in CORES.registered if name.startswith("own_cores")]:
        del CORES.registered[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a module of cores, in the folder where the program is."""
    (tmp_path / "own_cores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    as_in_a_new_process()


def imports(folder: Path) -> int:
    file = folder / "own_cores.py.imported"
    return len(file.read_text().split()) if file.exists() else 0


def test_a_core_of_a_module_is_trained_resumed_and_loaded_where_it_is_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = folder / "run", [f"core={NAME}", "core.rounds=1", "total_steps=64"]
    tiny = [a for a in tiny_run(run) if not a.startswith(("core", "total_steps")) or a == "core.hidden_size=8"]
    run_command(monkeypatch, "train", *tiny, *settings)
    assert Agent.load(run).policy.config.core == NAME  # the module is imported already
    before = imports(folder)
    capsys.readouterr()

    as_in_a_new_process()
    said = f"core={NAME}: a file names the module own_cores, and files import none; if you trust it, import it before"
    for command, argument in (("train", "resume=run"), ("evaluate", "run=run")):
        with monkeypatch.context() as patch:
            assert said in refusal(patch, capsys, command, [argument], folder)
    with pytest.raises(ValueError, match="files import none"):
        Agent.load(run)
    with monkeypatch.context() as patch:
        other = refusal(patch, capsys, "train", ["resume=run", "core=own_cores:Unfinished"], folder)
    assert f"the run is one of core={NAME}; the core cannot change" in other
    assert imports(folder) == before

    run_command(monkeypatch, "train", "resume=run", f"core={NAME}", "total_steps=96")
    assert Agent.load(run, best=False).info["frames"] == 96
    as_in_a_new_process()
    importlib.import_module("own_cores")
    assert Agent.load(run).policy.config.core == NAME


@pytest.mark.parametrize(
    ("core", "said"),
    [
        ("nowhere.at_all:Ring", "core=nowhere.at_all:Ring: cannot import nowhere.at_all: there is no such module"),
        ("own_cores:Nothing", "core=own_cores:Nothing: the module has no class of that name"),
        ("own_cores:IMPORTS", "core own_cores:IMPORTS: 9 is no subclass of hrm_agent.cores.Core"),
        ("own_cores:Unfinished", "core own_cores:Unfinished: the options rounds need default values"),
    ],
)
def test_what_is_no_core_is_refused_in_one_line(core: str, said: str, folder: Path) -> None:
    with pytest.raises(ValueError) as error:
        compose_config([f"core={core}"], "train")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_name_from_a_file_runs_nothing_of_a_module_that_is_there(folder: Path) -> None:
    import_core(NAME)
    with pytest.raises(ValueError, match="no class of that name"):
        find_core("own_cores:Lazy")  # its __getattr__ is not called
    with pytest.raises(ValueError, match="no subclass"):
        find_core("os:system")
    with pytest.raises(ValueError, match=r"core=own\\x1b\[2J:Ring: a file names the module own\\x1b\[2J, and files"):
        find_core("own\x1b[2J:Ring")
