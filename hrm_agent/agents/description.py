"""`agent.json`, what an agent's folder says of it: read with types and bounds, written together with the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
from msgspec import Meta, Struct, field

from hrm_agent.agents.card import CARD_FILE, evaluation_of, probe_of, write_card
from hrm_agent.environments.sources import StoredId
from hrm_agent.environments.spaces import space_from_dict
from hrm_agent.files.reading import CheckpointError, convert_json, read_bytes, read_json
from hrm_agent.files.writing import write_atomically
from hrm_agent.names.values import Group, printable, typed
from hrm_agent.policies.encoders import EncoderConfig
from hrm_agent.policies.policy import PolicyConfig

AGENT_FILE = "agent.json"
AGENT_VERSION = 1
LIMIT = 4_000_000
"""Bytes of `agent.json`; most agents have two thousand, one with bounds for every number of a picture a million."""

# Neither control characters nor those that change the direction of writing: it is printed.
Line = Annotated[str, Meta(max_length=300, pattern=r"^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z")]


class _Played(Struct):
    success: float
    success_ci95: tuple[float, float]
    spl: float | None = None
    returned: float | None = field(name="return", default=None)


class _Evaluation(_Played, kw_only=True):
    env: Line
    env_options: dict[str, Any] | None
    first_level: int
    levels: int
    split: Line | None = None
    random: _Played | None = None
    bfs_replanner: _Played | None = None
    clairvoyant: _Played | None = None
    sampled: _Played | None = None


class _Probe(Struct):
    """Coefficients of determination, one a segment; None where undefined."""

    env: Line
    env_options: dict[str, Any] | None
    split: Line
    first_level: int
    levels: int
    train_levels: int
    r2: list[float | None]
    random: list[float | None]
    input: float | None
    input_3x3: float | None

    def __post_init__(self) -> None:
        if not len(self.r2) == len(self.random) > 0:
            raise ValueError(
                f"r2 and random have {len(self.r2)} and {len(self.random)} numbers, expected one a segment"
            )


class _Info(Struct):
    """What is used of `info`; an agent may say more."""

    env: Line | None = None
    env_options: dict[str, Any] | None = None
    id: Line | None = None
    algo: Line | None = None
    seed: int | None = None
    frames: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    command: str | None = None
    machine: str | None = None
    license: str | None = None
    hrm_agent_version: str | None = None


class _Policy(Struct):
    """What is used of `policy` without building it."""

    core: Line
    carry: Line
    core_options: dict[str, Any]
    hidden_size: int
    segments: int
    time_gradient: Line


class _Description(Struct):
    policy: _Policy
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    info: _Info


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `agent.json` in an agent's own folder; what the card and the list of agents show is of its type.

    Raises:
        CheckpointError: there is no agent's description, it is of another version, or a value is of another type.
    """
    file = folder / AGENT_FILE
    description: Any = read_json(file, limit=LIMIT)
    version = description.get("agent_version") if isinstance(description, dict) else None
    if type(version) is not int or version != AGENT_VERSION:
        raise CheckpointError(f"{folder}: agent version {str(version)[:20]}, expected {AGENT_VERSION}")
    source = f"{file}: not an agent's description"
    convert_json(description, _Description, source)
    evaluation = evaluation_of(description["info"])
    if evaluation is not None:
        convert_json(evaluation, _Evaluation, source)
    probe = probe_of(description["info"])
    if probe is not None:
        convert_json(probe, _Probe, source)
    return description


def parse_description(folder: Path) -> tuple[PolicyConfig, gym.Space, gym.Space, dict[str, Any]]:
    """The settings of the policy, the spaces of observations and actions, and `info`, whose `env` is a `StoredId`.

    Raises:
        CheckpointError: see `read_description`; or settings or a space out of bounds.
    """
    description = read_description(folder)
    try:
        policy = Group(description["policy"], "policy")
        encoder = typed(EncoderConfig, policy["encoder"], "encoder")
        config = typed(PolicyConfig, {**policy, "encoder": encoder}, "policy")
        spaces = [space_from_dict(description[f"{name}_space"]) for name in ("observation", "action")]
    except ValueError as error:
        raise CheckpointError(f"{folder / AGENT_FILE}: {printable(str(error))}") from None
    info = dict(description["info"])
    for part in (info, evaluation_of(info) or {}, probe_of(info) or {}):
        if part.get("env") is not None:
            part["env"] = StoredId(part["env"])
    return config, spaces[0], spaces[1], info


def add_facts(folder: Path, **facts: Any) -> None:
    """Add to the metadata of a saved agent (`Agent.info`), in its `agent.json` and, if unedited, its card.

    Args:
        folder: of the agent itself, not of a run.
        facts: JSON-able; `card.write_card` lists those it shows.

    Raises:
        CheckpointError: no agent's description there.
    """
    description = read_description(folder)
    write_description(folder, {**description, "info": {**description["info"], **facts}})


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write `agent.json` and, unless it has been edited, the card."""
    text = json.dumps(description, indent=2) + "\n"
    renew = _may_write_card(folder)
    write_atomically(folder / AGENT_FILE, text.encode())
    if renew:  # from the written file, so that the same page can be reproduced from it
        write_atomically(folder / CARD_FILE, write_card(json.loads(text)).encode())


def _may_write_card(folder: Path) -> bool:
    """Whether there is no page yet, or the unedited one that the description beside it gives."""
    card = folder / CARD_FILE
    if not card.exists():
        return True
    try:
        return read_bytes(card) == write_card(read_description(folder)).encode()
    except CheckpointError:  # the description is missing or damaged
        return False


def find_agent_folder(folder: Path, best: bool = True) -> Path:
    """`folder` itself if it holds an agent, else the best or last agent of the run it holds.

    Raises:
        CheckpointError: no agent there.
    """
    order = ("best", "last") if best else ("last", "best")
    for candidate in (folder, *(folder / "agents" / name for name in order)):
        if (candidate / AGENT_FILE).is_file():
            return candidate
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a run or of an agent")
    raise CheckpointError(f"{folder}: no agent in it ({AGENT_FILE} missing); give the folder of a run or of an agent")
