"""Run the commands inside the test's process, as `python -m` would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hrm_agent import (
    evaluate,
    export,
    generate,
    plot,
    search,
    shifts,
    solve,
    study,
    supervise,
    sweep_table,
    train,
    watch,
)

MODULES = {
    "train": train, "evaluate": evaluate, "watch": watch, "shifts": shifts, "supervise": supervise, "solve": solve,
    "generate": generate, "export": export, "sweep_table": sweep_table, "plot": plot, "study": study, "search": search,
}  # fmt: skip
# 8 updates of 32 frames, a checkpoint after every other one.
TINY_RUN = (
    "env=DynamicMaze-v0",
    "env.options.rows=3",
    "env.options.cols=3",
    "env.options.walls=1",
    "env.options.doors=1",
    "env.options.max_episode_steps=9",
    "core=trm",
    "core.hidden_size=8",
    "core.inner_size=8",
    "segments=1",
    "algo.num_envs=8",
    "algo.rollout_steps=4",
    "algo.window=4",
    "algo.minibatch_windows=4",
    "algo.epochs=2",
    "total_steps=256",
    "checkpoint_every=64",
    "log_every=32",
    "eval_every=0",
    "eval_episodes=4",
    "test_episodes=0",
    "threads=1",
)


def run_command(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"hrm_agent.{command}", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])  # commands that read folders leave out the working folder
    MODULES[command].main()


def tiny_run(folder: Path) -> list[str]:
    return [*TINY_RUN, f"hydra.run.dir={folder}"]
