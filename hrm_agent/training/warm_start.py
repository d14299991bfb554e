"""Initial weights of a run (`init_from`) and frozen weights (`freeze`), by parts of a policy.

They come from an agent, or from a supervised model whose core and encoder are those of a policy: tensors `core.*` and
`patches.encoder.embedding` (`hrm_agent.supervised.model.PuzzleModel`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hrm_agent.agents.agent import WEIGHTS_FILE
from hrm_agent.agents.description import AGENT_FILE, find_agent_folder, read_description
from hrm_agent.agents.registry import registry
from hrm_agent.files.reading import CheckpointError, convert_json
from hrm_agent.policies.encoders import find_grid
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.files import check_weights, load_tensors
from hrm_agent.training.model_folder import MODEL_FILE, find_model

PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "core": ("core.",),
    "carry": ("carry.",),
    "heads": ("policy_head.", "value_head.", "free_params"),
}
MODEL_ENCODER = "patches.encoder.embedding"


def parse_parts(text: str, setting: str) -> tuple[str, ...]:
    """`core,encoder` -> those parts of a policy, `all` -> all of them, nothing -> none.

    Args:
        setting: for the message.

    Raises:
        ValueError: no such part.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(PARTS)
    for name in names:
        if name not in PARTS:
            raise ValueError(f"{setting}={text}: no part {name!r} of a policy; expected all, or of {', '.join(PARTS)}")
    return tuple(dict.fromkeys(names))


def freeze(policy: Policy, parts: tuple[str, ...]) -> None:
    """Freeze the parameters of `parts`; an encoder's running statistics are still updated.

    Raises:
        ValueError: no parameter is left to train.
    """
    for name, parameter in policy.named_parameters():
        if any(_belongs(name, part) for part in parts):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in policy.parameters()):
        raise ValueError(f"freeze={','.join(parts)}: nothing is left to train; leave out a part")


def initialise(policy: Policy, source: str | Path, parts: tuple[str, ...]) -> None:
    """Copy the weights of `parts` from `source` into the policy; all of them, or none where one does not fit.

    Args:
        source: the folder of an agent or of a training run (its best agent), or the id of a registered agent; or the
            folder of a supervised model, of its run, or its file.

    Raises:
        CheckpointError: nothing usable there, truncated or altered.
        ValueError: weights of a part are missing, unexpected or of another shape. The policy is not changed.
    """
    source = _locate(source)
    theirs, made_with = _read(source, policy)
    own = policy.state_dict()
    chosen: dict[str, Tensor] = {}
    for part in parts:
        here = {name: t for name, t in own.items() if _belongs(name, part)}
        there = {name: t for name, t in theirs.items() if _belongs(name, part)}
        if here and not there:
            raise ValueError(
                f"init_from={source}: no weights of the {part} in it; leave {part} out of init_parts={','.join(parts)}"
            )
        for name in sorted(here.keys() | there.keys()):
            if name not in here or name not in there:
                reason = f"{name} is {'missing there' if name in here else 'there, and not in this policy'}"
            elif here[name].shape != there[name].shape:
                reason = f"{name} is {list(there[name].shape)} there and {list(here[name].shape)} here"
            else:
                continue
            raise ValueError(
                f"init_from={source}: {reason}{_differences(policy, made_with, part)}; give this run the settings of "
                f"that one, or leave {part} out of init_parts={','.join(parts)}"
            )
        check_weights(source, there, here)
        chosen |= there
    policy.load_state_dict(chosen, strict=False)  # every name and shape has been compared


def supervised_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a supervised model, under its own names.

    Args:
        path: its file, its folder, or its run (the best model, else the last).

    Raises:
        CheckpointError: none of these, truncated or altered.
    """
    return load_tensors(_model_file(Path(path)))[0]


def _model_file(path: Path) -> Path:
    for best in (True, False):
        try:
            return find_model(path, best)
        except ValueError:
            pass
    raise CheckpointError(f"{path}: no supervised model in it ({MODEL_FILE} is missing)")


def _belongs(name: str, part: str) -> bool:
    return name.startswith(PARTS[part])


def _locate(source: str | Path) -> Path:
    path, name = Path(source), str(source)
    if path.exists():
        return path
    folder = registry[name].folder if name in registry else None
    if folder is None:
        raise CheckpointError(f"init_from={source}: no such file or folder, nor a registered agent with one")
    return folder


def _read(source: Path, policy: Policy) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights under the names of `policy`, and the settings that they were made with, as far as they are known."""
    try:
        file = _model_file(source)
    except CheckpointError:
        try:
            folder = find_agent_folder(source)
        except CheckpointError:
            raise CheckpointError(
                f"init_from={source}: neither an agent ({AGENT_FILE}) nor a supervised model ({MODEL_FILE}) in it"
            ) from None
        return load_tensors(folder / WEIGHTS_FILE)[0], read_description(folder).get("policy")
    tensors, metadata = load_tensors(file)
    if metadata.get("kind") == "agent":  # its own file, rather than its folder
        return tensors, None
    made_with: dict[str, Any] = dict(convert_json(metadata.get("model") or {}, dict[str, Any], f"{file}: its metadata"))
    made_with["encoder"] = {k: made_with[k] for k in ("crop", "patch_size") if k in made_with}
    spec: dict[str, Any] = convert_json(metadata.get("spec") or {}, dict[str, Any], f"{file}: its metadata")
    if spec and spec.get("answer_ids") == spec.get("input_ids"):
        tensors = {name: t for name, t in tensors.items() if name != MODEL_ENCODER}  # ids of puzzles, not of cells
    return _rename(tensors, policy), made_with


def _rename(weights: dict[str, Tensor], policy: Policy) -> dict[str, Tensor]:
    """Those weights of a supervised model that a policy has a place for."""
    renamed = {name: tensor for name, tensor in weights.items() if _belongs(name, "core")}
    grid = find_grid(policy.encoder)
    if grid is not None and MODEL_ENCODER in weights:
        # What else the encoder has, of entries that a puzzle lacks, stays.
        renamed |= {n: t for n, t in policy.state_dict().items() if _belongs(n, "encoder")}
        embedding = next(n for n, p in policy.named_parameters() if p is grid[0].embedding)
        renamed[embedding] = weights[MODEL_ENCODER]
    return renamed


def _differences(policy: Policy, made_with: dict[str, Any] | None, part: str) -> str:
    """Of the settings that decide on the shapes, those in which the policies differ, as ` (core=hrm there, ...)`."""
    if made_with is None:
        return ""

    def settings(config: dict[str, Any]) -> dict[str, Any]:
        named = {"core": config.get("core"), "core.hidden_size": config.get("hidden_size")}
        named |= {"carry": config.get("carry"), "heads": config.get("heads")}
        for group, options in (("core", config.get("core_options")), ("encoder", config.get("encoder"))):
            named |= {f"{group}.{key}": value for key, value in (options or {}).items()}
        return {k: v for k, v in named.items() if k.partition(".")[0] == part or k == "core.hidden_size"}

    theirs, ours = settings(made_with), settings(policy.config.to_dict())
    both = [k for k in theirs if k in ours and theirs[k] != ours[k]]
    return " (" + ", ".join(f"{k}={theirs[k]} there, {ours[k]} here" for k in both) + ")" if both else ""
