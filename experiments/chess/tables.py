"""Compare every position of the endgame tables with Syzygy's: writes `tables.json` here.

    python -m experiments.chess.tables syzygy=FOLDER [endings=KQK,KRK,KPK,KQKR] [workers=2] [every=1]

FOLDER holds `KQvK.rtbw`, `KQvK.rtbz` and so on; the source distribution of `chess` on PyPI has those of up to four
pieces in `data/syzygy/regular`. The reader is that package's (`chess.syzygy`), which shares no code with the tables.

WDL: won, drawn or lost, compared for every legal position with either side to move, one of every class under the
board's symmetries (eight without pawns, two with). DTZ is the distance to a capture, a pawn's move or mate. Where the
side that wins has no pawn and nothing to take, that is the distance to mate: KQK and KRK are compared by it, too.
Syzygy rounds some distances by one ply, and the record counts those apart. In KPK and KQKR a win by Syzygy's measure
captures or promotes first, so that its distance is at most that to mate, up to the same ply: that is checked for every
`dtz_every`-th position.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine import machine
from hrm_envs.endgames.tables import DRAW, ENDINGS, ILLEGAL, Table, endgame_table, positions_at, values_at

HERE = Path(__file__).resolve().parent
COMMAND = "python -m experiments.chess.tables syzygy=FOLDER"
EXACT = ("KQK", "KRK")
"""Endings in which DTZ is the distance to mate."""
PIECES = {"KQK": "KkQ", "KRK": "KkR", "KPK": "KkP", "KQKR": "KkQr"}
FILES = {"KQK": "KQvK", "KRK": "KRvK", "KPK": "KPvK", "KQKR": "KQvKR"}
DTZ_EVERY = 100
_CHUNK = 20_000


def distinct(table: Table) -> NDArray[np.int64]:
    """Indices of the legal positions, one of every class under the board's symmetries."""
    index = np.flatnonzero(table.values != ILLEGAL).astype(np.int64)
    squares = positions_at(table, index)[1]
    images = table.board.images.astype(np.int64)
    # With a pawn the board may be mirrored from left to right alone, which is image 2.
    allowed = images[[0, 2]] if table.name == "KPK" else images
    codes = [_code(image[squares]) for image in allowed]
    return index[codes[0] == np.min(codes, 0)]


def _code(squares: NDArray[np.int64]) -> NDArray[np.int64]:
    code = np.zeros(len(squares), np.int64)
    for column in squares.T:
        code = code * 64 + column
    return code


def outcome(value: int) -> int:
    """Syzygy's WDL of a value: 2, 0 or -2 (no ending here is decided by the fifty-move rule)."""
    return 0 if value == DRAW else (2 if value % 2 else -2)


def compare_some(name: str, folder: str, dtz_every: int, indices: NDArray[np.int64]) -> Counter[str]:
    """Counts of what agrees and what does not, for some positions of an ending."""
    import chess
    import chess.syzygy

    table, counts = endgame_table(name), Counter[str]()
    sides, squares = positions_at(table, indices)
    values = values_at(table, sides, squares)
    pieces = [chess.Piece.from_symbol(letter) for letter in PIECES[name]]
    with chess.syzygy.open_tablebase(folder) as syzygy:
        for index, side, where, value in zip(indices, sides, squares.tolist(), values.tolist(), strict=True):
            board = chess.Board(None)
            for square, piece in zip(where, pieces, strict=True):
                board.set_piece_at(square, piece)
            board.turn = bool(side == 0)
            counts["positions"] += 1
            counts["wdl_equal"] += syzygy.probe_wdl(board) == outcome(value)
            if value != DRAW and (name in EXACT or index % dtz_every == 0):
                further = value - abs(syzygy.probe_dtz(board))
                counts["dtz"] += 1
                counts["dtz_equal"] += further == 0
                counts["dtz_off_by_one"] += abs(further) == 1
                counts["dtz_within_distance"] += further >= -1
    return counts


def compare(name: str, folder: str, workers: int = 1, every: int = 1, dtz_every: int = DTZ_EVERY) -> dict[str, Any]:
    """The record of an ending.

    Args:
        name: one of `ENDINGS`.
        folder: of the Syzygy tables.
        workers: processes.
        every: take every `every`-th position only.
        dtz_every: of the bound, where DTZ is not the distance to mate.
    """
    begun = time.perf_counter()
    table = endgame_table(name)
    seconds = time.perf_counter() - begun
    indices = distinct(table)[::every]
    parts = [indices[at : at + _CHUNK] for at in range(0, len(indices), _CHUNK)]
    count = partial(compare_some, name, folder, dtz_every)
    if workers == 1:
        counted = list(map(count, parts))
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            counted = list(pool.map(count, parts))
    total = sum(counted, Counter[str]())
    values = table.values
    kinds = ("positions", "wdl_equal", "dtz", "dtz_equal", "dtz_off_by_one", "dtz_within_distance")
    return {
        "ending": name,
        "legal_positions_in_table": int((values != ILLEGAL).sum()),
        **{kind: total[kind] for kind in kinds},
        "every": every,
        "longest_mate_moves": (int(values.max()) + 1) // 2,
        "seconds_to_generate": round(seconds, 2),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def agrees(record: dict[str, Any]) -> bool:
    """Whether nothing differs."""
    near = (
        record["dtz_equal"] + record["dtz_off_by_one"] if record["ending"] in EXACT else record["dtz_within_distance"]
    )
    return bool(record["wdl_equal"] == record["positions"] and near == record["dtz"])


def refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: list[str]) -> int:
    """Compare and write; 2 where a setting is wrong, 1 where something differs."""
    given = {"endings": ",".join(ENDINGS), "workers": "2", "every": "1"}
    known = {"syzygy", *given}
    given |= dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    counts = [given["workers"], given["every"]]
    right = set(given) == known and all("=" in argument for argument in arguments)
    if not right or not all(count.isdecimal() and int(count) > 0 for count in counts):
        return refuse(f"got {' '.join(arguments) or 'nothing'}; expected {COMMAND} [endings=..] [workers=2] [every=1]")
    names = given["endings"].split(",")
    if not set(names) <= set(ENDINGS):
        return refuse(f"endings={given['endings']}: expected some of {','.join(ENDINGS)}")
    lacking = [f"{FILES[name]}.{end}" for name in ENDINGS for end in ("rtbw", "rtbz")]
    lacking = [f for f in lacking if not (Path(given["syzygy"]) / f).is_file()]
    if lacking:
        return refuse(f"syzygy={given['syzygy']}: expected a folder of Syzygy tables, but there is no {lacking[0]}")
    workers, every = map(int, counts)
    records = []
    for name in names:
        records.append(compare(name, given["syzygy"], workers, every))
        print(records[-1], flush=True)
    about = {"command": COMMAND, "commit": machine.commit_of_code(), **machine.processor(), "load": machine.load()}
    if every == 1:
        machine.write(HERE / "tables.json", {**about, "records": records})
    return 0 if all(agrees(record) for record in records) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
