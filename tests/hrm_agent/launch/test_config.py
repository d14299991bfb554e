"""The configuration that is shipped and the defaults of the code say the same."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from hrm_agent.launch.settings import ALGORITHMS, config_folder


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_defaults_of_its_yaml(name: str) -> None:
    shipped = yaml.safe_load((config_folder() / "algo" / f"{name}.yaml").read_text())
    assert shipped.pop("name") == name
    defaults = dataclasses.asdict(ALGORITHMS[name]())
    assert list(shipped) == list(defaults)
    assert shipped == defaults
    assert {k: type(v) for k, v in shipped.items()} == {k: type(v) for k, v in defaults.items()}


def test_every_algorithm_is_shipped() -> None:
    assert {path.stem for path in (config_folder() / "algo").glob("*.yaml")} == set(ALGORITHMS)
