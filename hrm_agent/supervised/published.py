"""Checkpoints of the authors of HRM and TRM: a file of weights, and beside it the YAML that their training wrote.

Both repositories save `model.state_dict()` by `torch.save` as `step_N`, next to `all_config.yaml`. Docs:
docs/supervised/published.md, which also says how the two formats differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor
from yaml import YAMLError

from hrm_agent.cores import HRM, TRM
from hrm_agent.supervised.model import PuzzleModel, load_published, model_from_published
from hrm_agent.supervised.tasks.base import TaskSpec

CONFIG_FILE = "all_config.yaml"
DATA_FILE = "dataset.json"
"""The published data sets' facts; read where a copy lies beside the weights."""
KINDS = {"hrm_act_v1": "hrm", "hrm": "hrm", "trm": "trm"}
"""Module of the published model class (`arch.name` is `PACKAGE.MODULE@CLASS`) -> our core."""
FIXED = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}
"""What a published config may set, but ours does not: refused where it differs."""
TRM_DEFAULTS = {"mlp_t": False, "puzzle_emb_len": 16}
PREFIX = "_orig_mod.model.inner."
_STEP = re.compile(r"^step_(\d+)(\.safetensors|\.pth?)?$")
_OTHER_NAMES = ("checkpoint", "model.safetensors")
# Our names -> published ones, for `export_published`.
_NAMES = (
    (r"^tokens\.weight$", "embed_tokens.embedding_weight"),
    (r"^learned_positions\.weight$", "embed_pos.embedding_weight"),
    (r"^puzzles\.weight$", "puzzle_emb.weights"),
    (r"^lm_head\.weight$", "lm_head.weight"),
    (r"^halting_head\.(weight|bias)$", r"q_head.\1"),
    (r"^core\.z_([HL])_init$", r"\1_init"),
    (r"^core\.([HL])_net\.layers\.(\d+)\.mixer\.qkv\.weight$", r"\1_level.layers.\2.self_attn.qkv_proj.weight"),
    (r"^core\.([HL])_net\.layers\.(\d+)\.mixer\.out\.weight$", r"\1_level.layers.\2.self_attn.o_proj.weight"),
    (r"^core\.([HL])_net\.layers\.(\d+)\.mixer\.swiglu\.(\w+)\.weight$", r"\1_level.layers.\2.mlp_t.\3_proj.weight"),
    (r"^core\.([HL])_net\.layers\.(\d+)\.mlp\.(\w+)\.weight$", r"\1_level.layers.\2.mlp.\3_proj.weight"),
)


def load_published_checkpoint(
    path: str | Path, spec: TaskSpec | None = None, sequence_length: int | None = None
) -> tuple[PuzzleModel, dict[str, Any]]:
    """A model with an author's weights, in evaluation mode.

    Nothing of the checkpoint is executed, see `read_weights`.

    Args:
        path: the file of weights, or its folder: then the `step_N` of the highest N, else `checkpoint`, else
            `model.safetensors`. `all_config.yaml` lies beside it.
        spec: the task that the model shall solve; it must fit.
        sequence_length: tokens of a puzzle. Needed only without `spec`, of a model with rotary positions, and without
            the data's `dataset.json` beside the weights: their shapes do not tell it then.

    Returns:
        The model (float32, whatever the weights' type), and what is known of it: the entries of the config that
        `model_from_published` takes, and `halt_max_steps` (segments of an evaluation), `no_ACT_continue` (the
        halting head's second logit was never trained), `ema` (the weights are moving averages), `file` and `step`
        (None where the name does not tell).

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
        model = model_from_published(config)
        load_published(model, weights, config["kind"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None
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
    """The architecture in an `all_config.yaml`, as `model_from_published` takes it but for what data decide.

    Raises:
        ValueError: the file is missing or no such YAML, its architecture is none of ours, or it has a setting that
            ours cannot have.
    """
    try:
        whole = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: {reason}; a checkpoint needs the {CONFIG_FILE} of its training beside it") from None
    arch = whole.get("arch") if isinstance(whole, dict) else None
    if not isinstance(arch, dict) or "name" not in arch:
        raise ValueError(f"{path} has no arch.name; give the {CONFIG_FILE} that the authors' training wrote")
    module = str(arch["name"]).partition("@")[0].rpartition(".")[2]
    if module not in KINDS:
        raise ValueError(f"{path}: arch.name={arch['name']} is none of those that load: {', '.join(KINDS)}")
    config: dict[str, Any] = {str(key): value for key, value in arch.items()}
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

    The latter is a pickle. Torch's restricted reader (`weights_only`) is the only reader it is given to: it builds
    tensors and plain containers of them, and refuses a file that asks for any other object before making it.

    Raises:
        ValueError: the file cannot be read, asks for another object, or holds something that is no tensor.
    """
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
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: its entry {name!r} is no tensor; expected model.state_dict() alone")
    return dict(found)


def export_published(model: PuzzleModel) -> dict[str, Tensor]:
    """A model's weights under the names that the authors' code gives them: `torch.save` them as `step_N`.

    Raises:
        ValueError: the model has another core than HRM and TRM, or a part that the published ones lack.
    """
    if not isinstance(model.core, HRM | TRM):
        raise ValueError(f"a {type(model.core).__name__} has no published names; only models of HRM and TRM have")
    exported = {}
    for ours, tensor in model.state_dict().items():
        name = ours.replace("core.net.", "core.L_net.")  # TRM's only network
        for pattern, published in _NAMES:
            renamed, found = re.subn(pattern, published, name)
            if found:
                exported[PREFIX + renamed] = tensor.detach().clone()
                break
        else:
            raise ValueError(f"{ours!r} has no published name; only models of HRM and TRM as published have")
    return exported


def _ending(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    return next((tensor for full, tensor in weights.items() if full.endswith("inner." + name)), None)


def _sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What the authors' code takes from the data set, from the shapes of the weights."""
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
    """Tokens of a puzzle: of the weights where their shapes tell, else as given, of the task, of `dataset.json`."""
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
        return int(json.loads((folder / DATA_FILE).read_text())["seq_len"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"the weights in {folder} do not tell how many tokens a puzzle has; give sequence_length (Sudoku 81, "
            f"mazes and ARC 900), a task, or the data's {DATA_FILE} beside them"
        ) from None


def _prefix(config: Mapping[str, Any]) -> int:
    if not config["puzzle_emb_ndim"]:
        return 0
    return config["puzzle_emb_len"] or math.ceil(config["puzzle_emb_ndim"] / config["hidden_size"])


def _check_task(config: Mapping[str, Any], spec: TaskSpec) -> None:
    """Raises: ValueError where a model of this config cannot read the task's puzzles, or not in its own words."""
    for what, theirs, ours in (
        ("tokens of a puzzle", config["seq_len"], spec.sequence_length),
        ("ids of inputs", config["vocab_size"], spec.input_ids),
        ("ids of answers", config["vocab_size"], spec.answer_ids),
    ):
        if theirs != ours:
            raise ValueError(f"the checkpoint has {theirs} {what}, but the task {ours}; give its own task")
    # A task without identifiers gives 0 to every puzzle, which all published data sets keep for that.
    if spec.num_puzzles not in (1, config["num_puzzle_identifiers"]):
        raise ValueError(
            f"the checkpoint has {config['num_puzzle_identifiers']} puzzle identifiers, but the task has "
            f"{spec.num_puzzles}; give the identifiers.json of its data (task.identifiers)"
        )
