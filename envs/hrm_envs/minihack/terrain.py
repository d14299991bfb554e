"""Doors of a running NetHack game, opened and closed from outside.

NetHack changes a door when somebody opens, closes, breaks or magics it, and neither NLE nor MiniHack has a call that
does so. But NLE runs the game as a shared library in this process, suspended between two keys, with NetHack's
variables and functions as ordinary symbols. So a door is changed as NetHack's own ``lock.c`` does it: its state in
``levl[x][y].doormask``, then ``block_point`` or ``unblock_point`` for the lines of sight, then ``map_background`` for
what the player knows of it. From there on it is a door of the game like any other.

Source: ``include/rm.h``, ``src/lock.c``, ``src/vision.c`` and ``src/display.c`` of NetHack 3.6.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from hrm_envs.cells import DOOR, WALL

COLUMNS, ROWS = 80, 21
# struct rm: glyph, kind of terrain, angles seen from, and two bytes of bit fields whose lowest five are the flags.
_SQUARE = np.dtype([("glyph", "<i4"), ("typ", "i1"), ("seenv", "u1"), ("bits", "<u2")])
_FLAGS = 0x1F
_LAST_WALL, _DOOR, _ROOM, _STAIRS = 12, 22, 24, 25
_NO_DOOR, _CLOSED = 0, 4


class Terrain:
    """The squares of a game's current level.

    NLE loads the library anew at every reset: make a new one after each.

    Args:
        library: path of the library that NLE has loaded for this game (``Nethack.dlpath``).

    Raises:
        RuntimeError: not loaded, or without the symbols that are needed.
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
        # CDLL counts as a user of the library and never lets go; NLE could then not load it afresh at its reset.
        close = ctypes.CDLL(None).dlclose
        close.argtypes = (ctypes.c_void_p,)
        close(loaded._handle)

    def check(self, grid: NDArray[np.uint8], edges: NDArray[np.int32], corner: tuple[int, int]) -> None:
        """Refuse to touch a level that does not lie in memory as expected.

        Args:
            grid: uint8 [H, W], walls and closed doors of the level that NetHack was given.
            edges: flat positions of its doors.
            corner: NetHack's (x, y) of the grid's first position.

        Raises:
            RuntimeError: it does not.
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
                f"row {row}, column {col} of the level is terrain {found['typ'][row, col]} in NetHack's memory, not "
                "what it was given; doors cannot be moved in this build of nle, use nle 1.3.0"
            )

    def set_door(self, x: int, y: int, closed: bool) -> None:
        """Close the door on NetHack's square (x, y), or take it away; shown at the next redrawing."""
        square = self._squares[x, y]
        assert square["typ"] == _DOOR
        square["bits"] = (int(square["bits"]) & ~_FLAGS) | (_CLOSED if closed else _NO_DOOR)
        (self._block if closed else self._unblock)(x, y)
        self._show(x, y, 1)
