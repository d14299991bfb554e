"""What a search draws from: files, and what is typed beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from hrm_agent.files.reading import CheckpointError
from hrm_agent.launch.cli import UsageError, compose_config
from hrm_agent.launch.search_space import read_space
from hrm_agent.train import check_run

optuna = pytest.importorskip("optuna")


def test_what_is_typed_is_fixed_or_searched_over() -> None:
    space = read_space("ppo", ["env=CartPole-v1", "algo.window=4", "algo.epochs=2,4", "core.layers=1,2", "threads=3"])
    assert space.settings == ["algo=ppo", "env=CartPole-v1", "algo.window=4", "threads=3"]
    assert space.params["algo.epochs"] == "2,4"
    assert space.params["core.layers"] == "1,2"
    assert "algo.window" not in space.params
    assert not any(setting.startswith("threads") for setting in space.trial)
    assert "test_episodes=0" in space.trial  # nothing is chosen on test levels


def test_values_become_distributions() -> None:
    typed = ["algo.epochs=int(interval(1,9))", "algo.gamma=interval(0.9,0.99)", "core.layers=choice(1,2)"]
    found = read_space("ppo", typed).distributions()
    assert found["algo.learning_rate"] == optuna.distributions.FloatDistribution(3e-4, 1e-2, log=True)
    assert found["algo.epochs"] == optuna.distributions.IntDistribution(1, 9)
    assert found["algo.gamma"] == optuna.distributions.FloatDistribution(0.9, 0.99)
    assert found["core.layers"] == optuna.distributions.CategoricalDistribution(("1", "2"))
    overrides = read_space("ppo", typed).overrides(dict.fromkeys(found, 1))
    assert {"algo=ppo", "test_episodes=0", "algo.gamma=1"} <= set(overrides)


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("params: {algo.gamma: 'choice(0.9, 0.99)'}\nsettings: [core=gru]\n")
    space = read_space(str(path), [])
    assert (space.params, space.settings, space.trial) == (
        {"algo.gamma": "choice(0.9, 0.99)"}, ["core=gru"], ["test_episodes=0"],
    )  # fmt: skip
    for text, message in (
        ("params: {algo.gamma: 0.9}", r"algo.gamma=0.9: expected choice\(A, B\) or interval"),
        ("params: {}", "nothing is left to search over"),
        ("param: {}", "unknown field param|missing required field"),
        ("params: [", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises((UsageError, CheckpointError), match=message):
            read_space(str(path), [])


@pytest.mark.parametrize(
    ("name", "typed", "message"),
    [
        ("pop", [], "space=pop: no such space; did you mean ppo?"),
        ("absent.yaml", [], "absent.yaml: no such file"),
        ("ppo", ["hydra.run.dir=x"], "hydra.run.dir=x: is set by the search"),
        ("ppo", ["test_episodes=9"], "test_episodes=9: is set by the search"),
        ("ppo", ["algo.gamma=interval(0.99,0.9)"], "expected interval"),
        ("ppo", ["algo.gamma=tag(log,interval(0,0.9))"], "both above 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(name: str, typed: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(name, typed).distributions()


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_first_trial_of_a_shipped_space_can_be_trained(name: str) -> None:
    space = read_space(name, [])
    jobs = list(space.jobs())
    check_run(compose_config(jobs[0], "train"))
    for setting in space.params:
        assert len({next(o for o in job if o.startswith(f"{setting}=")) for job in jobs}) >= 2, setting


@pytest.mark.thorough  # composes every choice, half a second each
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_every_choice_of_a_shipped_space_can_be_trained(name: str) -> None:
    jobs: list[DictConfig] = [compose_config(job, "train") for job in read_space(name, []).jobs()]
    for job in jobs:
        check_run(job)
    for setting in read_space(name, []).params:
        assert len({OmegaConf.select(job, setting) for job in jobs}) >= 2, setting
    assert {job.algo.name for job in jobs} == {name}
    assert {job.test_episodes for job in jobs} == {0}
