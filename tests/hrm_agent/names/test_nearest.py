"""What is offered for a name that does not exist: the nearest, what it is called elsewhere, or nothing."""

from __future__ import annotations

from hrm_agent.launch.cli import group_choices, known_settings
from hrm_agent.names.nearest import ALIASES, did_you_mean, nearest


def test_the_nearest_name_is_offered_and_none_that_is_far() -> None:
    algorithms, settings = group_choices("algo"), known_settings("train")
    assert did_you_mean("sac", algorithms) == ". Known: bc, dagger, dqn, ppo"
    assert did_you_mean("sac", algorithms, shown=0) == ""
    meant: dict[str, str | None] = {"a2c": None, "pop": "ppo", "PPO": "ppo"}
    assert {name: nearest(name, algorithms) for name in meant} == meant
    meant = {
        "lr": "algo.learning_rate", "algo.lr": "algo.learning_rate", "gamma": "algo.gamma", "gama": "algo.gamma",
        "ent_coef": "algo.entropy_coef", "total_timesteps": "total_steps", "n_envs": "algo.num_envs",
        "learning_rate": "algo.learning_rate", "hidden_size": "core.hidden_size", "total_step": "total_steps",
        "encoder.crop": "env.encoder.crop", "seeds": "seed", "foo": None, "verbose": None,
    }  # fmt: skip
    assert {name: nearest(name, settings) for name in meant} == meant
    worlds = ["Ant-v2", "Ant-v5", "CartPole-v0", "CartPole-v1", "ALE/Breakout-v5", "Acrobot-v1"]
    meant = {
        "Pong": None, "Pong-v5": None, "Ant": "Ant-v5", "cart-pole": "CartPole-v1", "Breakout": "ALE/Breakout-v5",
    }  # fmt: skip
    assert {name: nearest(name, worlds) for name in meant} == meant


def test_what_settings_are_called_elsewhere_leads_to_some_that_exist() -> None:
    known = {name.rsplit(".", 1)[-1] for name in known_settings("train")}
    known |= {name.rsplit(".", 1)[-1] for name in known_settings("train", ["algo=dqn"])}
    targets = {target for several in ALIASES.values() for target in several}
    assert targets - known == {"hydra.run.dir", "run", "out", "episodes"}  # of other commands, or of Hydra
    assert not set(ALIASES) & known  # a name that exists is no alias


def test_the_name_that_is_meant_stands_before_those_that_are_known() -> None:
    assert did_you_mean("trn", ["hrm", "trm"]) == "; did you mean trm? Known: hrm, trm"
    assert did_you_mean("trn", ["hrm", "trm"], shown=1) == "; did you mean trm? Known: hrm, ..."
    assert did_you_mean("trn", ["hrm", "trm"], shown=0) == "; did you mean trm?"
    assert did_you_mean("trn", []) == ""
