"""`python -m hrm_agent.train [GROUP=CHOICE] [KEY=VALUE] ...`: train an agent, measure it, save it.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` resumes a run from its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from hrm_agent.launch import starting

    starting.begin("train", sys.argv[1:])  # now: what follows imports torch, which takes seconds

from omegaconf import DictConfig

from hrm_agent.agents.agent import RUN_FILE, add_facts, find_agent_folder
from hrm_agent.agents.card import evaluation_facts
from hrm_agent.environments.sources import refuse_own_module
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import format_report
from hrm_agent.launch.cli import UsageError, usage_errors
from hrm_agent.launch.runs import (
    announce,
    check_count,
    open_loop,
    reopen_run,
    run_command,
    run_errors,
    run_to_end,
    say_end,
    start_run,
    write_settings,
)
from hrm_agent.launch.settings import ALGORITHMS, resolve, settings
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.parallel.processes import check_local_device, join
from hrm_agent.policies.policy import Policy, PolicyConfig
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.learners import AlgoConfig, build_env, check_memory, check_processes
from hrm_agent.training.loop import CHECKPOINTS
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer, TrainerConfig, prepare

COMMAND = "hrm_agent.train"
WORST = {"success": 0.0, "return": float("-inf")}  # of each objective, what a run that diverged is given
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_episodes",
    "test_episodes", "video_every", "log_every", "device", "threads", "kernel",
)  # fmt: skip


def main() -> None:
    run_command("train", check_run, _start, _resume, _run)


def check_run(cfg: DictConfig) -> None:
    """Build everything a run needs but the run; touches no file.

    Raises:
        ValueError: what is wrong with the settings.
    """
    values = resolve(cfg)
    if values["algo"]["name"] not in ALGORITHMS:
        raise UsageError(
            f"algo={values['algo']['name']}: no such algorithm{did_you_mean(values['algo']['name'], list(ALGORITHMS))}"
        )
    check_count(values, "test_episodes")
    if values["objective"] not in WORST:
        raise UsageError(f"objective={values['objective']}: expected one of {', '.join(WORST)}")
    _check_parts(*settings(values))


def _check_parts(config: TrainerConfig, policy: PolicyConfig, algo: AlgoConfig, fresh: bool = True) -> None:
    """Raises: ValueError if the parts of a run do not fit each other, or not into the machine."""
    check_processes(algo, join())
    check_local_device(config.device)
    env = build_env(algo, config.env, 1, config.env_options)
    made = Policy(policy, env.single_observation_space, env.single_action_space)
    prepare(made, config, fresh)
    check_memory(made.to(config.device), algo, env.single_observation_space)
    env.close()


def _start(cfg: DictConfig) -> float:
    return start_run(cfg, COMMAND, _run)


def _resume(given: dict[str, str]) -> None:
    with usage_errors():
        folder, values, parts = reopen_run(given, COMMAND, CHANGEABLE, settings)
        check_count(values, "test_episodes")
        refuse_own_module(parts[0].env, folder)
        _check_parts(*parts, fresh=CheckpointFolder(folder / CHECKPOINTS).latest() is None)
        if given:
            write_settings(folder, values)
    _run(folder, values, resume=True)


def run_facts(folder: Path) -> dict[str, Any]:
    """The run's command (the settings, without the place where it was put) and machine, for its agent's card."""
    run = json.loads((folder / RUN_FILE).read_text())
    words = [word for word in run["command"].split(" ") if not word.startswith("hydra.")]
    return {"command": " ".join(words), "machine": run["machine"]}


def _run(folder: Path, values: dict[str, Any], resume: bool) -> float:
    """Returns the `objective` on validation levels, for sweepers; of `torchrun`'s processes the first does."""
    processes = join()
    announce(processes, folder, values, resume)
    console = Console(quiet=not processes.is_rank_zero)
    with run_errors(folder, COMMAND, processes):
        trainer = open_loop(partial(Trainer, *settings(values), folder, console, processes), folder, resume, console)
        if trainer.config.init_from and trainer.checkpoints.latest() is None:
            console.say(f"weights of {trainer.config.init_parts} from {trainer.config.init_from}")
        if not run_to_end(trainer, console):
            return WORST[values["objective"]]
    if not processes.is_rank_zero:
        return WORST[values["objective"]]
    say_end(trainer, console)
    if values["test_episodes"]:
        with console.waiting(f"measuring on {values['test_episodes']:,} test levels"):
            report = evaluate(
                run=str(folder),
                episodes=values["test_episodes"],
                out=str(folder / "eval.json"),
                kernel=values.get("kernel", "plain"),
            )
        add_facts(find_agent_folder(folder), **run_facts(folder), evaluation=evaluation_facts(report))
        print(format_report(report))
    return float(trainer.validation[values.get("objective", "success")])  # the test levels choose nothing


if __name__ == "__main__":
    main()
