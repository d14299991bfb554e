"""Checkpoints of the authors of HRM and TRM: a file of weights, next to the YAML that their training wrote.

Both repositories save `model.state_dict()` by `torch.save` as `step_N`, next to `all_config.yaml`. See
docs/supervised/published.md, also for how the two formats differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import UNSET, UnsetType
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hrm_agent.cores import HRM, TRM
from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.reading import CheckpointError, open_regular, read_json
from hrm_agent.parallel.memory import at_most
from hrm_agent.supervised.model import PuzzleModel
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.tensors.files import allowance

CONFIG_FILE = "all_config.yaml"
DATA_FILE = "dataset.json"
"""Facts of a published data set; read if a copy is next to the weights."""
KINDS = {"hrm_act_v1": "hrm", "hrm": "hrm", "trm": "trm"}
"""Module of the published model class (`arch.name` is `PACKAGE.MODULE@CLASS`) -> our core."""
FIXED = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}
"""Settings of published configs that are fixed here; other values are refused."""
TRM_DEFAULTS = {"mlp_t": False, "puzzle_emb_len": 16}
PREFIX = "_orig_mod.model.inner."
_STEP = re.compile(r"^step_(\d+)(\.safetensors|\.pth?)?$")
_OTHER_NAMES = ("checkpoint", "model.safetensors")
_BLOCK = {
    "self_attn.qkv": "mixer.qkv",
    "self_attn.o": "mixer.out",
    "mlp_t.gate_up": "mixer.swiglu.gate_up",
    "mlp_t.down": "mixer.swiglu.down",
    "mlp.gate_up": "mlp.gate_up",
    "mlp.down": "mlp.down",
}
NAMES = {
    "embed_tokens.embedding_weight": "tokens.weight",
    "embed_pos.embedding_weight": "learned_positions.weight",
    "puzzle_emb.weights": "puzzles.weight",
    "lm_head.weight": "lm_head.weight",
    "q_head.weight": "halting_head.weight",
    "q_head.bias": "halting_head.bias",
    "{net}_init": "core.z_{net}_init",
    **{
        f"{{net}}_level.layers.{{layer}}.{published}_proj.weight": f"core.{{net}}_net.layers.{{layer}}.{ours}.weight"
        for published, ours in _BLOCK.items()
    },
}
"""Published name of a weight, without its wrappers -> ours; TRM's only network is published as `L_level`."""
_WRAPPERS = re.compile(r"^(_orig_mod\.)?(model\.)?inner\.")


Size = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
SizeOrNone = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Architecture(msgspec.Struct):
    """Types and bounds of what is read of `arch` in an `all_config.yaml`; which of it is needed depends on the kind."""

    hidden_size: Size | UnsetType = UNSET
    num_heads: Size | UnsetType = UNSET
    expansion: Annotated[float, msgspec.Meta(gt=0, le=1000)] | UnsetType = UNSET
    H_layers: SizeOrNone | UnsetType = UNSET
    L_layers: SizeOrNone | UnsetType = UNSET
    H_cycles: Size | UnsetType = UNSET
    L_cycles: Size | UnsetType = UNSET
    halt_max_steps: Size | UnsetType = UNSET
    puzzle_emb_len: SizeOrNone | UnsetType | None = UNSET
    pos_encodings: Annotated[str, msgspec.Meta(max_length=100)] | UnsetType | None = UNSET
    mlp_t: bool | UnsetType | None = UNSET
    no_ACT_continue: bool | UnsetType = UNSET


def _rename(name: str, names: Mapping[str, str]) -> str | None:
    """A weight's name by a table like `NAMES`; None where it has none."""
    for pattern, renamed in names.items():
        fields = re.escape(pattern).replace(r"\{net\}", "(?P<net>[HL])").replace(r"\{layer\}", r"(?P<layer>\d+)")
        if found := re.fullmatch(fields, name):
            return renamed.format(**found.groupdict())
    return None


