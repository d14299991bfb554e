"""The factory of positions: whole games in order, whatever interrupts them, and an engine that fails is one line."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chess_files import Made
from hrm_agent import chess_positions as command
from hrm_agent.supervised.chess.board import Position, read_fen, read_uci, write_fen
from hrm_agent.supervised.chess.engine import Engine, EngineError, Line, NoEngine, find_engine
from hrm_agent.supervised.chess.factory import Recipe, make_positions
from hrm_agent.supervised.chess.judged import MATE, read_games, read_judged

RECIPE = Recipe(nodes=10, moves=3, opening=4, max_plies=12)


def make(out: Path, positions: int = 60, workers: int = 1, seed: int = 0, **engine: object) -> tuple[int, int]:
    Made.searches = 0
    return make_positions(out, positions, lambda: Made(**engine), RECIPE, workers, seed, lambda *_: None)  # type: ignore[arg-type,return-value]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed factory of one worker writes."""
    out = tmp_path_factory.mktemp("whole") / "games.jsonl"
    made, games = make(out)
    assert made >= 60
    assert games >= 4
    return out.read_bytes()


def test_the_file_does_not_depend_on_the_number_of_workers(whole: bytes, tmp_path: Path) -> None:
    make(tmp_path / "games.jsonl", workers=3, wait=0.002)
    assert (tmp_path / "games.jsonl").read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 100, 2500, 4000])
