"""The comparison with Stable-Baselines3: what it runs, what it records, and that its page says what the records say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from test_experiments import REQUIRED, ROOT

from hrm_agent.launch.cli import compose_config, parse_options
from hrm_agent.launch.settings import resolve, settings

FOLDER = ROOT / "experiments" / "baselines"
CONFIG = yaml.safe_load((FOLDER / "arms.yaml").read_text())
TUNED: dict[str, Any] = {name: {"trial": 1, "settings": {"num_envs": 64}} for name in CONFIG["sb3"]}


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("baselines_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study in a folder of its own, with settings found."""
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results.json")
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    return tmp_path


def test_the_page_says_what_the_records_say(study: ModuleType) -> None:
    page = FOLDER / "README.md"
    assert page.read_text() == study.study.filled(page, FOLDER, {"own_table": True})
    names = study.study.drawer_of(FOLDER).tables(FOLDER)
    assert all(f"<!-- table {name} -->" in page.read_text() for name in names)


def test_records_are_whole(study: ModuleType) -> None:
    records = study.study.load(FOLDER / "results.json")
    assert records, f"{FOLDER / 'results.json'}: no records; run.py makes them"
    keys = [(r["arm"], r["seed"]) for r in records]
    assert len(keys) == len(set(keys))
    for r in records:
        assert set(r) >= REQUIRED
        assert r["arm"] == f"{r['agent']}_fog" * r["fog"] + r["agent"] * (not r["fog"])
        assert r["success_ci95"][0] <= r["success"] <= r["success_ci95"][1]
        if "curve" in r and r["seconds_to_90"] is not None:
            assert 0 < r["seconds_to_90"] <= r["seconds"] + 1
            assert 0 < r["frames_to_90"] <= r["frames"]


@pytest.mark.usefixtures("here")
def test_one_seed_of_everything_before_the_next_and_nothing_twice(study: ModuleType) -> None:
    arms = study.arms_of(CONFIG)
    jobs = [(arm.name, seed) for arm, seed in study.missing(arms, [0, 1])]
    assert jobs[0] == ("sb3_recurrent_ppo", 0)
    assert [seed for _, seed in jobs] == [0] * len(arms) + [1] * len(arms)
    assert len(set(jobs)) == 2 * len(arms) == 4 * (len(CONFIG["sb3"]) + len(CONFIG["ours"]))
    study.add([{"arm": "trm_fog", "agent": "trm", "fog": True, "seed": 1}])
    left = [(arm.name, seed) for arm, seed in study.missing(arms, [0, 1])]
    assert left == [job for job in jobs if job != ("trm_fog", 1)]


def test_the_searchs_winner_is_an_arm_of_its_own_unless_it_is_the_default(study: ModuleType, here: Path) -> None:
    searched = {**CONFIG, "search": "trm"}
    (here / "tuned.json").write_text(json.dumps({**TUNED, "trm": {"settings": {}}}))
    assert "trm_tuned" not in {arm.name for arm in study.arms_of(searched)}
    (here / "tuned.json").write_text(json.dumps({**TUNED, "trm": {"settings": {"algo.gamma": 0.9}}}))
    assert "trm_tuned" not in {arm.name for arm in study.arms_of({**CONFIG, "search": None})}
    options = {arm.name: arm.options for arm in study.arms_of(searched)}
    assert options["trm"] == ("+earlier=november_2026", "core=trm")
    assert options["trm_tuned"] == options["trm_tuned_fog"] == (*options["trm"], "algo.gamma=0.9")


@pytest.mark.usefixtures("here")
def test_every_command_is_accepted_and_both_worlds_are_the_same_for_all(study: ModuleType) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    from hrm_agent.baselines.training import RunConfig

    for arm in study.arms_of(CONFIG):
        _, module, *arguments = arm.command(CONFIG, 2, 270, "RUN")
        world = {"view": CONFIG["view"]} if arm.fog else {}
        if module == "hrm_agent.baselines":
            options = parse_options(arguments, "baselines", "")
            options.pop("out")
            run = RunConfig.parse(options)
            assert (run.max_seconds, run.test_episodes, run.settings.num_envs) == (270, 1000, 64)
        else:
            given = [f"++{a}" if a.startswith("env.options") else a for a in arguments if not a.startswith("hydra.")]
            run, _, _ = settings(resolve(compose_config(given, "train")))
            assert (run.total_steps, run.threads) == (400_000, 1)
        assert (run.env, run.env_options, run.seed, run.clock) == (CONFIG["env"], world, 2, "cpu")


