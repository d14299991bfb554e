"""`python -m hrm_agent.train [GROUP=CHOICE] [KEY=VALUE] ...`: train an agent, measure it, save it.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` resumes a run from its newest checkpoint.

`learn` does the same inside a program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from hrm_agent.launch import startup

    startup.begin("train", sys.argv[1:])  # now: what follows imports torch, which takes seconds

from omegaconf import DictConfig

from hrm_agent.agents.agent import Agent
from hrm_agent.agents.card import evaluation_facts
from hrm_agent.agents.description import add_facts, find_agent_folder
from hrm_agent.cores import import_core
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.environments.make import choose_env_workers
from hrm_agent.environments.sources import foreign_module
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import format_report
from hrm_agent.launch.errors import run_errors
from hrm_agent.launch.python import compose_run, configuration, make_folder, program_left_as_it_was, reopen_run
from hrm_agent.launch.resume import read_description
from hrm_agent.launch.runs import Run, begin_run, go_on, is_multirun, keep_settings, open_loop, run_command, say_end
from hrm_agent.launch.settings import TrainCommand, resolve, settings
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.parallel.memory import at_most, room_for_weights
from hrm_agent.parallel.processes import SINGLE_PROCESS, check_local_device, join
from hrm_agent.parallel.threads import available_cores
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.callbacks import Callback, check_callbacks
from hrm_agent.training.checkpoints import CheckpointFolder
from hrm_agent.training.learners import build_env, check_memory, check_processes
from hrm_agent.training.loggers import Logger, split_loggers
from hrm_agent.training.loop import CHECKPOINTS, Interrupted
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer, prepare

COMMAND = "hrm_agent.train"
MASKS_USED = "action masks: the environment gives them, so actions that are not legal are never taken or learned from"
WORST = {"success": 0.0, "return": float("-inf")}  # of each objective, what a run that diverged is given
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_episodes",
    "curve_every", "test_episodes", "video_every", "log_every", "loggers", "device", "threads", "kernel",
    "env_workers",
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
    env = build_env(algo, config.env, 1, config.made_with)
    too_large = f"core.hidden_size={policy.hidden_size}: the weights do not fit into memory; lower it or the layers"
    with at_most(room_for_weights(), too_large):
        made = Policy(policy, env.single_observation_space, env.single_action_space)
    prepare(made, config, fresh=folder is None or CheckpointFolder(folder / CHECKPOINTS).latest() is None)
    check_memory(made.to(config.device), algo, env.single_observation_space, join())
    env.close()


def train(run: Run) -> float:
    """A run of the command: `perform`, with errors and signals as one line.

    Returns the `objective` on validation levels, for sweepers; of `torchrun`'s processes the first does.
    """
    objective, env = run.values.get("objective", "success"), run.values["env"]["id"]
    core = run.values["core"]["name"]
    modules = [f"env={env}"] * bool(foreign_module(env)) + [f"core={core}"] * (":" in core)
    again = " ".join([COMMAND, *modules])  # a module is typed again to resume
    with run_errors(run.folder, again, run.processes):
        try:
            trainer = perform(run)
        except NonFiniteNumbers as error:
            if not is_multirun():
                raise
            run.console.say(f"diverged: {error}")  # a sweep continues without it
            return WORST[objective]
    # The test levels choose nothing.
    return float(trainer.validation[objective]) if run.processes.is_rank_zero else WORST[objective]


def perform(
    run: Run,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    show: Callable[[str], None] = print,
) -> Trainer:
    """Build the trainer, train to the end, and measure the agent on test levels: what the command and `learn` share.

    Args:
        show: is given the table of the results.

    Raises:
        NonFiniteNumbers: training diverged.
        Interrupted: it received a signal to stop; a checkpoint is written.
    """
    import_core(run.values["core"]["name"])  # as typed, in every process; of a run that is resumed, typed again
    settle_workers(run)
    arguments = (*settings(run.values), run.folder, run.console, run.processes)
    trainer = open_loop(run, partial(Trainer, *arguments, callbacks=callbacks, more_loggers=loggers))
    if run.resumed and trainer.frames and trainer.done < 1 and not hasattr(trainer.env, "get_state"):
        run.console.say(f"env={trainer.config.env}: keeps no state (get_state), so new episodes begin")
    if trainer.policy.masked:
        run.console.say(MASKS_USED)
    if trainer.config.init_from and trainer.checkpoints.latest() is None:
        run.console.say(f"weights of {trainer.config.init_parts} from {trainer.config.init_from}")
    try:
        trainer.run(run.console)
        if run.processes.is_rank_zero:
            say_end(trainer, run.console)
            if run.values.get("test_episodes", TrainCommand.test_episodes):
                show(format_report(measure(run)))
    finally:
        with suppress(EnvironmentFailed):
            trainer.env.close()
    return trainer


def settle_workers(run: Run) -> None:
    """With `env_workers=auto`, measure a step of the environment and keep what is chosen in the run's settings."""
    config, _, algo = settings(run.values)
    if config.env_workers is not None:
        return
    chosen = None
    if run.processes.is_rank_zero:
        num_envs = algo.num_envs // run.processes.world_size
        chosen = choose_env_workers(config.env, num_envs, config.made_with, available_cores())
    workers = run.processes.broadcast_object(None if chosen is None else chosen.workers)
    if workers is not None:
        run.values["env_workers"] = workers
    if chosen is not None:
        run.console.say(chosen.line)
        keep_settings(run.folder, run.values)


