"""Opens and closes doors of a running NetHack game.

In NetHack only the player, monsters and spells change a door, and neither NLE nor MiniHack has a function for it. But
NLE runs the game as a shared library in this process, suspended between two keys, with NetHack's variables and
functions as ordinary symbols. So a door is changed as NetHack's own ``lock.c`` does it: its state in
``levl[x][y].doormask``, then ``block_point`` or ``unblock_point`` for lines of sight, then ``map_background`` for
the player's map. Afterwards it is an ordinary door of the game.

Source: ``include/rm.h``, ``src/lock.c``, ``src/vision.c`` and ``src/display.c`` of NetHack 3.6.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import DOOR, WALL

COLUMNS, ROWS = 80, 21
# struct rm: glyph, terrain type, angles seen from, and two bytes of bit fields, of which the lowest five are flags.
_SQUARE = np.dtype([("glyph", "<i4"), ("typ", "i1"), ("seenv", "u1"), ("bits", "<u2")])
_FLAGS = 0x1F
_LAST_WALL, _DOOR, _ROOM, _STAIRS = 12, 22, 24, 25
_NO_DOOR, _CLOSED = 0, 4


class Terrain:
    """The squares of a game's current level.

    NLE reloads the library at every reset: create a new instance after each.

    Args:
        library: path of the library that NLE loaded for this game (``Nethack.dlpath``).

    Raises:
        RuntimeError: the library is not loaded, or lacks a symbol.
    """

    def __init__(self, library: str) -> None:
        try:
            loaded = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            level = (ctypes.c_uint8 * (COLUMNS * ROWS * _SQUARE.itemsize)).in_dll(loaded, "level")
            self._block, self._unblock, self._show = loaded.block_point, loaded.unblock_point, loaded.map_background
        except (OSError, ValueError, AttributeError) as error:
            raise RuntimeError(f"doors cannot be moved in this build of nle: {error}; use nle 1.3.0") from None
        for function in (self._block, self._unblock):
            function.argtypes, function.restype = (ctypes.c_int, ctypes.c_int), None
        self._show.argtypes, self._show.restype = (ctypes.c_byte, ctypes.c_byte, ctypes.c_int), None
        self._squares = np.frombuffer(memoryview(level), _SQUARE).reshape(COLUMNS, ROWS)
        # CDLL keeps a reference to the library forever, and NLE could then not reload it at a reset.
        close = ctypes.CDLL(None).dlclose
        close.argtypes = (ctypes.c_void_p,)
        close(loaded._handle)

    def check(self, grid: NDArray[np.uint8], edges: NDArray[np.int32], corner: tuple[int, int]) -> None:
        """Check that the level has the expected layout in memory, before anything is written to it.

        Args:
            grid: uint8 [H, W], walls and closed doors of the level.
            edges: flat positions of its doors.
            corner: NetHack's (x, y) of the grid's first position.

        Raises:
            RuntimeError: the layout is different.
        """
        (height, width), (x, y) = grid.shape, corner
        found = self._squares[x : x + width, y : y + height].T
        is_edge = np.zeros(grid.shape, bool)
        is_edge.flat[edges] = True
        flags = np.where(grid == DOOR, _CLOSED, _NO_DOOR)
        right = np.where(is_edge, (found["typ"] == _DOOR) & ((found["bits"] & _FLAGS) == flags), False)
        right |= (grid == WALL) & (found["typ"] >= 0) & (found["typ"] <= _LAST_WALL)
        right |= ~is_edge & (grid != WALL) & ((found["typ"] == _ROOM) | (found["typ"] == _STAIRS))
        if not right.all():
            row, col = np.argwhere(~right)[0]
            raise RuntimeError(
                f"row {row}, column {col} of the level has unexpected terrain {found['typ'][row, col]} in NetHack's "
                "memory; doors cannot be moved in this build of nle, use nle 1.3.0"
            )

    def set_door(self, x: int, y: int, closed: bool) -> None:
        """Close the door on NetHack's square (x, y), or remove it; visible after the next redraw."""
        square = self._squares[x, y]
        assert square["typ"] == _DOOR
        square["bits"] = (int(square["bits"]) & ~_FLAGS) | (_CLOSED if closed else _NO_DOOR)
        (self._block if closed else self._unblock)(x, y)
        self._show(x, y, 1)
