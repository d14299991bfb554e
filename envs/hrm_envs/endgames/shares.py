# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Which split a position of an endgame is in: all its images under the board's symmetries are in one."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hrm_envs.config import SPLITS
from hrm_envs.endgames.geometry import PAWN
from hrm_envs.endgames.tables import ENDINGS, endgame_table, unplace
from hrm_envs.jit import kernel
from hrm_envs.rng import mix

_FIRST = (0, 13, 14, 15, 16)
"""Of sixteen shares training has 13, and each other split one."""


@kernel
def _fill(board, rules, salt, shares):
    for index in range(len(shares)):
        _, wk, bk, wp, bp = unplace(board, rules.rook, index)
        least = np.int64(1) << 24
        for k in range(8):
            if rules.piece == PAWN and k != 0 and k != 2:
                continue  # a pawn leaves the reflection from left to right alone
            image = board.images[k]
            code = (np.int64(image[wk]) * 64 + image[bk]) * 64 + image[wp]
            code = code * 64 + (image[bp] if rules.rook else 0)
            least = min(least, code)
        shares[index] = mix(np.uint64(least) + np.uint64(salt)) >> np.uint64(60)


@cache
def splits_of(name: str) -> NDArray[np.uint8]:
    """For every index of an ending's table its split's place in ``SPLITS``, uint8 [T]; read-only."""
    table = endgame_table(name)
    shares = np.zeros(len(table.values), np.uint8)
    _fill(table.board, table.rules, list(ENDINGS).index(name) << 24, shares)
    splits = (np.searchsorted(_FIRST, shares, side="right") - 1).astype(np.uint8)
    splits.flags.writeable = False
    assert splits.max() < len(SPLITS)
    return splits
