"""From the composed configuration of `hrm_agent.supervise` to the typed settings of each part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from hrm_agent.launch.settings import defaults
from hrm_agent.names.values import EpisodesOrNone, Group, check_fields, checked, one_of, refuse_unknown, typed
from hrm_agent.supervised.deep_supervision import SupervisedConfig
from hrm_agent.supervised.files import ModelConfig
from hrm_agent.supervised.tasks import TASKS
from hrm_agent.supervised.trainer import RunConfig


@dataclass(frozen=True, kw_only=True)
class SuperviseCommand:
    """What `hrm_agent.supervise` does with a run."""

    test_puzzles: EpisodesOrNone = 1000  # of the final evaluation on test puzzles; 0: none
    resume: str | None = None  # folder of a run to resume

    def __post_init__(self) -> None:
        check_fields(self)


OWN_HALTING = {"hrm": "q_learning"}
"""What `training.halting=auto` stands for; TRM's rule for all other cores."""


def supervise_defaults() -> dict[str, Any]:
    """The configuration of `supervise` without its groups; `configs/supervise.yaml` holds what differs."""
    run, model = defaults(RunConfig), defaults(ModelConfig)
    for name in ("task_options", "core", "core_options", "hidden_size"):  # of the groups
        (run if name in run else model).pop(name)
    return {**run, **defaults(SuperviseCommand), "model": model, "training": defaults(SupervisedConfig)}


def settings(values: dict[str, Any]) -> tuple[RunConfig, ModelConfig, SupervisedConfig]:
    """The typed settings of a run; `values` comes from `hrm_agent.launch.settings.resolve`.

    Raises:
        ValueError: a value that is out of range or of the wrong type.
    """
    values = Group(values, "")
    fields = [f.name for f in dataclasses.fields(RunConfig)]
    command = defaults(SuperviseCommand)
    groups = ("core", "task", "training", "model")
    refuse_unknown(values, (*fields, *command, *groups), "")
    run = {name: values[name] for name in fields if name in values and name not in ("task", "task_options")}
    core, task, training, model = (Group(values[group], group) for group in groups)
    name = checked("core", core.take("name"), str)
    chosen = {"core": name, "hidden_size": core.take("hidden_size"), "core_options": dict(core)}
    if training.pop("compile", False):  # in runs from before `kernel`
        run.setdefault("kernel", "compiled")
    if training.get("halting") == "auto":
        training["halting"] = OWN_HALTING.get(name, "halt_only")
    task_name = checked("task", task.take("name"), Annotated[str, one_of(TASKS)])
    typed(SuperviseCommand, {setting: values[setting] for setting in command if setting in values}, "")
    return (
        typed(RunConfig, {**run, "task": task_name, "task_options": dict(task)}, ""),
        typed(ModelConfig, {**model, **chosen}, "model"),
        typed(SupervisedConfig, training, "training"),
    )
