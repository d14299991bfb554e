"""What a program does while it trains: it watches, ends a run in order, and loses nothing where it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hrm_agent import Agent, Callback
from hrm_agent.training.callbacks import check_callbacks
from hrm_agent.training.tracking import Console
from hrm_agent.training.trainer import Trainer
from runs import assert_equal_bits, everything
from tiny import make_trainer

QUIET = Console(quiet=True)


class Notes(Callback):
    """Notes what it is called with, and ends or breaks the run at one of these moments."""

    def __init__(self, ends: str = "", breaks: str = "", says: bool = False) -> None:
        self.ends, self.breaks, self.says, self.moments = ends, breaks, says, list[str]()

    def _note(self, event: str, trainer: Trainer) -> bool | None:
        moment = f"{event} {trainer.frames}"
        self.moments.append(moment)
        if moment == self.breaks:
            raise LookupError(moment)
        if moment == self.ends and not self.says:
            trainer.stop()
        return False if moment == self.ends and self.says else None

    def on_update(self, trainer: Trainer) -> bool | None:
        assert trainer.progress["frames_per_second"] > 0
        assert "policy_loss" in trainer.progress
        return self._note("update", trainer)

    def on_evaluation(self, trainer: Trainer) -> bool | None:
        assert 0 <= trainer.validation["success"] <= 1
        return self._note("evaluation", trainer)

    def on_end(self, trainer: Trainer) -> None:
        assert Agent.load(trainer.folder, best=False).info["frames"] == trainer.agent().info["frames"]
        self._note("end", trainer)


def weights_and_streams(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All of a checkpoint but when it was evaluated."""
    return {name: tensor for name, tensor in everything(trainer).items() if name != "metadata"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A run of 128 frames that nothing ends."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run(QUIET)
    return weights_and_streams(trainer)


def test_each_update_each_evaluation_and_the_end(tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    make_trainer(tmp_path, eval_every=64, curve_every=32, callbacks=[first, second]).run(QUIET)
    assert first.moments == second.moments
    assert first.moments == [
        "update 32", "evaluation 64", "update 64", "update 96", "evaluation 128", "update 128", "end 128",
    ]  # fmt: skip


@pytest.mark.parametrize(("ends", "says"), [("update 64", True), ("evaluation 64", False)])
def test_a_run_that_a_callback_ends_is_whole(
    ends: str, says: bool, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    notes = Notes(ends=ends, says=says)
    trainer = make_trainer(tmp_path, eval_every=64, callbacks=[notes, Notes()])
    trainer.run(QUIET)
    assert notes.moments[-1] == "end 64"
    assert trainer.checkpoints.latest() == trainer.checkpoints.path(64)
    for best in (False, True):
        assert Agent.load(tmp_path, best=best).info["frames"] == 64
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["frames"] for line in logged if "validation/success" in line] == [64]

    goes_on = make_trainer(tmp_path)
    goes_on.resume()
    goes_on.run(QUIET)
    assert_equal_bits(whole, weights_and_streams(goes_on))


@pytest.mark.parametrize("breaks", ["update 64", "evaluation 96", "end 128"])
def test_an_exception_of_a_callback_leaves_a_checkpoint(
    breaks: str, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    trainer = make_trainer(tmp_path, eval_every=96, callbacks=[Notes(breaks=breaks)])
    with pytest.raises(LookupError, match=breaks):
        trainer.run(QUIET)
    assert trainer.checkpoints.latest() == trainer.checkpoints.path(int(breaks.split()[1]))

    notes = Notes()
    goes_on = make_trainer(tmp_path, eval_every=96, callbacks=[notes])
    goes_on.resume()
    goes_on.run(QUIET)
    assert notes.moments[-1] == "end 128"
    assert_equal_bits(whole, weights_and_streams(goes_on))


def test_one_callback_or_several() -> None:
    one = Callback()
    assert check_callbacks(one) == check_callbacks([one]) == check_callbacks((one,)) == [one]
    assert check_callbacks([]) == []
    with pytest.raises(ValueError, match=r"callbacks=function: expected a list of hrm_agent\.Callback"):
        check_callbacks(lambda trainer: None)
