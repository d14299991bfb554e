"""`python -m hrm_agent.supervise [task=CHOICE] [core=CHOICE] [KEY=VALUE] ...`: train a core on labelled puzzles.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` resumes a run from its newest checkpoint.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

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
from hrm_agent.launch.settings import resolve
from hrm_agent.launch.supervised_settings import settings
from hrm_agent.parallel.processes import check_local_device, join
from hrm_agent.supervised.deep_supervision import SupervisedConfig, check_processes
from hrm_agent.supervised.evaluation import format_report
from hrm_agent.supervised.files import ModelConfig, build_model, check_answerable
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.trainer import RunConfig, SupervisedTrainer
from hrm_agent.tensors.files import write_atomically
from hrm_agent.training.tracking import Console

COMMAND = "hrm_agent.supervise"
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_puzzles",
    "eval_segments", "test_puzzles", "log_every", "device", "threads", "kernel",
)  # fmt: skip
WORST = 0.0
"""Share of puzzles solved that a run which diverged is given."""


def main() -> None:
    run_command("supervise", check_run, _start, _resume, _run)


def check_run(cfg: DictConfig) -> None:
    """Build everything a run needs but the run; touches no file of it.

    Raises:
        ValueError: what is wrong with the settings.
    """
    values = resolve(cfg)
    _check_parts(values, *settings(values))


def _check_parts(values: dict[str, Any], run: RunConfig, model: ModelConfig, training: SupervisedConfig) -> None:
    check_count(values, "test_puzzles")
    check_local_device(run.device)
    try:
        task = build_task(run.task, run.task_options, run.seed)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    made = build_model(model, task.spec)
    check_answerable(made, task)
    check_processes(made, training, join())
    for split, count in (("validation", run.eval_puzzles), ("test", values["test_puzzles"])):
        if count:
            task.examples(split, count)


def _start(cfg: DictConfig) -> float:
    return start_run(cfg, COMMAND, _run)


def _resume(given: dict[str, str]) -> None:
    with usage_errors():
        folder, values, parts = reopen_run(given, COMMAND, CHANGEABLE, settings)
        _check_parts(values, *parts)
        if given:
            write_settings(folder, values)
    _run(folder, values, resume=True)


def _run(folder: Path, values: dict[str, Any], resume: bool) -> float:
    """Returns the score on validation puzzles, for sweepers; of `torchrun`'s processes the first does."""
    processes = join()
    announce(processes, folder, values, resume)
    console = Console(quiet=not processes.is_rank_zero)
    with run_errors(folder, COMMAND, processes):
        trainer = open_loop(partial(SupervisedTrainer, *settings(values), folder, processes), folder, resume, console)
        if not run_to_end(trainer, console) or not processes.is_rank_zero:
            return WORST
        say_end(trainer, console)
        if values["test_puzzles"]:
            report = trainer.evaluate("test", values["test_puzzles"])
            write_atomically(folder / "eval.json", (json.dumps(report, indent=2) + "\n").encode())
            print(format_report(report))
    return float(trainer.validation[trainer.score])  # the test puzzles choose nothing


if __name__ == "__main__":
    main()
