"""A puzzle model on held-out puzzles, with and without halting (`python -m hrm_agent.solve`)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from omegaconf import OmegaConf

from hrm_agent import __version__
from hrm_agent.cores import name_of
from hrm_agent.cores.base import check_at_least, check_choice
from hrm_agent.environments.sources import check_stored
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, compose_config
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import DepthOrNone, Episodes, one_of, shown
from hrm_agent.parallel.threads import Threads, available_cores, check_device
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import check_kernel
from hrm_agent.supervised.deep_supervision import PRECISIONS, Precision
from hrm_agent.supervised.evaluation import Answering, Solver, evaluate_model, solver_of
from hrm_agent.supervised.files import find_model, load_model_and_spec, read_info
from hrm_agent.supervised.kernel_work import choose_for_solving
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.published import CONFIG_FILE, find_weights, load_published_checkpoint
from hrm_agent.supervised.tasks import Answers, Examples, Task, TaskSpec, build_task
from hrm_agent.supervised.tasks.arc_voting import write_submission

HeldOut = Annotated[str, one_of(("test", "validation"))]
WARM_UP = 8
"""Puzzles solved before the clock starts: the first call on a device loads what later ones reuse."""
TRAINED = ("seed", "steps", "puzzles", "samples", "seconds", "clock", "step", "ema")
"""What the report repeats of a model's training; the last two of a published checkpoint."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its task, and the segments and halting rule of its training.

    Attributes:
        path: of its file.
        info: `model.json`, or what is known of a published checkpoint.
        segments: S, that it was trained with.
        halting: rule by which it halts, see `Solver`.
    """

    model: PuzzleModel | Policy
    path: Path
    task: Task
    task_name: str
    task_options: dict[str, Any]
    info: dict[str, Any]
    segments: int
    halting: str
    precision: str


class Timed:
    """A solver that counts its puzzles and the seconds that they take."""

    seconds = 0.0
    puzzles = 0

    def __init__(self, solver: Answering) -> None:
        self.solver, self.segments = solver, solver.segments

    def __call__(self, examples: Examples) -> Answers:
        began = time.perf_counter()
        answers = self.solver(examples)  # ends with arrays of numpy, so a CUDA device has finished too
        self.seconds += time.perf_counter() - began
        self.puzzles += len(examples)
        return answers

    @property
    def ms_per_puzzle(self) -> float:
        return 1000 * self.seconds / self.puzzles


def solve(
    model: str,
    task: str | None = None,
    task_options: dict[str, Any] | None = None,
    split: HeldOut = "test",
    puzzles: Episodes = 1000,
    segments: DepthOrNone = 0,
    halt: bool = False,
    precision: Precision | None = None,
    device: str = "cpu",
    out: str | None = None,
    submission: str | None = None,
    best: bool = True,
    kernel: str = "auto",
) -> dict[str, Any]:
    """Answers and scores of a model that `hrm_agent.supervise` trained, or of a published checkpoint.

    The same call gives the same numbers, except for `ms_per_puzzle`.

    Args:
        model: folder of a run or of a model, or a model's file; or a checkpoint of the authors of HRM and TRM, its
            folder or file, with `all_config.yaml` beside it.
        task: a task of `supervise`, `sudoku` for instance; None: the model's training task and options.
        task_options: changed options of the task. Puzzles must keep the shape that the model was trained for.
        split: `test` or `validation`.
        puzzles: puzzles to solve, the first of the split.
        segments: segments per puzzle, or per character of a text; 0: as many as in training.
        halt: solve them a second time, with each puzzle stopping when the model halts. Without, the scores of halting
            are computed from the answers after all segments, and not timed. Not of a text, which is scored by
            probability after all segments.
        precision: of the matrix products, `float32` or `bfloat16`; None: as in training.
        device: `cpu`, or a CUDA device.
        out: file for the JSON, written atomically.
        submission: ARC Prize's `submission.json` to write, of `task=arc1` and `task=arc2`.
        best: of a run's models, the best on validation puzzles rather than the last.
        kernel: path of the core, `plain`, `fused` or `fused_bf16`. `auto` takes the path of training where the
            instruction set is the same, and otherwise measures a segment.

    Returns:
        The written record: scores (`hrm_agent.supervised.evaluation.evaluate_model`), model and puzzles.
        `ms_per_puzzle` is wall-clock time on `threads` threads, `halted.ms_per_puzzle` the same with halting where
        `halt` is true.

    Raises:
        ValueError: no model there or a file of it damaged, a task that does not fit it, fewer puzzles than asked for,
            a package that the task needs is not installed, or a setting out of range; nothing is written then.
    """
    for name, file in (("out", out), ("submission", submission)):
        if file is not None:
            check_output(file, name)
    check_at_least("puzzles", puzzles, 1)
    check_at_least("segments", segments, 0)
    if type(halt) is not bool:
        raise ValueError(f"halt={halt}: expected true or false")
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
    check_device(device)
    check_kernel(kernel)
    if kernel == "compiled":
        raise ValueError("kernel=compiled: puzzles halt, and a batch of every size would be compiled; use kernel=auto")
    loaded = _load(Path(model), best, task, task_options or {})
    if halt and loaded.task.by_probability:
        raise ValueError(f"halt=true with task={loaded.task_name}, which runs all segments; leave it out")
    if submission is not None and loaded.task_name != "arc":
        raise ValueError(f"submission={submission}: only task=arc1 and task=arc2 have one; leave it out")
    precision = precision or loaded.precision
    used = choose_for_solving(loaded.model.to(device), kernel, puzzles, precision, loaded.info)
    report = _report(loaded, split, puzzles, segments or loaded.segments, halt, precision, device)
    report["kernel"] = used
    if submission is not None:
        write_submission(report["task"], Path(submission))
    if out is not None:
        write_output(out, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _load(path: Path, best: bool, task: str | None, options: dict[str, Any]) -> LoadedModel:
    if not path.exists():
        raise ValueError(f"model={path}: no such file or folder")
    if ((path if path.is_dir() else path.parent) / CONFIG_FILE).is_file():
        return _load_published(path, task, options)
    file = find_model(path, best)
    model, spec = load_model_and_spec(file)
    info = read_info(file.parent)
    name, options = choose_task(path, task, options, info)
    made = _build(name, options, info.get("seed", 0))
    puzzles, patches = (model.puzzles, model.patches) if isinstance(model, PuzzleModel) else (None, None)
    check_shape(name, made.spec, spec, puzzles is not None)
    if patches is not None and patches.encoder.crop and options.get("label_border"):
        raise UsageError("the model does not answer on the outer ring of a maze; add task_options.label_border=false")
    thinking = info.get("max_segments", 16), info.get("halting", "halt_only"), info.get("precision", "float32")
    return LoadedModel(model, file, made, name, options, info, *thinking)


def _load_published(path: Path, task: str | None, options: dict[str, Any]) -> LoadedModel:
    file = find_weights(path)
    name, options = choose_task(path, task, options, {})
    made = _build(name, options, 0)
    model, facts = load_published_checkpoint(file, made.spec)
    # The rule of whichever head was trained; TRM's authors leave the second one untrained by default.
    halting = "halt_only" if facts.get("no_ACT_continue", facts["kind"] == "trm") else "q_learning"
    thinking = facts.get("halt_max_steps", 16), halting, "float32"
    return LoadedModel(model, file, made, name, options, facts, *thinking)


FILES = ("train", "test", "identifiers", "path")
"""Options of tasks that name files."""


def choose_task(
    path: Path, task: str | None, options: dict[str, Any], info: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name of a task (`hrm_agent.supervised.tasks.TASKS`) and all its options; arguments as of `solve`.

    Raises:
        UsageError: the task is unknown, or an option is unknown or missing.
        ValueError: the model's file names a module for its environment.
    """
    if task is not None:
        # The task alone, not what `configs/recommended/` lays over it for training one core or another.
        chosen: Any = OmegaConf.to_container(compose_config([], f"task/{task}").task)
        name = chosen.pop("name")
    elif "task" in info:
        name, chosen = info["task"], info.get("task_options", {})
    else:
        raise UsageError(f"model={path}: nothing there says what it was trained on; add task=NAME, as configs/task/")
    for key in options:
        if key not in chosen:
            raise UsageError(
                f"task_options.{key}: no such option of task={task or name}{did_you_mean(key, list(chosen))}"
            )
    merged: Any = OmegaConf.to_container(OmegaConf.merge(chosen, options))
    for key, value in merged.items():
        if value == "???":
            raise UsageError(f"task={task or name} needs task_options.{key}=...")
    for key in FILES:
        if task is None and key not in options and merged.get(key) is not None:
            raise UsageError(
                f"model={path}: its file names a file, {key}={shown(merged[key])}, and files named by files are not "
                f"opened; if you trust it, give task_options.{key}=..."
            )
    if task is None and "env" not in options and isinstance(merged.get("env"), str):
        merged["env"] = check_stored(merged["env"], "give task_options.env=")
    return name, merged


