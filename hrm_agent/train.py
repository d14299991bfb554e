"""`python -m hrm_agent.train [GROUP=CHOICE] [KEY=VALUE] ...`: train an agent, measure it, save it.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` resumes a run from its newest checkpoint.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from hrm_agent.launch import startup

    startup.begin("train", sys.argv[1:])  # now: what follows imports torch, which takes seconds

from omegaconf import DictConfig

from hrm_agent.agents.card import evaluation_facts
from hrm_agent.agents.description import add_facts, find_agent_folder
from hrm_agent.environments.sources import foreign_module
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import format_report
from hrm_agent.launch.errors import run_errors
from hrm_agent.launch.resume import read_description
from hrm_agent.launch.runs import Run, open_loop, run_command, run_to_end, say_end
from hrm_agent.launch.settings import TrainCommand, resolve, settings
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.parallel.memory import at_most, room_for_weights
from hrm_agent.parallel.processes import check_local_device, join
from hrm_agent.policies.policy import Policy
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.learners import build_env, check_memory, check_processes
from hrm_agent.training.loop import CHECKPOINTS
from hrm_agent.training.trainer import Trainer, prepare

COMMAND = "hrm_agent.train"
WORST = {"success": 0.0, "return": float("-inf")}  # of each objective, what a run that diverged is given
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_episodes",
    "curve_every", "test_episodes", "video_every", "log_every", "device", "threads", "kernel",
)  # fmt: skip


def main() -> None:
    if any(argument.startswith("resume=") for argument in sys.argv[1:]):
        leave_out_working_folder(sys.argv[1:])  # the run's files name environments and cores
    run_command("train", settings, check_run, train, CHANGEABLE)


def check_run(cfg: DictConfig, folder: Path | None = None) -> None:
    """Build everything a run needs but the run; touches no file.

    Args:
        folder: of the run that is resumed with this configuration.

    Raises:
        ValueError: what is wrong with the settings, or does not fit together or into the machine.
    """
    values = resolve(cfg)
    config, policy, algo = settings(values)
    check_processes(algo, join())
    check_local_device(config.device)
    env = build_env(algo, config.env, 1, config.env_options)
    too_large = f"core.hidden_size={policy.hidden_size}: the weights do not fit into memory; lower it or the layers"
    with at_most(room_for_weights(), too_large):
        made = Policy(policy, env.single_observation_space, env.single_action_space)
    prepare(made, config, fresh=folder is None or CheckpointFolder(folder / CHECKPOINTS).latest() is None)
    check_memory(made.to(config.device), algo, env.single_observation_space, join())
    env.close()


def train(run: Run) -> float:
    """Build the trainer, train to the end, and measure the agent on test levels.

    Returns the `objective` on validation levels, for sweepers; of `torchrun`'s processes the first does.
    """
    objective, env = run.values.get("objective", "success"), run.values["env"]["id"]
    again = f"{COMMAND} env={env}" if foreign_module(env) else COMMAND  # a module is typed again to resume
    with run_errors(run.folder, again, run.processes):
        build = partial(Trainer, *settings(run.values), run.folder, run.console, run.processes)
        trainer = open_loop(run, build)
        if trainer.config.init_from and trainer.checkpoints.latest() is None:
            run.console.say(f"weights of {trainer.config.init_parts} from {trainer.config.init_from}")
        if not run_to_end(trainer, run.console) or not run.processes.is_rank_zero:
            return WORST[objective]
        say_end(trainer, run.console)
        if run.values.get("test_episodes", TrainCommand.test_episodes):
            print(format_report(measure(run)))
    return float(trainer.validation[objective])  # the test levels choose nothing


def measure(run: Run) -> dict[str, Any]:
    """The report of `hrm_agent.evaluate` on the run's agent, kept in `eval.json` and in the agent's card."""
    episodes = int(run.values.get("test_episodes", TrainCommand.test_episodes))
    kernel = run.values.get("kernel", "plain")
    env = run.values["env"]["id"]  # as it was typed: the agent's file may not name a module
    with run.console.waiting(f"measuring on {episodes:,} test levels"):
        report = evaluate(str(run.folder), episodes, str(run.folder / "eval.json"), env=env, kernel=kernel)
    add_facts(find_agent_folder(run.folder), **run_facts(run.folder), evaluation=evaluation_facts(report))
    return report


def run_facts(folder: Path) -> dict[str, Any]:
    """The run's command (the settings, without the place where it was put) and machine, for its agent's card."""
    run = read_description(folder)
    words = [word for word in run.command.split(" ") if not word.startswith("hydra.")]
    return {"command": " ".join(words), "machine": run.machine}


if __name__ == "__main__":
    main()
