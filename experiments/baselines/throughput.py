"""Training speed of our recurrent PPO beside sb3-contrib's, one thread each, in turn.

    python -m experiments.baselines.throughput [--rounds 3] [--seconds 10] [--agents lstm gru_as_lstm]

All collect and train in this one process on the same environments, with the same number of them, steps between
updates, decisions in a minibatch and passes over a rollout: those of our shipped settings. Parameters are matched to a
tenth both ways: `lstm` has the size that the library gives it, `gru_as_lstm` is our GRU core with a memory that makes
it as large; `lstm_as_NAME` is the library's agent with LSTMs that make it as large as ours of that name, which are as
shipped, and `lstm_as_trm_by_default` trains it by the library's defaults in place of our settings. The rounds go
A B C ... A B C ..., so that a machine that becomes slower does so for all; in each an agent gets whole iterations
(collection and updates) until its processor time is over. The first iteration of each does not count. Writes
`throughput.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported

from experiments.engine.machine import command, commit_of_code
from experiments.engine.pages import draw
from experiments.engine.records import save
from experiments.engine.turns import by_turns, turn
from hrm_agent import recurrence
from hrm_agent.baselines import actor
from hrm_agent.baselines.agents import RecurrentPPOSettings, build_model, layout_of
from hrm_agent.baselines.vec_env import SB3VecEnv
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation import cost
from hrm_agent.launch.cli import compose_config
from hrm_agent.launch.settings import resolve, settings
from hrm_agent.training.trainer import Trainer

HERE = Path(__file__).resolve().parent
ENV = "DynamicMaze-v0"
SHIPPED = ("trm", "gru")
AGENTS = ("lstm", "gru_as_lstm", "trm", "lstm_as_trm", "gru", "lstm_as_gru", "lstm_as_trm_by_default")
SIMILAR = 0.1  # largest relative difference of matched numbers of parameters


class Ours:
    """Our recurrent PPO with a core, all else as shipped.

    Attributes:
        frames: of one iteration.
        rollout: environments, steps, minibatches and passes, in the other library's words.
        size: what was changed of the core.
    """

    def __init__(self, core: str, **size: int) -> None:
        changed = [f"core.{name}={value}" for name, value in size.items()]
        overrides = [f"env={ENV}", "algo=ppo", f"core={core}", *changed, "threads=1", "total_steps=1000000000"]
        config, policy, algo = settings(resolve(compose_config(overrides, "train")))
        self.trainer = Trainer(config, policy, algo, Path(tempfile.gettempdir()))  # it writes nothing by itself
        self.frames = algo.num_envs * algo.rollout_steps
        self.parameters = sum(p.numel() for p in self.trainer.policy.parameters())
        self.size = size
        self.rollout = {
            "num_envs": algo.num_envs,
            "n_steps": algo.rollout_steps,
            "batch_size": algo.minibatch_windows * algo.window,
            "n_epochs": algo.epochs,
        }

    def settle_kernel(self, kernel: str = "auto") -> str:
        """Have the core computed by a path of `kernel=`, as a run does before its first update; the path."""
        policy = self.trainer.policy
        if kernel == "auto":
            kernel = self.trainer.measure_kernel(recurrence.candidates(policy, allow_bf16=True)).path
        return recurrence.use(policy, kernel)

    def iterate(self) -> None:
        self.trainer.learner.collect(self.trainer.collector, 0.0)
        self.trainer.learner.update(0.0)

    def count_macs(self) -> int:
        space = self.trainer.env.single_observation_space
        return cost.measure_cost(self.trainer.policy, space, 1)["macs_per_decision"]


class Theirs:
    """sb3-contrib's RecurrentPPO, an LSTM for the policy and one for the value."""

    def __init__(self, rollout: dict[str, int], lstm_size: int) -> None:
        chosen = RecurrentPPOSettings(**rollout, lstm_size=lstm_size)
        self.venv = SB3VecEnv(make_vector_env(ENV, chosen.num_envs, {}), layout_of(chosen))
        self.model = build_model("sb3_recurrent_ppo", chosen, self.venv, seed=0)
        self.frames = chosen.num_envs * chosen.n_steps
        self.parameters = actor.count_parameters(self.model)
        self.size = {"lstm_size": lstm_size}
        self.rollout = {name: getattr(chosen, name) for name in ("num_envs", "n_steps", "batch_size", "n_epochs")}

    def iterate(self) -> None:
        self.model.learn(self.frames, log_interval=10**9, reset_num_timesteps=False)

    def count_macs(self) -> int:
        return actor.measure_cost(self.model, self.venv.view, 1)["macs_per_decision"]


def matched(build: Callable[[int], Ours | Theirs], parameters: int) -> Ours | Theirs:
    """The agent whose size comes nearest to a number of parameters; more size, more parameters."""
    low, high = 1, 2048
    while low < high:  # the smallest that has at least as many
        middle = (low + high) // 2
        low, high = (low, middle) if build(middle).parameters >= parameters else (middle + 1, high)
    best = min((build(size) for size in (max(1, low - 1), low)), key=lambda a: abs(a.parameters - parameters))
    if abs(best.parameters / parameters - 1) > SIMILAR:
        sys.exit(f"error: nothing within {SIMILAR:.0%} of {parameters:,} parameters; nearest: {best.parameters:,}")
    return best


def contenders() -> dict[str, Ours | Theirs]:
    """Every agent by its name."""
    shipped = {name: Ours(name) for name in SHIPPED}
    rollout = shipped["trm"].rollout
    default = Theirs(rollout, RecurrentPPOSettings().lstm_size)
    built: dict[str, Ours | Theirs] = {**shipped, "lstm": default}
    built["gru_as_lstm"] = matched(lambda size: Ours("gru", memory_size=size), default.parameters)
    for name, agent in shipped.items():
        built[f"lstm_as_{name}"] = matched(lambda size: Theirs(rollout, size), agent.parameters)
    built["lstm_as_trm_by_default"] = Theirs({}, built["lstm_as_trm"].size["lstm_size"])
    return built


def steps_per_second(name: str, agent: Ours | Theirs, seconds: float) -> float:
    """Frames by processor time, over whole iterations."""
    taken = turn(agent.iterate, seconds, "cpu")
    speed = round(taken.calls * agent.frames / taken.cpu, 1)
    print(f"{name}: {speed:,.0f} steps/s", flush=True)
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time, an agent and round")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    options = parser.parse_args()
    if options.rounds < 1:
        sys.exit(f"error: --rounds {options.rounds}: expected 1 or more")
    commit = commit_of_code()
    built = contenders()
    agents = {name: built[name] for name in AGENTS if name in options.agents}
    for agent in agents.values():
        if isinstance(agent, Ours):
            agent.settle_kernel()
        agent.iterate()
    measures = {n: partial(steps_per_second, n, agent, options.seconds) for n, agent in agents.items()}
    speeds = by_turns(measures, options.rounds)
    same = {"seconds_per_round": options.seconds, "clock": "cpu", "env": ENV, "commit": commit, "command": command()}
    save(HERE / "throughput.json", [record(name, agents[name], speeds[name]) | same for name in agents])
    draw(HERE)


def record(name: str, agent: Ours | Theirs, speeds: list[float]) -> dict[str, Any]:
    return {
        "agent": name if isinstance(agent, Ours) else name.replace("lstm", "sb3_recurrent_ppo", 1),
        "size": agent.size,
        "parameters": agent.parameters,
        "macs_per_decision": agent.count_macs(),
        "steps_per_second": statistics.median(speeds),
        "rounds": speeds,
        **agent.rollout,
    }


if __name__ == "__main__":
    main()
