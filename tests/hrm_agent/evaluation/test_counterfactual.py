"""Pairs of worlds: what they share, what they do not, and what they say of agents whose reaction is known."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hrm_agent import make as make_agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluation.change import Pairs, summarize_pairs
from hrm_agent.evaluation.counterfactual import action_probabilities, has_pairs, play_pairs
from hrm_agent.evaluation.draws import DRAWN_AT_ONCE, LevelRNG
from hrm_agent.evaluation.episodes import (
    Actor,
    PolicyActor,
    RandomActor,
    ReplanActor,
    run_episodes,
)
from hrm_agent.evaluation.report import Levels
from hrm_agent.evaluation.report import play as play_levels
from hrm_agent.parallel.threads import Threads
from hrm_envs import Cell
from played import BUSY, MAZE, make_policy

PERIODIC = {"layout": "braid", "loops": 1.0, "doors": 4, "door_process": "periodic", "p_change": 0.2}
WORLDS = {
    "reroll": {"p_change": 0.3},
    "goal": BUSY,
    "independent": {"layout": "braid", "loops": 0.5, "doors": 5, "door_process": "independent", "p_change": 0.1},
    "periodic": PERIODIC,
    "fog": {"p_change": 0.3, "view": 2},
    "anywhere": {"endpoints": "anywhere", "p_change": 0.3, "goal_process": "jump", "p_goal": 0.1},
}


class StalePlanner(ReplanActor):
    """Follows shortest paths on the map that it saw first, whatever became of it."""

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.first: NDArray[np.uint8] | None = None

    def act(self, obs: Any) -> NDArray[np.int64]:
        if self.first is None:
            self.first = np.where(obs == Cell.AGENT, np.uint8(Cell.EMPTY), obs)
        return super().act(np.where(obs == Cell.AGENT, obs, self.first))

    def keep(self, rows: NDArray[np.int64]) -> None:
        assert self.first is not None
        self.first = self.first[rows]


class Constant(RandomActor):
    """Goes north, whatever it sees."""

    def act(self, obs: Any) -> NDArray[np.int64]:
        return np.zeros(len(obs), np.int64)


class Wanderer(ReplanActor):
    """Goes the shortest way at six of ten steps; what it does at the others depends on all that it has seen.

    It remembers what every row saw and did, in `traces`: a row that splits passes on what it has seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[tuple[int, list[NDArray], list[int]]] = []

    def reset(self, seeds: NDArray[np.int64]) -> None:
        self.rng, self.memory = LevelRNG(seeds), np.zeros(len(seeds))
        self.rows: list[tuple[int, list[NDArray], list[int]]] = [(int(seed), [], []) for seed in seeds]
        self.traces += self.rows

    def act(self, obs: Any) -> NDArray[np.int64]:
        weights = np.arange(obs[0].size).reshape(obs.shape[1:])
        self.memory += (obs * weights).sum((1, 2)) / 997
        drawn = self.rng.draw()
        actions = np.where(drawn < 0.6, super().act(obs), ((1000 * drawn + self.memory) % 1 * 4).astype(np.int64))
        for (_, seen, done), grid, action in zip(self.rows, obs, actions, strict=True):
            seen.append(grid.copy())
            done.append(int(action))
        return actions

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.rng.keep(rows)
        self.memory = self.memory[rows]
        kept: list[tuple[int, list[NDArray], list[int]]] = []
        for place, row in enumerate(rows):
            level, seen, done = self.rows[row]
            twin = row in rows[:place]
            kept.append((level, list(seen), list(done)) if twin else self.rows[row])
            self.traces += kept[-1:] if twin else []
        self.rows = kept

    def of(self, level: int) -> list[tuple[list[NDArray], list[int]]]:
        """What the level's rows saw and did: with the change, and without it."""
        return [(seen, done) for number, seen, done in self.traces if number == level]


def play(make: Any, world: str, episodes: int = 300, **options: Any) -> Pairs:
    return play_pairs(make, MAZE, {**WORLDS[world], **options}, np.arange(episodes))


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "fog"])
def test_a_replanner_reacts_at_once_and_wholly(world: str) -> None:
    measured = summarize_pairs(play(ReplanActor, world), 300)
    assert measured["pairs"] > 5
    assert measured["follow_old"] == 0
    assert measured["follow_old_unchanged"] == 1
    assert measured["reaction"] == measured["old_action_drop"] == 1
    assert measured["not_replanned"] == [0.0] * 11
    assert measured["decisions_to_replan"] == measured["extra_steps"] == 0
    assert measured["success_unchanged"] == 1


