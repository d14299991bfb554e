"""An agent's folder from a stranger: values have types and bounds, and nothing large is built on its word."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.console import Console

from hrm_agent import Agent
from hrm_agent.agents import agent as agents
from hrm_agent.agents.__main__ import list_agents, read_card
from hrm_agent.agents.description import read_description
from hrm_agent.agents.registry import AgentSpec, registry
from hrm_agent.environments.sources import StoredId
from hrm_agent.environments.spaces import MOST_ENTRIES, space_from_dict, space_to_dict
from hrm_agent.files.reading import CheckpointError
from hrm_agent.policies.policy import Policy
from hrm_agent.tensors.files import save_tensors
from tiny import ACTIONS, CORES, GRID, tiny_policy

INFO = {"env": "DynamicMaze-v0", "env_options": {}, "frames": 7, "seconds": 1.5}
ESCAPE = "\x1b[31mred"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Agent(tiny_policy(), GRID, ACTIONS, INFO).save(tmp_path / "agent")
    return tmp_path / "agent"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices of the policies that are built."""
    devices: list[str] = []

    class Recorded(Policy):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            devices.append(self.device.type)

    monkeypatch.setattr(agents, "Policy", Recorded)
    return devices


def change(folder: Path, path: str, value: Any) -> None:
    """Set the value at a dotted path of `agent.json`."""
    file = folder / "agent.json"
    description = json.loads(file.read_text())
    *inner, last = path.split(".")
    part = description
    for key in inner:
        part = part[key]
    part[last] = value
    file.write_text(json.dumps(description))


def nested(levels: int, inner: Any = 1) -> Any:
    for _ in range(levels):
        inner = {"a": inner}
    return inner


LARGE = {"type": "Box", "dtype": "uint8", "shape": [200_000, 200_000], "low": 0, "high": 5}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("policy.hidden_size", 10**9, "hidden_size=1000000000: expected an integer from 1 to"),
        ("policy.hidden_size", "64", "expected `?int"),
        ("policy.hidden_size", True, "expected `?int"),
        ("policy.segments", 10**12, "segments=1000000000000: expected an integer from 1 to"),
        ("policy.segments", 0, "segments=0: expected"),
        ("policy.core", ["trm"], "expected `?str"),
        ("policy.core", ESCAPE, "matching regex"),
        ("policy.core", "tmr", r"agent\.json: core=tmr: no such core; did you mean trm\?"),
        ("policy.core_options.depth", 3, r"agent\.json: core=\w+ has no option 'depth'"),
        ("policy.core", "trm\n", "matching regex"),
        ("policy.core_options.layers", 10**9, "layers"),
        ("policy.core_options.inner_size", 10**12, "inner_size"),
        ("policy.core_options.inner_size", "wide", "inner_size"),
        ("policy.core_options.H_cycles", 10**12, "H_cycles"),
        ("policy.core_options.branch_gain", "abc", "branch_gain"),
        ("policy.core_options", [1], "expected `?object"),
        ("policy.core_options.more", nested(60), "nested more than 50 deep"),
        ("policy.carry", 5, "expected `?str"),
        ("policy.heads", "many", "heads"),
        ("policy.stop_threshold", float("nan"), "stop_threshold"),
        ("policy.agent_id", 2.5, "agent_id"),
        ("policy.encoder", 3, "encoder"),
        ("policy.encoder.patch_size", 0, r"encoder\.patch_size"),
        ("policy.encoder.crop", 10**15, r"encoder\.crop"),
        ("policy.encoder.wings", 2, r"encoder\.wings=2: no such setting"),
        ("policy.wings", 2, r"policy\.wings=2: no such setting"),
        ("policy", "trm", "expected `?object"),
        ("observation_space", LARGE, "40,000,000,000 numbers"),
        ("observation_space", {**LARGE, "shape": [2**40]}, "expected int <= "),
        ("observation_space", {**LARGE, "shape": [7, -7]}, "expected int >= 1"),
        ("observation_space", {**LARGE, "shape": [1] * 9}, "length <= 8"),
        ("observation_space", {**LARGE, "dtype": "object"}, "invalid enum value|Invalid enum"),
        ("observation_space", {**LARGE, "shape": [2], "low": [0, 1, 2]}, "3 bounds for 2 numbers"),
        ("observation_space", {**LARGE, "shape": [2], "low": "0"}, "got str"),
        ("observation_space", {**LARGE, "shape": [2], "low": 0.5}, "bound 0.5 of integers"),
        ("observation_space", {**LARGE, "shape": [2], "high": 10**30}, "not a space"),
        ("observation_space", {**LARGE, "shape": [2], "low": 6}, "low is above high"),
        ("observation_space", {**LARGE, "shape": [2], "dtype": "float32", "low": float("nan")}, "low is above high"),
        ("observation_space", {"type": "Discrete", "n": 10**30}, "expected int <= "),
        ("observation_space", {"type": "Discrete", "n": 0}, "expected int >= 1"),
        ("observation_space", {"type": "MultiDiscrete", "nvec": [[2], [3, 4]], "start": [0, 0]}, "lists of integers"),
        ("observation_space", {"type": "MultiDiscrete", "nvec": [2, 3], "start": [0]}, "as many sizes"),
        ("observation_space", {"type": "Dict", "spaces": {}}, "not a space"),
        ("observation_space", {"type": "Dict", "spaces": {ESCAPE: {"type": "Discrete", "n": 2}}}, "control characters"),
        ("observation_space", {"type": "Text"}, "invalid value 'Text'"),
        ("observation_space", 3, "expected object"),
        ("action_space", {"type": "Discrete", "n": 2**31}, "network larger than"),
        ("info", [], "expected object"),
        ("info.env", 5, "expected str"),
        ("info.env", f"DynamicMaze-v0{ESCAPE}", "matching regex"),
        ("info.env_options", "rows=3", "expected object"),
        ("info.frames", "many", "expected int"),
        ("info.parameters", "27", "expected int"),
        ("info.more", nested(60), "nested more than 50 deep"),
        ("info.id", f"A-v0{ESCAPE}", "matching regex"),
        (
            "info.evaluation",
            {"env": "a", "env_options": {}, "first_level": 0, "levels": 9, "success": "all", "success_ci95": [0, 1]},
            "expected float, got str",
        ),
        ("agent_version", 99, "agent version 99, expected 1"),
        ("agent_version", True, "agent version True"),
    ],
)
def test_a_value_that_no_agent_has_is_one_line_and_nothing_is_built(
    path: str, value: Any, said: str, folder: Path, built: list[str]
) -> None:
    change(folder, path, value)
    with pytest.raises(ValueError, match=f"(?i){said}") as caught:
        Agent.load(folder)
    assert str(caught.value).isprintable(), str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(folder))
    assert not built


