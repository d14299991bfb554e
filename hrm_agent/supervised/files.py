"""Building a puzzle model from its settings, and saving and loading it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from torch import Tensor, nn

from hrm_agent.cores import name_of
from hrm_agent.files.reading import CheckpointError, convert_json, read_json
from hrm_agent.names.values import Count, CountOrNone, Depth, Seed, Width, check_fields, one_of, printable, typed
from hrm_agent.parallel.memory import at_most
from hrm_agent.policies.policy import Policy, PolicyConfig, TimeGradient
from hrm_agent.supervised.halting import HaltingRule
from hrm_agent.supervised.losses import CROSS_ENTROPIES, IGNORED_LABEL
from hrm_agent.supervised.model import HALTING_READS, PuzzleModel
from hrm_agent.supervised.streams import build_stream_policy
from hrm_agent.supervised.tasks.base import Task, TaskSpec
from hrm_agent.tensors.files import allowance, check_weights, load_tensors, save_tensors
from hrm_agent.training.model_folder import MODEL_FILE, find_model

INFO_FILE = "model.json"
"""File beside a run's models with `SupervisedTrainer.info`."""
BYTES = 256
"""Ids of a text of bytes, whose alphabet is empty."""
MOST = 2**16
"""Tokens of a puzzle, rows and columns of a grid, and ids, in a model's file."""


@dataclass(frozen=True)
class ModelConfig:
    """The settings that, with the task's shape, define a puzzle model (`PuzzleModel`)."""

    core: str = "trm"  # name of the core (`hrm_agent.cores.build_core`)
    core_options: dict[str, Any] = field(default_factory=dict)  # without `hidden_size`, `length` and `grid`
    hidden_size: Width = 512  # channels D
    puzzle_embedding_size: CountOrNone = 0  # numbers learned per puzzle; 0: no prefix
    slots: CountOrNone | None = None  # prefix tokens that hold them; null: 1 for HRM, 16 for TRM
    positions: str | None = None  # learned; null: the core's own
    crop: CountOrNone = 0  # rings of cells dropped from the border of a grid
    patch_size: Count = 1  # side of the square of cells that share one token
    halting_reads: Annotated[str, one_of(HALTING_READS)] = "first"  # tokens of the halting head: first | mean of all
    carry: str | None = None  # of a text: a carry rule, one token is read a step; null: a whole window at once
    segments: Depth = 1  # K per character or byte, where the latent is carried; otherwise training.max_segments
    time_gradient: TimeGradient = "bptt"  # bptt | detached: does the gradient flow through the carried latent?

    def __post_init__(self) -> None:
        check_fields(self, "model", hidden_size="core.hidden_size")
        if self.carry is not None:
            for name in ("puzzle_embedding_size", "crop"):
                if getattr(self, name):
                    raise ValueError(f"model.{name}={getattr(self, name)} with model.carry={self.carry}: expected 0")
            if self.patch_size != 1:
                raise ValueError(f"model.patch_size={self.patch_size} with model.carry={self.carry}: expected 1")


class _Info(msgspec.Struct):
    """What is used of `model.json`."""

    task: str = ""
    task_options: dict[str, Any] = {}
    seed: Seed = 0
    max_segments: Depth = 16
    halting: str = ""
    halting_rule: HaltingRule | None = None
    precision: str = ""
    cross_entropy: Annotated[str, one_of(("", *CROSS_ENTROPIES))] = ""


def build_model(config: ModelConfig, spec: TaskSpec) -> PuzzleModel | Policy:
    """A model of whole puzzles, or windows of a text; with `carry` a policy that reads one token a step.

    Raises:
        ValueError: the settings do not fit each other or the task.
    """
    return build_puzzle_model(config, spec) if config.carry is None else _build_stream_policy(config, spec)


def build_puzzle_model(config: ModelConfig, spec: TaskSpec) -> PuzzleModel:
    """A model of whole puzzles, whatever `carry`. Raises: ValueError, see `build_model`."""
    options = dict(config.core_options)
    own = options.pop("positions", "none")
    return PuzzleModel(
        vocabulary_size=spec.input_ids,
        sequence_length=spec.sequence_length,
        num_puzzles=spec.num_puzzles,
        hidden_size=config.hidden_size,
        puzzle_embedding_size=config.puzzle_embedding_size,
        slots=config.slots,
        positions=config.positions or own,
        grid=spec.grid,
        answer_ids=spec.answer_ids,
        crop=config.crop,
        patch_size=config.patch_size,
        one_choice=spec.choices > 0,
        halting_reads=config.halting_reads,
        core=config.core,
        core_options=options,
    )


def _build_stream_policy(config: ModelConfig, spec: TaskSpec) -> Policy:
    if spec.alphabet is None:
        raise ValueError(f"model.carry={config.carry}: of a text (task=text); a puzzle has its tokens at once")
    policy = PolicyConfig(
        core=config.core,
        core_options=config.core_options,
        hidden_size=config.hidden_size,
        carry=config.carry or "auto",
        segments=config.segments,
        time_gradient=config.time_gradient,
        readout="first",
    )
    return build_stream_policy(policy, spec.input_ids)


