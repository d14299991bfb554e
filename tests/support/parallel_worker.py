"""What each of several processes does in the tests of data-parallel training: `parallel_worker.py SCENARIO FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hrm_agent.algos.imitation import DAggerConfig
from hrm_agent.evaluation.episodes import PolicyActor
from hrm_agent.parallel.processes import SINGLE_PROCESS, Processes, ProcessesDiverged, join
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.recurrence.kernel_timing import Choice
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training import loop as run_loop
from hrm_agent.training.loop import Interrupted
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from tiny import CORES, fitting, make_trainer

# Four updates of 32 frames each; minibatches of both processes in every one.
SETTINGS: dict[str, dict[str, Any]] = {
    "maze": {"eval_every": 64, "eval_episodes": 5, "policy": {"segments": 2, "carry": "gate"}, "algo": {"epochs": 2}},
    "numbers": {
        "env": "CartPole-v1",
        "env_options": {},
        "policy": {"readout": "mean", "encoder": EncoderConfig(), "core": "gru", "core_options": CORES["gru"]},
        "algo": {"scale_rewards": True, "refresh_states": True, "epochs": 2, "window": 2},
    },
    "dagger": {"kind": DAggerConfig, "algo": {"teacher_noise": 0.2}},
}


def build(kind: str, folder: Path, processes: Processes = SINGLE_PROCESS, **changes: Any) -> Trainer:
    trainer = make_trainer(folder, **{**SETTINGS[kind], "checkpoint_every": 64, "processes": processes, **changes})
    trainer._record_video = lambda log, console: None  # type: ignore[method-assign]  # the longest part of so short a run
    return trainer


def quiet(processes: Processes) -> Console:
    return Console(quiet=not processes.is_rank_zero)


def train(folder: Path, processes: Processes) -> None:
    """Whole runs, and the second halves of those that lie in `FOLDER/half/KIND`."""
    for kind in SETTINGS:
        build(kind, folder / "whole" / kind, processes).run(quiet(processes))
    for half in sorted((folder / "half").glob("*")):
        resume(half, processes)
    copied = folder / "own_half" / "maze" / "checkpoints"
    if processes.is_rank_zero:
        copied.mkdir(parents=True)
        name = "000000000064.safetensors"
        (copied / name).write_bytes((folder / "whole" / "maze" / "checkpoints" / name).read_bytes())
    processes.barrier()
    resume(copied.parent, processes)


def resume(folder: Path, processes: Processes) -> None:
    trainer = build(folder.name, folder, processes)
    trainer.resume()
    assert trainer.frames == 64
    trainer.run(quiet(processes))


def halves(folder: Path, processes: Processes) -> None:
    for half in sorted((folder / "half").glob("*")):
        resume(half, processes)


def trouble(folder: Path, processes: Processes) -> None:
    """What happens in the last process happens in all of them; each writes down how it ended."""
    last = processes.rank == processes.world_size - 1
    told: dict[str, str] = {}

    stopped = build("maze", folder / "stopped", processes)
    update = stopped.learner.update

    def stop_in_the_first(progress: float) -> dict[str, float]:
        if last and stopped.updates == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(progress)

    stopped.learner.update = stop_in_the_first  # type: ignore[method-assign]
    told["stopped"] = ended(stopped, processes)

    validating = build("maze", folder / "validating", processes)
    act = PolicyActor.act

    def stop_in_the_first_decision(self: PolicyActor, obs: Any) -> Any:
        if last:
            os.kill(os.getpid(), signal.SIGTERM)
            PolicyActor.act = act  # type: ignore[method-assign]
        return act(self, obs)

    PolicyActor.act = stop_in_the_first_decision  # type: ignore[method-assign]
    told["validating"] = ended(validating, processes)
    PolicyActor.act = act  # type: ignore[method-assign]

    poisoned = build("maze", folder / "poisoned", processes)
    if last:
        poisoned.collector.obs.zero_()  # type: ignore[union-attr]
        poisoned.collector.state = tuple(torch.full_like(s, torch.nan) for s in poisoned.collector.state)
        poisoned.collector.episode_start.zero_()
    told["poisoned"] = ended(poisoned, processes)

    apart = build("maze", folder / "apart", processes)
    if last:
        with torch.no_grad():
            next(apart.policy.parameters()).view(-1)[0] += 1e-6
    told["apart"] = ended(apart, processes)

    hasty = build("maze", folder / "hasty", processes, total_steps=10**9, max_seconds=0.3, clock="cpu")
    hasty.run(quiet(processes))
    told["hasty"] = f"{hasty.frames} frames in {hasty.seconds} s, {hasty.done}"
    (folder / f"told{processes.rank}.json").write_text(json.dumps(told))


def kernel(folder: Path, processes: Processes) -> None:
    """With `kernel=auto` the first process alone measures; also where another one lacks the kernel of before."""
    for before in (None, "fused_bf16"):
        trainer = make_trainer(folder / str(before), processes=processes, kernel="auto", **fitting())
        measured: list[list[str]] = []

        def measure(paths: Sequence[str], measured: list[list[str]] = measured) -> Choice:
            measured.append(list(paths))
            return Choice("fused", {"fused": 2.0})

        trainer.measure_kernel = measure  # type: ignore[method-assign]
        found = ["plain", "fused", *([before] if before is not None and processes.is_rank_zero else [])]
        run_loop.candidates = lambda *_, found=found: found
        trainer._kernel_before = before
        trainer.run(quiet(processes))
        assert measured == ([["plain", "fused"]] if processes.is_rank_zero else [])
        assert trainer.kernel == "fused"


def ended(trainer: Trainer, processes: Processes) -> str:
    try:
        trainer.run(quiet(processes))
    except (Interrupted, NonFiniteNumbers, ProcessesDiverged) as error:
        return f"{type(error).__name__}: {error}"
    return "to the end"


if __name__ == "__main__":
    group = join()
    {"train": train, "halves": halves, "trouble": trouble, "kernel": kernel}[sys.argv[1]](Path(sys.argv[2]), group)
    group.leave()
