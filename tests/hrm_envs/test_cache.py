"""Machine code on disk: damaged files are compiled anew, and what another user could have written is never loaded."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from hrm_envs import cache, jit

OTHER_USER = 12345


def double(x):  # type: ignore[no-untyped-def]
    return 2 * x


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "cache"


def start() -> bool:
    """What a new process does with a small kernel; whether the machine code came from the disk."""
    doubled = jit.hot_kernel(double)
    held = jit.is_cached(doubled, 3)
    assert doubled(3) == 6
    hits = sum(doubled._cache_hits.values())
    assert held == (hits == 1)
    return held


@pytest.fixture
def code(root: Path) -> Path:
    """The one file that the kernel leaves in the cache."""
    assert not start()
    (path,) = root.rglob("*.code")
    assert [p for p in root.rglob("*") if p.is_file()] == [path]
    assert start()
    return path


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or folder that of another user."""
    if os.getuid() == 0:
        os.chown(path, OTHER_USER, OTHER_USER)
    else:
        monkeypatch.setattr(os, "getuid", lambda: OTHER_USER)


class Planted:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_the_cache_is_private(code: Path) -> None:
    assert code.stat().st_mode & 0o777 == 0o600
    assert code.parent.stat().st_mode & 0o777 == 0o700
    code.parent.chmod(0o777)  # as an earlier version, or the user's umask, left it
    assert start()
    assert code.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: b"\x80\x04K\x01.",
    ],
    ids=["empty", "cut in the digest", "half", "a byte less", "a bit", "foreign"],
)
def test_damaged_code_is_compiled_anew_and_said_once(
    damage: Callable[[bytes], bytes], code: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code.write_bytes(damage(code.read_bytes()))
    assert not start()
    assert [record.message for record in caplog.records] == [
        f"{code} is damaged: what was compiled there is compiled anew"
    ]
    assert start()
    assert len(caplog.records) == 1


def test_code_of_other_sources_or_another_numba_is_compiled_anew(
    code: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(numba, "__version__", "0.0")
        assert not start()
    monkeypatch.setattr(jit, "_source_stamp", lambda *more: ("edited",))
    assert not start()
    assert start()
    assert not caplog.records
    assert [path.name for path in code.parent.iterdir()] == [code.name]  # nothing piles up


def test_code_that_checks_its_bounds_is_kept_apart(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs numba's runtime, without which the other code is loaded."""
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "BOUNDSCHECK", 1)
        assert not start()
        assert start()
    assert start()
    assert len(list(code.parent.iterdir())) == 2


@pytest.mark.parametrize("whose", ["folder", "file"])
def test_what_another_user_owns_is_refused(
    whose: str, code: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = code.read_bytes()
    give_away(code if whose == "file" else code.parent, monkeypatch)
    assert not start()
    assert "belongs to another user" in caplog.text
    assert len(caplog.records) == 1
    if whose == "folder":
        assert code.read_bytes() == before
        assert not start()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_another_user_can_write_is_refused(mode: int, code: Path, caplog: pytest.LogCaptureFixture) -> None:
    code.chmod(mode)
    assert not start()
    assert "can be written by other users" in caplog.text


def test_links_and_fifos_are_refused(code: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code.rename(tmp_path / "elsewhere")
    code.symlink_to(tmp_path / "elsewhere")
    assert not start()
    code.unlink()
    os.mkfifo(code)
    assert not start()
    assert len(caplog.records) == 1


def test_a_planted_pickle_is_not_loaded(
    code: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as an index of numba's, nor under our name with a seal, from a user who is not this one."""
    ran = tmp_path / "ran"
    planted = pickle.dumps(Planted(ran))
    content = code.read_bytes()[32:64] + planted
    for name in (code.name, f"{code.name.split('.py')[0]}.nbi", f"{code.name.rsplit('.', 2)[0]}.nbi"):
        (code.parent / name).write_bytes(hashlib.sha256(content).digest() + content if name == code.name else planted)
    give_away(code, monkeypatch)
    assert not start()
    assert not ran.exists()


def test_code_beside_its_source_is_as_trusted_as_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can write `__pycache__` can change the bytecode of the module itself."""
    source = tmp_path / "module.py"
    source.write_text("")
    files = cache.Files(tmp_path / "__pycache__", "f", source, ())
    files.folder.mkdir(mode=0o775)
    files.folder.chmod(0o775)
    key = ("signature", "processor", "code")
    files.save(key, 1)
    for path in (source, *files.folder.iterdir()):
        give_away(path, monkeypatch)
    assert files.load(key) == 1
    assert files.folder.stat().st_mode & 0o777 == 0o775


def test_without_a_home_no_folder_of_that_name_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # HOME is unset, and the user has no name
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    monkeypatch.chdir(tmp_path)
    assert not start()
    assert not start()
    assert list(tmp_path.iterdir()) == []
    assert len(caplog.records) == 1


def test_a_folder_from_a_stranger_does_not_say_where_machine_code_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba reads `.numba_config.yaml` of the working folder, which could name a cache beside it."""
    names = ("CACHE_DIR", "CACHE_LOCATOR_CLASSES")
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: planted\ncache_locator_classes: planted.Locator\n")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    before = [getattr(numba.config, name, "") for name in names]
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        numba.config.reload_config()
        assert numba.config.CACHE_DIR == "planted"
        jit._distrust_folder()
        assert [getattr(numba.config, name) for name in names] == ["", ""]
        inside.setenv("NUMBA_CACHE_DIR", "mine")
        jit._distrust_folder()
        assert numba.config.CACHE_DIR == "mine"
    monkeypatch.undo()
    numba.config.reload_config()
    for name, value in zip(names, before, strict=True):
        setattr(numba.config, name, value)
