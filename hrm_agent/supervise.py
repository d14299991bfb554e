"""`python -m hrm_agent.supervise [task=CHOICE] [core=CHOICE] [KEY=VALUE] ...`: train a core on labelled puzzles.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` resumes a run from its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from hrm_agent.cores import import_core
from hrm_agent.files.writing import write_atomically
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.errors import run_errors
from hrm_agent.launch.runs import Run, open_loop, run_command, run_to_end, say_end
from hrm_agent.launch.settings import resolve
from hrm_agent.launch.supervised_settings import SuperviseCommand, settings
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import EpisodesOrNone, checked
from hrm_agent.parallel.memory import at_most, room_for_weights
from hrm_agent.parallel.processes import check_local_device, join
from hrm_agent.policies.policy import Policy
from hrm_agent.supervised.deep_supervision import check_processes
from hrm_agent.supervised.evaluation import format_report
from hrm_agent.supervised.files import build_model, check_answerable
from hrm_agent.supervised.streams import check_single
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.trainer import SupervisedTrainer

COMMAND = "hrm_agent.supervise"
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_puzzles",
    "eval_segments", "test_puzzles", "log_every", "device", "threads", "kernel",
)  # fmt: skip
WORST = 0.0
"""Share of puzzles solved that a run which diverged is given."""


def main() -> None:
    if any(argument.startswith("resume=") for argument in sys.argv[1:]):
        leave_out_working_folder(sys.argv[1:])  # the run's files name environments and cores
    run_command("supervise", settings, check_run, train, CHANGEABLE)


def check_run(cfg: DictConfig, folder: Path | None = None) -> None:
    """Build everything a run needs but the run; touches no file of it.

    Args:
        folder: of the run that is resumed with this configuration.

    Raises:
        ValueError: what is wrong with the settings, or does not fit together or into the machine.
    """
    values = resolve(cfg)
    config, model, training = settings(values)
    check_local_device(config.device)
    try:
        task = build_task(config.task, config.task_options, config.seed)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    too_large = f"core.hidden_size={model.hidden_size}: the weights do not fit into memory; lower it or the layers"
    with at_most(room_for_weights(), too_large):
        made = build_model(model, task.spec)
    check_answerable(made, task)
    if isinstance(made, Policy):
        check_single(join())
    else:
        check_processes(made, training, join())
    test_puzzles = values.get("test_puzzles", SuperviseCommand.test_puzzles)
    for split, count in (("validation", config.eval_puzzles), ("test", test_puzzles)):
        if count:
            task.examples(split, count)


def train(run: Run) -> float:
    """Build the trainer, train to the end, and measure the model on test puzzles.

    Returns the score on validation puzzles, for sweepers; of `torchrun`'s processes the first does.
    """
    core = checked("core.name", run.values["core"]["name"], str)
    with run_errors(run.folder, COMMAND + f" core={core}" * (":" in core), run.processes):
        import_core(core)  # as typed, in every process; of a run that is resumed, typed again
        trainer = open_loop(run, partial(SupervisedTrainer, *settings(run.values), run.folder, run.processes))
        if not run_to_end(trainer, run.console) or not run.processes.is_rank_zero:
            return WORST
        say_end(trainer, run.console)
        puzzles = checked("test_puzzles", run.values["test_puzzles"], EpisodesOrNone)
        if puzzles:
            with run.console.waiting(f"measuring on {puzzles:,} test {trainer.task.things}") as line:
                report = trainer.evaluate("test", puzzles, say=line.say)
            write_atomically(run.folder / "eval.json", (json.dumps(report, indent=2) + "\n").encode())
            print(format_report(report))
    return float(trainer.validation[trainer.score])  # the test puzzles choose nothing


if __name__ == "__main__":
    main()