def test_a_random_agent_has_what_chance_gives() -> None:
    measured = summarize_pairs(play(RandomActor, "reroll", 1000), 1000)
    assert measured["pairs"] > 80
    # The same numbers are drawn in both worlds.
    assert measured["follow_old"] == measured["follow_old_unchanged"]
    assert measured["reaction"] == measured["old_action_drop"] == 0
    low, high = measured["follow_old_ci95"]
    assert low <= measured["follow_old_chance"] <= high
    # One of about four actions is optimal, so that it takes one soon, and loses its way all the same.
    assert 0.6 < measured["not_replanned"][0] < 0.85
    assert measured["not_replanned"][-1] < 0.2
    assert measured["extra_steps"] > 7


@pytest.mark.parametrize("make", [StalePlanner, Constant])
def test_an_agent_that_ignores_the_map_does_not_react(make: type[Actor]) -> None:
    measured = summarize_pairs(play(make, "reroll"), 300)
    assert measured["pairs"] > 3
    assert measured["reaction"] == measured["old_action_drop"] == 0
    assert measured["follow_old"] == measured["follow_old_unchanged"]
    if make is StalePlanner:
        assert measured["follow_old"] > 0.85  # not all: what is old may itself have come by a change
        assert measured["not_replanned"][0] > 0.85
        assert measured["decisions_to_replan"] > 7
        assert measured["extra_steps"] > 7


@pytest.mark.parametrize("world", ["reroll", "independent", "periodic", "goal"])
def test_the_worlds_share_all_up_to_the_change_and_stay_as_they_are(world: str) -> None:
    actor, lived, options = Wanderer(), Wanderer(), {**WORLDS[world], "max_episode_steps": 25}
    pairs = play_pairs(lambda: actor, MAZE, options, np.arange(200))
    run_episodes(lived, MAZE, options, 200)
    assert len(pairs.level) > 5
    for level, step, decisions in zip(pairs.level.tolist(), pairs.step.tolist(), pairs.decisions.tolist(), strict=True):
        (changed, moves), (unchanged, twin_moves) = actor.of(level)
        ((real, real_moves),) = lived.of(level)
        # The episode as it is, up to the change and the observation that shows it.
        np.testing.assert_array_equal(changed[: step + 1], real[: step + 1])
        np.testing.assert_array_equal(unchanged[:step], real[:step])
        assert moves[:step] == twin_moves[:step] == real_moves[:step]
        assert (changed[step] != unchanged[step]).any()
        assert ((changed[step] == Cell.AGENT) == (unchanged[step] == Cell.AGENT)).all()
        # From there nothing moves but the agent; a door that waited for it to pass closes.
        grids = np.array(changed[step : step + decisions])
        passed = (grids == Cell.AGENT).any(0)
        assert (grids[:, ~passed] == grids[0, ~passed]).all()


@pytest.mark.parametrize("door_process", ["reroll", "independent"])
def test_the_world_without_the_change_goes_on_undisturbed(door_process: str) -> None:
    """Bit for bit as in the same level without a schedule, for levels whose first change of all begins the pair."""
    actor, undisturbed = Wanderer(), Wanderer()
    options = {"p_change": 0.03, "door_process": door_process, "doors": 5, "max_episode_steps": 30}
    pairs = play_pairs(lambda: actor, MAZE, options, np.arange(800))
    calm_episodes = run_episodes(undisturbed, MAZE, {**options, "p_change": 0.0}, 800)
    compared = 0
    for row, level in enumerate(pairs.level.tolist()):
        (_, (unchanged, moves)), ((calm, calm_moves),) = actor.of(level), undisturbed.of(level)
        step, length = int(pairs.step[row]), int(calm_episodes.steps[level])
        if length >= step and (np.array(unchanged[:step]) == np.array(calm[:step])).all():
            compared += 1
            np.testing.assert_array_equal(unchanged[:length], calm[:length])
            assert moves[:length] == calm_moves[:length]
            assert pairs.success_unchanged[row] == calm_episodes.success[level]
    assert compared > 3


