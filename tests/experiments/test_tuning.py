"""The search for settings: repeatable, the same for all, and every draw can be run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from experiments.baselines.draw import best_of
from experiments.baselines.tune import ENV, HERE, OURS, Search
from experiments.engine.records import load, save
from experiments.engine.runner import Job
from hrm_agent.baselines.config import Options, RunConfig
from hrm_agent.launch.cli import compose_config, parse_options
from hrm_agent.launch.settings import resolve, settings

SEARCH = Search(HERE)
AGENTS = list(SEARCH.arms())


def test_draws_are_those_of_the_records_and_differ() -> None:
    for record in load(HERE / "tuning.json"):
        assert record["settings"] == SEARCH.drawn(record["agent"], record["trial"])
    for agent in AGENTS:
        assert SEARCH.drawn(agent, 0) == {}
        assert len({str(SEARCH.drawn(agent, trial)) for trial in range(1, 7)}) == 6


@pytest.mark.thorough
def test_every_draw_is_accepted_by_its_command() -> None:
    for agent in AGENTS:
        for trial in range(12):
            job = Job(agent, trial)
            if agent not in OURS:
                options = parse_options([*SEARCH.overrides(job), "out=RUN"], Options, "")
                config = RunConfig.parse({key: value for key, value in options.items() if key != "out"})
                assert (config.max_seconds, config.clock, config.env) == (60, "cpu", ENV)
                assert all(vars(config.settings)[k] == v for k, v in SEARCH.drawn(agent, trial).items())
            else:
                trainer, _, _ = settings(resolve(compose_config(SEARCH.overrides(job), "train")))
                assert (trainer.max_seconds, trainer.clock, trainer.threads) == (60, "cpu", 1)


def test_best_is_by_validation_then_sampled_then_earlier() -> None:
    rows = [("a", 0, 0.5, 0.9), ("a", 1, 0.6, 0.1), ("a", 2, 0.6, 0.2), ("a", 3, 0.6, 0.2), ("b", 0, 0.1, None)]
    records = [{"agent": a, "trial": t, "success": s, "sampled_success": x} for a, t, s, x in rows]
    assert {agent: r["trial"] for agent, r in best_of(records).items()} == {"a": 2, "b": 0}
    assert best_of(records, {"a": 1})["a"]["trial"] == 1


def test_a_trial_that_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    save(tmp_path / "tuning.json", [{"agent": "trm", "trial": 0}])
    assert ("trm", 0, "") not in (left := Search(tmp_path).missing())
    assert len(left) == len(AGENTS) * len(SEARCH.settings["seeds"]) - 1
