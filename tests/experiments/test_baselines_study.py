"""The comparison with Stable-Baselines3: what it runs and what it records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.baselines import draw
from experiments.baselines.rates import Search
from experiments.baselines.run import HERE, Study, best_rates, flat, rate_of
from experiments.engine import runner
from experiments.engine.records import load
from experiments.engine.runner import Job
from experiments.engine.statistics import NEVER
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.launch.cli import compose_config, open_options, parse_options
from hrm_agent.launch.settings import resolve, settings

CONFIG = Study(HERE).settings
TUNED: dict[str, Any] = {
    name: {"trial": 1, "settings": {"num_envs": 64, "learning_rate": 9.0}} for name in CONFIG["sb3"]
}
AGENTS = [*CONFIG["sb3"], *CONFIG["ours"]]


def trial(agent: str, rate: float, sampled: float | None, greedy: float = 0.0) -> dict[str, Any]:
    return {"agent": agent, "trial": 0, "rate": rate, "sampled_success": sampled, "success": greedy}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The study in a folder of its own, with settings and learning rates found."""
    (tmp_path / "study.yaml").write_text((HERE / "study.yaml").read_text())
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    (tmp_path / "rates.json").write_text(json.dumps([trial(agent, 0.002, 0.5) for agent in AGENTS]))
    return Study(tmp_path)


def test_records_say_their_arm_and_when_they_were_good() -> None:
    for r in load(HERE / "results.json"):
        assert r["arm"] == r["agent"] + "_fog" * r["fog"]
        if "curve" in r and r["seconds_to_90"] is not None:
            assert 0 < r["seconds_to_90"] <= r["seconds"] + 1
            assert 0 < r["frames_to_90"] <= r["frames"]


def test_every_agent_has_both_worlds_and_seeds_that_share_no_level(study: Study) -> None:
    jobs = study.jobs()
    assert len(set(jobs)) == len(jobs) == 2 * 5 * len(AGENTS)
    assert len({job.seed for job in jobs[: 2 * len(AGENTS)]}) == 1  # one seed of all before the next
    most = max(
        PPOConfig().num_envs,
        *(json.loads((HERE / "tuned.json").read_text())[a]["settings"]["num_envs"] for a in CONFIG["sb3"]),
    )
    assert all(later - earlier >= most for earlier, later in itertools.pairwise(sorted(CONFIG["seeds"])))


def test_the_rate_of_an_agent_is_its_best_sampled_then_greedy() -> None:
    trials = [
        trial("a", 1e-3, 0.3, 0.9), trial("a", 3e-3, 0.4, 0.1), trial("b", 1e-3, 0.2, 0.5), trial("b", 3e-4, 0.2, 0.6),
        trial("c", 1e-3, None), trial("c", 3e-3, 0.0, 0.1),
    ]  # fmt: skip
    assert best_rates(trials) == {"a": 3e-3, "b": 3e-4, "c": 3e-3}


