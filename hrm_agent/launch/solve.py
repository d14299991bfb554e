"""A puzzle model on held-out puzzles: all segments, halting, several noisy runs (`python -m hrm_agent.solve`)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from omegaconf import OmegaConf

from hrm_agent import __version__
from hrm_agent.cores import name_of
from hrm_agent.cores.base import check_at_least
from hrm_agent.environments.sources import check_stored
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, compose_config
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import Depth, DepthOrNone, Episodes, NonNegative, Seed, check_fields, one_of, shown
from hrm_agent.parallel.threads import Threads, available_cores, check_device
from hrm_agent.policies.policy import Policy
from hrm_agent.recurrence import check_kernel
from hrm_agent.supervised.deep_supervision import Precision
from hrm_agent.supervised.evaluation import Answering, Solver, evaluate_model, solver_of
from hrm_agent.supervised.files import find_model, halting_rule_of, load_model_and_spec, load_resized, read_info
from hrm_agent.supervised.halting import HaltingRule
from hrm_agent.supervised.kernel_work import choose_for_solving
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.published import CONFIG_FILE, find_weights, load_published_checkpoint
from hrm_agent.supervised.registry import find_named
from hrm_agent.supervised.sampling import RunScores, SampledSolver, check_samples, score_depth
from hrm_agent.supervised.tasks import Answers, Examples, Task, TaskSpec, build_task
from hrm_agent.supervised.tasks.arc_voting import write_submission
from hrm_agent.supervised.tasks.base import Say, say_nothing

HeldOut = Annotated[str, one_of(("test", "validation"))]
RULES = ("stored", "published", "validation")
RuleFrom = Annotated[str, one_of(RULES)]
CHOOSING_PUZZLES = 256
"""Validation puzzles on which a rule of halting is chosen, as in training by default."""
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
        halting: rule by which it halts.
    """

    model: PuzzleModel | Policy
    path: Path
    task: Task
    task_name: str
    task_options: dict[str, Any]
    info: dict[str, Any]
    segments: int
    halting: HaltingRule
    precision: str


