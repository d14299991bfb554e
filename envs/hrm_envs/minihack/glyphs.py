"""NetHack's glyphs as ``hrm_envs.Cell`` ids."""

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import AGENT, DOOR, EMPTY, GOAL, WALL

# Indices of NetHack's map symbols (defsym in its drawing.c): first and last of each kind, and their ``Cell`` id.
_SYMBOLS = (
    (0, 11, WALL),  # solid rock, then walls of every shape
    (12, 14, EMPTY),  # a doorway without a door, open doors
    (15, 16, DOOR),  # closed doors
    (19, 22, EMPTY),  # floors and corridors, lit or not
    (23, 23, EMPTY),  # stairs up: no meaning here
    (24, 24, GOAL),  # stairs down
)
_UNUSED = 255


def build_translation() -> NDArray[np.uint8]:
    """A table from glyph to ``Cell`` id; 255 for glyphs that these mazes do not contain."""
    from nle import nethack

    table = np.full(nethack.MAX_GLYPH + 1, _UNUSED, np.uint8)
    for first, last, cell in _SYMBOLS:
        table[nethack.GLYPH_CMAP_OFF + first : nethack.GLYPH_CMAP_OFF + last + 1] = cell
    # The agent appears as a monster. There are no others: no pet, none placed, none generated.
    table[nethack.GLYPH_MON_OFF : nethack.GLYPH_PET_OFF] = AGENT
    return table


def translate(glyphs: NDArray[np.int16], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``Cell`` ids of a part of NetHack's map, same shape.

    Raises:
        RuntimeError: a glyph that does not belong in a maze.
    """
    cells = table[glyphs]
    if (cells == _UNUSED).any():
        raise RuntimeError(f"NetHack shows glyph {glyphs[cells == _UNUSED][0]}, which does not belong in a maze")
    return cells
