"""A session: agents act as in an evaluation, all worlds are changed alike, and settings change what is decided."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from games import OPTIONS, tiny_agent, tiny_game
from hrm_agent.agents import folders
from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import make
from hrm_agent.evaluation.episodes import PolicyActor, run_episodes
from hrm_agent.playground import commands as do
from hrm_agent.playground.game import SCORES, AgentSeat, Game, possible_carries, show
from hrm_agent.playground.world import MazeWorld, Refused, make_world
from hrm_agent.policies.policy import Policy
from hrm_envs.cells import AGENT, EMPTY


def agent_seat(game: Game, name: str = "agent") -> AgentSeat:
    seat = game.seats[name]
    assert isinstance(seat, AgentSeat)
    return seat


def maze_of(game: Game, name: str = "agent") -> MazeWorld:
    world = game.seats[name].world
    assert isinstance(world, MazeWorld)
    return world


def mazes_of(game: Game) -> list[MazeWorld]:
    return [maze_of(game, name) for name in game.seats]


def play_out(game: Game) -> list[Any]:
    """The agent's actions to the end of the level."""
    actions = []
    while game.seats["agent"].world.outcome is None:
        game.do(do.Step())
        thought = agent_seat(game).thought
        assert thought is not None
        actions.append(thought.action)
    return actions


def evaluated(policy: Policy, env_id: str, options: dict[str, Any], level: int, sampled: bool) -> tuple[list[int], Any]:
    """The actions of `evaluate` on that level, and what it records."""
    actions: list[int] = []
    played = run_episodes(
        PolicyActor(policy, not sampled),
        env_id,
        options,
        1,
        level,
        batch=1,
        on_step=lambda step: actions.append(int(step.actions[0])),
    )
    return actions, played


def last_thought(game: Game) -> Any:
    thought = agent_seat(game).thought
    assert thought is not None
    return thought


@pytest.mark.parametrize("sampled", [False, True])
def test_an_agent_that_no_one_disturbs_acts_as_in_an_evaluation(sampled: bool) -> None:
    agent = make("DynamicMaze-TRM-v0")
    game = Game(agent, partial(make_world, "DynamicMaze-v0", {}, "test", 0))
    game.do(do.Settings("agent", sampled=sampled))
    for level in (3, 0, 17):
        game.do(do.Level(level))
        expected, played = evaluated(agent.policy, "DynamicMaze-v0", {}, level, sampled)
        taken = []
        while game.seats["agent"].world.outcome is None:
            taken.append(last_thought(game).action)
            game.do(do.Step())
        assert taken == expected
        world = maze_of(game)
        assert (world.outcome == "arrived") == played.success[0]
        assert world.earliest == played.clairvoyant[0]
        assert (world.regret, world.scored) == (played.totals.regret[0], played.totals.scored[0])
        assert np.isclose(world.total, played.returns[0])


def same_maps(game: Game) -> None:
    """But for where the agents are, and a door that waits for one of them to leave."""
    worlds = [seat.world for seat in game.seats.values() if seat.world.outcome is None]
    mazes = [world for world in worlds if isinstance(world, MazeWorld)]
    agents = {world.agent for world in mazes}
    for world in mazes[1:]:
        assert world.goal == mazes[0].goal
        assert world.set_open == mazes[0].set_open
        first, other = mazes[0].map().ravel(), world.map().ravel()
        for place in np.flatnonzero(first != other).tolist():
            assert place in agents or AGENT in (first[place], other[place])


changes = st.one_of(
    st.just(do.Step()),
    st.builds(do.Edge, st.integers(0, 48), st.booleans()),
    st.builds(do.Goal, st.integers(0, 48)),
    st.builds(do.Agent, st.integers(0, 48)),
    st.builds(do.Settings, st.sampled_from(["agent", "other"]), st.integers(1, 3), st.sampled_from(["full", "reset"])),
    st.builds(do.Level, st.integers(0, 20)),
)


@settings(max_examples=25)
@given(st.lists(changes, max_size=15))
def test_two_agents_see_equal_maps_whatever_is_done(done: list[Any]) -> None:
    game = shared_game()
    game.do(do.Level(0))
    for command in done:
        before = [maze_of(game, name).map() for name in ("agent", "other")]
        try:
            game.do(command)
        except Refused:
            assert all(
                np.array_equal(a, maze_of(game, n).map()) for n, a in zip(("agent", "other"), before, strict=True)
            )
        same_maps(game)
        msgspec.json.encode(show(game))


_shared: list[Game] = []


def shared_game() -> Game:
    if not _shared:
        _shared.append(tiny_game())
        _shared[0].do(do.Seats(other=True, you=False))
    return _shared[0]