@dataclass(frozen=True)
class Inference:
    """How puzzles are solved; see `solve`.

    Raises:
        ValueError: a value of another type or out of range, or values that make no sense together.
    """

    segments: DepthOrNone
    halt: bool
    halting: RuleFrom
    samples: Depth
    noise: NonNegative
    seed: Seed
    precision: Precision | None
    device: str
    kernel: str

    def __post_init__(self) -> None:
        check_fields(self)
        check_samples(self.samples, self.noise, self.segments or 1)
        for setting in ["halt=true"] * self.halt + [f"halting={self.halting}"] * (self.halting != "stored"):
            if self.noise:
                raise ValueError(
                    f"{setting} noise={self.noise:g}: noisy runs are compared after all segments; leave out one of "
                    "the two"
                )
        check_device(self.device)
        check_kernel(self.kernel)
        if self.kernel == "compiled":
            raise ValueError(
                "kernel=compiled: puzzles halt, and a batch of every size would be compiled; use kernel=auto"
            )

    def of(self, loaded: LoadedModel) -> Inference:
        """With the segments and the precision that a model was trained with, where none are given.

        Raises:
            ValueError: what is asked is not to be had of a text.
        """
        if loaded.task.by_probability:
            self._check_for_text(loaded.task_name)
        return replace(self, segments=self.segments or loaded.segments, precision=self.precision or loaded.precision)

    def _check_for_text(self, task: str) -> None:
        for setting, asked in (("halt=true", self.halt), (f"halting={self.halting}", self.halting != "stored")):
            if asked:
                raise ValueError(f"{setting} with task={task}, which runs all segments; leave it out")
        if self.noise:
            raise ValueError(
                f"noise={self.noise:g} with task={task}: noisy runs are of puzzles, whose answers the halting head "
                "compares; a text is scored by probability; leave it out"
            )


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
    halting: RuleFrom = "stored",
    samples: Depth = 1,
    noise: NonNegative = 0.0,
    seed: Seed = 0,
    precision: Precision | None = None,
    device: str = "cpu",
    out: str | None = None,
    submission: str | None = None,
    best: bool = True,
    kernel: str = "auto",
    on_progress: Say | None = None,
) -> dict[str, Any]:
    """Answers and scores of a model that `hrm_agent.supervise` trained, or of a published checkpoint.

    The same call gives the same numbers, except for `ms_per_puzzle`.

    Args:
        model: folder of a run or of a model, or a model's file; a model that is registered by this name, as those that
            ship are (`python -m hrm_agent.agents` lists them); or a checkpoint of the authors of HRM and TRM, its
            folder or file, with `all_config.yaml` beside it.
        task: a task of `supervise`, `sudoku` for instance; None: the model's training task and options.
        task_options: changed options of the task. Puzzles must keep the shape that the model was trained for; only
            their grid may have another size, where no weight of the model depends on it.
        split: `test` or `validation`.
        puzzles: puzzles to solve, the first of the split.
        segments: segments per puzzle, or per character of a text; 0: as many as in training.
        halt: solve them a second time, with each puzzle stopping when the model halts. Without, the scores of halting
            are computed from the answers after all segments, and not timed. Not of a text, which is scored by
            probability after all segments; nor is there a rule, or noise, for a text.
        halting: rule by which the model halts: `stored` beside it, as its training chose on validation puzzles (the
            published one where there is none); `published`; or `validation`, chosen now on 256 validation puzzles.
        samples: runs of every puzzle, each with noise of its own; the answer is that of the run which the halting head
            is most sure of (PTRM, arXiv 2605.19943).
        noise: standard deviation of the Gaussian noise on the latents before every segment; latents have unit variance.
        seed: of the noise.
        precision: of the matrix products, `float32` or `bfloat16`; None: as in training.
        device: `cpu`, or a CUDA device.
        out: file for the JSON, written atomically.
        submission: ARC Prize's `submission.json` to write, of `task=arc1` and `task=arc2`.
        best: of a run's models, the best on validation puzzles rather than the last.
        kernel: path of the core, `plain`, `fused` or `fused_bf16`. `auto` takes the path of training where the
            instruction set is the same, and otherwise measures a segment.
        on_progress: called with what the task's own evaluation does, such as games, and how far it is.

    Returns:
        The written record: scores (`hrm_agent.supervised.evaluation.evaluate_model`), model and puzzles.
        `ms_per_puzzle` is wall-clock time on `threads` threads, `halted.ms_per_puzzle` the same with halting where
        `halt` is true. With noise the scores are those of the chosen answers, without `halted`; `sampling` has those of
        `one_run` (the mean), `surest` (chosen), `most_frequent` (a vote), `any_run` (the best, as if one knew), and
        without noise `noiseless` and, as many segments as all runs have, `more_segments` and `surest_segment`.

    Raises:
        ValueError: no model there or a file of it damaged, a task that does not fit it, fewer puzzles than asked for,
            a package that the task needs is not installed, settings that make no sense together (several samples
            without noise, halting or a rule for it with noise), or one out of range; nothing is written then.
    """
    _check_outputs(out=out, submission=submission)
    check_at_least("puzzles", puzzles, 1)
    asked = Inference(segments, halt, halting, samples, noise, seed, precision, device, kernel)
    place = find_named(model)
    loaded = load_to_solve(place, best, task, task_options)
    if submission is not None and loaded.task_name != "arc":
        raise ValueError(f"submission={submission}: only task=arc1 and task=arc2 have one; leave it out")
    how = asked.of(loaded)
    used = choose_for_solving(loaded.model.to(device), kernel, puzzles, how.precision or "float32", loaded.info)
    report = _report(loaded, split, puzzles, how, on_progress or say_nothing)
    report |= {"kernel": used, "model": str(loaded.path) if place == Path(model) else model}
    if submission is not None:
        write_submission(report["task"], Path(submission))
    if out is not None:
        write_output(out, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _check_outputs(**files: str | None) -> None:
    """Raises: ValueError where one that is given cannot be written."""
    for name, file in files.items():
        if file is not None:
            check_output(file, name)


def load_to_solve(
    path: Path, best: bool = True, task: str | None = None, options: dict[str, Any] | None = None
) -> LoadedModel:
    """A model with its task; arguments as of `solve`.

    Raises:
        ValueError: see `solve`.
    """
    options = options or {}
    if ((path if path.is_dir() else path.parent) / CONFIG_FILE).is_file():
        return _load_published(path, task, options)
    file = find_model(path, best)
    model, spec = load_model_and_spec(file)
    info = read_info(file.parent)
    name, options = choose_task(path, task, options, info)
    made = _build(name, options, info.get("seed", 0))
    if made.spec.grid is not None and made.spec.sequence_length != spec.sequence_length:
        resized = load_resized(file, made.spec.grid)
        if resized is not None:
            model, spec = resized, replace(spec, sequence_length=made.spec.sequence_length, grid=made.spec.grid)
    apart, patches = (model.puzzles, model.patches) if isinstance(model, PuzzleModel) else (None, None)
    check_shape(name, made.spec, spec, apart is not None)
    if patches is not None and patches.encoder.crop and options.get("label_border"):
        raise UsageError("the model does not answer on the outer ring of a maze; add task_options.label_border=false")
    thinking = info.get("max_segments", 16), halting_rule_of(info), info.get("precision", "float32")
    return LoadedModel(model, file, made, name, options, info, *thinking)


def _load_published(path: Path, task: str | None, options: dict[str, Any]) -> LoadedModel:
    file = find_weights(path)
    name, options = choose_task(path, task, options, {})
    made = _build(name, options, 0)
    model, facts = load_published_checkpoint(file, made.spec)
    # The rule of whichever head was trained; TRM's authors leave the second one untrained by default.
    halting = "halt_only" if facts.get("no_ACT_continue", facts["kind"] == "trm") else "q_learning"
    thinking = facts.get("halt_max_steps", 16), HaltingRule(halting), "float32"
    return LoadedModel(model, file, made, name, options, facts, *thinking)


FILES = {"train": None, "test": None, "identifiers": None, "path": None, "source": "endgames"}
"""Options of tasks that name files, and the value that names none."""


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
    for key, none in FILES.items():
        if task is None and key not in options and merged.get(key, none) != none:
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
        ("answers", _kind(task), _kind(model)),
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


def _kind(spec: TaskSpec) -> str:
    return "of one choice" if spec.choices else "of an id for every token"


def rule_of(loaded: LoadedModel, how: Inference, threads: Threads) -> HaltingRule:
    """The rule by which a model halts; see `halting` of `solve`."""
    head = loaded.halting.head
    if how.halting == "stored":
        return loaded.halting
    if how.halting == "published":
        return HaltingRule(head)
    assert isinstance(loaded.model, PuzzleModel)
    solver = Solver(loaded.model, how.segments, None, threads, how.precision or "float32")
    found = evaluate_model(solver, loaded.task, "validation", CHOOSING_PUZZLES, head, own=False, choose=True)
    return HaltingRule(**found["halted"]["rule"])


def _report(loaded: LoadedModel, split: str, puzzles: int, how: Inference, say: Say) -> dict[str, Any]:
    model, spec, precision = loaded.model, loaded.task.spec, how.precision or "float32"
    threads = Threads(available_cores())
    reader = solver_of(model, loaded.task, split, how.segments, loaded.info.get("cross_entropy") or "stablemax")
    warming = solver_of(model, loaded.task, split, 1, loaded.info.get("cross_entropy") or "stablemax")
    for each in (reader, warming):
        each.threads, each.precision = threads, precision
    blank = np.zeros((WARM_UP, spec.sequence_length), np.int32)
    warming(Examples(blank, blank, blank[:, 0]))
    if how.noise:
        report = _sampled(loaded, split, puzzles, how, threads)
    else:
        rule, solver, stopping = rule_of(loaded, how, threads), Timed(reader), None
        if how.halt:
            assert isinstance(model, PuzzleModel)
            stopping = Timed(Solver(model, how.segments, rule, threads, precision))
        report = evaluate_model(solver, loaded.task, split, puzzles, rule, stopping=stopping, say=say)
        report["ms_per_puzzle"] = solver.ms_per_puzzle
        if stopping is not None:
            report["halted"]["ms_per_puzzle"] = stopping.ms_per_puzzle
    core = name_of(model.core)
    return {
        **report,
        "task_name": loaded.task_name,
        "task_options": loaded.task_options,
        "core": core,
        "parameters": sum(p.numel() for p in model.parameters()),
        "halting": loaded.halting.head,
        "precision": precision,
        "device": how.device,
        "threads": threads.count,
        "training": {name: loaded.info[name] for name in TRAINED if name in loaded.info},
        "hrm_agent_version": __version__,
    }


def _sampled(loaded: LoadedModel, split: str, puzzles: int, how: Inference, threads: Threads) -> dict[str, Any]:
    """The report on the surest of several noisy runs, and under `sampling` what that is worth."""
    model, task, examples = loaded.model, loaded.task, loaded.task.examples(split, puzzles)
    precision = how.precision or "float32"
    assert isinstance(model, PuzzleModel)
    sampled = SampledSolver(model, how.segments, how.samples, how.noise, how.seed, threads, precision)
    scores, began = RunScores(task), time.perf_counter()
    answers = sampled.observed(examples, scores.add)
    taken = time.perf_counter() - began
    # Not the task's own: games by Hanoi's rules end where a state comes back, as they do without noise.
    report = evaluate_model(sampled, task, split, puzzles, None, answers=answers, own=False)
    deep = Timed(Solver(model, how.samples * how.segments, None, threads, precision))
    without = score_depth(deep, task, examples, how.segments)
    report["ms_per_puzzle"] = 1000 * taken / len(examples)
    report["sampling"] = {
        "samples": how.samples,
        "noise": how.noise,
        "seed": how.seed,
        "segments": deep.segments,
        **scores.summary(),
        **without,
        "ms_per_puzzle_without_noise": deep.ms_per_puzzle,
    }
    return report