def test_a_run_of_theirs_that_was_cut_short_is_begun_anew(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the evaluation and the note of what it took, its record would lack its commit and memory."""
    trained: list[Path] = []

    def train_baseline(command: list[str], place: Path, jobs: int) -> None:
        trained.append(place)
        (place / "study.json").write_text("{}")

    monkeypatch.setattr(study, "train_baseline", train_baseline)
    (tmp_path / "eval.json").write_text('{"success": 0.5}')
    arm = study.Arm("sb3_dqn", False, ())
    for _ in range(2):
        assert study.train_and_measure(CONFIG, arm, 0, 1.0, 1, tmp_path) == {"success": 0.5}
    assert trained == [tmp_path]


@pytest.mark.parametrize(
    ("tuned", "says"),
    [(None, "tuned.json: not there"), ({"sb3_dqn": {"settings": {}}}, "no settings of sb3_recurrent_ppo, sb3_ppo_cnn")],
)
def test_without_settings_it_refuses_in_one_line(
    study: ModuleType, here: Path, capsys: pytest.CaptureFixture[str], tuned: Any, says: str
) -> None:
    (here / "tuned.json").unlink()
    if tuned:
        (here / "tuned.json").write_text(json.dumps(tuned))
    with pytest.raises(SystemExit) as exit_:
        study.arms_of(CONFIG)
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert says in printed
    assert printed.count("\n") == 1


def test_curves_know_the_time_with_or_without_a_line_that_says_it(study: ModuleType) -> None:
    lines = [
        {"frames": 100, "train/frames_per_second": 50.0},
        {"frames": 200, "train/success": 0.5, "train/frames_per_second": 50.0},
        {"frames": 200, "validation/success": 0.7},
        {"frames": 400, "train/success": 0.95, "train/seconds": 9.0, "train/frames_per_second": 44.4},
        {"frames": 600, "validation/success": 0.9},
    ]
    assert study.progress(lines) == [[200, 4.0, 0.5], [400, 9.0, 0.95]]
    assert study.on_validation(lines) == [[200, 4.0, 0.7], [600, 13.5, 0.9]]
    long = [[i, float(i), 0.5] for i in range(1000)]
    assert len(study.thinned(long)) <= study.POINTS
    assert study.thinned(long)[-1] == long[-1]
    assert study.thinned([]) == []


def test_the_race_is_to_the_best_of_theirs(study: ModuleType) -> None:
    def record(agent: str, success: float, curve: list[list[float]]) -> dict[str, Any]:
        same = {"fog": False, "validation_curve": [], "seconds": curve[-1][1], "sampled_success": curve[-1][2]}
        return {"agent": agent, "success": success, "curve": curve, **same}

    drawer = study.study.drawer_of(FOLDER)
    records = [
        record("sb3_dqn", 0.6, [[1, 10.0, 0.3], [2, 100.0, 0.55]]),
        record("sb3_ppo_mlp", 0.7, [[1, 50.0, 0.795], [2, 100.0, 0.8]]),
        record("trm", 0.9, [[1, 5.0, 0.75], [2, 20.0, 0.8]]),
        record("gru", 0.5, [[1, 5.0, 0.5]]),
    ]
    first, last = drawer.race(records)
    assert (first["agent"], first["best"], first["target"]) == ("trm", "sb3_ppo_mlp", 0.8)
    assert (first["sampled"], first["whole"], first["first"]) == (20.0, 100.0, 50.0)
    assert (last["agent"], last["sampled"]) == ("gru", drawer.NEVER)
    assert "| 0.20 |" in drawer.race_table(records)
    assert "| 0.40 |" in drawer.race_table(records)