def name_from_published(name: str, core: str) -> str:
    """Our name of a published weight, such as `inner.lm_head.weight` or `_orig_mod.model.inner.H_init`.

    Args:
        name: as in the authors' files, with or without the prefixes of their compiled loss wrapper.
        core: `hrm` or `trm`.

    Raises:
        ValueError: no such weight is known.
    """
    bare, wrapped = _WRAPPERS.subn("", name)
    ours = _rename(bare, NAMES) if wrapped else None
    if ours is None:
        raise ValueError(f"{name!r} is not the published name of any weight of {core}; give the authors' files")
    return ours.replace("core.L_net.", "core.net.") if core == "trm" else ours


def export_published(model: PuzzleModel) -> dict[str, Tensor]:
    """A model's weights under the names that the authors' code gives them: `torch.save` them as `step_N`.

    Raises:
        ValueError: the model has another core than HRM and TRM, or a part that the published ones lack.
    """
    if not isinstance(model.core, HRM | TRM):
        raise ValueError(f"a {type(model.core).__name__} has no published names; only models of HRM and TRM have")
    published = {ours: name for name, ours in NAMES.items()}
    exported = {}
    for ours, tensor in model.state_dict().items():
        name = _rename(ours.replace("core.net.", "core.L_net."), published)
        if name is None:
            raise ValueError(f"{ours!r} has no published name; only models of HRM and TRM as published have")
        exported[PREFIX + name] = tensor.detach().clone()
    return exported


def load_published(model: PuzzleModel, weights: Mapping[str, Tensor], core: str) -> None:
    """Copy weights under their published names into the model.

    Raises:
        ValueError: a weight is unknown, missing, left over or of another shape.
    """
    own = model.state_dict()
    renamed = {name_from_published(name, core): weight for name, weight in weights.items()}
    for name in own:
        if name not in renamed:
            raise ValueError(f"the weights lack {name!r}, which the model has; give weights of this config")
    for name, weight in renamed.items():
        if name not in own:
            raise ValueError(f"the weights hold {name!r}, which the model lacks; give weights of this config")
        if weight.shape != own[name].shape:
            raise ValueError(
                f"{name!r} has shape {tuple(weight.shape)} but the model's is {tuple(own[name].shape)}; "
                "give weights of this config"
            )
    model.load_state_dict(renamed)


def model_from_published(config: Mapping[str, Any]) -> PuzzleModel:
    """Build the model of a published configuration; its `kind` is `hrm`, `hrm_agent` or `trm`.

    Raises:
        ValueError: an entry is missing or out of range.
    """
    try:
        core = "trm" if config["kind"] == "trm" else "hrm"
        options: dict[str, Any] = {key: config[key] for key in ("num_heads", "H_cycles", "L_cycles", "expansion")}
        if core == "trm":
            options["layers"] = config["L_layers"]
            options["mixing"] = "mlp" if config["mlp_t"] else "attention"
        else:
            options.update(H_layers=config["H_layers"], L_layers=config["L_layers"])
        embedding_size, hidden_size = config["puzzle_emb_ndim"], config["hidden_size"]
        slots = config.get("puzzle_emb_len") or math.ceil(embedding_size / hidden_size)
        return PuzzleModel(
            vocabulary_size=config["vocab_size"],
            sequence_length=config["seq_len"],
            num_puzzles=config["num_puzzle_identifiers"],
            hidden_size=hidden_size,
            puzzle_embedding_size=embedding_size,
            slots=slots,
            positions=config["pos_encodings"],
            core=core,
            core_options=options,
        )
    except KeyError as error:
        raise ValueError(f"the config has no entry {error}; give a published model's whole config") from None