def learn(
    env: Any,
    *,
    callbacks: Callback | Sequence[Callback] = (),
    loggers: Any = None,
    folder: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Agent:
    """Train an agent inside a program, as `python -m hrm_agent.train` does, and measure it on test levels.

    The run has a folder of the same kind, with checkpoints, curves, agents and `eval.json`; the command resumes it too,
    where the environment has an id. Nothing else of the process is changed for good: torch's number of threads and
    random numbers, Hydra and the handlers of signals are afterwards what they were. During training the first Ctrl-C
    waits for the update, as for the command.

    Args:
        env: a Gymnasium id, or `MODULE:ID`; a `gymnasium.Env`, of which more are made from its `spec`, or else by
            copying it; or a callable that returns one, with `env.options` as keyword arguments. A dictionary has the
            further settings of the group: `{"id": "DynamicMaze-v0", "options": {"rows": 5}}`.
        callbacks: see `hrm_agent.Callback`; one of them may end training.
        loggers: where numbers and videos go besides `metrics.jsonl`, a list of `"tensorboard"` (alone by default),
            `"wandb"`, `"mlflow"` and objects with the methods of `hrm_agent.Logger`.
        folder: of the run; None: `runs/DATE/TIME_ENV_CORE_CARRY_seedN`, which is printed.
        resume: continue the run in `folder` from its newest checkpoint. Other settings than those that the command lets
            change must be what they were, or left out.
        quiet: print nothing.
        settings: of the command, by their names, with its defaults: `total_steps=100_000`, `core="trm"`, `segments=4`.
            A group is a choice or a dictionary of its settings, `algo={"name": "ppo", "learning_rate": 1e-3}`; dotted
            names are given as `**{"algo.learning_rate": 1e-3}`. `core` may be a class, see `hrm_agent.cores.Core`.

    Returns:
        The agent that was best on validation levels, as `Agent.load(folder)` reads it (the last one is in
        `folder/agents/last`).

    Raises:
        ValueError: what is wrong with a setting or the environment, in the line that the command prints; nothing has
            been written then.
        KeyboardInterrupt: training was interrupted by a signal; the message names the checkpoint.
        hrm_agent.environments.checked.EnvironmentFailed: the environment raised an exception, which is the cause.
        hrm_agent.tensors.gradients.NonFiniteNumbers: training diverged; the message names the last good checkpoint.
    """
    called, (names, objects) = check_callbacks(callbacks), split_loggers("tensorboard" if loggers is None else loggers)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        raise ValueError("hrm_agent.learn trains in one process; with torchrun start python -m hrm_agent.train")
    if loggers is not None:
        settings["loggers"] = names
    with program_left_as_it_was(settings.get("device", "cpu")):
        if resume:
            path, values = reopen_run(env, settings, folder, COMMAND, CHANGEABLE)
            check_run(configuration(values), path)
            opened = go_on(path, values)
        else:
            new = compose_run(env, settings, folder, COMMAND)
            check_run(new.config)
            path, values = new.folder, resolve(new.config)
            values.pop("resume", None)
            make_folder(path)
            opened = begin_run(path, values, new.command)
        run = Run(path, values, resume, SINGLE_PROCESS, Console(quiet))
        with opened:
            try:
                perform(run, called, objects, _silent if quiet else print)
            except Interrupted as error:
                raise KeyboardInterrupt(f"{error}; resume=True continues") from None
        return Agent.load(path)


def _silent(text: str) -> None:
    pass


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
