"""What a search draws from: a file of `configs/search/` or of one's own, and what is typed beside it.

settings: [algo=ppo]                                     # of every trial, and of the best one's command
trial: [threads=1, eval_every=0]                         # of the trials alone
params:                                                  # in the words of Hydra's sweeps
  algo.learning_rate: tag(log, interval(3e-4, 1e-2))
  algo.epochs: choice(1, 2, 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from msgspec import Struct

from hrm_agent.files.plain_yaml import read_yaml
from hrm_agent.files.reading import convert_json
from hrm_agent.launch.cli import UsageError, expand_sweeps, group_choices, one_at_a_time, parse_overrides
from hrm_agent.launch.settings import config_folder
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import printable

FOLDER = "search"
"""Of `configs/`, where the spaces that ship are."""
SET_HERE = ("hydra", "resume", "test_episodes")
"""Settings that the search gives each trial itself; test levels choose nothing."""


class _SpaceFile(Struct, forbid_unknown_fields=True):
    params: dict[str, str | int | float | bool]
    settings: list[str] = []
    trial: list[str] = []


@dataclass(frozen=True)
class Space:
    """What is searched over, and what every trial has.

    Attributes:
        params: by the name of a setting, the values as they are typed, `choice(1,2)`.
        settings: of every trial, as typed.
        trial: further ones, which concern the trials alone.
    """

    params: dict[str, str]
    settings: list[str]
    trial: list[str]

    def jobs(self) -> Iterator[list[str]]:
        """Settings of trials: the first value of each parameter, then every other value once."""
        fixed = [*self.trial, *self.settings]
        yield from one_at_a_time([*fixed, *(f"{name}={values}" for name, values in self.params.items())])

    def distributions(self) -> dict[str, Any]:
        """For Optuna, by name; choices are texts.

        Raises:
            UsageError: an interval without numbers in it.
        """
        return {name: _distribution(name, values) for name, values in self.params.items()}

    def overrides(self, drawn: dict[str, Any]) -> list[str]:
        """The settings of a trial, with the values that were drawn."""
        return [*self.trial, *self.best_overrides(drawn)]

    def best_overrides(self, drawn: dict[str, Any]) -> list[str]:
        """The same without those of trials alone."""
        return [*self.settings, *(f"{name}={drawn[name]}" for name in self.params)]


def read_space(name: str, typed: Sequence[str]) -> Space:
    """The space of a file, changed by what is typed.

    Args:
        name: of a file in `configs/search/`, or the path of another `.yaml` file.
        typed: settings of `hrm_agent.train`: one value fixes a parameter, several or an interval replace its values.

    Raises:
        UsageError: no such space, or a setting that a search does not take.
        CheckpointError: a file that is none.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else config_folder() / FOLDER / f"{name}.yaml"
    if not own and name not in group_choices(FOLDER):
        raise UsageError(f"space={name}: no such space{did_you_mean(name, group_choices(FOLDER))}; or give FILE.yaml")
    file: _SpaceFile = convert_json(read_yaml(path), _SpaceFile, str(path))
    params = {name: _words(values) for name, values in file.params.items()}
    settings = list(file.settings)
    trial = {override.get_key_element(): override.input_line or "" for override in parse_overrides(file.trial)}
    for override in parse_overrides(list(typed)):
        key, text = override.get_key_element(), override.input_line or ""
        if key.lstrip("+").partition(".")[0] in SET_HERE:
            raise UsageError(f"{printable(text)}: is set by the search for every trial; leave it out")
        params.pop(key, None)
        trial.pop(key, None)
        if override.is_sweep_override():
            params[key] = text.partition("=")[2]
        else:
            settings.append(text)
    for key, values in params.items():
        (override,) = parse_overrides([f"{key}={values}"])
        if not override.is_sweep_override():
            raise UsageError(f"{path}: {key}={printable(values)}: expected choice(A, B) or interval(LOW, HIGH)")
    if not params:
        raise UsageError(f"space={name}: nothing is left to search over; train with these settings instead")
    return Space(params, settings, [*trial.values(), "test_episodes=0"])


def _words(values: Any) -> str:
    return str(values).lower() if isinstance(values, bool) else str(values)


def _distribution(name: str, values: str) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # an extra

    (override,) = parse_overrides([f"{name}={values}"])
    if override.is_discrete_sweep():
        return CategoricalDistribution([each[0].partition("=")[2] for each in expand_sweeps([f"{name}={values}"])])
    interval = _interval(override)
    low, high, log = interval.start, interval.end, "log" in interval.tags
    if low is None or high is None or not low < high or (log and low <= 0):
        raise UsageError(f"{name}={values}: expected interval(LOW, HIGH), LOW below HIGH{', both above 0' * log}")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _interval(override: Override) -> IntervalSweep:
    value = override.value()
    assert isinstance(value, IntervalSweep)
    return value