def test_a_door_changes_what_the_agent_decides_after_every_segment() -> None:
    agent = make("DynamicMaze-TRM-v0", segments=3)
    game = Game(agent, partial(make_world, "DynamicMaze-v0", {}, "test", 0))
    game.do(do.Level(3))
    before, world = last_thought(game), maze_of(game)
    assert before.probabilities.shape == (3, 4)
    edge = next(place for place in world.path()[1:-1] if place in world.edges)
    game.do(do.Edge(edge, False))
    after = last_thought(game)
    assert (np.abs(after.probabilities - before.probabilities).max(1) > 1e-3).all()
    game.do(do.Edge(edge, True))
    assert np.array_equal(last_thought(game).probabilities, before.probabilities)


def test_a_second_agent_is_the_first_without_its_memory_until_its_settings_change() -> None:
    game = tiny_game()
    game.do(do.Step())
    game.do(do.Seats(other=True, you=False))
    assert [seat.world.steps for seat in game.seats.values()] == [0, 0]
    assert agent_seat(game, "other").agent.policy.config.carry == "reset"
    game.do(do.Settings("other", segments=5, carry="full"))
    config = agent_seat(game, "other").agent.policy.config
    assert (config.carry, config.segments) == ("full", 5)
    assert agent_seat(game).agent.policy.config.segments == 2
    game.do(do.Seats(other=False, you=False))
    assert list(game.seats) == ["agent"]
    memoryless = tiny_game(tiny_agent(carry="reset", segments=2))
    memoryless.do(do.Seats(other=True, you=False))
    assert agent_seat(memoryless, "other").agent.policy.config.segments == 4


def test_a_rule_with_weights_of_its_own_is_there_again_after_another_one() -> None:
    agent = tiny_agent(carry="gate", segments=2)
    assert possible_carries(agent)[0] == "gate"
    assert "gate_state" not in possible_carries(agent)
    game = tiny_game(agent)
    expected = last_thought(game).probabilities
    game.do(do.Settings("agent", carry="reset"))
    game.do(do.Settings("agent", segments=3))
    game.do(do.Settings("agent", carry="gate", segments=2))
    game.do(do.Level(0))
    assert np.array_equal(last_thought(game).probabilities, expected)
    with pytest.raises(Refused, match="this agent can be played with gate, reset"):
        game.do(do.Settings("agent", carry="output"))


def test_what_is_typed_is_not_said_to_be_trained_and_the_trained_rule_is_there() -> None:
    agent = tiny_agent(carry="gate", segments=2)
    typed = AgentOverrides(carry="reset", segments=5, stop="latent_change", stop_threshold=0.0)
    game = tiny_game(agent, overrides=typed)
    shown = show(game)
    assert shown["about"]["trained"] == {"carry": "gate", "segments": 2}
    assert shown["seats"][0]["settings"] == {"segments": 5, "carry": "reset", "sampled": False}
    game.do(do.Settings("agent", carry="gate", segments=2))
    assert agent_seat(game).agent.policy.config.stop == "latent_change"
    assert np.allclose(last_thought(game).probabilities, last_thought(tiny_game(agent)).probabilities)


def test_more_segments_in_an_episode_keep_what_was_carried() -> None:
    game = tiny_game()
    game.do(do.Step())
    state = agent_seat(game).mind.state
    game.do(do.Settings("agent", segments=4))
    assert agent_seat(game).mind.state is state
    assert not agent_seat(game).mind.starts
    assert last_thought(game).probabilities.shape == (4, 4)
    game.do(do.Settings("agent", carry="reset"))
    assert agent_seat(game).mind.starts


def test_a_person_plays_the_same_level_beside_the_agent() -> None:
    game = tiny_game()
    with pytest.raises(Refused, match="take a seat first"):
        game.do(do.Move(0))
    game.do(do.Seats(other=False, you=True))
    same_maps(game)
    while game.seats["you"].world.outcome is None:
        path = maze_of(game, "you").path()
        step = path[1] - path[0] if len(path) > 1 else 1
        game.do(do.Move({-7: 0, 1: 1, 7: 2, -1: 3}[step]))
    assert game.seats["agent"].world.steps == 0
    assert game.scores[0]["you"]["success"] == (game.seats["you"].world.outcome == "arrived")
    with pytest.raises(Refused, match="the episode is over"):
        game.do(do.Move(0))
    with pytest.raises(Refused, match="there are 4, from 0 on"):
        game.do(do.Move(4))
    play_out(game)
    shown = show(game)["scores"]
    assert [set(score) for score in shown] == [{"level", "agent", "you"}]
    msgspec.json.encode(show(game))


def test_a_change_that_one_world_cannot_make_is_made_in_none() -> None:
    game = tiny_game()
    game.do(do.Seats(other=False, you=True))
    you = maze_of(game, "you")
    move = next(k for k, by in enumerate((-7, 1, 7, -1)) if you.map().ravel()[you.agent + by] == EMPTY)
    game.do(do.Move(move))
    before = maze_of(game).map()
    with pytest.raises(Refused, match="the agent is there"):
        game.do(do.Edge(you.agent, False))
    assert np.array_equal(maze_of(game).map(), before)