def load_published_checkpoint(
    path: str | Path, spec: TaskSpec | None = None, sequence_length: int | None = None
) -> tuple[PuzzleModel, dict[str, Any]]:
    """A model with an author's weights, in evaluation mode.

    Nothing of the checkpoint is executed, see `read_weights`.

    Args:
        path: the file of weights, or its folder: then the `step_N` of the highest N, else `checkpoint`, else
            `model.safetensors`. `all_config.yaml` is next to it.
        spec: the task to solve; it must fit the weights.
        sequence_length: tokens of a puzzle. Needed only without `spec`, of a model with rotary positions, and without
            the data's `dataset.json` next to the weights: their shapes do not determine it then.

    Returns:
        The model (float32, whatever the weights' type), and its facts: the entries of the config that
        `model_from_published` takes, and `halt_max_steps` (segments of an evaluation), `no_ACT_continue` (the
        halting head's second logit was never trained), `ema` (the weights are moving averages), `file` and `step`
        (None where the name does not say).

    Raises:
        ValueError: one line: a missing or unreadable file, an unknown architecture, weights that do not fit the
            config, or a task that does not fit the weights.
    """
    file = find_weights(Path(path))
    config = read_config(file.parent / CONFIG_FILE)
    weights = read_weights(file)
    config |= _sizes(config, weights)
    config["seq_len"] = _sequence_length(config, weights, file.parent, spec, sequence_length)
    if spec is not None:
        _check_task(config, spec)
    try:
        with at_most(allowance(file), "weights do not fit: the config describes a network larger than the file"):
            model = model_from_published(config)
        load_published(model, weights, config["kind"])
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    step = _STEP.match(file.name)
    return model.eval(), {**config, "file": str(file), "step": int(step[1]) if step else None}


def find_weights(path: Path) -> Path:
    """The file of weights at a path, see `load_published_checkpoint`.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give a published checkpoint or its folder")
    steps = [(int(match[1]), file) for file in sorted(path.iterdir()) if (match := _STEP.match(file.name))]
    if steps:
        return max(steps, key=lambda each: each[0])[1]
    for name in _OTHER_NAMES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path} has no file step_N, {' or '.join(_OTHER_NAMES)}; give the file of weights itself")


def read_config(path: Path) -> dict[str, Any]:
    """The architecture in an `all_config.yaml`, as `model_from_published` takes it, without what depends on the data.

    Nothing in it is interpolated. What the authors leave to interpolation, `puzzle_emb_ndim: ${.hidden_size}`, follows
    from the weights (`_sizes`).

    Raises:
        ValueError: the file is missing or no such YAML, its architecture is not HRM or TRM, or a setting is not
            supported.
    """
    try:
        whole = read_yaml(path)
    except CheckpointError as error:
        raise ValueError(f"{error}; a checkpoint needs the {CONFIG_FILE} of its training beside it") from None
    arch = whole.get("arch") if isinstance(whole, dict) else None
    if not isinstance(arch, dict) or "name" not in arch:
        raise ValueError(f"{path} has no arch.name; give the {CONFIG_FILE} that the authors' training wrote")
    module = str(arch["name"]).partition("@")[0].rpartition(".")[2]
    if module not in KINDS:
        raise ValueError(f"{path}: arch.name={arch['name']} is none of those that load: {', '.join(KINDS)}")
    config: dict[str, Any] = {str(key): value for key, value in arch.items()}
    try:
        msgspec.convert(config, Architecture)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`", "").replace("$", "arch")
        raise ValueError(f"{path}: {reason}; give the {CONFIG_FILE} that the authors' training wrote") from None
    kind = config["kind"] = KINDS[module]
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path}: {name}={config[name]}, but only {value}, the published value, is supported")
    if kind == "trm":
        config = {**TRM_DEFAULTS, **config}
    elif config.get("mlp_t"):
        raise ValueError(f"{path}: mlp_t=true of HRM is not supported; only TRM's is")
    else:
        config["puzzle_emb_len"] = 0  # HRM's prefix is as long as the embedding needs, whatever the file says
    config["ema"] = bool(whole.get("ema", False)) if isinstance(whole, dict) else False
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by their published names, of a safetensors file or one that `torch.save` wrote.

    The latter is a pickle, read by torch's restricted reader (`weights_only`) alone: it builds tensors and plain
    containers of them, and refuses a file that asks for any other object before making it.

    Raises:
        ValueError: the file cannot be read, asks for another object, or holds something that is not a tensor.
    """
    open_regular(path).close()
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({str(error).splitlines()[0]})") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: not a file of weights alone as torch.save writes them ({reason}); it was not loaded"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected the weights by name (model.state_dict())")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: its entry {name!r} is no tensor; expected model.state_dict() alone")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name!r} is no plain tensor of floating-point numbers")
        if tensor.dim() == 0 or tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{path}: {name!r} has shape {tuple(tensor.shape)}, more numbers than the file, or none")
    return dict(found)


