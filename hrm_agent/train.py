"""`python -m hrm_agent.train [GROUP=CHOICE] [KEY=VALUE] ...`: train an agent, measure it, keep it.

Hydra's command line: `--help`, `--cfg job` (print the configuration), `--multirun` (`seed=0,1,2`).
`resume=RUN` goes on with a run from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from hrm_agent import __version__, config_source
from hrm_agent.agent import RUN_FILE, add_facts, find_agent_folder
from hrm_agent.algos.ppo import NonFiniteLoss
from hrm_agent.card import evaluation_facts
from hrm_agent.checkpoint import CheckpointError, CheckpointFolder, write_atomically
from hrm_agent.cli import (
    USAGE_ERROR,
    UsageError,
    check_jobs,
    existing_folder,
    fail,
    nearest,
    open_options,
    usage_errors,
    wants_help,
)
from hrm_agent.config import ALGORITHMS, config_folder, resolve, settings
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.report import format_report
from hrm_agent.learners import AlgoConfig, build_env, check_memory
from hrm_agent.policy import Policy, PolicyConfig
from hrm_agent.sources import refuse_own_module
from hrm_agent.tracking import Console
from hrm_agent.trainer import CHECKPOINTS, Interrupted, Trainer, TrainerConfig, prepare

RUN_VERSION = 1
CONFIG_FILE = "config.yaml"
INTERRUPTED = 130
WORST = {"success": 0.0, "return": float("-inf")}  # of each objective, what a run that diverged is given
CHANGEABLE = (
    "total_steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_episodes",
    "test_episodes", "video_every", "log_every", "device",
)  # fmt: skip


def main() -> None:
    try:
        with _terminated_like_interrupted():
            _main()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the body, as Ctrl-C does; while it trains, the trainer listens itself."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _main() -> None:
    arguments = sys.argv[1:] = open_options(sys.argv[1:])
    given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    if given.get("resume", "null") not in ("null", ""):
        _resume(given)
        return
    if not wants_help(arguments):
        with usage_errors():
            check_jobs(arguments, "train", check_run)
            _check_run_folder(given.get("hydra.run.dir"))
    sys.argv[0] = "hrm_agent.train"
    config_source.install()
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(_start)()


def check_run(cfg: DictConfig) -> None:
    """Build everything a run needs but the run; touches no file.

    Raises:
        ValueError: what is wrong with the settings.
    """
    values = resolve(cfg)
    if values["algo"]["name"] not in ALGORITHMS:
        raise UsageError(
            f"algo={values['algo']['name']}: no such algorithm{nearest(values['algo']['name'], list(ALGORITHMS))}"
        )
    check_test_episodes(values)
    if values["objective"] not in WORST:
        raise UsageError(f"objective={values['objective']}: expected one of {', '.join(WORST)}")
    _check_parts(*settings(values))


def _check_parts(config: TrainerConfig, policy: PolicyConfig, algo: AlgoConfig, fresh: bool = True) -> None:
    """Raises: ValueError if the parts of a run do not fit each other, or not into the machine."""
    env = build_env(algo, config.env, 1, config.env_options)
    made = Policy(policy, env.single_observation_space, env.single_action_space)
    prepare(made, config, fresh)
    check_memory(made.to(config.device), algo, env.single_observation_space)
    env.close()


def check_test_episodes(values: dict[str, Any]) -> None:
    """Raises: UsageError if the number of test levels is none."""
    count = values.get("test_episodes")
    if type(count) is not int or count < 0:
        raise UsageError(f"test_episodes={count}: expected an integer, 0 or more")


def _check_run_folder(folder: str | None) -> None:
    if folder and (Path(folder) / RUN_FILE).exists():
        raise UsageError(f"hydra.run.dir={folder}: holds a run already; go on with it by resume={folder}")


def _start(cfg: DictConfig) -> float:
    """One training run in Hydra's run folder; returns the `objective` on validation levels, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        os.close(os.open(folder / RUN_FILE, os.O_CREAT | os.O_EXCL))  # two runs that start at once cannot share it
    except FileExistsError:
        fail(f"{folder}: holds a run already; go on with it by resume={folder}", USAGE_ERROR)
    values = resolve(cfg)
    values.pop("resume")
    description = {
        "run_version": RUN_VERSION,
        "hrm_agent": __version__,
        "command": _command(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "numpy", "gymnasium", "numba")},
    }
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())
    write_atomically(folder / RUN_FILE, (json.dumps(description, indent=2) + "\n").encode())
    return _run(folder, values, resume=False)