@pytest.mark.parametrize(
    ("kind", "world"),
    [("greedy", "goal"), ("sampled", "goal"), ("random", "anywhere"), ("replan", "periodic"), ("wander", "fog")],
)
def test_pairs_depend_on_no_batch_and_episodes_tell_where_they_are(kind: str, world: str) -> None:
    policy = make_agent("DynamicMaze-TRM-v0").policy
    make: Any = {
        "greedy": partial(PolicyActor, policy),
        "sampled": partial(PolicyActor, policy, deterministic=False),
        "random": RandomActor,
        "replan": ReplanActor,
        "wander": Wanderer,
    }[kind]
    options = {**WORLDS[world], "max_episode_steps": 20}
    played = run_episodes(make(), MAZE, options, 100, seed=7)
    assert played.replaced is not None
    chosen = played.seeds[played.replaced]
    whole = play_pairs(make, MAZE, options, played.seeds)
    assert len(whole.level) > 2
    assert (np.diff(whole.level) > 0).all()
    assert set(whole.level) <= set(chosen)  # in fog an agent may see none of its changes
    assert set(whole.level) == set(chosen) or world == "fog"
    for pairs in (
        play_pairs(make, MAZE, options, chosen, batch=5),
        play_pairs(make, MAZE, options, chosen[::-1].copy(), threads=Threads(3)),
    ):
        for name in Pairs._fields:
            one, other = getattr(whole, name), getattr(pairs, name)
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)


def test_waiting_wins_where_no_way_of_the_map_is_fastest() -> None:
    """Each pair's change again, in an environment stepped alone, with every action tried."""
    actor = Wanderer()
    options = {**PERIODIC, "max_episode_steps": 30}
    pairs = play_pairs(lambda: actor, MAZE, options, np.arange(400))
    assert pairs.waiting_wins.any()
    assert not pairs.waiting_wins.all()
    env: Any = make_vector_env(MAZE, 1, {**options, "split": "test", "oracle": True})
    for row, level in enumerate(pairs.level.tolist()):
        _, infos = env.reset(seed=[level])
        for action in actor.of(level)[0][1][: pairs.step[row]]:
            _, _, _, _, infos = env.step(np.array([action]))
        saved, now = env.get_state(), int(env.clairvoyant()[0])
        optimal = infos["optimal_actions"][0]
        assert pairs.chance[row] == infos["stale_optimal_actions"].mean()
        arrivals = []
        for action in range(4):
            env.set_state(saved)
            _, _, arrived, _, _ = env.step(np.array([action]))
            later = 0 if arrived[0] else int(env.clairvoyant()[0])
            arrivals.append(1 + later if later >= 0 else 1000)
        if now < 0:
            assert not pairs.waiting_wins[row]
            continue
        assert min(arrivals) == now
        fastest = np.array(arrivals) == now
        assert pairs.waiting_wins[row] == (not (fastest & optimal).any())


def test_a_row_that_splits_draws_the_same_numbers_in_both() -> None:
    """However many are drawn: the generators must be two."""
    seeds = np.array([3, 8])
    alone, split = LevelRNG(seeds), LevelRNG(seeds)
    early = [alone.draw() for _ in range(5)]
    np.testing.assert_array_equal(early, [split.draw() for _ in range(5)])
    split.keep(np.array([1, 0, 1]))
    for _ in range(3 * DRAWN_AT_ONCE):
        drawn = alone.draw()
        np.testing.assert_array_equal(split.draw(), drawn[[1, 0, 1]])


def test_q_values_are_no_distribution() -> None:
    obs = make_vector_env(MAZE, 6).reset(seed=0)[0]
    for heads in ("q", "actor_critic"):
        actor = PolicyActor(make_policy(heads=heads))
        actor.reset(np.arange(6))
        actions = actor.act(obs)
        given = action_probabilities(actor, actions)
        np.testing.assert_allclose(given.sum(1), 1, rtol=1e-6)
        assert (given.argmax(1) == actions).all()
        assert set(given.max(1).tolist()) == {1.0} if heads == "q" else (given.max(1) < 1).all()


def test_mazes_that_cannot_change_have_no_pairs() -> None:
    still = play(ReplanActor, "reroll", 30, p_change=0.0)
    assert still.level.size == 0
    assert has_pairs(MAZE, {})
    assert not has_pairs("CueMaze-v0", {})
    assert not has_pairs("CartPole-v1", {})
    assert play_levels(RandomActor, Levels("CueMaze-v0", {}, 5)).summarize()["changes"] is None
    assert play_levels(RandomActor, Levels(MAZE, {"doors": 0}, 5)).summarize()["changes"]["pairs"] == 0
