"""The working folder is left out of the search for modules, and comes back in its place."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from hrm_agent.names.installed import leave_out_working_folder, without_working_folder
from hrm_agent.names.registry import Registry

LIBRARY = sysconfig.get_path("stdlib")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder, reached by a symbolic link too."""
    folder = tmp_path / "real"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    return str(folder)


def test_what_python_and_the_user_put_first_is_left_out(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = str(Path(here).parent / "link")
    path = [here, "", "/somewhere", ".", link, "lib", LIBRARY, "/site-packages", here, "."]
    monkeypatch.setattr(sys, "path", [*path])
    with without_working_folder():
        # Behind the library, an editable installation has put it there: it is installed.
        assert sys.path == ["/somewhere", LIBRARY, "/site-packages", here]
        with without_working_folder():
            assert sys.path == ["/somewhere", LIBRARY, "/site-packages", here]
        assert sys.path == ["/somewhere", LIBRARY, "/site-packages", here]
    assert sys.path == path
    with pytest.raises(KeyError), without_working_folder():
        raise KeyError
    assert sys.path == path


def test_what_the_body_adds_stays(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [here, LIBRARY])
    with without_working_folder():
        sys.path.append("/added")
    assert sys.path == [here, LIBRARY, "/added"]


def test_threads_in_such_bodies_leave_the_path_as_it_was(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [here, LIBRARY, ""])
    both, seen = threading.Barrier(2), []

    def first() -> None:
        with without_working_folder():
            both.wait(10)
        both.wait(10)

    def second() -> None:
        with without_working_folder():
            both.wait(10)
            both.wait(10)
            seen.append([*sys.path])  # the other has left its body

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[LIBRARY]]
    assert sys.path == [here, LIBRARY, ""]


def test_a_working_folder_that_is_gone_is_no_error(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", here, LIBRARY])
    os.rmdir(here)
    with without_working_folder():
        assert "" not in sys.path


@pytest.mark.parametrize(
    ("arguments", "stays"),
    [
        (["run=."], False),
        (["run=a:b", "out=x:y.json", "env=CartPole-v1"], False),
        (["run=.", "env=mine:Maze-v0"], True),
        (["agent=mine:Maze-TRM-v0"], True),
        (["resume=run", "task.env=mine:Maze-v0"], True),
        (["model=run", "+task_options.env=mine:Maze-v0"], True),
    ],
)
def test_a_command_keeps_it_where_a_module_is_typed(
    arguments: list[str], stays: bool, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [here, LIBRARY])
    leave_out_working_folder(arguments)
    assert (here in sys.path) == stays


def test_a_registry_finds_no_packages_in_the_working_folder(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Path(here) / "guest-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hrm_agent.tests]\nguest = guest:Guest\n")
    monkeypatch.setattr(sys, "path", [here, *sys.path])
    importlib.invalidate_caches()
    assert [point.name for point in entry_points(group="hrm_agent.tests")] == ["guest"]
    assert list(Registry("thing", "hrm_agent.tests", {"ours": 1})) == ["ours"]