def test_a_large_network_is_not_built_before_its_weights_are_there(folder: Path, built: list[str]) -> None:
    """of 4 GB nothing is allocated that the weights' file has no numbers for."""
    change(folder, "policy.hidden_size", 8192)
    change(folder, "policy.core_options.inner_size", 60_000)
    with pytest.raises(ValueError, match=r"describes a network larger than agent\.safetensors"):
        Agent.load(folder)
    assert not built


def test_a_picture_of_more_patches_than_a_network_can_look_at_is_refused(folder: Path, built: list[str]) -> None:
    space = {"type": "Box", "dtype": "float32", "shape": [2000, 2000, 1], "low": 0.0, "high": 1.0}
    change(folder, "observation_space", space)
    change(folder, "policy.encoder.patch_size", 2)
    change(folder, "policy.readout", "mean")
    with pytest.raises(CheckpointError, match="1,000,000 tokens; expected 65,536 at most"):
        Agent.load(folder)
    assert not built


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in Agent.load(folder).policy.state_dict().items()}


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        (lambda t: t.fill_(float("nan")), "NaN or infinite"),
        (lambda t: t.index_fill_(0, torch.tensor([0]), float("inf")), "NaN or infinite"),
        (lambda t: t.to(torch.int32), "is torch.int32, expected torch.float32"),
        (lambda t: t > 0, "is torch.bool, expected torch.float32"),
        (lambda t: t.to(torch.complex64), "is torch.complex64, expected torch.float32"),
        (lambda t: t[:-1], r"is \[3\], expected \[4\]"),
        (lambda t: t[:, None], r"is \[4, 1\], expected \[4\]"),
        (lambda t: None, "'policy_head.bias' is missing"),
    ],
)
def test_weights_that_are_no_numbers_or_not_the_networks_are_refused(altered: Any, said: str, folder: Path) -> None:
    """With a checksum that is right: it protects against accidents, not against people."""
    weights = weights_of(folder)
    made = altered(weights.pop("policy_head.bias"))
    save_tensors(folder / "agent.safetensors", weights | ({} if made is None else {"policy_head.bias": made}), {})
    with pytest.raises(CheckpointError, match=said) as caught:
        Agent.load(folder)
    assert str(caught.value).isprintable()


def test_weights_of_another_precision_are_numbers_all_the_same(folder: Path) -> None:
    weights = weights_of(folder)
    save_tensors(folder / "agent.safetensors", {name: t.half() for name, t in weights.items()}, {})
    loaded = Agent.load(folder).policy.state_dict()
    assert all(torch.equal(loaded[name], t.half().float()) for name, t in weights.items())


