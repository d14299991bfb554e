"""The study of the Towers of Hanoi: its tables and figures from records as its runs would write them."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.engine.pages import settings_of
from experiments.engine.records import ROOT, load
from experiments.engine.runner import Job
from experiments.hanoi import draw
from experiments.hanoi.puzzles import Puzzles, game_shown, learning_curve, towers
from experiments.hanoi.run import Study
from experiments.hanoi.trials import Trials
from hrm_agent.supervised.tasks import Answers, Examples, build_task
from hrm_agent.supervised.tasks.hanoi import choose_moves
from hrm_agent.supervised.tasks.hanoi_play import play_out
from hrm_envs.hanoi_rules import NO_DISK, optimal_moves

FOLDER = ROOT / "experiments" / "hanoi"


def optimal(examples: Examples) -> Answers:
    chosen = examples.labels[:, :1] if examples.weights is not None else None
    if chosen is None:  # of a game, whose labels are not given
        pegs, goals = (np.where(examples.inputs, part, -1) for part in np.divmod(examples.inputs - 1, 3))
        best = optimal_moves(pegs, goals)
        chosen = 3 * best.disk[:, :1] + best.to[:, :1]
    return Answers(
        chosen[None].astype(np.int16), np.zeros((1, len(chosen)), np.float32), np.ones(len(chosen), np.int64)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hanoi")
    report = build_task("hanoi", {"disks": 4, "solutions": 10}).evaluate(optimal, "test", 40)
    assert report is not None
    puzzle = {"agent": "trm", "parameters": 5, "max_segments": 4, "steps": 9, "samples": 576, "seconds": 1.0}
    puzzle |= {"kernel": "fused", "instruction_set": "avx2"}
    files: dict[str, list[dict[str, Any]]] = {
        "puzzles": [{**puzzle, "seed": seed, "by_disks": report["by_disks"]} for seed in (0, 1)],
        "results": [], "levels": [], "curves": [], "lesions": [],
    }  # fmt: skip
    solved = {"full-fixed": "1110", "reset-fixed": "0100", "reset-changing": "1111"}
    for arm, outcome in solved.items():
        for seed in (0, 1000):
            own = {"agent": arm, "seed": seed}
            success, floor = outcome.count("1") / 4, {"success": 0.25}
            record = {"success": success, "spl": 0.5, "excess_steps": 1.0, "frames": 9, "seconds": 2.0}
            references = {"random": floor, "bfs_replanner": {"success": 0.9, "spl": 0.8, "episode_length": 9.0}}
            references["clairvoyant"] = {"success": 1.0, "steps": 8.5}
            files["results"].append({**own, **record, **references})
            steps = [3 if char == "1" else 60 for char in outcome]
            files["levels"].append(
                {**own, "success": outcome, "sampled": outcome, "steps": steps, "sampled_steps": steps}
            )
            files["curves"].append({**own, "train_success": [[1, 0.1], [2, success]]})
    files["lesions"] = [{"agent": "full-fixed", "seed": 0, "success": 0.25}]
    states = ["00", "01", "21", "22"]
    files["shown"] = [{"agent": "trm_long", "seed": 0, "disks": 2, "distance": 3, "moves": 3, "states": states}]
    files["trials"] = [{**puzzle, "agent": name, "seed": 0, "by_disks": report["by_disks"]} for name in ("a", "b")]
    files["trials"][0]["by_disks"] = {n: {**own, "solved_2x": 0.1} for n, own in report["by_disks"].items()}
    files["towers"] = [{"agent": "trm", "seed": s, "solved": {"8": n}, "games": 6} for s, n in ((0, 5), (1, 6))]
    more = {"agent": "trm", "segments": 4, "disks": 9, "exact": 0.99}
    files["segments"] = [{**more, "seed": seed, "solved_2x": solved} for seed, solved in ((0, 0.5), (1, 0.7))]
    for name, records in files.items():
        (made / f"{name}.json").write_text(json.dumps(records))
    (made / "study.yaml").write_text((FOLDER / "study.yaml").read_text())
    return made


def test_tables_say_what_the_records_say(folder: Path) -> None:
    tables = draw.tables(folder)
    assert set(tables) == {
        f"hanoi {name}" for name in ("disks", "models", "trials", "towers", "segments", "agents", "cut", "comparisons")
    }
    disks = tables["hanoi disks"].splitlines()
    assert len(disks) == 2 + 2  # 3 and 4 disks
    assert re.search(r"\| \*\*1.000\*\* \[0\.[5-8]\d\d, 1.000\] \| 1.000 1.000 \|", disks[2])  # of ten games each
    assert "| `trm` | 2 | 5 |" in tables["hanoi models"]
    assert "| fused, avx2 |" in tables["hanoi models"]
    assert tables["hanoi trials"].index("| `b` | 1.00 |") < tables["hanoi trials"].index("| `a` | 0.10 |")
    assert "| `trm` | 5 6 |" in tables["hanoi towers"]
    assert "| `trm` | 4 | 0.9900 | 0.600 | 0.50 0.70 |" in tables["hanoi segments"]
    agents = tables["hanoi agents"]
    assert "| full-fixed | **0.750** [" in agents
    assert "| full-fixed | 0.750 | 0.250 |" in tables["hanoi cut"]
    assert "| full-fixed | reset-fixed | +0.500 [" in tables["hanoi comparisons"]
    assert "| -28.500 [" in tables["hanoi comparisons"]  # 57 moves fewer on half of the levels
    assert "| 17.25 | 17.25 |" in agents
    assert "| bfs replanner, fixed goal | 0.900 |  |  | 0.800 | 9.00 |" in agents
    assert "| bfs replanner, changing goal | 0.900 |" in agents  # of the same success in another environment
    assert "| clairvoyant, fixed goal | 1.000 |  |  |  | 8.50 |" in agents
    assert tables["hanoi comparisons"].count("reset-changing") == 0  # only one of its pair was run


def test_figures_are_drawn_of_what_there_is(folder: Path) -> None:
    draw.figures(folder)
    for name in ("moves", "disks", "agents"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    frames = draw.strip(load(folder / "shown.json")[0], frames=4)
    assert [moves for moves, _ in frames] == [0, 1, 2, 3]
    assert len({frame.tobytes() for _, frame in frames}) == 4


def test_the_study_is_of_arms_that_differ_in_carry_and_goal_alone() -> None:
    settings = settings_of(FOLDER)
    arms = {name: dict(o.split("=", 1) for o in overrides) for name, overrides in settings["arms"].items()}
    assert {frozenset(arm) for arm in arms.values()} == {frozenset({"carry", "env.options.p_goal"})}
    assert {arm for pair in settings["comparisons"] for arm in pair} == set(arms)
    assert set(settings["lesions"]["carry=reset"]["arms"]) == {a for a in arms if not a.startswith("reset")}


def test_puzzles_are_trained_with_one_thread_and_tested_beyond_the_trained_disks() -> None:
    study = Puzzles()
    jobs = study.jobs()
    assert len(jobs) == 3 + 3 + 2 + 2  # fewer seeds of the slow ones
    overrides = study.overrides(Job("trm", 1))
    assert {"task=hanoi", "core=trm", "seed=1", "threads=1"} <= set(overrides)
    assert study.settings["test"]["disks"] == list(range(3, 13))
    line = {"steps": 4, "train/seconds": 1.23, "train/exact": 0.5}
    assert learning_curve([{"steps": 2, "validation/exact": 0.1}, line]) == [[4, 1.2, 0.5]]


def test_trials_are_compared_on_validation_pairs_and_not_where_the_page_tests() -> None:
    study, trials = Puzzles(), Trials()
    assert (study.settings["test"]["split"], trials.settings["test"]["split"]) == ("test", "validation")
    assert trials.place(Job("as_it_is", 0)) != study.place(Job("as_it_is", 0))
    assert set(trials.arms()) == set(settings_of(FOLDER, "puzzles.yaml")["trials"]["arms"])
    assert all("core=trm" in trials.overrides(Job(arm, 0)) for arm in trials.arms())


def test_levels_keep_the_moves_of_greedy_and_of_sampled_play() -> None:
    report = {"levels": {"success": "10", "steps": [3, 60]}, "sampled": {"levels": {"success": "11", "steps": [4, 5]}}}
    kept = Study(FOLDER).outcomes(report)
    assert kept == {"success": "10", "sampled": "11", "steps": [3, 60], "sampled_steps": [4, 5]}


def test_what_is_measured_afterwards_is_of_trained_models_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []

    def test(self: Puzzles, place: Path, disks: int, segments: int = 0) -> dict[str, Any]:
        asked.append((place.name, disks, segments))
        return dict.fromkeys(("exact", "legal", "optimal", "solved_2x", "illegal", "games", "more"), 0.5)

    monkeypatch.setattr(Puzzles, "test", test)
    monkeypatch.setattr(Puzzles, "is_trained", lambda self, place: place.name == "trm_seed1")
    monkeypatch.setattr("experiments.hanoi.puzzles.player_of", lambda place: (partial(choose_moves, optimal), 9))
    for _ in range(2):
        Puzzles(tmp_path).finish()
    wanted = [("trm_seed1", disks, segments) for segments in (1, 4, 8) for disks in (6, 9)]
    assert asked == wanted
    assert [r["segments"] for r in load(tmp_path / "segments.json")] == [segments for *_, segments in wanted]
    (record,) = load(tmp_path / "towers.json")
    assert (record["agent"], record["seed"], set(record["solved"].values())) == ("trm", 1, {6})
    assert record["optimal"] == record["solved"]
    assert load(tmp_path / "shown.json")[0]["moves"] == 255


def test_models_are_asked_for_so_many_segments_on_pairs_of_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def solve(model: str, **options: Any) -> dict[str, Any]:
        given.append(options)
        disks = str(options["task_options"]["test_disks"])
        return {"task": {"by_disks": {disks: {}}}, "segments": 3, "curves": {"exact": [0.5]}}

    place = tmp_path / "models" / "last"
    place.mkdir(parents=True)
    (place / "model.json").write_text(json.dumps({"task_options": {"disks": 9}}))
    monkeypatch.setattr("hrm_agent.launch.solve.solve", solve)
    Puzzles().test(tmp_path, 12, 4)
    Trials().test(tmp_path, 7)
    asked = [(g["split"], g["segments"], g["task_options"]["disks"]) for g in given]
    assert asked == [
        ("test", 4, 12),
        ("validation", 0, 9),
    ]


def test_a_game_shown_has_the_states_it_came_through() -> None:
    """Of an optimal player, among padding; an illegal move ends it and is not shown."""
    game = game_shown(partial(choose_moves, optimal), 3, 5)
    assert (game["distance"], game["moves"], game["solved"]) == (7, 7, True)
    assert (game["states"][0], game["states"][-1], len(game["states"])) == ("000", "222", 8)
    differ = [sum(x != y for x, y in zip(a, b, strict=True)) for a, b in itertools.pairwise(game["states"])]
    assert differ == [1] * 7
    largest = game_shown(lambda pegs, goals: (np.array([2]), np.array([1])), 3, 5)  # which lies under the others
    assert (largest["moves"], largest["solved"], largest["states"]) == (0, False, ["000"])


def test_towers_are_from_every_peg_to_every_other() -> None:
    starts, goals = towers(3, 5)
    assert (starts[:, :2] == NO_DISK).all()
    assert (goals[:, :2] == NO_DISK).all()
    assert all(len(set(row)) == 1 for side in (starts, goals) for row in side[:, 2:].tolist())
    assert len({(a, b) for a, b in zip(starts[:, -1].tolist(), goals[:, -1].tolist(), strict=True) if a != b}) == 6
    assert play_out(partial(choose_moves, optimal), starts, goals).moves.tolist() == [7] * 6
