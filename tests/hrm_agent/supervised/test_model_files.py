"""A puzzle model's file from a stranger: metadata has types and bounds, weights are finite and of its shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hrm_agent.files.reading import CheckpointError
from hrm_agent.supervised import files
from hrm_agent.supervised.files import ModelConfig, build_model, load_model, read_info, save_model
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