def check_answerable(model: PuzzleModel | Policy, task: Task) -> None:
    """Raises: ValueError where the task has labels on cells that the model crops, and so cannot answer; or where the
    answer to a text is in the input."""
    if isinstance(model, Policy):
        return
    if task.spec.alphabet is not None and not model.core.causal:
        raise ValueError(
            f"task=text with core={name_of(model.core)}, whose tokens see the one that follows, which is the answer; "
            "use core=trm, hrm or feedforward with core.causal=true, or carry the latent (model.carry=full)"
        )
    if model.patches is None or not model.patches.encoder.crop:
        return
    crop, (rows, cols) = model.patches.encoder.crop, model.patches.cells
    ring = np.ones((rows, cols), bool)
    ring[crop : rows - crop, crop : cols - crop] = False
    if (task.examples("validation", 1).labels.reshape(rows, cols)[ring] != IGNORED_LABEL).any():
        raise ValueError(
            f"model.crop={crop}: the task has labels on cropped cells; add task.label_border=false where the "
            "task has it, or use model.crop=0"
        )


def save_model(folder: Path, model: nn.Module, config: ModelConfig, spec: TaskSpec) -> Path:
    """Write the weights and everything needed to rebuild the model."""
    metadata = {"kind": "puzzle_model", "model": asdict(config), "spec": asdict(spec)}
    save_tensors(folder / MODEL_FILE, dict(model.state_dict()), metadata)
    return folder / MODEL_FILE


def load_model(path: str | Path, best: bool = False) -> PuzzleModel | Policy:
    """What `save_model` wrote, in evaluation mode.

    Args:
        path: see `find_model`.
        best: of a run, the model that was best on validation puzzles, not the last.

    Raises:
        ValueError: there is no model, or the file is damaged or holds something else.
    """
    return load_model_and_spec(path, best)[0]


def load_model_and_spec(path: str | Path, best: bool = False) -> tuple[PuzzleModel | Policy, TaskSpec]:
    """As `load_model`, together with the shape of the model's puzzles."""
    file = find_model(path, best)
    tensors, config, spec = read_model_file(file)
    try:
        with at_most(allowance(file), "weights do not fit: the file describes a network larger than itself"):
            model = build_model(config, spec)
        check_weights(file, tensors, model.state_dict())
        model.load_state_dict(tensors)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{file}: does not fit this version ({' '.join(str(error).split())[:200]})") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return model.eval(), spec


def load_resized(path: str | Path, grid: tuple[int, int]) -> PuzzleModel | None:
    """As `load_model`, for puzzles on a grid with another number of tokens; None where a weight depends on that number.

    None do with mixing by convolutions, by sweeps or by attention, and without learned positions. Tables that depend on
    the grid and are no weights, such as those of rotary positions, are made anew.
    """
    file = find_model(path)
    tensors, config, spec = read_model_file(file)
    if config.carry is not None or spec.grid is None or spec.grid[0] * spec.grid[1] == grid[0] * grid[1]:
        return None  # weights of as many tokens would have the same shapes, and another meaning
    try:
        with at_most(allowance(file), "weights do not fit: the file describes a network larger than itself"):
            model = build_puzzle_model(config, replace(spec, sequence_length=grid[0] * grid[1], grid=grid))
    except (ValueError, RuntimeError):
        return None
    if {name: t.shape for name, t in model.state_dict().items()} != {name: t.shape for name, t in tensors.items()}:
        return None
    model.load_state_dict(tensors)
    return model.eval()


def read_model_file(file: Path) -> tuple[dict[str, Tensor], ModelConfig, TaskSpec]:
    """The weights, settings and shape of puzzles in a model's file. Raises: CheckpointError."""
    tensors, metadata = load_tensors(file)
    if metadata.get("kind") != "puzzle_model":
        raise CheckpointError(f"{file}: holds a {metadata.get('kind', 'file of an unknown kind')}, not a puzzle model")
    spec: TaskSpec = convert_json(metadata.get("spec"), TaskSpec, f"{file}: not a puzzle model")
    sizes = (spec.sequence_length, spec.input_ids, spec.answer_ids, *(spec.grid or ()))
    characters = len(spec.alphabet or "") or BYTES
    named = spec.alphabet is None or spec.input_ids == spec.answer_ids == characters
    if not all(1 <= size <= MOST for size in sizes) or not named:
        raise CheckpointError(f"{file}: {printable(str(spec))[:200]}: expected sizes from 1 to {MOST:,}")
    try:
        return tensors, typed(ModelConfig, metadata.get("model"), "model"), spec
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def read_info(folder: Path) -> dict[str, Any]:
    """`model.json` of a model's folder; empty where there is none, as for a model saved outside a run.

    Raises:
        CheckpointError: the file is not valid.
    """
    file = folder / INFO_FILE
    if not file.exists():
        return {}
    info: dict[str, Any] = read_json(file, dict[str, Any])
    convert_json(info, _Info, f"{file}: not a model's description")
    return info


def halting_rule_of(info: dict[str, Any]) -> HaltingRule:
    """The rule by which a model halts, as chosen on validation puzzles; where it has none, the published one.

    Args:
        info: `read_info`, or what is known of a published checkpoint.

    Raises:
        CheckpointError: the rule is none.
    """
    stored = info.get("halting_rule")
    if stored is not None:
        rule: HaltingRule = convert_json(stored, HaltingRule, f"{INFO_FILE}: halting_rule")
        return rule
    return HaltingRule(info.get("halting") or "halt_only")
