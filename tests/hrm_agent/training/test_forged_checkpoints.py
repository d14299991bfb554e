"""A checkpoint that no run can have saved is refused as a whole; one that is accepted can be trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrm_agent.algos.imitation import DAggerConfig
from hrm_agent.tensors.gradients import NonFiniteNumbers
from hrm_agent.training.trainer import Trainer
from tiny import make_dqn_trainer, make_trainer

Saved = tuple[dict[str, Tensor], dict[str, Any]]
RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
ALGORITHMS: dict[str, Callable[[Path], Trainer]] = {
    "ppo": lambda folder: make_trainer(folder, algo={"scale_rewards": True}),
    "dqn": lambda folder: make_dqn_trainer(folder, algo={"prioritised": True}),
    "dagger": lambda folder: make_trainer(folder, kind=DAggerConfig),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trainer, Saved]]:
    made = {}
    for name, make in ALGORITHMS.items():
        trainer = make(tmp_path_factory.mktemp(name))
        for _ in range(4):
            iterate(trainer)
        made[name] = trainer, save(trainer)
    return made


def iterate(trainer: Trainer) -> None:
    trainer.learner.collect(trainer.collector, 0.0)
    trainer.learner.update(0.0)


def save(trainer: Trainer) -> Saved:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}, copy.deepcopy(trainer.metadata())


def equal(one: Saved, other: Saved) -> bool:
    (left, left_json), (right, right_json) = one, other
    same = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return same and left_json == right_json


@st.composite
def altered(draw: Any, saved: Saved) -> Saved:
    """A checkpoint with one tensor or one number changed."""
    tensors, metadata = dict(saved[0]), copy.deepcopy(saved[1])
    if draw(st.integers(0, 3)) == 0:
        place = metadata[draw(st.sampled_from(("collector", "learner")))]
        while isinstance(place, dict) and place and not draw(st.booleans()):
            inner = [value for value in place.values() if isinstance(value, dict | list)]
            place = draw(st.sampled_from(inner)) if inner else metadata
        keys = range(len(place)) if isinstance(place, list) else sorted(place)
        if len(keys):
            values = (-1, 0, 1, 7, 2**70, 1.5, float("nan"), float("-inf"), True, None, "x", [], {}, [1, 2, 3])
            place[draw(st.sampled_from(keys))] = draw(st.sampled_from(values))
        return tensors, metadata
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name].clone()
    how = draw(st.sampled_from(("number", "byte", "dtype", "shape", "missing", "extra")))
    if how == "number" and tensor.numel():
        at = draw(st.integers(0, tensor.numel() - 1))
        wide = tensor.is_floating_point()
        values = (-1, 0, 1, 255, -(2**31), 2**31 - 1, *((float("nan"), float("inf"), 1e30, -1e-30) if wide else ()))
        narrow = {torch.uint8: 256, torch.int32: 2**32}.get(tensor.dtype, 2**70)
        value = draw(st.sampled_from(values))
        tensor.view(-1)[at] = value % narrow if tensor.dtype == torch.uint8 else value
    elif how == "byte" and tensor.numel():
        data = tensor.view(-1).view(torch.uint8)
        data[draw(st.integers(0, min(data.numel(), 64) - 1))] = draw(st.integers(0, 255))
    elif how == "dtype":
        tensor = tensor.to(draw(st.sampled_from((torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8))))
    elif how == "shape":
        ways = (tensor[None], tensor.flatten()[:-1], torch.cat([tensor.view(-1)] * 2), tensor.new_zeros(()))
        tensor = draw(st.sampled_from(ways))
    tensors[name + ("/more" if how == "extra" else "")] = tensor
    if how == "missing":
        del tensors[name]
    return tensors, metadata


@settings(max_examples=60, **RELAXED)
@given(data=st.data(), algorithm=st.sampled_from(sorted(ALGORITHMS)))
def test_an_altered_checkpoint_is_refused_as_a_whole_or_can_be_trained_on(
    data: st.DataObject, algorithm: str, trained: dict[str, tuple[Trainer, Saved]]
) -> None:
    trainer, saved = trained[algorithm]
    trainer.restore(*saved)
    assert equal(save(trainer), saved)
    forged = data.draw(altered(saved))
    refusal = None
    try:
        trainer.restore(*forged)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        assert equal(save(trainer), saved)
        return
    for _ in range(2):
        try:
            iterate(trainer)
        except NonFiniteNumbers:  # of weights that are numbers, but too large
            return


def generator_behind_its_end(saved: Saved) -> None:
    state = saved[0]["generator/minibatches"]
    state[8:12] = torch.tensor([600, 0], dtype=torch.int16).view(torch.uint8)  # words left
    state[16:18] = torch.tensor([624], dtype=torch.int16).view(torch.uint8)  # the next one: there are 624


def moments_of_another_shape(saved: Saved) -> None:
    name = next(name for name in saved[0] if name.endswith("/exp_avg"))
    saved[0][name] = torch.zeros(1)


def moments_of_no_parameter(saved: Saved) -> None:
    saved[0]["optimizer/999/step"] = torch.tensor(1.0)


def an_id_without_embedding(saved: Saved) -> None:
    saved[0]["collector/obs/"][0, 1, 1] = 200


def an_agent_outside_the_map(saved: Saved) -> None:
    saved[0]["collector/env/agent"][0] = 10**6


def a_bool_of_two(saved: Saved) -> None:
    saved[0]["collector/episode_start"].view(torch.uint8)[0] = 2


def frames_in_words(saved: Saved) -> None:
    saved[1]["collector"]["frames"] = "many"


def weights_as_integers(saved: Saved) -> None:
    name = next(name for name in saved[0] if name.startswith("policy/"))
    saved[0][name] = saved[0][name].int()


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (generator_behind_its_end, "generator/minibatches: 600 words left after 624, no generator"),
        (moments_of_another_shape, r"optimizer \d+ exp_avg is float32\[1\], expected float32\["),
        (moments_of_no_parameter, r"optimizer 999: expected the number of one of \d+ parameters"),
        (an_id_without_embedding, "collector obs: 200 is not from 0 to 5, as of its space"),
        (an_agent_outside_the_map, r"state\['agent'\]\[0\] is 1000000, expected a position inside the border"),
        (a_bool_of_two, "collector episode_start as bytes: 2 is not from 0 to 1"),
        (frames_in_words, r"collector: Expected int, got str - at \$.frames"),
        (weights_as_integers, r"policy \S+ is int32\[.*\], expected float32\["),
    ],
)
def test_the_message_says_what_was_found_and_what_was_expected(
    forge: Callable[[Saved], None], message: str, trained: dict[str, tuple[Trainer, Saved]]
) -> None:
    trainer, saved = trained["ppo"]
    trainer.restore(*saved)
    forged = {name: tensor.clone() for name, tensor in saved[0].items()}, copy.deepcopy(saved[1])
    forge(forged)
    with pytest.raises(ValueError, match=message) as refusal:
        trainer.restore(*forged)
    assert "\n" not in str(refusal.value)
    assert equal(save(trainer), saved)


def actions_that_there_are_not(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["replay/actions"][0, 0] = 4


def priorities_below_zero(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["replay/priorities"][0, 0] = -1


def more_steps_than_were_added(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["learner"]["replay"]["added"] = 1


def a_billion_final_observations(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["learner"]["replay"]["final_ids"] = [0, 10**9]


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (actions_that_there_are_not, "replay actions: 4 is not from 0 to 3"),
        (priorities_below_zero, "replay priorities: -1.0 is not from"),
        (more_steps_than_were_added, r"replay obs is uint8\[12, 8, 7, 7\], expected uint8\[1, 8, 7, 7\]"),
        (a_billion_final_observations, r"replay final_ids \[0, 1000000000\]: expected one final observation for each"),
    ],
)
def test_a_forged_replay_is_refused(
    forge: Callable[[dict[str, Tensor], dict[str, Any]], None],
    message: str,
    trained: dict[str, tuple[Trainer, Saved]],
) -> None:
    trainer, saved = trained["dqn"]
    trainer.restore(*saved)
    tensors, metadata = {name: tensor.clone() for name, tensor in saved[0].items()}, copy.deepcopy(saved[1])
    forge(tensors, metadata)
    with pytest.raises(ValueError, match=message):
        trainer.restore(tensors, metadata)
    assert equal(save(trainer), saved)
