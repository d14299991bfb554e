"""A mapping from names to agents, or to cores, that other installed packages add to by entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from hrm_agent.names.installed import without_working_folder
from hrm_agent.names.nearest import did_you_mean

Value = TypeVar("Value")


class UnknownName(KeyError, ValueError):
    """Nothing has this name; a KeyError, as mappings raise, whose message is one line."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, Value]):
    """What ships, what `add` was called for, and what entry points of installed packages name.

    Args:
        what: a word for one of them in messages, `core`.
        group: of entry points.
        shipped: ours.

    Attributes:
        registered: all but those that only an entry point names so far.
        own: how a program or a command brings one that is not registered, for messages.
    """

    own = ""

    def __init__(self, what: str, group: str, shipped: Mapping[str, Value]) -> None:
        self.what, self.group, self.registered = what, group, dict(shipped)

    def entry_points(self) -> dict[str, EntryPoint]:
        """Those of installed packages, without names that are taken; nothing is imported."""
        with without_working_folder():  # agents and runs name cores, and may bring a folder that looks like a package
            points = entry_points(group=self.group)
        return {point.name: point for point in points if point.name not in self.registered}

    def load(self, point: EntryPoint) -> None:
        """Import what an entry point names, and `add` it."""
        raise NotImplementedError

    def add(self, name: str, value: Value) -> None:
        """Doing so again with the same changes nothing.

        Raises:
            ValueError: the name is taken by something else.
        """
        there = self.registered.setdefault(name, value)
        if there != value:
            shown = getattr(there, "__qualname__", there)
            raise ValueError(f"{self.what} {name}: already registered as {shown}; choose another name")

    def __getitem__(self, name: str) -> Value:
        """Raises: UnknownName, with the nearest name."""
        if name not in self.registered:
            point = self.entry_points().get(name)
            if point is not None:
                with without_working_folder():
                    self.load(point)
            if name not in self.registered:
                raise UnknownName(f"{self.what}={name}: no such {self.what}{did_you_mean(name, self)}{self.own}")
        return self.registered[name]

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        points = self.entry_points()
        return iter([*self.registered, *points])

    def __len__(self) -> int:
        return sum(1 for _ in self)
