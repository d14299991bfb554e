"""A chess engine in a process of its own, spoken to by UCI (the Universal Chess Interface).

An engine that dies or is silent for longer than its time-out is an error of one line, never a hang.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hrm_agent.names.values import printable
from hrm_agent.supervised.chess.judged import MATE, NEAR_MATE

DEFAULT = "stockfish"
FOLDERS = (Path("/usr/games"),)
"""Searched after `PATH`: where Debian puts the program."""
TIMEOUT = 60.0
_LONGEST_LINE = 100_000
_BOUNDS = {"lowerbound", "upperbound"}


class NoEngine(ValueError):
    """There is no such program; the message says how to get one."""


class EngineError(RuntimeError):
    """The engine died, hung, or answered what is no UCI; one line."""


class Line(NamedTuple):
    """A move that was searched, as engines write it, and its score: centipawns, or `MATE - n` for a mate in n."""

    move: str
    score: int


def find_engine(engine: str = DEFAULT) -> Path:
    """The program to run: a path, or a name looked for in `PATH`, then in `/usr/games`.

    Raises:
        NoEngine: there is none that can be run.
    """
    if os.sep in engine:
        path = Path(engine)
        if path.is_file() and os.access(path, os.X_OK):
            return path
        raise NoEngine(f"engine={printable(engine)}: no program there; give the path of a UCI engine")
    found = shutil.which(engine) or shutil.which(engine, path=os.pathsep.join(map(str, FOLDERS)))
    if not engine or found is None:
        raise NoEngine(
            f"engine={printable(engine)}: no such program in PATH or {FOLDERS[0]}; install one (Debian: apt install "
            "stockfish) or give engine=PATH of any UCI engine"
        )
    return Path(found)


class Engine:
    """A running engine.

    Args:
        path: of the program.
        options: of UCI, such as `Hash`; those that the engine does not have are left out.
        timeout: seconds without the answer that is waited for, after which the engine counts as hung.

    Raises:
        EngineError: it cannot be started, or does not answer as an engine.
    """

    def __init__(self, path: Path, options: Mapping[str, object] | None = None, timeout: float = TIMEOUT) -> None:
        self.path, self.timeout, self.name = path, timeout, path.name
        self.known: set[str] = set()
        try:
            self._process = subprocess.Popen(
                [str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as error:
            raise EngineError(f"engine={path}: cannot be started ({error.strerror or error})") from None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._process.stdout, selectors.EVENT_READ)
        self._unread = b""
        try:
            self._greet(options or {})
        except BaseException:
            self.close()
            raise

    def _greet(self, options: Mapping[str, object]) -> None:
        self._send("uci")
        for line in self._until("uciok"):
            words = line.split()
            if words[:2] == ["id", "name"]:
                self.name = printable(" ".join(words[2:]))[:100]
            elif words[:2] == ["option", "name"] and "type" in words:
                self.known.add(" ".join(words[2 : words.index("type")]))
        for name, value in options.items():
            self.set_option(name, value)
        self._ready()

    def set_option(self, name: str, value: object) -> None:
        """Set an option of UCI, if the engine has it."""
        if name in self.known:
            self._send(f"setoption name {name} value {str(value).lower() if isinstance(value, bool) else value}")

    def new_game(self) -> None:
        """Forget what was searched, so that what follows does not depend on it."""
        self._send("ucinewgame")
        self._ready()

    def best_move(self, fen: str, nodes: int) -> str:
        """The move that the engine plays: at a low `Skill Level` not always the best that it has found.

        Raises:
            EngineError: see the class.
        """
        self.set_option("MultiPV", 1)
        self._send(f"position fen {fen}")
        self._send(f"go nodes {nodes}")
        words = self._until("bestmove")[-1].split()
        return words[1] if len(words) > 1 else ""

    def search(self, fen: str, nodes: int, lines: int = 1, moves: tuple[str, ...] = ()) -> list[Line]:
        """Moves with their scores after a search of so many nodes, the best first.

        Args:
            fen: a position in which there is a move.
            nodes: searched in all.
            lines: moves to score, where there are so many.
            moves: to search among; none: all.

        Raises:
            EngineError: see the class.
        """
        self.set_option("MultiPV", lines)
        self._send(f"position fen {fen}")
        self._send(f"go nodes {nodes}" + (f" searchmoves {' '.join(moves)}" if moves else ""))
        found: dict[int, Line] = {}
        best = ""
        for text in self._until("bestmove"):
            words = text.split()
            if words[:1] == ["bestmove"]:
                best = words[1] if len(words) > 1 else ""
            elif words[:1] == ["info"] and {"pv", "score"} <= set(words) and not _BOUNDS & set(words):
                place, line = self._read_info(words)
                found[place] = line
        scored: dict[str, Line] = {}
        for place in sorted(found):
            scored.setdefault(found[place].move, found[place])
        if not scored:
            raise EngineError(f"engine={self.path}: answered {printable(best)[:20] or 'nothing'} without a score")
        return sorted(scored.values(), key=lambda line: -line.score)[:lines]

    def _read_info(self, words: list[str]) -> tuple[int, Line]:
        try:
            place = int(words[words.index("multipv") + 1]) if "multipv" in words else 1
            kind, value = words[words.index("score") + 1 :][:2]
            number = int(value)
            move = words[words.index("pv") + 1]
        except (ValueError, IndexError):
            raise EngineError(f"engine={self.path}: answered {printable(' '.join(words))[:80]}, no UCI") from None
        if kind == "mate":
            return place, Line(move, (MATE - number) if number > 0 else (-MATE - number))
        return place, Line(move, max(-NEAR_MATE, min(NEAR_MATE, number)))

    def _ready(self) -> None:
        self._send("isready")
        self._until("readyok")

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode() + b"\n")
        except (OSError, ValueError):
            raise EngineError(self._death()) from None

    def _until(self, last: str) -> list[str]:
        """The lines up to the one that begins with `last`."""
        deadline, lines = time.monotonic() + self.timeout, []
        while True:
            lines.append(self._line(deadline, last))
            if lines[-1].startswith(last):
                return lines

    def _line(self, deadline: float, last: str) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            if len(self._unread) > _LONGEST_LINE:
                raise EngineError(f"engine={self.path}: a line of more than {_LONGEST_LINE:,} bytes, no UCI")
            left = deadline - time.monotonic()
            if left <= 0 or not self._waiting.select(left):
                raise EngineError(f"engine={self.path}: no {last} within {self.timeout:g} s; it hangs, or needs longer")
            data = os.read(self._process.stdout.fileno(), 65_536)
            if not data:
                raise EngineError(self._death())
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _death(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return f"engine={self.path}: ended by itself (exit code {self._process.poll()})"

    def close(self) -> None:
        """End the process; may be called from another thread, and again."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()
        with suppress(KeyError, ValueError, RuntimeError):
            self._waiting.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