def test_a_weight_more_is_named_without_its_control_characters(folder: Path) -> None:
    weights = weights_of(folder)
    save_tensors(folder / "agent.safetensors", {**weights, ESCAPE: torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is not one of its weights") as caught:
        Agent.load(folder)
    assert str(caught.value).isprintable()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors"])
def test_what_is_no_file_is_refused_at_once(name: str, folder: Path) -> None:
    for make in (make_fifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(CheckpointError):
            Agent.load(folder)
        if (folder / name).is_dir():
            (folder / name).rmdir()
            (folder / name).touch()


def test_files_that_are_too_long_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small_machine:
        small_machine.setattr(os, "sysconf", lambda name: 8)
        with pytest.raises(CheckpointError, match="more than this machine has memory"):
            Agent.load(folder)
    with open(folder / "agent.json", "ab") as file:
        file.truncate(10**9)
    with pytest.raises(CheckpointError, match="longer than 4,000,000 bytes"):
        read_description(folder)


SPACES: list[gym.Space] = [
    GRID,
    gym.spaces.Dict(grid=GRID, speed=gym.spaces.Box(-1, 1, (3,), np.float32), turn=gym.spaces.Discrete(5, start=-2)),
    gym.spaces.Box(np.array([-4.8, -np.inf], np.float32), np.array([4.8, np.inf], np.float32)),  # as of CartPole
    gym.spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
    gym.spaces.Box(0.0, 1.0, (), np.float64),
    gym.spaces.MultiDiscrete([3, 4], start=[1, -2]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_space_comes_back_from_its_file(space: gym.Space, tmp_path: Path) -> None:
    written = json.loads(json.dumps(space_to_dict(space)))
    assert space_from_dict(written) == space
    if not isinstance(space, gym.spaces.Box) or space.shape != ():
        agent = Agent(tiny_policy(space, crop=0, readout="mean"), space, ACTIONS)
        agent.save(tmp_path)
        loaded = Agent.load(tmp_path)
        assert loaded.observation_space == space
        space.seed(0)
        sample = space.sample()
        assert np.array_equal(loaded.predict(sample)[0], agent.predict(sample)[0])


def test_dictionaries_within_dictionaries_end_somewhere() -> None:
    space: dict[str, Any] = {"type": "Discrete", "n": 2}
    for _ in range(9):
        space = {"type": "Dict", "spaces": {"a": space}}
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        space_from_dict(space)
    for _ in range(100_000):
        space = {"type": "Dict", "spaces": {"a": space}}
    with pytest.raises(ValueError, match="nested too deeply"):
        space_from_dict(space)
    half = {"type": "Box", "dtype": "int8", "shape": [MOST_ENTRIES // 2 + 1], "low": 0, "high": 1}
    with pytest.raises(ValueError, match="8,388,610 numbers; expected 8,388,608 at most"):
        space_from_dict({"type": "Dict", "spaces": {"a": half, "b": half}})


@pytest.mark.parametrize("core", CORES)
def test_loading_draws_the_random_numbers_of_one_network(core: str, tmp_path: Path) -> None:
    policy = tiny_policy(core=core)
    Agent(policy, GRID, ACTIONS).save(tmp_path)
    torch.manual_seed(7)
    Policy(policy.config, GRID, ACTIONS)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    Agent.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_environment_of_a_loaded_agent_is_marked_as_read_from_a_file(folder: Path) -> None:
    loaded = Agent.load(folder)
    assert type(loaded.info["env"]) is StoredId
    assert loaded.info == INFO
    assert type(loaded.environment()[0]) is StoredId
    loaded.save(folder)
    assert json.loads((folder / "agent.json").read_text())["info"] == INFO


def test_what_an_agent_says_is_printed_without_control_characters(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, "info.machine", ESCAPE)
    Agent.load(folder).save(folder)
    (folder / "README.md").write_text(f"# Mine\t{ESCAPE}\n\n\x9b2J \u202e ü\n")
    spec = AgentSpec("A-v0", folder)
    assert read_card(spec) == "# Mine\t\\x1b[31mred\n\n\\x9b2J \\u202e ü\n"
    monkeypatch.setattr(registry, "registered", {"A-v0": spec})
    monkeypatch.setattr(registry, "_searched", True)
    change(folder, "info.env", "[bold]Maze-v0[/bold]")
    for env, said in (("[bold]Maze-v0[/bold]", "[bold]Maze-v0[/bold]"), (ESCAPE, "cannot be read")):
        change(folder, "info.env", env)
        console = Console(width=1000, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(list_agents())
        text = console.export_text()
        assert said in text
        assert "\x1b" not in text
