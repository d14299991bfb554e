"""A checkpoint of supervised training that no run can have saved is refused as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hrm_agent.supervised import ModelConfig
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.trainer import RunConfig, SupervisedTrainer
from puzzles import SPEC, Copying

Saved = tuple[dict[str, Tensor], dict[str, Any]]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SupervisedTrainer:
    core = {"layers": 1, "H_cycles": 1, "L_cycles": 1, "inner_size": 8, "num_heads": 2}
    model = ModelConfig(core="trm", core_options=core, hidden_size=8, puzzle_embedding_size=8, slots=1)
    training = SupervisedConfig(batch_size=4, max_segments=3, ema=0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm_agent.supervised.trainer.build_task", lambda *arguments: Copying())
        folder = tmp_path_factory.mktemp("run")
        made = SupervisedTrainer(RunConfig(task="copying", threads=1), model, training, folder)
    for _ in range(2):
        made.learner.step(0.0)
    return made


def save(trainer: SupervisedTrainer) -> Saved:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}, copy.deepcopy(trainer.metadata())


def an_input_without_embedding(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["batch/inputs"][0, 0] = SPEC.input_ids


def a_label_without_answer(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["batch/labels"][1, 0] = -1


def a_puzzle_without_embedding(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["batch/puzzle_identifiers"][3] = 2**31 - 1


def puzzles_of_another_length(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["batch/inputs"] = tensors["batch/inputs"][:, :-1]


def no_batch(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    for name in ("inputs", "labels", "puzzle_identifiers"):
        del tensors[f"batch/{name}"]
    tensors["halted"][:] = torch.tensor([True, False, True, True])


def segments_without_end(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["segments"][0] = -(2**62)


def a_state_that_is_not_finite(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["state/0"].view(-1)[0] = float("nan")


def moments_of_another_shape(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["optimizer/0/exp_avg"] = torch.zeros(1)


def a_generator_of_another_kind(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["learner"]["generator"]["bit_generator"] = "MT19937"


def a_generator_beyond_its_bits(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["learner"]["generator"]["state"]["state"] = 2**200


def steps_in_words(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["learner"]["steps"] = "many"


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (an_input_without_embedding, rf"batch inputs: {SPEC.input_ids} is not from 0 to {SPEC.input_ids - 1}"),
        (a_label_without_answer, "batch labels: -1 is not from 0 to"),
        (a_puzzle_without_embedding, r"batch puzzle_identifiers: 2147483647 is not from 0 to"),
        (puzzles_of_another_length, r"batch inputs is int32\[4, \d+\], expected int32\[4, \d+\]"),
        (no_batch, "batch is missing, and not all puzzles have halted"),
        (segments_without_end, r"segments: -4611686018427387904 is not from 0 to 3"),
        (a_state_that_is_not_finite, "state/0 has entries that are NaN or infinite"),
        (moments_of_another_shape, r"optimizer 0 exp_avg is float32\[1\], expected float32\["),
        (a_generator_of_another_kind, "generator: no PCG64 can be in this state"),
        (a_generator_beyond_its_bits, "generator: no PCG64 can be in this state"),
        (steps_in_words, r"learner: Expected int, got str - at \$.steps"),
    ],
)
def test_a_forged_checkpoint_is_refused_as_a_whole(
    forge: Callable[[dict[str, Tensor], dict[str, Any]], None], message: str, trainer: SupervisedTrainer
) -> None:
    saved = save(trainer)
    trainer.restore(*saved)
    tensors, metadata = {name: tensor.clone() for name, tensor in saved[0].items()}, copy.deepcopy(saved[1])
    forge(tensors, metadata)
    with pytest.raises(ValueError, match=message) as refusal:
        trainer.restore(tensors, metadata)
    assert "\n" not in str(refusal.value)
    after = save(trainer)
    assert after[1] == saved[1]
    assert after[0].keys() == saved[0].keys()
    assert all(torch.equal(after[0][name], tensor) for name, tensor in saved[0].items())
