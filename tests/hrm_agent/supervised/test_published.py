"""Checkpoints in the authors' format: they load, they are the same model, and nothing in them is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrm_agent.supervised import PuzzleModel, model_from_published
from hrm_agent.supervised.published import (
    export_published,
    find_weights,
    load_published_checkpoint,
    name_from_published,
    read_weights,
)
from hrm_agent.supervised.tasks.base import TaskSpec
from published_files import PUBLISHED, needs_published

NUMBERS = [path for path in PUBLISHED if path.stem != "hrm_agent"]

TRM = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"
HRM = "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
BOTH: dict[str, Any] = {
    "H_cycles": 2, "L_cycles": 1, "L_layers": 1, "num_heads": 2, "hidden_size": 8, "expansion": 4, "halt_max_steps": 16,
    "halt_exploration_prob": 0.1, "puzzle_emb_ndim": "${.hidden_size}",
    "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "hrm": {"name": HRM, "H_layers": 2, "pos_encodings": "rope"},
    "hrm-learned": {"name": HRM, "H_layers": 1, "pos_encodings": "learned"},
    "hrm-of-trm": {
        "name": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
        "H_layers": 1,
        "pos_encodings": "rope",
        "mlp_t": False,
    },
    "trm": {"name": TRM, "H_layers": 0, "pos_encodings": "rope", "mlp_t": False, "no_ACT_continue": True},
    "trm-mlp": {"name": TRM, "H_layers": 0, "pos_encodings": "none", "mlp_t": True, "puzzle_emb_len": 3},
    "trm-no-puzzles": {"name": TRM, "H_layers": 0, "pos_encodings": "rope", "puzzle_emb_ndim": 0},
}
SPEC = TaskSpec(sequence_length=5, input_ids=6, answer_ids=6, num_puzzles=4)
BATCH = {"inputs": torch.arange(10).view(2, 5) % 6, "puzzle_identifiers": torch.tensor([3, 1])}


def model_of(variant: str) -> PuzzleModel:
    """A model of that architecture, all of whose weights are away from zero."""
    arch = {"puzzle_emb_len": 16, "mlp_t": False, **BOTH, **ARCHITECTURES[variant]}
    kind = "trm" if arch["name"] == TRM else "hrm"
    size = arch["hidden_size"] if arch["puzzle_emb_ndim"] else 0
    facts = {"kind": kind, "puzzle_emb_ndim": size, "vocab_size": 6, "seq_len": 5, "num_puzzle_identifiers": 4}
    torch.manual_seed(0)
    model = model_from_published({**arch, **facts, **({"puzzle_emb_len": 0} if kind == "hrm" else {})})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_folder(folder: Path, variant: str, **changes: Any) -> PuzzleModel:
    """A folder as the authors' training leaves it; returns the model."""
    model = model_of(variant)
    folder.mkdir(exist_ok=True)
    arch = {**BOTH, **ARCHITECTURES[variant], **changes}
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "global_batch_size": 768, "ema": True}))
    torch.save(export_published(model), folder / "step_200")
    return model


def segments(model: PuzzleModel, batch: dict[str, Tensor], count: int = 2) -> list[Tensor]:
    """Logits, halting logits included, of every segment."""
    state, found = model.initial_state(len(batch["inputs"])), []
    with torch.no_grad():
        for _ in range(count):
            state, *outputs = model(state, batch)
            found += outputs
    return found


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_a_checkpoint_written_as_the_authors_do_is_the_same_model(variant: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path, variant)
    spec = SPEC if "no-puzzles" not in variant else TaskSpec(5, 6, 6)
    loaded, facts = load_published_checkpoint(tmp_path, spec)
    assert not loaded.training
    for ours, theirs in zip(segments(loaded, BATCH), segments(source, BATCH), strict=True):
        assert torch.equal(ours, theirs)
    assert facts["halt_max_steps"] == 16
    assert (facts["step"], facts["ema"], facts["kind"]) == (200, True, variant[:3])
    json.dumps(facts)


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_exported_names_are_those_that_are_read(variant: str) -> None:
    model = model_of(variant)
    core = variant[:3]
    names = {name_from_published(name, core): tensor for name, tensor in export_published(model).items()}
    assert names.keys() == model.state_dict().keys()
    assert all(name.startswith("_orig_mod.model.inner.") for name in export_published(model))
    with_patches = PuzzleModel(
        vocabulary_size=6, sequence_length=16, num_puzzles=1, hidden_size=8, puzzle_embedding_size=0, grid=(4, 4),
        patch_size=2, core_options={"layers": 1, "num_heads": 2},
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no published name"):
        export_published(with_patches)
    other = PuzzleModel(
        vocabulary_size=6, sequence_length=16, num_puzzles=1, hidden_size=8, puzzle_embedding_size=0, core="gru",
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no published names"):
        export_published(other)


@needs_published
@pytest.mark.parametrize("path", NUMBERS, ids=lambda p: p.stem)
def test_weights_of_the_authors_code_in_their_layout_give_their_numbers(path: Path, tmp_path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    kind = config.pop("kind")
    data = {name: config.pop(name) for name in ("vocab_size", "seq_len", "num_puzzle_identifiers")}
    weights = {
        f"_orig_mod.model.{n.removeprefix('weights/')}": t for n, t in tensors.items() if n.startswith("weights")
    }
    torch.save(weights, tmp_path / "step_10")
    arch = {**config, "name": TRM if kind == "trm" else HRM}
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch}))
    (tmp_path / "dataset.json").write_text(json.dumps({"seq_len": data["seq_len"]}))
    model, facts = load_published_checkpoint(tmp_path)
    assert {name: facts[name] for name in data} == data
    batch = {name: tensors[name].long() for name in ("inputs", "puzzle_identifiers")}
    state = model.initial_state(len(batch["inputs"]))
    for n in range(3):
        with torch.no_grad():
            state, *found = model(state, batch)
        for ours, name in zip(found, ("logits", "q_halt_logits", "q_continue_logits"), strict=True):
            torch.testing.assert_close(ours, tensors[f"segment{n}/{name}"], rtol=0, atol=1e-4)
        # The authors' latents: recursion amplifies rounding, which differs from processor to processor.
        state = type(state)(*(tensors[f"segment{n}/{name}"] for name in ("z_H", "z_L")))


