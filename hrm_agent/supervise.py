"""`python -m hrm_agent.supervise [task=CHOICE] [core=CHOICE] [KEY=VALUE] ...`: train a core on labelled puzzles.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` goes on with a run from its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hrm_agent import config_source
from hrm_agent.checkpoint import write_atomically
from hrm_agent.cli import UsageError, check_jobs, existing_folder, fail, usage_errors, wants_help
from hrm_agent.config import config_folder, resolve
from hrm_agent.runs import (
    CONFIG_FILE,
    INTERRUPTED,
    announce,
    begin_run,
    change_settings,
    check_run_folder,
    load_run,
    resume_loop,
    run_errors,
    terminated_like_interrupted,
    write_settings,
)
from hrm_agent.supervised.evaluation import format_report
from hrm_agent.supervised.files import build_model
from hrm_agent.supervised.settings import settings
from hrm_agent.supervised.tasks import build_task
from hrm_agent.supervised.trainer import SupervisedTrainer
from hrm_agent.tracking import Console

COMMAND = "hrm_agent.supervise"
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_puzzles",
    "eval_segments", "test_puzzles", "log_every", "device",
)  # fmt: skip


def main() -> None:
    try:
        with terminated_like_interrupted():
            _main()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


def _main() -> None:
    arguments = sys.argv[1:]
    given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    if given.get("resume", "null") not in ("null", ""):
        _resume(given)
        return
    if not wants_help(arguments):
        with usage_errors():
            check_jobs(arguments, "supervise", check_run)
            check_run_folder(given.get("hydra.run.dir"))
    sys.argv[0] = COMMAND
    config_source.install()
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="supervise")(_start)()


def check_run(cfg: DictConfig) -> None:
    """Build everything a run needs but the run; touches no file of it.

    Raises:
        ValueError: what is wrong with the settings.
    """
    _check(resolve(cfg))


def _check(values: dict[str, Any]) -> None:
    run, model, _ = settings(values)
    puzzles = values.get("test_puzzles")
    if type(puzzles) is not int or puzzles < 0:
        raise UsageError(f"test_puzzles={puzzles}: expected an integer, 0 or more")
    try:
        task = build_task(run.task, run.task_options, run.seed)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    build_model(model, task.spec)
    for band, count in (("validation", run.eval_puzzles), ("test", puzzles)):
        if count:
            task.examples(band, count)


def _start(cfg: DictConfig) -> float:
    """One training run in Hydra's run folder; returns the score on validation puzzles, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    values = resolve(cfg)
    values.pop("resume")
    begin_run(folder, values, COMMAND)
    return _run(folder, values, resume=False)


def _resume(given: dict[str, str]) -> None:
    with usage_errors():
        folder = existing_folder(given.pop("resume"), "resume")
        values = load_run(folder, COMMAND)
        change_settings(values, given, CHANGEABLE)
        try:
            _check(values)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration ({error!r})") from None
        if given:
            write_settings(folder, values)
    _run(folder, values, resume=True)


def _run(folder: Path, values: dict[str, Any], resume: bool) -> float:
    console = Console()
    with run_errors(folder, COMMAND):
        announce(console, folder)
        trainer = SupervisedTrainer(*settings(values), folder)
        if resume:
            resume_loop(trainer, console)
        trainer.run(console)
        console.say(f"at {trainer.position:,} steps after {trainer.seconds:.0f} s of training")
        if values["test_puzzles"]:
            report = trainer.evaluate("test", values["test_puzzles"])
            write_atomically(folder / "eval.json", (json.dumps(report, indent=2) + "\n").encode())
            print(format_report(report))
    return float(trainer.validation[trainer.score])  # the test puzzles choose nothing


if __name__ == "__main__":
    main()