def _is_multirun() -> bool:
    """Of a run that is resumed, which Hydra does not start, False."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command() -> str:
    """What starts this run; of a job of a sweep, the job's own settings."""
    if not _is_multirun():
        return " ".join(["python -m hrm_agent.train", *sys.argv[1:]])
    return " ".join(["python -m hrm_agent.train", *HydraConfig.get().overrides.task, "hydra.mode=RUN"])


def _resume(given: dict[str, str]) -> None:
    with usage_errors():
        folder = existing_folder(given.pop("resume"), "resume")
        values = load_run(folder)
        for key, text in given.items():
            if key not in CHANGEABLE:
                raise UsageError(f"{key}={text}: cannot change in a run that is resumed; only {', '.join(CHANGEABLE)}")
            values[key] = OmegaConf.from_cli([f"{key}={text}"])[key]
        try:
            parts = settings(values)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration ({error!r})") from None
        check_test_episodes(values)
        refuse_own_module(parts[0].env, folder)
        _check_parts(*parts, fresh=CheckpointFolder(folder / CHECKPOINTS).latest() is None)
        if given:
            write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(values)).encode())
    _run(folder, values, resume=True)


def load_run(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        UsageError: `folder` holds no run, or one of another version.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: not the folder of a run ({RUN_FILE} or {CONFIG_FILE} is missing)")
    try:
        found = json.loads((folder / RUN_FILE).read_text())["run_version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UsageError(f"{folder / RUN_FILE}: not a run's description") from None
    if found != RUN_VERSION:
        raise UsageError(f"{folder}: run of version {found}, expected {RUN_VERSION}; use the hrm_agent that wrote it")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{folder / CONFIG_FILE}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{folder / CONFIG_FILE}: not a run's configuration")
    return {str(key): value for key, value in values.items()}


def run_facts(folder: Path) -> dict[str, Any]:
    """The run's command (the settings, without the place where it was put) and machine, for its agent's card."""
    run = json.loads((folder / RUN_FILE).read_text())
    words = [word for word in run["command"].split(" ") if not word.startswith("hydra.")]
    return {"command": " ".join(words), "machine": run["machine"]}


def _run(folder: Path, values: dict[str, Any], resume: bool) -> float:
    console = Console()
    where = f"run folder: {folder}\ncurves:     tensorboard --logdir {folder}"
    try:
        with _terminated_like_interrupted():  # here too: a launcher may call this in a process of its own
            if not resume:
                console.say(where)  # at once: compiling the environments may take a minute
            trainer = Trainer(*settings(values), folder, console)
            # A run that was killed before its first checkpoint begins anew: a fresh trainer is where it was.
            checkpoint = trainer.resume() if resume and trainer.checkpoints.paths() else None
            if resume:
                console.say(where)
            if checkpoint:
                console.say(f"going on from {checkpoint}")
            elif trainer.config.init_from:
                console.say(f"weights of {trainer.config.init_parts} from {trainer.config.init_from}")
            trainer.run(console)
    except CheckpointError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:  # before training began, or a second time
        fail(f"interrupted; go on with: python -m hrm_agent.train resume={folder}", INTERRUPTED)
    except Interrupted as error:
        fail(f"{error}; go on with: python -m hrm_agent.train resume={folder}", INTERRUPTED)
    except NonFiniteLoss as error:
        if not _is_multirun():
            fail(str(error), 1)
        console.say(f"diverged: {error}")
        return WORST[values["objective"]]  # it ends alone, and not the sweep with it
    except OSError as error:
        fail(
            f"{error}; earlier checkpoints are intact, go on with: python -m hrm_agent.train resume={folder}",
            1,
        )
    console.say(f"at {trainer.frames:,} frames after {trainer.seconds:.0f} s of training")
    if values["test_episodes"]:
        report = evaluate(run=str(folder), episodes=values["test_episodes"], out=str(folder / "eval.json"))
        add_facts(find_agent_folder(folder), **run_facts(folder), evaluation=evaluation_facts(report))
        print(format_report(report))
    return float(trainer.validation[values.get("objective", "success")])  # the test levels choose nothing


if __name__ == "__main__":
    main()