def _ending(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    return next((tensor for full, tensor in weights.items() if full.endswith("inner." + name)), None)


def _sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that the authors' code takes from the data set, here from the shapes of the weights."""
    tokens, puzzles = _ending(weights, "embed_tokens.embedding_weight"), _ending(weights, "puzzle_emb.weights")
    if tokens is None:
        raise ValueError("the weights lack 'embed_tokens.embedding_weight'; give a checkpoint of HRM or TRM")
    return {
        "vocab_size": len(tokens),
        "num_puzzle_identifiers": 1 if puzzles is None else len(puzzles),
        "puzzle_emb_ndim": 0 if puzzles is None else puzzles.shape[-1],
    }


def _sequence_length(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    folder: Path,
    spec: TaskSpec | None,
    given: int | None,
) -> int:
    """Tokens of a puzzle: from the weights' shapes, else as given, from the task, or from `dataset.json`."""
    mixing = _ending(weights, "L_level.layers.0.mlp_t.gate_up_proj.weight")
    positions = _ending(weights, "embed_pos.embedding_weight")
    if mixing is not None or positions is not None:
        total = mixing.shape[1] if mixing is not None else len(positions)  # type: ignore[arg-type]
        return total - _prefix(config)
    if given is not None:
        return given
    if spec is not None:
        return spec.sequence_length
    try:
        found: dict[str, Any] = read_json(folder / DATA_FILE, dict[str, Any])
        return int(found["seq_len"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise ValueError(
            f"the weights in {folder} do not tell how many tokens a puzzle has; give sequence_length (Sudoku 81, "
            f"mazes and ARC 900), a task, or the data's {DATA_FILE} beside them"
        ) from None


def _prefix(config: Mapping[str, Any]) -> int:
    if not config["puzzle_emb_ndim"]:
        return 0
    return config["puzzle_emb_len"] or math.ceil(config["puzzle_emb_ndim"] / config["hidden_size"])


def _check_task(config: Mapping[str, Any], spec: TaskSpec) -> None:
    """Raises: ValueError where a model of this config does not fit the task's puzzles."""
    for what, theirs, ours in (
        ("tokens of a puzzle", config["seq_len"], spec.sequence_length),
        ("ids of inputs", config["vocab_size"], spec.input_ids),
        ("ids of answers", config["vocab_size"], spec.answer_ids),
    ):
        if theirs != ours:
            raise ValueError(f"the checkpoint has {theirs} {what}, but the task {ours}; give its own task")
    if spec.choices:
        raise ValueError("the checkpoint gives an id for every token, but the task asks one choice; give its own task")
    # A task without identifiers gives 0 to every puzzle, which all published data sets keep for that.
    if spec.num_puzzles not in (1, config["num_puzzle_identifiers"]):
        raise ValueError(
            f"the checkpoint has {config['num_puzzle_identifiers']} puzzle identifiers, but the task has "
            f"{spec.num_puzzles}; give the identifiers.json of its data (task.identifiers)"
        )