def test_which_file_of_a_folder_is_taken(tmp_path: Path) -> None:
    for name in ("checkpoint", "model.safetensors", "step_20", "step_100", "step_9.pt", "step_300_all_preds.0", "a.py"):
        (tmp_path / name).touch()
    for expected in ("step_100", "step_20", "step_9.pt", "checkpoint", "model.safetensors"):
        assert find_weights(tmp_path).name == expected
        (tmp_path / expected).unlink()
    with pytest.raises(ValueError, match="has no file step_N"):
        find_weights(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("prefix", ["inner.", "model.inner."])
def test_weights_of_uncompiled_models_and_safetensors_load_too(prefix: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path, "trm")
    weights = {prefix + n.partition("inner.")[2]: t for n, t in export_published(source).items()}
    (tmp_path / "step_200").unlink()
    save_file(weights, tmp_path / "model.safetensors")
    loaded, facts = load_published_checkpoint(tmp_path / "model.safetensors", SPEC)
    assert facts["step"] is None
    assert torch.equal(segments(loaded, BATCH)[0], segments(source, BATCH)[0])


def test_latents_saved_in_bfloat16_load(tmp_path: Path) -> None:
    """The authors' initial latents are of the type that they compute in."""
    source = write_folder(tmp_path, "trm")
    weights = export_published(source)
    half = {name: t.bfloat16() if name.endswith("_init") else t for name, t in weights.items()}
    torch.save(half, tmp_path / "step_200")
    loaded, _ = load_published_checkpoint(tmp_path, SPEC)
    assert {parameter.dtype for parameter in loaded.state_dict().values()} == {torch.float32}
    expected = weights["_orig_mod.model.inner.H_init"].bfloat16().float()
    assert torch.equal(loaded.initial_state(1)[0][0, 0], expected)


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def assert_refused(path: Path, *wanted: str, spec: TaskSpec | None = SPEC) -> None:
    with pytest.raises(ValueError) as caught:
        load_published_checkpoint(path, spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message


def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "trm")
    target = tmp_path / "executed"
    weights = export_published(model)
    torch.save({**weights, "surprise": Hostile(target)}, tmp_path / "step_300")
    assert_refused(tmp_path, "step_300", "was not loaded")
    torch.save(Hostile(target), tmp_path / "step_300")
    assert_refused(tmp_path, "step_300", "was not loaded")
    torch.save({**weights, "surprise": Hostile(target)}, tmp_path / "step_300", _use_new_zipfile_serialization=False)
    assert_refused(tmp_path, "step_300", "was not loaded")
    assert not target.exists()
    # A whole module is objects, not weights.
    torch.save(model, tmp_path / "step_300")
    assert_refused(tmp_path, "step_300", "was not loaded")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "trm")
    weights = export_published(model)
    for content, wanted in (
        ([1, 2], "holds a list"),
        ({"model": weights, "step": 3}, "'model' is no tensor"),
        ({}, "lack 'embed_tokens.embedding_weight'"),
    ):
        torch.save(content, tmp_path / "step_300")
        assert_refused(tmp_path, wanted)
    (tmp_path / "step_300").write_bytes((tmp_path / "step_200").read_bytes()[:-200])
    assert_refused(tmp_path, "step_300", "was not loaded")
    (tmp_path / "step_300").write_text("no weights")
    assert_refused(tmp_path, "step_300", "was not loaded")
    (tmp_path / "step_400.safetensors").write_text("no weights")
    assert_refused(tmp_path, "step_400", "not a readable safetensors file")


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    weights = export_published(write_folder(tmp_path, "trm"))
    for name in ("lm_head.weight", "H_init", "L_level.layers.0.mlp.down_proj.weight"):
        full = "_orig_mod.model.inner." + name
        torch.save({n: t for n, t in weights.items() if n != full}, tmp_path / "step_200")
        assert_refused(tmp_path, "the weights lack")
        torch.save({**weights, full: torch.zeros(3)}, tmp_path / "step_200")
        assert_refused(tmp_path, "has shape (3,)")
    torch.save({**weights, "_orig_mod.model.inner.other": torch.zeros(1)}, tmp_path / "step_200")
    assert_refused(tmp_path, "'_orig_mod.model.inner.other' is not the published name")
    torch.save(weights, tmp_path / "step_200")
    for changes, wanted in (
        ({"L_layers": 2}, "the weights lack"),
        ({"hidden_size": 16}, "has shape"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"puzzle_emb_len": 0, "pos_encodings": "learned"}, "the weights lack"),
        ({"mlp_t": True}, "the weights lack"),
    ):
        write_folder(tmp_path, "trm", **changes)
        assert_refused(tmp_path, wanted)