@pytest.mark.thorough
def test_every_command_is_accepted_with_equal_time_and_the_rate_found_in_both_worlds(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    from hrm_agent.baselines.config import Options, RunConfig

    arms = study.arms()
    monkeypatch.setattr(study, "arms", lambda: arms)
    for name in AGENTS:
        job = Job(name, 2000)
        overrides, view = study.overrides(job), f"view={CONFIG['view']}"
        foggy = study.overrides(Job(f"{name}_fog", 2000))
        assert sorted(foggy) == sorted(
            [*overrides, f"{'env_options' if name in CONFIG['sb3'] else 'env.options'}.{view}"]
        )
        if study.module_of(job) == "hrm_agent.baselines":
            options = parse_options([*overrides, "out=RUN"], Options, "")
            run = RunConfig.parse({key: value for key, value in options.items() if key != "out"})
            assert (run.settings.num_envs, run.settings.learning_rate, run.test_episodes) == (64, 0.002, 1000)
        else:
            run, policy, algo = settings(resolve(compose_config(open_options(overrides), "train")))
            assert (run.threads, algo.learning_rate, algo.anneal) == (1, 0.002, True)
            assert policy.core in name or policy.core in ("gru", "feedforward", "drc", "trm")
        assert (run.env, run.env_options, run.seed, run.clock) == (CONFIG["env"], {}, 2000, "cpu")
        assert (run.max_seconds, run.total_steps) == (CONFIG["seconds"], 10**9)


@pytest.mark.thorough
def test_every_agent_is_tried_as_often_and_as_long(study: Study) -> None:
    pytest.importorskip("stable_baselines3")
    from hrm_agent.baselines.config import Options, RunConfig

    search = Search(study.folder)
    tried: dict[str, list[float]] = {}
    for number, job in enumerate(search.jobs()):
        overrides = search.overrides(job)
        if number % 4:  # composing all of them takes seconds
            rates = [o.partition("=")[2] for o in overrides if o.startswith(rate_of(job.arm))]
            tried.setdefault(job.arm, []).extend(map(float, rates))
            continue
        if job.arm in CONFIG["sb3"]:
            options = parse_options([*overrides, "out=RUN"], Options, "")
            run = RunConfig.parse({key: value for key, value in options.items() if key != "out"})
            rate = run.settings.learning_rate
        else:
            run, _, algo = settings(resolve(compose_config(open_options(overrides), "train")))
            rate = algo.learning_rate
        tried.setdefault(job.arm, []).append(rate)
        assert (run.env, run.env_options, run.seed, run.clock) == (CONFIG["env"], {}, 0, "cpu")
        assert (run.max_seconds, run.total_steps, run.test_episodes if job.arm in CONFIG["sb3"] else 0) == (
            60,
            10**9,
            0,
        )
    own = {"vin": [1e-3, 3e-3, 1e-2]}
    assert tried == {agent: own.get(agent, [3e-4, 1e-3, 3e-3]) for agent in AGENTS}


def test_what_is_taken_away_is_taken_away(study: Study) -> None:
    """The ablations differ from TRM by their settings alone."""
    full, arms = study.agents()["trm"], study.agents()
    for name, changes in (("trm_mean", ["readout=mean"]), ("trm_patch1", ["env.encoder.patch_size=1"])):
        assert arms[name] == [*full, *changes]
        _, policy, _ = settings(resolve(compose_config(open_options(study.overrides(Job(name, 0))), "train")))
        assert (policy.readout, policy.encoder.patch_size) == (
            "mean" if name == "trm_mean" else "agent",
            1 if name == "trm_patch1" else 2,
        )
    assert flat(["a", ["b", "c"]]) == ["a", "b", "c"]
    assert rate_of("sb3_dqn") == "settings.learning_rate"


def test_a_run_of_theirs_that_was_cut_short_is_begun_anew(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the evaluation and the note of what it took, its record would lack its commit and memory."""
    trained: list[Path] = []

    def train(place: Path, overrides: list[str], side_by_side: int, module: str) -> None:
        trained.append(place)
        (place / "study.json").write_text("{}")

    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(study, "place", lambda job: tmp_path)
    (tmp_path / "eval.json").write_text('{"success": 0.5}')
    for _ in range(2):
        study.trained(Job("sb3_dqn", 0))
    assert trained == [tmp_path]


@pytest.mark.parametrize(
    ("tuned", "says"),
    [(None, "tuned.json: not there"), ({"sb3_dqn": {"settings": {}}}, "no settings of sb3_ppo_cnn, sb3_ppo_mlp")],
)
def test_without_settings_it_refuses_in_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], tuned: Any, says: str
) -> None:
    (study.folder / "tuned.json").unlink()
    if tuned:
        (study.folder / "tuned.json").write_text(json.dumps(tuned))
    with pytest.raises(SystemExit) as exit_:
        study.arms()
    printed = capsys.readouterr().err
    assert exit_.value.code == 2
    assert says in printed
    assert printed.count("\n") == 1


def test_without_learning_rates_it_refuses_in_one_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (study.folder / "rates.json").write_text(
        json.dumps([trial(agent, 0.002, 0.5) for agent in AGENTS if agent != "vin"])
    )
    with pytest.raises(SystemExit) as ended:
        study.arms()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: rates.json: has no learning rate of vin; run rates.py for them\n"


def test_references_are_recorded_once_a_world(study: Study) -> None:
    played = {"success": 0.5, "success_ci95": [0.4, 0.6]}
    report = {
        "env": "X-v0",
        "env_options": {},
        "split": "test",
        **dict.fromkeys(("random", "bfs_replanner", "clairvoyant"), played),
    }
    found = study.reference_records(report, "_fog", fog=True)
    assert [r["arm"] for r in found] == ["random_fog", "bfs_replanner_fog", "clairvoyant_fog"]
    assert (found[0]["spl"], found[2]["spl"], found[2]["fog"]) == (None, 0.5, True)
    (study.folder / study.results).write_text(json.dumps(found))
    assert study.reference_records(report, "_fog", fog=True) == []
    assert len(study.reference_records(report, fog=False)) == 3


def test_the_race_is_to_the_best_of_theirs() -> None:
    def record(agent: str, success: float, curve: list[list[float]]) -> dict[str, Any]:
        same = {"fog": False, "validation_curve": [], "seconds": curve[-1][1], "sampled_success": curve[-1][2]}
        return {"agent": agent, "success": success, "curve": curve, **same}

    records = [
        record("sb3_dqn", 0.6, [[1, 10.0, 0.3], [2, 100.0, 0.55]]),
        record("sb3_ppo_mlp", 0.7, [[1, 50.0, 0.795], [2, 100.0, 0.8]]),
        record("trm", 0.9, [[1, 5.0, 0.75], [2, 20.0, 0.8]]),
        record("gru", 0.5, [[1, 5.0, 0.5]]),
    ]
    first, last = draw.race(records)
    assert (first["agent"], first["best"], first["target"]) == ("trm", "sb3_ppo_mlp", 0.8)
    assert (first["sampled"], first["whole"], first["first"]) == (20.0, 100.0, 50.0)
    assert (last["agent"], last["sampled"]) == ("gru", NEVER)
    assert "| 0.20 |" in draw.race_table(records)
    assert "| 0.40 |" in draw.race_table(records)