def _build(name: str, options: dict[str, Any], seed: int) -> Task:
    try:
        return build_task(name, options, seed)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None


def check_shape(name: str, task: TaskSpec, model: TaskSpec, tells_puzzles_apart: bool) -> None:
    """Raises: UsageError where puzzles of a task are not of the shape that a model was trained for."""
    compared = [
        ("grid", task.grid, model.grid),
        ("tokens of a puzzle", task.sequence_length, model.sequence_length),
        ("ids of inputs", task.input_ids, model.input_ids),
        ("ids of answers", task.answer_ids, model.answer_ids),
        ("characters", task.alphabet, model.alphabet),
    ]
    if tells_puzzles_apart:
        compared.append(("puzzle identifiers", task.num_puzzles, model.num_puzzles))
    for what, has, expected in compared:
        if has != expected:
            raise UsageError(
                f"task={name}: {what} {shown(has)}, but the model was trained for {shown(expected)}; a model's shape "
                "is fixed, give options that make such puzzles"
            )


def _report(
    loaded: LoadedModel, split: str, puzzles: int, segments: int, halt: bool, precision: str, device: str
) -> dict[str, Any]:
    model, spec = loaded.model.to(device), loaded.task.spec
    threads = Threads(available_cores())
    entropy = loaded.info.get("cross_entropy") or "stablemax"
    reader, warming = (solver_of(model, loaded.task, split, count, entropy) for count in (segments, 1))
    for each in (reader, warming):
        each.threads, each.precision = threads, precision
    solver, stopping = Timed(reader), None
    if halt:
        assert isinstance(model, PuzzleModel)
        stopping = Timed(Solver(model, segments, loaded.halting, threads, precision))
    blank = np.zeros((WARM_UP, spec.sequence_length), np.int32)
    warming(Examples(blank, blank, blank[:, 0]))
    report = evaluate_model(solver, loaded.task, split, puzzles, loaded.halting, stopping=stopping)
    report["ms_per_puzzle"] = solver.ms_per_puzzle
    if stopping is not None:
        report["halted"]["ms_per_puzzle"] = stopping.ms_per_puzzle
    core = name_of(model.core)
    return {
        **report,
        "model": str(loaded.path),
        "task_name": loaded.task_name,
        "task_options": loaded.task_options,
        "core": core,
        "parameters": sum(p.numel() for p in model.parameters()),
        "halting": loaded.halting,
        "precision": precision,
        "device": device,
        "threads": threads.count,
        "training": {name: loaded.info[name] for name in TRAINED if name in loaded.info},
        "hrm_agent_version": __version__,
    }
