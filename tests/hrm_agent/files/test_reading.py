"""Files from a stranger: regular, bounded and of the expected types, or refused in one line without waiting."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from hrm_agent.files.reading import (
    DEPTH_LIMIT,
    CheckpointError,
    convert_json,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)


class Point(msgspec.Struct):
    x: Annotated[int, msgspec.Meta(ge=0, le=9)]
    name: str = ""


def refusal(read: Callable[[], Any], path: Path) -> str:
    """The message of a refusal, which is one line and names the file."""
    with pytest.raises(CheckpointError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable(), message
    assert len(message) < 300 + len(str(path))
    return message


def test_a_regular_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("ä\n".encode())
    with open_regular(path) as file:
        assert file.read() == "ä\n".encode()
    assert read_bytes(path) == "ä\n".encode()
    assert read_text(path) == "ä\n"
    assert read_bytes(path, limit=3) == "ä\n".encode()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_null(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "not a regular file"),
        (make_fifo, "not a regular file"),  # without waiting for its other end
        (make_null, "not a regular file"),
        (make_loop, "a symbolic link"),
        (lambda path: path.symlink_to("absent"), "no such file"),
    ],
)
def test_what_is_no_regular_file_is_refused(make: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    for read in (open_regular, read_bytes, read_text, read_json):
        assert said in refusal(lambda read=read: read(path), path)  # type: ignore[misc]


def test_links_are_followed_unless_they_must_not_be(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("[1]")
    link = tmp_path / "link"
    link.symlink_to("real")
    assert read_json(link) == [1]
    for read in (open_regular, read_bytes, read_text, read_json):
        assert "a symbolic link; expected a regular file" in refusal(lambda read=read: read(link, links=False), link)  # type: ignore[operator]


def test_a_file_longer_than_its_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(2**40)  # a terabyte of nothing, which takes no place
    assert "longer than 1,000,000 bytes" in refusal(lambda: read_text(path), path)
    assert "longer than 10 bytes" in refusal(lambda: read_bytes(path, limit=10), path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(CheckpointError):
            read_bytes(Path(name))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe{}", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b'{"x": 1', "not valid JSON"),
        (b'{"x": "\\ud800"}', "not valid JSON"),
        (b"9" * 5000, "a number of thousands of digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' * 60 + b"1" + b"}" * 60, f"nested more than {DEPTH_LIMIT} deep"),
        (b"{}", "missing required field x"),
        (b"[]", "Expected object, got array"),
        (b"null", "Expected object, got null"),
        (b'{"x": "1"}', "Expected int, got str - at $.x"),
        (b'{"x": true}', "Expected int, got bool - at $.x"),
        (b'{"x": 1.5}', "Expected int, got float - at $.x"),
        (b'{"x": NaN}', "Expected int, got float - at $.x"),
        (b'{"x": 10}', "Expected int <= 9 - at $.x"),
        (b'{"x": 1' + b"0" * 4000 + b"}", "Expected int <= 9 - at $.x"),
        (b'{"x": 1, "name": null}', "Expected str, got null - at $.name"),
    ],
)
def test_json_of_another_kind_is_refused_in_one_line(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    assert said in refusal(lambda: read_json(path, Point), path)


def test_json_is_read_as_python_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    values = {"bounds": [-math.inf, math.inf], "text": 'ä"\n\U0001f600', "none": None, "big": 2**63}
    path.write_text(json.dumps(values))
    assert read_json(path) == values
    path.write_text('{"x": 3, "more": [1, 2]}')
    assert read_json(path, Point) == Point(3)
    (nan,) = parse_json("[NaN]", list[float], "here")
    assert math.isnan(nan)


def test_values_are_checked_without_a_file_too() -> None:
    assert convert_json({"x": 3}, Point, "here") == Point(3)
    deep: Any = 1
    for _ in range(DEPTH_LIMIT):
        deep = [deep]
    assert convert_json(deep, Any, "here") == deep
    for value, kind in (([deep], Any), ({"x": -1}, Point), (10**400, float)):
        with pytest.raises(CheckpointError, match=r"^here: "):
            convert_json(value, kind, "here")