def test_scores_are_kept_of_the_last_levels() -> None:
    game = tiny_game(options={**OPTIONS, "max_episode_steps": 1})
    for level in range(SCORES + 5):
        game.do(do.Level(level))
        play_out(game)
    assert list(game.scores) == list(range(5, SCORES + 5))
    with pytest.raises(Refused, match="the episode is over"):
        game.do(do.Step())
    with pytest.raises(Refused, match="the episode is over"):
        game.do(do.Goal(8))


class Fixed:
    """A probe that reads the segment's number everywhere."""

    def read(self, latents: Any, segment: int) -> Any:
        return latents[..., 0] * 0 + segment


def test_what_the_page_draws_is_json_and_covers_the_map() -> None:
    game = tiny_game(probe=Fixed(), name="tiny")
    shown = msgspec.json.decode(msgspec.json.encode(show(game)))
    maze, seat = shown["maze"], shown["seats"][0]
    size = maze["height"] * maze["width"]
    assert len(seat["seen"]) == len(seat["map"]) == size
    tokens = [place for places in maze["tokens"] for place in places]
    assert sorted(tokens) == [r * 7 + c for r in range(1, 6) for c in range(1, 6)]
    thought = seat["thought"]
    assert len(thought["cells"]) == len(thought["probabilities"]) == 2
    assert len(thought["cells"][0]) == len(maze["tokens"])
    assert thought["distance"] == [[1] * len(maze["tokens"]), [2] * len(maze["tokens"])]
    assert thought["action"] in range(4)
    assert shown["about"]["has_probe"]


@pytest.mark.parametrize("actions", [None, gym.spaces.Box(-1, 1, (2,), np.float32)])
def test_foreign_environments_step_and_draw_themselves(actions: gym.Space | None) -> None:
    env_id = "CartPole-v1" if actions is None else "MountainCarContinuous-v0"
    agent = tiny_agent(env_id, {}, core="gru", readout="mean", segments=2)
    game = Game(agent, partial(make_world, env_id, {}, "test", 0))
    game.do(do.Step())
    game.do(do.Seats(other=True, you=True))
    if actions is None:
        game.do(do.Move(1))
    else:
        with pytest.raises(Refused, match="a person can play Discrete ones alone"):
            game.do(do.Move(0))
    game.do(do.Step())
    with pytest.raises(Refused, match="only mazes"):
        game.do(do.Edge(10, True))
    shown = msgspec.json.decode(msgspec.json.encode(show(game)))
    assert shown["maze"] is None
    assert shown["seats"][0]["picture"].startswith("data:image/png;base64,")
    game.close()


def test_q_values_are_not_drawn_from() -> None:
    game = tiny_game(tiny_agent(heads="q", segments=2))
    with pytest.raises(Refused, match="Q-values"):
        game.do(do.Settings("agent", sampled=True))
    assert not show(game)["about"]["can_sample"]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b"{", b"\xff", b'{"do": "win"}', b'{"do": 1}', b'{"do": "level"}',
        b'{"do": "level", "number": -1}', b'{"do": "level", "number": 1e30}', b'{"do": "level", "number": 1.5}',
        b'{"do": "level", "number": "1"}', b'{"do": "edge", "position": 3}',
        b'{"do": "edge", "position": 3, "open": 1}',
        b'{"do": "edge", "position": 99999999, "open": true}', b'{"do": "step", "more": 1}',
        b'{"do": "move", "action": 64}',
        b'{"do": "settings", "seat": "you"}', b'{"do": "settings", "seat": "agent", "segments": 0}',
        b'{"do": "settings", "seat": "agent", "segments": 65}', b'{"do": "seats", "other": true}',
    ],
)  # fmt: skip
def test_commands_are_bounded(text: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        do.decoder.decode(text)


@pytest.mark.parametrize("agent_id", [folder.name for folder in folders()])
def test_every_agent_that_ships_can_be_watched_disturbed_and_compared(agent_id: str) -> None:
    agent = make(agent_id)
    env_id, options = agent.environment()
    with closing(Game(agent, partial(make_world, env_id, options, "test", 0), agent.load_probe())) as game:
        game.do(do.Seats(other=True, you=True))
        for carry in game.carries:
            game.do(do.Settings("agent", segments=3, carry=carry))
            game.do(do.Step())
        world = game.seats["agent"].world
        if isinstance(world, MazeWorld):
            if world.edges:
                free = [edge for edge in world.edges if all(edge not in (w.agent, w.goal) for w in mazes_of(game))]
                game.do(do.Edge(free[0], not world.is_open(free[0])))
            thought = show(game)["seats"][0]["thought"]
            assert len(thought["cells"][0]) == len(show(game)["maze"]["tokens"])
            assert (thought["distance"] is None) == (game.probe is None)
        msgspec.json.encode(show(game))
