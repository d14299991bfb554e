"""A session of the page: an agent, on wish a second one and a person beside it, on the same level.

Each of them sits at a table of its own: a `Seat` has its own copy of the world, and all are changed alike. The agents
step together, the person whenever a key is pressed; what a level's schedule does depends on the step alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from hrm_agent.agents.agent import Agent, AgentOverrides
from hrm_agent.agents.registry import TRAINED
from hrm_agent.environments.action_masks import MASK, has_mask
from hrm_agent.evaluation.thinking import Reader, ThinkingActor, Thought, cells_of_tokens
from hrm_agent.playground import commands
from hrm_agent.playground.commands import MOST_SEGMENTS, AnyCommand
from hrm_agent.playground.world import MazeWorld, Refused, World
from hrm_agent.policies.carry import CARRY_RULES

MOST_ON_SLIDER = 16
SCORES = 20
"""Levels of which the result is kept."""


class Seat:
    """Who plays, and the world that is played.

    Attributes:
        thought: of an agent, the decision that it would take on the present observation; after the episode's end the
            last one that it took.
    """

    def __init__(self, name: str, world: World) -> None:
        self.name, self.world = name, world
        self.thought: Thought | None = None

    def begin(self, level: int) -> None:
        self.world.begin(level)

    def think(self) -> None:
        """Decide anew, where something may have changed."""

    def close(self) -> None:
        self.world.close()


class AgentSeat(Seat):
    """An agent with settings of its own.

    Args:
        agent: in the settings that it begins with.
        probe: see `ThinkingActor`.
        seed: of its draws.
    """

    def __init__(self, name: str, world: World, agent: Agent, probe: Reader | None, seed: int) -> None:
        super().__init__(name, world)
        self.agent, self.probe, self.seed = agent, probe, seed
        self.mind = ThinkingActor(agent.policy, probe, True, seed)

    @property
    def can_sample(self) -> bool:
        return self.agent.policy.config.heads != "q"

    def begin(self, level: int) -> None:
        super().begin(level)
        self.mind.reset(self.world.seed)
        self.think()

    def think(self) -> None:
        if self.world.outcome is None:
            self.thought = self.mind.think(self.world.obs)

    def step(self) -> None:
        assert self.thought is not None  # of this observation: whatever changes it or the agent thinks again
        self.mind.advance()
        self.world.step(self.thought.action)
        self.think()

    def change(self, segments: int | None, carry: str | None, sampled: bool | None) -> None:
        """Decide in another way from now on.

        Raises:
            Refused: a carry rule that this agent has no weights for.
        """
        try:
            agent = self.agent.changed(AgentOverrides(carry=carry, segments=segments))
        except ValueError as error:
            raise Refused(str(error)) from None
        before, policy = self.mind, agent.policy
        mind = ThinkingActor(policy, self.probe, before.deterministic if sampled is None else not sampled, self.seed)
        mind.reset(self.world.seed)
        if [s.shape for s in before.state] == [s.shape for s in mind.state]:
            mind.state, mind.starts = before.state, before.starts
        self.agent, self.mind = agent, mind
        self.think()


class Game:
    """A session.

    Args:
        agent: in its trained settings, fitted to the environment.
        make_world: makes the environment, once for each seat.
        probe: reads distances to the goal from the agent's latents; None: there is none.
        name: of the agent, for people.
        seed: of the draws of agents that sample.
        overrides: of the trained settings, to begin with.

    Raises:
        ValueError: an override that is not possible.
    """

    def __init__(
        self,
        agent: Agent,
        make_world: Callable[[], World],
        probe: Reader | None = None,
        name: str = "",
        seed: int = 0,
        overrides: AgentOverrides = TRAINED,
    ) -> None:
        self.overrides, player = overrides, agent.changed(overrides)
        self.trained, self.make_world, self.probe, self.name, self.seed = agent, make_world, probe, name, seed
        self.carries = possible_carries(agent)
        self.most_segments = min(MOST_SEGMENTS, max(MOST_ON_SLIDER, player.policy.config.segments))
        self.seats: dict[str, Seat] = {"agent": AgentSeat("agent", make_world(), player, probe, seed)}
        self.scores: dict[int, dict[str, dict[str, Any]]] = {}
        self.begin(0)

    def begin(self, level: int) -> None:
        """Begin a level in every seat; what a person has changed is as it was."""
        self.level = level
        for seat in self.seats.values():
            seat.begin(level)

    def do(self, command: AnyCommand) -> None:
        """Raises: Refused where that is not possible now; then nothing has changed."""
        match command:
            case commands.Step():
                self._step()
            case commands.Level(number=number):
                self.begin(number)
            case commands.Edge(position=position, open=is_open):
                self._change("edge", position, is_open)
            case commands.Goal(position=position):
                self._change("goal", position)
            case commands.Agent(position=position):
                self._change("agent", position)
            case commands.Move(action=action):
                self._move(action)
            case commands.Seats(other=other, you=you):
                self._seat(other, you)
            case commands.Settings(seat=name, segments=segments, carry=carry, sampled=sampled):
                self._settings(name, segments, carry, sampled)

    def _step(self) -> None:
        going = [s for s in self.seats.values() if isinstance(s, AgentSeat) and s.world.outcome is None]
        if not going:
            raise Refused("the episode is over; begin it again, or the next level")
        for seat in going:
            seat.step()
            self._score(seat)

    def _move(self, action: int) -> None:
        seat = self.seats.get("you")
        if seat is None:
            raise Refused("no one plays beside the agent yet; take a seat first")
        space = seat.world.env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise Refused(f"actions are {space}; a person can play Discrete ones alone")
        if action >= space.n:
            raise Refused(f"action {action}: there are {space.n}, from 0 on")
        if has_mask(seat.world.env.observation_space) and not seat.world.obs[MASK][action]:
            raise Refused(f"action {action}: not legal now, says the environment")
        seat.world.step(int(space.start) + action)
        self._score(seat)

    def _change(self, what: str, position: int, *more: bool) -> None:
        """The same change in every world whose episode is not over; where one cannot be changed, in none."""
        worlds = [seat.world for seat in self.seats.values() if seat.world.outcome is None]
        if not worlds:
            raise Refused("the episode is over; begin it again, or the next level")
        if not all(isinstance(world, MazeWorld) for world in worlds):
            raise Refused("only mazes of hrm_envs can be changed")
        for world in worlds:
            getattr(world, f"check_{what}")(position)
        for world in worlds:
            getattr(world, "set_edge" if what == "edge" else f"put_{what}")(position, *more)
        for seat in self.seats.values():
            seat.think()

    def _seat(self, other: bool, you: bool) -> None:
        wanted = {"other": other, "you": you}
        if all((name in self.seats) == want for name, want in wanted.items()):
            return
        for name, want in wanted.items():
            if want and name not in self.seats:
                self.seats[name] = self._other() if name == "other" else Seat("you", self.make_world())
            elif not want and name in self.seats:
                self.seats.pop(name).close()
        self.seats = {name: self.seats[name] for name in ("agent", "other", "you") if name in self.seats}
        self.begin(self.level)

    def _other(self) -> AgentSeat:
        """The same agent without its memory, or with twice the segments where it has none."""
        agent = self.seats["agent"].agent  # type: ignore[attr-defined]
        config = agent.policy.config
        twice = AgentOverrides(segments=min(2 * config.segments, self.most_segments))
        changes = twice if config.carry == "reset" else AgentOverrides(carry="reset")
        return AgentSeat("other", self.make_world(), agent.changed(changes), self.probe, self.seed)

    def _settings(self, name: str, segments: int | None, carry: str | None, sampled: bool | None) -> None:
        seat = self.seats.get(name)
        if not isinstance(seat, AgentSeat):
            raise Refused("there is no second agent yet; compare first")
        if carry is not None and carry not in self.carries:
            raise Refused(f"carry={carry}: this agent can be played with {', '.join(self.carries)}")
        if segments is not None and segments > self.most_segments:
            raise Refused(f"segments={segments}: at most {self.most_segments} here")
        if sampled and not seat.can_sample:
            raise Refused("Q-values are no distribution to draw from; the best action is taken")
        if carry is not None and carry != seat.agent.policy.config.carry:
            # Not from the present agent, which may lack the weights of the trained rule by now.
            kept = replace(self.overrides, carry=None, segments=seat.agent.policy.config.segments)
            seat.agent = self.trained.changed(kept)
        seat.change(segments, carry, sampled)

    def _score(self, seat: Seat) -> None:
        world = seat.world
        if world.outcome is None:
            return
        result = {"success": world.outcome == "arrived", "steps": world.steps, "return": round(world.total, 3)}
        if isinstance(world, MazeWorld):
            result |= {"regret": world.regret, "changed": world.changed}
        if self.level not in self.scores and len(self.scores) == SCORES:
            del self.scores[next(iter(self.scores))]
        self.scores.setdefault(self.level, {})[seat.name] = result

    def close(self) -> None:
        for seat in self.seats.values():
            seat.close()


def possible_carries(agent: Agent) -> list[str]:
    """The trained carry rule, then the others that need no weights of their own."""
    trained = agent.policy.config.carry
    found = [trained]
    for rule in CARRY_RULES:
        if rule != trained:
            try:
                agent.changed(AgentOverrides(carry=rule))
            except ValueError:
                continue
            found.append(rule)
    return found


def show(game: Game) -> dict[str, Any]:
    """Everything that the page draws, as JSON.

    Of each thought the arrays of `Thought`, with three decimals; `tokens` lists the positions that each token covers.
    """
    world = game.seats["agent"].world
    space = world.env.action_space
    actions = int(space.n) if isinstance(space, gym.spaces.Discrete) else 0
    about = {
        "agent": game.name,
        "env": world.env.spec.id if world.env.spec else "",
        "carries": game.carries,
        "trained": {"carry": game.trained.policy.config.carry, "segments": game.trained.policy.config.segments},
        "most_segments": game.most_segments,
        "can_sample": game.trained.policy.config.heads != "q",
        "actions": actions,
        "limit": world.limit,
        "has_probe": game.probe is not None,
    }
    shown: dict[str, Any] = {"about": about, "level": game.level, "maze": None}
    if isinstance(world, MazeWorld):
        tokens = cells_of_tokens(game.trained.policy) or []
        shown["maze"] = {
            "height": world.height,
            "width": world.width,
            "edges": world.edges,
            "cells": world.cells,
            "fog": world.is_fogged or not world.edges,
            "earliest": world.earliest,
            "tokens": [[row * world.width + column for row, column in cells] for cells in tokens],
        }
    shown["seats"] = [_show_seat(seat) for seat in game.seats.values()]
    shown["scores"] = [{"level": level, **results} for level, results in game.scores.items()]
    return shown


def _show_seat(seat: Seat) -> dict[str, Any]:
    world = seat.world
    shown: dict[str, Any] = {
        "name": seat.name,
        "steps": world.steps,
        "return": round(world.total, 3),
        "outcome": world.outcome,
        "picture": world.picture(),
    }
    if isinstance(world, MazeWorld):
        shown |= {
            "seen": "".join(map(str, np.asarray(world.obs).ravel().tolist())),
            "map": "".join(map(str, world.map().ravel().tolist())),
            "at": world.agent,
            "goal": world.goal,
            "trail": world.trail[-60:],
            "doors": world.known_doors(),
            "set": sorted(world.set_open),
            "path": world.path() if world.outcome is None else [],
            "shortest": int(world.distances()[world.agent]),
            "regret": world.regret,
            "scored": world.scored,
            "last_regret": world.last_regret,
            "changed": world.changed,
        }
    if isinstance(seat, AgentSeat):
        config = seat.agent.policy.config
        shown["settings"] = {
            "segments": config.segments,
            "carry": config.carry,
            "sampled": not seat.mind.deterministic,
        }
        shown["thought"] = None if seat.thought is None else _show_thought(seat.thought, world)
    return shown


def _show_thought(thought: Thought, world: World) -> dict[str, Any]:
    start = getattr(world.env.action_space, "start", 0)
    is_number = isinstance(thought.action, int)
    return {
        "action": thought.action - int(start) if is_number else None,
        "action_text": "" if is_number else np.array2string(np.asarray(thought.action), precision=2)[:80],
        "probabilities": _rounded(thought.probabilities),
        "values": _rounded(thought.values),
        "change": _rounded(thought.change),
        "cells": _rounded(thought.latent_change),
        "distance": None if thought.distance is None else _rounded(thought.distance),
    }


def _rounded(values: Any) -> Any:
    """Lists with four decimals; what is not finite, which JSON does not know, is None."""
    array = np.asarray(values, np.float64).round(4).astype(object)
    array[~np.isfinite(array.astype(np.float64))] = None
    return array.tolist()
