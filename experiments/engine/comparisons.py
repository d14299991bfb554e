"""Differences between arms, corrected over a page's comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.engine.records import Record
from experiments.engine.statistics import crossed_difference, holm

MODES = {"greedy": "success", "sampled": "sampled"}
"""What a table says, and the field of `levels.json`."""


def outcomes(records: Sequence[Record], arm: str, mode: str, key: str = "agent") -> NDArray[np.float64]:
    """Success `[seeds, levels]` of an arm, greedy or sampled; empty without records, or where it draws no actions."""
    return np.array([[int(c) for c in r[MODES[mode]]] for r in records if r[key] == arm and MODES[mode] in r], float)


def comparison_rows(
    questions: Mapping[str, Sequence[Sequence[str]]],
    scores: Callable[[str, str], NDArray[np.float64]],
    modes: Mapping[str, float] = dict.fromkeys(MODES, 1.0),
) -> list[dict[str, str]]:
    """One row a pair for which there are two seeds or more; p by Holm over all pairs and modes.

    Args:
        questions: pairs of arms by what they answer.
        scores: scores `[seeds, levels]` of an arm in a mode, success where nothing else is said.
        modes: those compared, and the most that a score can be in each; the least is 0.
    """
    found = []
    for question, pairs in questions.items():
        for a, b in pairs:
            for mode, most in modes.items():
                x, y = scores(a, mode), scores(b, mode)
                if min(len(x), len(y)) >= 2:
                    found.append((question, a, b, mode, crossed_difference(x / most, y / most)))
    adjusted = holm([d.p_value for *_, d in found])
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (question, a, b, mode, d), p in zip(found, adjusted, strict=True):
        row = rows.setdefault((a, b), {"question": question, "a": a, "b": b})
        value, low, high = (modes[mode] * end for end in (d.value, d.low, d.high))
        row[f"{mode}, a - b [95%]"] = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        row[f"p, {mode}, of {len(found)}"] = f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return list(rows.values())
