"""A puzzle model's file from a stranger: metadata has types and bounds, weights are finite and of its shapes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hrm_agent.files.reading import CheckpointError
from hrm_agent.supervised import files
from hrm_agent.supervised.files import ModelConfig, build_model, load_model, load_resized, read_info, save_model
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.tensors.files import load_tensors, save_tensors
from hrm_agent.training.warm_start import initialise
from tiny import CORES, tiny_policy

SPEC = TaskSpec(sequence_length=49, input_ids=6, answer_ids=2, grid=(7, 7))
CONFIG = ModelConfig("trm", CORES["trm"], hidden_size=8, patch_size=2, crop=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_model(tmp_path, build_model(CONFIG, SPEC), CONFIG, SPEC)


def forge(file: Path, weights: dict[str, Any] | None = None, **metadata: Any) -> None:
    """Change weights and metadata, with a checksum that is right."""
    tensors, said = load_tensors(file)
    for part, changes in metadata.items():
        said[part] = {**said[part], **changes} if isinstance(changes, dict) else changes
    save_tensors(file, {**tensors, **(weights or {})}, said)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"spec": None}, "Expected object, got null"),
        ({"spec": {"sequence_length": "49"}}, "Expected int, got str"),
        ({"spec": {"sequence_length": 10**12}}, "expected sizes from 1 to 65,536"),
        ({"spec": {"input_ids": 0}}, "expected sizes from 1 to"),
        ({"spec": {"input_ids": 60_000}}, "weights do not fit the network"),
        ({"spec": {"grid": [7]}}, "length 2"),
        ({"spec": {"num_puzzles": -1}}, "num_puzzles"),
        ({"model": 5}, "model=5: expected settings"),
        ({"model": {"hidden_size": 10**9}}, "hidden_size=1000000000: expected an integer from 1 to"),
        (
            {"model": {"hidden_size": 8000, "core_options": {**CORES["trm"], "inner_size": 60_000}}},
            "describes a network larger than itself",
        ),
        ({"model": {"core": "none"}}, "core=none: no such core"),
        ({"model": {"core_options": {"layers": 10**9}}}, "layers"),
        ({"model": {"wings": 2}}, "wings=2: no such setting"),
        ({"kind": ["agent"]}, "not a puzzle model"),
    ],
)
def test_metadata_that_no_model_has_is_one_line_and_builds_nothing(
    metadata: dict[str, Any], said: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(file, **metadata)
    built: list[str] = []

    def recorded(*arguments: Any) -> Any:
        model = build_model(*arguments)
        built.append(str(metadata))
        return model

    monkeypatch.setattr(files, "build_model", recorded)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(file)
    assert str(caught.value).isprintable()
    assert not built or "60000" in built[0]  # a table of ids that is smaller than what is allowed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, file: Path) -> None:
    name, weight = next(iter(load_tensors(file)[0].items()))
    forge(file, {name: torch.full_like(weight, value)})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_model(file)
    policy = tiny_policy()
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        initialise(policy, file, ("core", "encoder"))
    assert all(torch.equal(t, before[name]) for name, t in policy.state_dict().items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "Expected object, got array"),
        ("{", "not valid JSON"),
        ('{"task": 5}', r"Expected str, got int - at \$.task"),
        ('{"task_options": "a"}', "Expected object, got str"),
        ('{"max_segments": 1000000000000}', "Expected int <= 1024"),
        ('{"seed": -1}', "Expected int >= 0"),
    ],
)
def test_a_description_of_another_kind_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_info(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"task": "maze_path", "more": [1]}))
    assert read_info(tmp_path) == {"task": "maze_path", "more": [1]}


@pytest.mark.parametrize(
    "options",
    [
        {"mixing": "conv"},
        {"mixing": "sweep"},
        {"mixing": "attention", "positions": "rope2d", "num_heads": 1},
        {"mixing": "attention_local", "num_heads": 2},
    ],
)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_model_without_weights_for_one_size_solves_other_sizes(
    options: dict[str, Any], patch_size: int, tmp_path: Path
) -> None:
    """The same weights; and what they say is that of a model that was built for the other size."""
    config = ModelConfig("trm", {**CORES["trm"], **options}, hidden_size=8, patch_size=patch_size)
    file = save_model(tmp_path, build_model(config, SPEC), config, SPEC)
    found, other = load_resized(file, (11, 9)), build_model(config, replace(SPEC, sequence_length=99, grid=(11, 9)))
    assert found is not None
    other.load_state_dict(load_tensors(file)[0])
    batch = {"inputs": torch.arange(99)[None] % 6, "puzzle_identifiers": torch.zeros(1, dtype=torch.int32)}
    with torch.no_grad():
        logits = [model(model.initial_state(1), batch)[1] for model in (found, other)]
    assert logits[0].shape == (1, 99, 2)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("options", "settings", "grid"),
    [
        ({"mixing": "mlp"}, {}, (9, 9)),
        ({"mixing": "conv"}, {"positions": "learned"}, (9, 9)),
        ({"mixing": "units"}, {}, (9, 10)),
        ({"mixing": "conv"}, {}, (1, 49)),  # weights of as many tokens could have another meaning
    ],
)
def test_a_model_with_weights_for_one_size_solves_no_other(
    options: dict[str, Any], settings: dict[str, Any], grid: tuple[int, int], tmp_path: Path
) -> None:
    spec = replace(SPEC, sequence_length=81, grid=(9, 9)) if options["mixing"] == "units" else SPEC
    config = ModelConfig("trm", {**CORES["trm"], **options}, hidden_size=8, **settings)
    file = save_model(tmp_path, build_model(config, spec), config, spec)
    assert load_resized(file, grid) is None


class Allocated(TorchFunctionMode):
    """Counts the bytes of new tensors, of those that an inner mode lets through."""

    size = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand):
            self.size += made.nbytes
        return made


def test_a_resized_model_is_held_to_its_file_s_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the asked size are refused before they take memory, not afterwards because their shapes differ."""
    config = ModelConfig("trm", {**CORES["trm"], "mixing": "mlp"}, hidden_size=8)
    file = save_model(tmp_path, build_model(config, SPEC), config, SPEC)
    allowed, sizes = 4 * file.stat().st_size, {}
    monkeypatch.setattr(files, "allowance", lambda path: allowed)  # the rest of it is for tables of large grids
    for guard in (True, False):
        if not guard:
            monkeypatch.setattr(files, "at_most", lambda size, message: nullcontext())
        with Allocated() as allocated:
            assert load_resized(file, (90, 90)) is None
        sizes[guard] = allocated.size
    assert sizes[True] <= allowed < sizes[False]
