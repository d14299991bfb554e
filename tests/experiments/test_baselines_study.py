"""The comparison with Stable-Baselines3: what it runs and what it records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.baselines import draw
from experiments.baselines.rates import Search
from experiments.baselines.run import HERE, NETWORKS, Study, best_trials, flat, rate_of
from experiments.engine import runner
from experiments.engine.records import load
from experiments.engine.runner import Job
from hrm_agent.algos.ppo import PPOConfig
from hrm_agent.launch.cli import compose_config, open_options, parse_options
from hrm_agent.launch.settings import resolve, settings

CONFIG = Study(HERE).settings
TUNED: dict[str, Any] = {
    name: {"trial": 1, "settings": {"num_envs": 64, "learning_rate": 9.0}}
    for name, tried in CONFIG["sb3"].items()
    if "tuned" in tried
}
AGENTS = [*CONFIG["sb3"], *CONFIG["ours"]]


def trial(
    agent: str, rate: float, sampled: float | None, greedy: float = 0.0, overrides: list[str] | None = None
) -> dict[str, Any]:
    same = {"agent": agent, "trial": 0, "rate": rate, "overrides": overrides or []}
    return {**same, "sampled_success": sampled, "success": greedy}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The study in a folder of its own, with settings and learning rates found."""
    (tmp_path / "study.yaml").write_text((HERE / "study.yaml").read_text())
    (tmp_path / "tuned.json").write_text(json.dumps(TUNED))
    made = Study(tmp_path)
    found = [trial(agent, 0.002, 0.5, overrides=tried[-1]) for agent, tried in made.agents().items()]
    (tmp_path / "rates.json").write_text(json.dumps(found))
    return made


def test_records_say_their_arm_and_when_they_were_good() -> None:
    for r in load(HERE / "results.json"):
        long = r.get("budget_seconds") == CONFIG["longer"]["seconds"]
        assert r["arm"] == r["agent"] + "_fog" * r["fog"] + "_long" * long
        if "curve" in r and r["seconds_to_90"] is not None:
            assert 0 < r["seconds_to_90"] <= r["seconds"] + 1
            assert 0 < r["frames_to_90"] <= r["frames"]


def test_every_agent_has_both_worlds_and_seeds_that_share_no_level(study: Study) -> None:
    jobs = study.jobs()
    longer = CONFIG["longer"]["agents"]
    assert set(longer) <= set(AGENTS)
    assert len(set(jobs)) == len(jobs) == 2 * 5 * len(AGENTS) + len(longer)
    assert len({job.seed for job in jobs[: 2 * len(AGENTS) + len(longer)]}) == 1  # one seed of all before the next
    given = [setting for tried in CONFIG["sb3"].values() for setting in tried if setting != "tuned"]
    tuned = [agent["settings"] for agent in json.loads((HERE / "tuned.json").read_text()).values()]
    most = max(PPOConfig().num_envs, *(setting.get("num_envs", 0) for setting in given + tuned))
    assert all(later - earlier >= most for earlier, later in itertools.pairwise(sorted(CONFIG["seeds"])))


def test_the_rate_of_an_agent_is_its_best_sampled_then_greedy() -> None:
    trials = [
        trial("a", 1e-3, 0.3, 0.9), trial("a", 3e-3, 0.4, 0.1), trial("b", 1e-3, 0.2, 0.5), trial("b", 3e-4, 0.2, 0.6),
        trial("c", 1e-3, None), trial("c", 3e-3, 0.0, 0.1),
    ]  # fmt: skip
    assert {agent: best["rate"] for agent, best in best_trials(trials).items()} == {"a": 3e-3, "b": 3e-4, "c": 3e-3}


def test_where_no_trial_has_learnt_anything_the_middle_rate_of_the_first_setting_is_taken() -> None:
    rates, agents = (1e-3, 3e-4, 3e-3), {"none": (0.26, 0.2, 0.29), "one": (0.26, 0.2, 0.31)}
    trials = [
        trial(a, rate, won, overrides=["x=1"])
        for a, wins in agents.items()
        for rate, won in zip(rates, wins, strict=True)
    ]
    trials.append(trial("none", 3e-3, 0.3, overrides=["x=2"]))
    best = best_trials(trials, learnt=0.305)
    assert (best["none"]["rate"], best["none"]["overrides"]) == (1e-3, ["x=1"])
    assert best["one"]["rate"] == 3e-3


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
            setting = CONFIG["sb3"][name][-1]
            own = {**(TUNED[name]["settings"] if setting == "tuned" else setting), "learning_rate": 0.002}
            assert {key: getattr(run.settings, key) for key in own} == own
            assert run.test_episodes == 1000
        else:
            run, policy, algo = settings(resolve(compose_config(open_options(overrides), "train")))
            assert (run.threads, algo.learning_rate, algo.anneal) == (1, 0.002, True)
            assert policy.core in name or policy.core in ("gru", "feedforward", "drc", "trm")
        assert (run.env, run.env_options, run.seed, run.clock) == (CONFIG["env"], {}, 2000, "cpu")
        assert (run.max_seconds, run.total_steps) == (CONFIG["seconds"], 10**9)
        if name in CONFIG["longer"]["agents"]:
            limit = f"max_seconds={CONFIG['longer']['seconds']}"
            changed = {f"max_seconds={CONFIG['seconds']}": limit}
            assert study.overrides(Job(f"{name}_long", 2000)) == [changed.get(o, o) for o in overrides]


