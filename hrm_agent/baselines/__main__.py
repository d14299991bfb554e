"""`python -m hrm_agent.baselines baseline=NAME out=FOLDER [KEY=VALUE] ...`: train and measure one baseline."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm_agent import __version__
from hrm_agent.baselines.config import Options, RunConfig
from hrm_agent.evaluation.report import REFERENCES, to_json
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.files.writing import write_atomically
from hrm_agent.launch.cli import UsageError, fail, parse_options, usage_errors
from hrm_agent.parallel.threads import Threads

if TYPE_CHECKING:
    from hrm_agent.baselines.training import BaselineRun

USAGE = "python -m hrm_agent.baselines baseline=NAME out=FOLDER [KEY=VALUE] ..."
EXAMPLES = (
    "python -m hrm_agent.baselines baseline=sb3_recurrent_ppo out=runs/recurrent_ppo",
    "python -m hrm_agent.baselines baseline=sb3_ppo_cnn out=runs/ppo env=PaperMaze-v0 total_steps=500_000",
    "python -m hrm_agent.baselines baseline=sb3_dqn out=runs/dqn settings.learning_rate=1e-3",
)
RUN_FILE = "run.json"
PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "numba")


@outliving_the_terminal()
def main() -> None:
    with usage_errors():
        options = parse_options(sys.argv[1:], Options, USAGE, EXAMPLES)
        folder = Path(options.pop("out"))
        _check_installed()
        Threads(1)  # one thread, so that runs side by side do not disturb each other
        run = _build(options)
        if (folder / RUN_FILE).exists():
            raise UsageError(f"out={folder}: holds a run already; give another folder")
        write_atomically(folder / RUN_FILE, to_json(_describe(run)))
    print(f"run folder: {folder}", file=sys.stderr)
    try:
        run.train(folder)
        _finish(run, folder)
    except KeyboardInterrupt:
        fail(f"interrupted at {run.frames:,} frames; a baseline cannot be resumed", 130)
    except (ValueError, OSError) as error:
        fail(f"{error}; at {run.frames:,} frames of training", 1)


def _check_installed() -> None:
    for package in ("stable_baselines3", "sb3_contrib"):
        if find_spec(package) is None:
            raise UsageError(f"the baselines need {package}: pip install 'hrm-agent[sb3]'")


def _build(options: dict[str, Any]) -> BaselineRun:
    from hrm_agent.baselines.training import BaselineRun

    return BaselineRun(RunConfig.parse(options))


def _describe(run: BaselineRun) -> dict[str, Any]:
    return {
        "hrm_agent": __version__,
        "command": "python -m hrm_agent.baselines " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        **{k: v for k, v in vars(run.config).items() if k != "settings"},
        **run.describe(),
    }


def _finish(run: BaselineRun, folder: Path) -> None:
    described = run.describe()
    write_atomically(folder / "result.json", to_json({"agent": run.config.baseline, **described}))
    success = described["validation"]["success"]
    print(
        f"{run.config.baseline}: {described['frames']:,} frames in {described['seconds']:.0f} s of training, "
        f"{described['parameters']:,} parameters, greedy success {success:.3f} on validation levels"
    )
    if not run.config.test_episodes:
        return
    report = run.evaluate()
    write_atomically(folder / "eval.json", to_json(report))
    low, high = report["success_ci95"]
    print(
        f"{run.config.env}: greedy on {report['episodes']:,} test levels: success {report['success']:.3f} "
        f"[{low:.3f}, {high:.3f}], {report['macs_per_decision']:,} multiply-adds and "
        f"{report['ms_per_decision']:.2f} ms a decision"
    )
    for name in REFERENCES:
        if report[name] is not None:
            print(f"{name}: success {report[name]['success']:.3f}")
    print(f"wrote {folder / 'eval.json'}")


if __name__ == "__main__":
    main()