def test_what_was_cut_off_is_made_again(cut: int, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    out.write_bytes(whole[:-cut])
    make(out)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("content", [b"a note", b'{"one": "line"}', b"first line\nsecond", b'{"one": 1}\n{"two": 2}\n'])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        make(out)
    assert out.read_bytes() == content


def test_a_file_that_is_complete_stays_as_it_is_and_grows_when_more_are_asked_for(whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    out.write_bytes(whole)
    make(out)
    assert out.read_bytes() == whole
    made, _ = make(out, positions=90)
    assert made >= 90
    assert out.read_bytes().startswith(whole)


def test_an_engine_that_fails_once_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    make(tmp_path / "games.jsonl", fail=lambda search: search == 20)
    assert (tmp_path / "games.jsonl").read_bytes() == whole


def test_an_engine_that_goes_on_failing_ends_it_and_the_games_before_are_kept(whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    with pytest.raises(EngineError, match="ended by itself"):
        make(out, workers=2, fail=lambda search: search > 40)
    kept = out.read_bytes()
    assert whole.startswith(kept)
    assert 0 < len(kept) < len(whole)
    make(out)
    assert out.read_bytes() == whole


def test_games_are_games_and_read_as_positions(whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    out.write_bytes(whole)
    assert len(read_judged(out).tokens) >= 60
    for _, game in read_games(out):
        for one, other in zip(game.positions, game.positions[1:], strict=False):
            position = read_fen(one.fen)
            follows = {write_fen(position.after(int(move))) for move in position.moves()}
            assert other.fen in follows
            assert len({read_uci(position, move) for move in one.moves}) == len(one.moves)
    starts = {game.positions[0].fen for _, game in read_games(out)}
    assert len(starts) > 1


@pytest.mark.parametrize(
    ("changed", "message"), [({"seed": 1}, "made with seed=0, not 1"), ({"moves": 2}, "moves=3, not 2")]
)
def test_a_file_that_was_made_otherwise_is_refused(changed: dict, message: str, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    out.write_bytes(whole)
    recipe = Recipe(10, changed.get("moves", 3), 4, 12)
    with pytest.raises(ValueError, match=message):
        make_positions(out, 90, Made, recipe, 1, changed.get("seed", 0), lambda *_: None)  # type: ignore[arg-type]
    assert out.read_bytes() == whole


ENGINE = """#!{python}
import sys, time
mode = "{mode}"
for line in sys.stdin:
    words = line.split()
    if words[0] == "uci" and mode != "silent":
        print("id name Fake 1\\noption name MultiPV type spin default 1 min 1 max 9\\nuciok", flush=True)
    elif words[0] == "isready":
        print("readyok", flush=True)
    elif words[0] == "go":
        if mode == "dies":
            sys.exit(3)
        if mode == "hangs":
            time.sleep(60)
        if mode == "babbles":
            print("info multipv one score cp x pv e2e4")
        if mode == "illegal":
            print("info depth 1 multipv 1 score cp 3 pv a1a8")
        if mode == "mute":
            print("bestmove (none)", flush=True)
            continue
        print("info depth 1 multipv 1 score cp 31 nodes 9 pv e2e4 e7e5")
        print("info depth 2 multipv 2 score mate -3 pv g2g4")
        print("info depth 2 multipv 1 score cp 99 upperbound pv a2a4")
        print("info depth 2 multipv 1 score mate 2 pv d2d4")
        print("bestmove d2d4", flush=True)
"""


def engine_that(mode: str, folder: Path) -> Path:
    path = folder / mode
    path.write_text(ENGINE.format(python=sys.executable, mode=mode))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_lines_are_those_of_the_deepest_search_the_best_first(tmp_path: Path) -> None:
    with Engine(engine_that("works", tmp_path)) as engine:
        assert engine.name == "Fake 1"
        engine.new_game()
        found = engine.search("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", 10, 2)
    assert found == [Line("d2d4", MATE - 2), Line("g2g4", 3 - MATE)]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies", r"dies: ended by itself \(exit code 3\)"),
        ("hangs", r"hangs: no bestmove within 0\.5 s; it hangs, or needs longer"),
        ("silent", r"silent: no uciok within 0\.5 s"),
        ("babbles", r"babbles: answered info multipv one .*, no UCI"),
        ("mute", r"mute: answered \(none\) without a score"),
    ],
)
def test_an_engine_that_fails_is_one_line(mode: str, message: str, tmp_path: Path) -> None:
    path = engine_that(mode, tmp_path)
    with pytest.raises(EngineError, match=message) as caught:
        Engine(path, timeout=0.5 if mode in ("hangs", "silent") else 20).search("8/8/8/8/8/8/8/K6k w - - 0 1", 5, 2)
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_2_and_keeps_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "games.jsonl"
    for mode, message in (("dies", "exit code 3"), ("illegal", "gave ")):
        arguments = [f"out={out}", f"engine={engine_that(mode, tmp_path)}", "workers=1", "opening=1"]
        monkeypatch.setattr(sys, "argv", ["chess_positions", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "the same command goes on from there" in printed
        assert printed.count("\n") == 1
        assert len(out.read_bytes().splitlines()) == 1  # the heading


@pytest.mark.parametrize("name", ["no_such_engine", "/nowhere/stockfish", ""])
def test_no_engine_is_one_line(name: str, tmp_path: Path) -> None:
    out = tmp_path / "games.jsonl"
    with pytest.raises(NoEngine, match=r"no (such )?program"):
        command.chess_positions(str(out), engine=name)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["/dev/stdout", "/dev/null", "fifo", "link to a fifo"])
def test_what_is_no_regular_file_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where stdout is a file: messages would come between the games."""
    out = Path(kind) if kind.startswith("/") else tmp_path / "place"
    if not kind.startswith("/"):
        os.mkfifo(tmp_path / "fifo")
        out.symlink_to("fifo")
        out = out if kind.startswith("link") else tmp_path / "fifo"
    monkeypatch.setattr(sys, "argv", ["chess_positions", f"out={out}", f"engine={engine_that('works', tmp_path)}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert printed.err == f"error: out={out}: expected a regular file, which is read and added to; give a file's name\n"
    assert not printed.out


def test_a_file_in_use_is_refused(whole: bytes, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "games.jsonl"
    out.write_bytes(whole)
    with open(out, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process writes to it"):
            make(out, positions=90)


STOCKFISH = shutil.which("stockfish") or shutil.which("stockfish", path="/usr/games")


@pytest.mark.skipif(not STOCKFISH, reason="stockfish is not installed")
def test_stockfish_is_found_and_gives_the_same_game_twice() -> None:
    from hrm_agent.supervised.chess.factory import play_game

    recipe = Recipe(nodes=100, moves=3, opening=4, max_plies=6)
    games = []
    for _ in range(2):
        with Engine(find_engine(), {"Threads": 1, "Hash": 1}) as engine:
            games.append(play_game(engine, 3, recipe, 0))
    assert games[0] == games[1]
    best = read_fen(games[0].positions[0].fen)
    assert isinstance(best, Position)
    mate = read_fen("6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1")
    with Engine(find_engine(), {"Threads": 1, "Hash": 1}) as engine:
        assert engine.search(write_fen(mate), 2000, 2)[0] == Line("a1a8", MATE - 1)


@pytest.mark.thorough
@pytest.mark.skipif(not STOCKFISH, reason="stockfish is not installed")
def test_a_factory_that_is_killed_goes_on(tmp_path: Path) -> None:
    settings = ["nodes=100", "max_plies=20", "hash_mb=1", "seed=2"]
    run = [sys.executable, "-m", "hrm_agent.chess_positions", *settings]
    whole = tmp_path / "whole.jsonl"
    subprocess.run([*run, f"out={whole}", "positions=150", "workers=1"], check=True, capture_output=True)
    out = tmp_path / "killed.jsonl"
    process = subprocess.Popen([*run, f"out={out}", "positions=150", "workers=2"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    subprocess.run([*run, f"out={out}", "positions=150", "workers=2"], check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
