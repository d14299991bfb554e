"""The search for settings: repeatable, the same for all, and every draw can be run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from hrm_agent.baselines.training import RunConfig
from hrm_agent.launch.cli import compose_config, parse_options
from hrm_agent.launch.settings import resolve, settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune", ROOT / "experiments" / "baselines" / "tune.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_draws_are_repeatable_and_differ(tune: ModuleType) -> None:
    for agent in tune.SPACES:
        assert tune.draw(agent, 0) == {}
        drawn = [tune.draw(agent, trial) for trial in range(1, 7)]
        assert drawn == [tune.draw(agent, trial) for trial in range(1, 7)]
        assert len({str(d) for d in drawn}) == 6


def test_every_draw_is_accepted_by_its_command(tune: ModuleType) -> None:
    for agent in tune.SPACES:
        for trial in range(12):
            _, module, *arguments = tune.command_of(agent, tune.draw(agent, trial), 60, "RUN")
            if module == "hrm_agent.baselines":
                options = parse_options(arguments, "baselines", "")
                options.pop("out")
                config = RunConfig.parse(options)
                assert (config.max_seconds, config.clock, config.env) == (60, "cpu", tune.ENV)
                assert all(vars(config.settings)[k] == v for k, v in tune.draw(agent, trial).items())
            else:
                overrides = [a for a in arguments if not a.startswith("hydra.")]
                trainer, _, _ = settings(resolve(compose_config(overrides, "train")))
                assert (trainer.max_seconds, trainer.clock, trainer.threads) == (60, "cpu", 1)


def test_best_is_by_validation_then_sampled_then_earlier(tune: ModuleType) -> None:
    rows = [("a", 0, 0.5, 0.9), ("a", 1, 0.6, 0.1), ("a", 2, 0.6, 0.2), ("a", 3, 0.6, 0.2), ("b", 0, 0.1, None)]
    records = [{"agent": a, "trial": t, "success": s, "sampled_success": x} for a, t, s, x in rows]
    assert {agent: r["trial"] for agent, r in tune.best_of(records).items()} == {"a": 2, "b": 0}


def test_what_stands_in_the_file_is_not_run_again(
    tune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "HERE", tmp_path)
    tune.write_lines(tmp_path / "tuning.json", [{"agent": "trm", "trial": 0}])
    assert tune.missing(["trm", "sb3_dqn"], 2) == [("sb3_dqn", 0), ("trm", 1), ("sb3_dqn", 1)]
