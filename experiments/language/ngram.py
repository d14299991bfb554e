"""An interpolated n-gram model of characters: Kneser and Ney 1995 (doi:10.1109/ICASSP.1995.479394).

    python -m experiments.language.ngram [--text FILE] [--order 5] --out FILE

    p_k(c | h) = max(N_k(hc) - D_k, 0) / N_k(h) + D_k T_k(h) / N_k(h) p_{k-1}(c | h without its first)

N_n are counts in the text; N_k below the highest order counts the different characters that stand before hc (Chen and
Goodman 1999, doi:10.1006/csla.1999.0128, section 2.7). N_k(h) sums over c, T_k(h) counts the c that follow h, and
D_k = n_1 / (n_1 + 2 n_2) of the grams with counts 1 and 2. p_0 is uniform; a context that does not
occur leaves p_{k-1}.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm_agent.supervised.tasks.text import TextTask

WITHOUT_COUNTS = 0.5
"""The discount where no gram has a count of 1 or 2."""
MOST_GRAMS = 2**62
SPLITS = ("validation", "test")
SAMPLE = 400
"""Characters of the samples that seed 0 writes."""


class Order(NamedTuple):
    """Grams of one length as numbers with the alphabet's size as base, sorted, and what stands before their last."""

    grams: NDArray[np.int64]
    counts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    totals: NDArray[np.int64]
    followers: NDArray[np.int64]
    discount: float


class NGram:
    """Args:
    tokens: int `[N]`, the text.
    size: V, of the alphabet.
    order: n, characters of the longest gram.

    Raises:
        ValueError: too many possible grams for integers, or a text shorter than a gram.
    """

    def __init__(self, tokens: NDArray, size: int, order: int = 5) -> None:
        if size**order > MOST_GRAMS:
            raise ValueError(f"{size} characters and order {order}: expected at most 2^62 grams; use a lower order")
        if len(tokens) < order:
            raise ValueError(f"a text of {len(tokens)} characters: expected at least {order}")
        self.size, self.order = size, order
        grams, counts = np.unique(codes(tokens, size, order), return_counts=True)
        orders = [order_of(grams, counts, size)]
        for length in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % size**length, return_counts=True)  # different ones that begin otherwise
            orders.append(order_of(grams, counts, size))
        self.orders = orders[::-1]

    @property
    def parameters(self) -> int:
        """Numbers that the model is made of: a count for every gram."""
        return sum(len(order.grams) for order in self.orders)

    def probabilities(self, tokens: NDArray) -> NDArray[np.float64]:
        """Of every token, given those before it: `[N]`; the first ones have shorter contexts."""
        found = np.full(len(tokens), 1 / self.size)
        for length, order in enumerate(self.orders, start=1):
            if len(tokens) >= length:
                found[length - 1 :] = self._refined(order, codes(tokens, self.size, length), found[length - 1 :])
        return found

    def distribution(self, context: NDArray) -> NDArray[np.float64]:
        """Of what follows a context of any length: `[V]`."""
        found, following = np.full(self.size, 1 / self.size), np.arange(self.size)
        for length, order in enumerate(self.orders, start=1):
            if len(context) >= length - 1:
                before = 0
                for token in context[len(context) - length + 1 :]:
                    before = before * self.size + int(token)
                found = self._refined(order, before * self.size + following, found)
        return found

    def _refined(self, order: Order, grams: NDArray, below: NDArray) -> NDArray[np.float64]:
        """Probabilities with contexts one token longer than those of `below`."""
        at, known = lookup(order.contexts, grams // self.size)
        place, seen = lookup(order.grams, grams)
        total = order.totals[at]
        kept = np.maximum(order.counts[place] - order.discount, 0) * seen
        return np.where(known, (kept + order.discount * order.followers[at] * below) / total, below)


def codes(tokens: NDArray, size: int, length: int) -> NDArray[np.int64]:
    """Every gram of a length as a number: `[N - length + 1]`."""
    count = len(tokens) - length + 1
    made = np.zeros(count, np.int64)
    for offset in range(length):
        made = made * size + tokens[offset : offset + count]
    return made


def order_of(grams: NDArray, counts: NDArray, size: int) -> Order:
    contexts, first = np.unique(grams // size, return_index=True)
    once, twice = (int((counts == times).sum()) for times in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else WITHOUT_COUNTS
    followers = np.diff([*first, len(grams)])
    return Order(grams, counts, contexts, np.add.reduceat(counts, first), followers, discount)


def lookup(sorted_values: NDArray, wanted: NDArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places of values, and whether they are there."""
    place = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return place, sorted_values[place] == wanted


def write_on(model: NGram, prompt: NDArray, length: int, seed: int = 0) -> list[int]:
    """Tokens drawn one after the other."""
    random, text = np.random.default_rng(seed), [int(token) for token in prompt]
    for _ in range(length):
        chances = model.distribution(np.array(text[-model.order + 1 :]))
        text.append(int(random.choice(model.size, p=chances / chances.sum())))
    return text[len(prompt) :]


def measure_ngram(text: str | None, order: int) -> dict[str, Any]:
    """A model of a text's training part: its scores on the other two, its size, what it writes, and what it took.

    Args:
        text: a file; None: the default corpus.
    """
    began = time.process_time()
    task = TextTask(path=text)
    train = task.stream("train")
    model = NGram(np.append(train.inputs, train.labels[-1]), task.spec.input_ids, order)
    seconds, scores = time.process_time() - began, {}
    for split in SPLITS:
        stream = task.stream(split)
        losses = -np.log(model.probabilities(np.append(stream.inputs, stream.labels[-1]))[1:])
        scores[split] = {
            "nats": float(losses.mean()),
            "bits": float(losses.mean() / np.log(2)),
            "perplexity": float(np.exp(losses.mean())),
            "tokens": len(losses),
        }
    decoder = task.alphabet.decoder()
    written = write_on(model, task.alphabet.encode(task.alphabet.beginning()), SAMPLE)
    return {
        "parameters": model.parameters,
        "tokens_read": len(train.inputs) + 1,
        "seconds": round(seconds, 1),
        "scores": scores,
        "curve": [[round(seconds, 1), scores["validation"]["bits"]]],
        "sample": "".join(map(decoder.decode, written)),
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a file; the default corpus without")
    parser.add_argument("--order", type=int, default=5, help="characters of the longest gram")
    parser.add_argument("--out", type=Path, required=True, help="file of the result, JSON")
    return parser


def main() -> None:
    given = arguments().parse_args()
    result = measure_ngram(given.text, given.order)
    given.out.write_text(json.dumps(result) + "\n")
    bits = {split: result["scores"][split]["bits"] for split in SPLITS}
    print(f"{bits['validation']:.3f} bits on validation, {bits['test']:.3f} on test")


if __name__ == "__main__":
    main()
