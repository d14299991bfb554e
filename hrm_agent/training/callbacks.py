"""What a program does while it trains: watch a run, and end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hrm_agent.training.trainer import Trainer


class Callback:
    """Is called during training; subclass it and override what is needed.

    Each method is given the trainer. Worth reading there: `frames`, `updates`, `seconds`, `done` (fraction of the run),
    `progress` (numbers of the last update by name: `success` and `return` of sampled actions, losses,
    `frames_per_second`), `validation` (numbers of the last evaluation, as `metrics.jsonl` has them, empty before the
    first), `folder`, and `agent()`, the current policy as an `Agent`, whose weights go on changing.

    A method that returns False ends training, and so does `trainer.stop()`: the run then ends as at `total_steps`, with
    an evaluation on validation levels, both agents, a checkpoint and its logs. An exception ends it at once, after a
    checkpoint, and is raised in the program.
    """

    def on_update(self, trainer: Trainer) -> bool | None:
        """After every update, and what was due after it (evaluations, checkpoints)."""

    def on_evaluation(self, trainer: Trainer) -> bool | None:
        """After every evaluation on all `eval_episodes` validation levels, the last one included.

        The points of `validation_quick`, on fewer levels, are only logged.
        """

    def on_end(self, trainer: Trainer) -> None:
        """After the last evaluation; agents and the last checkpoint are there. Not where the run is interrupted."""


def check_callbacks(callbacks: object) -> list[Callback]:
    """A callback, or several, as a list. Raises: ValueError for anything else."""
    given = [callbacks] if isinstance(callbacks, Callback) else callbacks
    if not isinstance(given, list | tuple):
        raise ValueError(f"callbacks={type(given).__name__}: expected a list of hrm_agent.Callback")
    for number, callback in enumerate(given):
        if not isinstance(callback, Callback):
            what = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            made = f"; give an object of it, {what}()" if isinstance(callback, type) else ""
            raise ValueError(f"callbacks[{number}]={what}: expected an hrm_agent.Callback, or of a subclass{made}")
    return list(given)
