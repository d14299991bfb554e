"""What the page may ask for, with bounds on every value: one JSON object, `{"do": "edge", "position": 31, ...}`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MOST_SEGMENTS = 64
Position = Annotated[int, Meta(ge=0, lt=2**16)]
Number = Annotated[int, Meta(ge=0, le=10**9)]
Seat = Literal["agent", "other", "you"]


class Command(msgspec.Struct, tag_field="do", forbid_unknown_fields=True):
    """Base class."""


class Look(Command, tag="look"):
    """Change nothing."""


class Step(Command, tag="step"):
    """One decision of every agent whose episode is not over."""


class Level(Command, tag="level"):
    """Begin a level."""

    number: Number


class Edge(Command, tag="edge"):
    """Open the way between two cells, or close it."""

    position: Position
    open: bool


class Goal(Command, tag="goal"):
    """Put the goal elsewhere."""

    position: Position


class Agent(Command, tag="agent"):
    """Put every agent, and the person, elsewhere."""

    position: Position


class Move(Command, tag="move"):
    """The person's own step: the number of an action, from 0 on."""

    action: Annotated[int, Meta(ge=0, lt=64)]


class Seats(Command, tag="seats"):
    """Who plays beside the agent. A change begins the level anew, for all of them."""

    other: bool
    you: bool


class Settings(Command, tag="settings"):
    """How an agent decides from now on. Its latent is kept where the new rule can read it."""

    seat: Literal["agent", "other"]
    segments: Annotated[int, Meta(ge=1, le=MOST_SEGMENTS)] | None = None
    carry: Annotated[str, Meta(max_length=40)] | None = None
    sampled: bool | None = None


AnyCommand = Look | Step | Level | Edge | Goal | Agent | Move | Seats | Settings
decoder = msgspec.json.Decoder(AnyCommand)