@pytest.mark.thorough
def test_every_agent_is_tried_as_long_with_as_many_rates(study: Study) -> None:
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
        tests = run.test_episodes if job.arm in CONFIG["sb3"] else 0
        assert (run.max_seconds, run.total_steps, tests) == (CONFIG["rate_seconds"], 10**9, 0)
    own = {"vin": [1e-3, 3e-3, 1e-2]}
    settings_tried = {agent: len(CONFIG["sb3"].get(agent, [0])) for agent in AGENTS}
    assert min(settings_tried[agent] for agent in CONFIG["sb3"]) >= 1  # never fewer than ours
    wanted = {agent: own.get(agent, [3e-4, 1e-3, 3e-3]) * settings_tried[agent] for agent in AGENTS}
    assert {agent: sorted(rates) for agent, rates in tried.items()} == {a: sorted(r) for a, r in wanted.items()}


def test_what_is_taken_away_is_taken_away(study: Study) -> None:
    """The ablations differ from TRM by their settings alone."""
    agents = study.agents()
    [full] = agents["trm"]
    for name, changes in (("trm_mean", ["readout=mean"]), ("trm_patch1", ["env.encoder.patch_size=1"])):
        assert agents[name] == [[*full, *changes]]
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
    [(None, "tuned.json: not there"), ({"sb3_dqn": {"settings": {}}}, "tuned.json: has no settings of sb3_ppo_cnn")],
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
    path = study.folder / "rates.json"
    trials = json.loads(path.read_text())
    path.write_text(json.dumps([t for t in trials if t["agent"] != "vin"]))
    with pytest.raises(SystemExit) as ended:
        study.arms()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: rates.json: has no learning rate of vin; run rates.py for them\n"
    path.write_text(
        json.dumps([{**t, "overrides": [*t["overrides"], "x=1"]} if t["agent"] == "trm" else t for t in trials])
    )
    with pytest.raises(SystemExit):
        study.arms()
    assert "rates.json: has other settings of trm; remove its trials" in capsys.readouterr().err


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
    remembering = study.reference_records({**report, "remembering_replanner": played}, "_fog", fog=True)
    assert [r["arm"] for r in remembering] == ["remembering_replanner_fog"]  # the others are known


def test_every_agent_of_the_library_is_known_to_the_study() -> None:
    from hrm_agent.baselines.agents import BASELINES

    assert set(NETWORKS) == set(BASELINES) >= set(CONFIG["sb3"])


def test_an_agent_gets_what_won_whichever_setting_it_was(study: Study) -> None:
    first, second = study.agents()["sb3_ppo_cnn"]
    trials = json.loads((study.folder / "rates.json").read_text())
    better = trial("sb3_ppo_cnn", 0.001, 0.6, overrides=first)
    assert first != second
    (study.folder / "rates.json").write_text(json.dumps([*trials, better]))
    for arm in ("sb3_ppo_cnn", "sb3_ppo_cnn_fog"):
        assert study.arms()[arm]["overrides"] == [*first, "settings.learning_rate=0.001"]


def test_curves_are_read_at_equal_times_and_frames_and_not_beyond_their_end() -> None:
    curve = [[100, 1.0, 0.2], [200, 3.0, 0.4], [400, 5.0, 0.9]]
    assert draw.at(curve, 0, 250) == 0.4
    assert draw.at(curve, 1, 3.0) == 0.4
    assert draw.at(curve, 1, 5.1) == 0.9  # as good as there
    assert draw.at(curve, 0, 500) is None
    assert draw.at(curve, 0, 50) is None
    assert draw.at([], 0, 50) is None


def test_what_the_teacher_did_is_no_part_of_a_curve() -> None:
    curve = [[1000, 10.0, 0.9], [2000, 35.9, 0.9], [3000, 36.0, 0.4], [4000, 120.0, 0.8]]
    taught = {"algo": "dagger", "budget_seconds": 120, "curve": curve}
    assert draw.own_curve(taught) == curve[2:]
    assert draw.own_curve({**taught, "algo": "ppo"}) == curve
    assert draw.at(draw.own_curve(taught), 0, 2000) is None
    assert draw.at(draw.own_curve(taught), 1, 60) == 0.4


def test_tables_of_part_of_a_study(study: Study) -> None:
    """Two seeds of two agents: the better one first, intervals from the outcomes, a difference, and no others."""
    arms = {"feedforward": "0110", "trm": "1111"}
    records, levels = [], []
    for arm, won in arms.items():
        for seed in (0, 1000):
            of_all = dict.fromkeys(("success", "spl", "seconds_to_90", "ms_per_decision"), 0.5)
            size = {
                "frames": 100,
                "parameters": 10,
                "macs_per_decision": 20,
                "curve": [[50, 30.0, 0.5], [100, 120.0, 0.7]],
            }
            records.append({"agent": arm, "arm": arm, "fog": False, "seed": seed, **of_all, **size})
            levels.append({"arm": arm, "seed": seed, "success": won, "sampled": won})
    (study.folder / "results.json").write_text(json.dumps(records))
    (study.folder / "levels.json").write_text(json.dumps(levels))
    drawn = draw.Study(study.folder)
    assert drawn.arms(fog=False) == ["trm", "feedforward"]
    assert "| trm | **1.000** [" in draw.results_table(drawn, fog=False)
    assert draw.results_table(drawn, fog=True) == "No record yet."
    greedy_only = [{key: won for key, won in level.items() if key != "sampled"} for level in levels]
    (study.folder / "levels.json").write_text(json.dumps(greedy_only))
    assert "| trm | **1.000** [" in draw.results_table(draw.Study(study.folder), fog=False)
    (row,) = draw.comparison_rows(CONFIG["comparisons"], drawn.scores)
    assert (row["a"], row["b"]) == ("trm", "feedforward")
    assert row["greedy, a - b [95%]"].startswith("+0.500 [")
    assert draw.curves_table(drawn).splitlines()[2] == "| trm | 0.500 | 0.500 | 0.700 |  |  |  |  |  |  |"
