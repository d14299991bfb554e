"""YAML from a stranger: values as they stand, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.reading import TEXT_LIMIT, CheckpointError

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20).filter(
    lambda text: "${" not in text and "???" not in text
)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
trees = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "config.yaml"


@settings(max_examples=50)
@given(written=st.dictionaries(texts, trees, max_size=4))
def test_what_omegaconf_wrote_is_read_back(path: Path, written: dict[str, object]) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(written)))
    assert (read_yaml(path) or {}) == OmegaConf.to_container(OmegaConf.load(path)) == written


@given(data=st.binary(max_size=100) | st.text("{}[]&*!:-?|>#'\"a1. \n\t\\$%@~", max_size=60).map(str.encode))
def test_any_bytes_are_values_or_one_line(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read_yaml(path)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()


def test_numbers_to_the_base_of_sixty_are_text(tmp_path: Path) -> None:
    """Reading one takes quadratic time."""
    path = tmp_path / "config.yaml"
    path.write_text("a: 1:30\nb: 0x1F\nc: -1_000\nd: 0\n" + f"long: 1{':59' * 200_000}\n")
    found = read_yaml(path)
    assert (found["a"], found["b"], found["c"], found["d"]) == ("1:30", 31, -1000, 0)
    assert isinstance(found["long"], str)


def test_nothing_is_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_SECRET", "hidden")
    path = tmp_path / "config.yaml"
    path.write_text("a: ${oc.env:HRM_SECRET}\nb: ${a}\nrate: 1e-3\nday: 2026-01-01\n")
    assert read_yaml(path) == {"a": "${oc.env:HRM_SECRET}", "b": "${a}", "rate": 0.001, "day": "2026-01-01"}


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "an alias"),
        ("a: &a {b: *a}", "an alias"),
        ("a: !!python/object/apply:os.mkdir [made]", "a tag"),
        ("a: !!binary aaaa", "a tag"),
        ("[" * 100_000, "nested more than 50 deep"),
        ("".join(" " * i + "a:\n" for i in range(60)), "nested more than 50 deep"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 1\n---\nb: 2", "another document"),
        ('"\\e[31m": 1\n"\\e[31m": 2', r"\x1b[31m"),
        ("#" * (TEXT_LIMIT + 1), "longer than 1,000,000 bytes"),
    ],
    ids=lambda text: text[:12],
)
def test_bombs_are_refused_in_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
