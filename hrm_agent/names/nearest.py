"""The nearest of the names that there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(given: Any, known: Iterable[str], shown: int = 12) -> str:
    """`; did you mean X? Known: X, Y, ...`, for the end of a message; empty where nothing is known.

    Args:
        given: the name that is none of them.
        shown: how many are listed; 0: no list.
    """
    known = list(known)
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.0)
    if not near:
        return ""
    listed = f" Known: {', '.join(known[:shown])}{', ...' * (len(known) > shown)}" if shown else ""
    return f"; did you mean {near[0]}?{listed}"