def test_configs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for variant, changes, wanted in (
        ("trm", {"name": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"}, "trm_singlez"),
        ("trm", {"name": "recursive_reasoning.transformers_baseline@Model_ACTV2"}, "is none of those that load"),
        ("trm", {"rope_theta": 500.0}, "rope_theta=500.0"),
        ("hrm", {"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ("hrm", {"mlp_t": True}, "mlp_t=true of HRM"),
        ("hrm", {"hidden_size": "${.absent}"}, "Expected int, got str - at arch.hidden_size"),
        ("trm", {"L_cycles": 10**9}, "arch.L_cycles"),
        ("trm", {"puzzle_emb_len": [1]}, "arch.puzzle_emb_len"),
    ):
        write_folder(tmp_path, variant, **changes)
        assert_refused(tmp_path, wanted)
    config = tmp_path / "all_config.yaml"
    for text, wanted in (("arch: [", "all_config.yaml"), ("a: 1", "has no arch.name"), ("[1]", "has no arch.name")):
        config.write_text(text)
        assert_refused(tmp_path, wanted)
    config.write_text(yaml.safe_dump({"arch": {"name": TRM}}))
    assert_refused(tmp_path, "no entry")
    config.unlink()
    assert_refused(tmp_path, "all_config.yaml", "needs the all_config.yaml")


def test_a_config_never_makes_objects(tmp_path: Path) -> None:
    write_folder(tmp_path, "trm")
    target = tmp_path / "executed"
    (tmp_path / "all_config.yaml").write_text(f"arch: !!python/object/apply:os.mkdir ['{target}']\n")
    assert_refused(tmp_path, "all_config.yaml")
    assert not target.exists()


def test_a_config_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment gets into a model's description."""
    monkeypatch.setenv("HRM_SECRET", "hidden")
    write_folder(tmp_path, "trm", loss="${oc.env:HRM_SECRET}")
    assert load_published_checkpoint(tmp_path, SPEC)[1]["loss"] == "${oc.env:HRM_SECRET}"
    config = tmp_path / "all_config.yaml"
    config.write_text(config.read_text().replace("arch:", "arch: &a\n  ema: *a", 1))
    assert_refused(tmp_path, "all_config.yaml", "an alias")


def test_a_task_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "trm-mlp")
    for spec, wanted in (
        (TaskSpec(9, 6, 6, 4), "5 tokens of a puzzle, but the task 9"),
        (TaskSpec(5, 7, 6, 4), "6 ids of inputs, but the task 7"),
        (TaskSpec(5, 6, 2, 4), "6 ids of answers, but the task 2"),
        (TaskSpec(5, 6, 6, 3), "4 puzzle identifiers, but the task has 3"),
    ):
        assert_refused(tmp_path, wanted, spec=spec)
    load_published_checkpoint(tmp_path, TaskSpec(5, 6, 6))


def test_the_length_of_a_puzzle_is_found_or_asked_for(tmp_path: Path) -> None:
    for variant in ("trm-mlp", "hrm-learned"):
        write_folder(tmp_path, variant)
        assert load_published_checkpoint(tmp_path)[1]["seq_len"] == 5
    write_folder(tmp_path, "trm")
    assert_refused(tmp_path, "give sequence_length", spec=None)
    assert load_published_checkpoint(tmp_path, sequence_length=7)[1]["seq_len"] == 7
    (tmp_path / "dataset.json").write_text('{"seq_len": 5}')
    assert load_published_checkpoint(str(tmp_path / "step_200"))[1]["seq_len"] == 5


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"a": torch.zeros(1).expand(10**9)}, "more numbers than the file"),
        ({"a": torch.tensor(1.0)}, "or none"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "no plain tensor"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "no plain tensor of floating-point numbers"),
        ({3: torch.zeros(2)}, "its entry 3 is no tensor"),
    ],
)
def test_weights_that_are_no_plain_tensors_of_the_file_are_refused(entry: dict, said: str, tmp_path: Path) -> None:
    torch.save(entry, tmp_path / "step_1")
    with pytest.raises(ValueError, match=said):
        read_weights(tmp_path / "step_1")


def test_a_fifo_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step_1")
    with pytest.raises(ValueError, match="not a regular file"):
        read_weights(tmp_path / "step_1")
