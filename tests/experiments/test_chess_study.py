"""The judgement of chess models by an engine, and games: with an engine whose scores are known."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from chess_files import Made
from experiments.chess import draw, judge
from experiments.chess.tables import HERE, agrees, main
from experiments.engine.records import save
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve
from hrm_agent.launch.supervised_settings import settings
from hrm_agent.supervised.chess.board import START, Position, read_fen, read_uci, write_fen, write_uci
from hrm_agent.supervised.chess.judged import win_probability
from hrm_agent.supervised.chess.rules import ANSWERS, TOKENS
from hrm_agent.supervised.files import build_model
from hrm_agent.supervised.tasks.base import Answers, Examples, TaskSpec


def positions_of(count: int) -> list[Position]:
    generator, found = np.random.default_rng(0), []
    while len(found) < count:
        position = judge.open_game(generator)
        found.append(Position(position.tokens, True))  # as the task shows it
    return found


def test_losses_are_differences_of_the_engines_scores() -> None:
    positions, engine = positions_of(6), Made()
    best = [read_uci(p, engine.search(write_fen(p), 1)[0].move) for p in positions]
    other = [int(p.moves()[0]) for p in positions]
    tokens = np.array([[[0, o, b] for o, b in zip(other, best, strict=True)], [[b, 0, 0] for b in best]], np.int16)
    first, second = judge.judge_segments(positions, tokens, Made, 10, workers=2)  # type: ignore[arg-type]
    assert second["loss"] == second["loss_legal"] == second["loss_blunders"] == 0
    assert (first["legal_choice"], second["legal_choice"], first["no_legal_choice"]) == (0, 1, 0)
    scores = [
        [engine.search(write_fen(p), 1, moves=moves)[0].score for moves in ((), (write_uci(p, o),))]
        for p, o in zip(positions, other, strict=True)
    ]
    worth = win_probability(np.array(scores))
    assert first["loss"] == pytest.approx(worth[:, 0].mean())  # what is illegal loses all
    assert first["loss_legal"] == pytest.approx((worth[:, 0] - worth[:, 1]).clip(0).mean())


def choose_first(positions: list[Position]) -> list[int]:
    return [int(position.moves()[0]) for position in positions]


def test_games_are_counted_from_the_models_side() -> None:
    generator = np.random.default_rng(0)
    result = judge.play_games(choose_first, lambda ps: judge.at_random(generator, ps), 6, generator)
    assert result["won"] + result["drawn"] + result["lost"] + result["unfinished"] == result["games"] == 6
    low, high = result["won_share_ci95"]
    assert 0 <= low <= result["won_share"] <= high <= 1

    def mates(positions: list[Position]) -> list[int]:
        return [read_uci(p, "a1a8") if p.white else read_uci(p, "g8h8") for p in positions]

    won = play_from("6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1", mates)
    assert (won["won"], won["lost"]) == (1, 1)  # whoever has white wins


def play_from(fen: str, player: judge.Choose) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "open_game", lambda generator: read_fen(fen))
        return judge.play_games(player, player, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("fen", "best"),
    [
        ("4k3/8/8/3q1p2/4P3/8/8/4K3 w - - 0 1", ["e4d5"]),
        ("4k3/8/8/3pP3/8/8/8/4K3 w - d6 0 1", ["e5d6"]),
        ("3r3k/4P3/8/8/8/8/8/4K3 w - - 0 1", ["e7d8q"]),
        ("4k3/8/8/8/8/8/4p3/4K3 b - - 0 1", None),
    ],
)
def test_the_greedy_player_takes_what_is_worth_most(fen: str, best: list[str] | None) -> None:
    position = read_fen(fen)
    chosen = {judge.greedy(np.random.default_rng(seed), [position])[0] for seed in range(20)}
    texts = sorted(write_uci(position, move) for move in chosen)
    assert texts == best if best is not None else len(texts) > 1


def test_the_models_player_passes_over_what_is_illegal() -> None:
    position = read_fen(START)
    wanted = read_uci(position, "d2d4")

    def solve(examples: Examples) -> Answers:
        rows = len(examples)
        tokens = np.tile(np.array([0, 4671, wanted], np.int16), (1, rows, 1))
        return Answers(tokens, np.zeros((1, rows), np.float32), np.ones(rows, np.int64))

    assert judge.by_model(solve, np.random.default_rng(0), [position] * 2) == [wanted, wanted]

    def no_move(examples: Examples) -> Answers:
        rows = len(examples)
        return Answers(np.zeros((1, rows, 2), np.int16), np.zeros((1, rows), np.float32), np.ones(rows, np.int64))

    nothing = judge.by_model(no_move, np.random.default_rng(0), [position])
    assert nothing[0] in position.moves()


def test_what_differs_from_syzygy_is_seen() -> None:
    record = {"ending": "KQK", "positions": 5, "wdl_equal": 5, "dtz": 3, "dtz_equal": 2, "dtz_off_by_one": 1,
              "dtz_within_distance": 3}  # fmt: skip
    assert agrees(record)
    assert not agrees({**record, "wdl_equal": 4})
    assert not agrees({**record, "dtz_off_by_one": 0})


@pytest.mark.parametrize(
    "arguments", [[], ["syzygy"], ["syzygy=/nowhere"], ["syzygy=.", "workers=0"], ["syzygy=.", "endings=KBK"]]
)
def test_tables_without_what_they_need_end_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def parameters_of(overrides: str) -> int:
    config = compose_config(overrides.split(), "supervise")
    _, model, _ = settings(resolve(config))
    spec = TaskSpec(64, TOKENS, ANSWERS, grid=(8, 8), choices=5)
    return sum(weights.numel() for weights in build_model(model, spec).parameters())


def test_all_arms_have_as_many_parameters() -> None:
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    counts = {name: parameters_of(f"{study['base']} {arm['overrides']}") for name, arm in study["arms"].items()}
    assert counts["trm"] == counts["hrm"] == counts["feedforward"] == 218_754
    assert abs(counts["feedforward_deep"] / counts["trm"] - 1) < 0.04
    assert f"{counts['trm']:,}" in (HERE / "study.yaml").read_text()
    assert f"{counts['feedforward_deep']:,}" in (HERE / "study.yaml").read_text()


def segment(loss: float) -> dict:
    losses = {"loss": loss, "loss_legal": loss / 2, "loss_legal_blunders": 0.25}
    losses |= {f"{name}_ci95": [value / 2, value * 2] for name, value in losses.items()}
    return {"exact": 0.5 - loss, "top_3": 0.6, "top_5": 0.7, "legal_choice": 0.99, **losses}


def record(arm: str, seed: int, world: str) -> dict:
    task = {"KRK_mated": 0.5 + seed / 10, "KRK_mated_ci95": [0.4, 0.7]}
    test = {"exact": 0.8, "legal": 1.0, "keeps": 0.9, "curves": {"exact": [0.7, 0.8]}, "task": task, "puzzles": 1000}
    test |= {"top_3": 0.9, "top_5": 1.0}
    games = {"random": {"games": 10, "won": 6, "drawn": 3, "lost": 1, "unfinished": 0, "score": 0.75}}
    judged = {"positions": 500, "segments": [segment(0.2), segment(0.1 + seed / 100)], "games": games}
    own = {"agent": arm, "seed": seed, "world": world, "parameters": 352_130, "seconds": 3600.0, "test": test}
    return {**own, **({"judged": judged} if world == "judged" else {})}


def test_page_and_figures_are_drawn_from_the_records(tmp_path: Path) -> None:
    shutil.copy(HERE / "study.yaml", tmp_path)
    (tmp_path / "results.json").write_text("[]")
    assert set(draw.tables(tmp_path).values()) == {"No record yet."}
    jobs = itertools.product(("trm", "feedforward"), (0, 1), ("endgames", "judged"))
    save(tmp_path / "results.json", [record(*job) for job in jobs])
    moves = {"answers": [[12, 28], [11, 27]], "best": [11, 27]}
    save(tmp_path / "shown.json", [{"agent": "trm", "number": 0, "rows": read_fen(START).letters(), **moves}])
    made = draw.tables(tmp_path)
    assert "| `trm` | TRM, one stack" in made["chess_endgames"]
    assert "0.550 (0.500 to 0.600)" in made["chess_endgames"]
    assert "0.105 (0.100 to 0.110)" in made["chess_judged"]
    assert "| `feedforward` | random | 0.750 | 20 | 12 | 6 | 2 | 0 |" in made["chess_games"]
    alone = draw.judged_cells([record("trm", 0, "judged")])  # one seed: an interval over positions
    assert (alone["top 1"], alone["of the legal move"]) == ("0.800 [0.774, 0.824]", "0.050 [0.025, 0.100]")
    assert draw.endgame_cells([record("trm", 0, "endgames")])["KRK mated"] == "0.500 [0.400, 0.700]"
    draw.figures(tmp_path)
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert (tmp_path / "boards.png").stat().st_size > 1000
