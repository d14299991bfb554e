"""Mazes of several sizes in a frame: inside it each is the maze that its seed gives alone."""

from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrm_envs import Cell, MazeConfig, MazeEnv, MazeVectorEnv, ReplanPolicy
from hrm_envs.config import MAX_STEPS, resized
from hrm_envs.limits import make_with_own_limit
from hrm_envs.sizes import build_sizes, drawn_corners, drawn_sizes
from strategies import framed_parameters

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
COUNT = 5


class Alone:
    """The maze of one environment as it is without a frame, moved into the frame to be compared."""

    def __init__(self, env: MazeVectorEnv, index: int, seed: int, episode: int) -> None:
        state, config = env.batch.state, env.config
        self.size = int(state.size[index])
        self.top, self.left, height, width = env.windows[index].tolist()
        self.env = MazeEnv(**asdict(config.each_size()[self.size]))
        self.config = self.env.config
        assert (height, width) == (self.config.height, self.config.width)
        self.obs, self.info = self.env.reset(seed=seed)
        for _ in range(episode):
            self.obs, self.info = self.env.reset()

    def moved(self, position: int, frame_width: int) -> int:
        row, col = divmod(position, self.config.width)
        return (row + self.top) * frame_width + col + self.left

    def step(self, action: int) -> tuple[float, bool, bool]:
        self.obs, reward, terminated, truncated, self.info = self.env.step(action)
        self.info.pop("is_success")
        return reward, terminated, truncated


def assert_same(alone: Alone, env: MazeVectorEnv, index: int, obs: np.ndarray, infos: dict[str, Any]) -> None:
    """What is inside the frame is the maze alone, and all around it is wall, or hidden by fog."""
    config, own = env.config, alone.config
    rows = slice(alone.top, alone.top + own.height), slice(alone.left, alone.left + own.width)
    assert obs.shape == (config.height, config.width)
    assert (obs[rows] == alone.obs).all()
    around = obs.copy()
    around[rows] = Cell.WALL
    assert np.isin(around, (Cell.WALL, Cell.UNKNOWN) if config.view != "full" else (Cell.WALL,)).all()
    whole = env.maps()[index]
    assert (whole[rows] == alone.env.batch.state.grid[0].reshape(own.height, own.width)).all()
    state, single = env.batch.state, alone.env.batch.state
    for name in ("agent", "goal"):
        assert getattr(state, name)[index] == alone.moved(int(getattr(single, name)[0]), config.width)
    assert state.doors[index].tolist() == [alone.moved(p, config.width) for p in single.doors[0].tolist()]
    assert (state.closed[index] == single.closed[0]).all()
    for name, value in alone.info.items():
        assert (infos[name][index] == value).all(), name
    assert env.limits[index] == own.max_episode_steps
    assert env.clairvoyant()[index] == alone.env.clairvoyant()
    assert env.level_seeds[index] == alone.env.level_seed
    assert alone.top % 2 == alone.left % 2 == 0


@settings(max_examples=40, **RELAXED)
@given(parameters=framed_parameters(), seed=st.integers(0, 2**40), oracle=st.booleans())
def test_the_maze_in_a_frame_is_the_maze_alone(parameters: dict[str, Any], seed: int, oracle: bool) -> None:
    env = MazeVectorEnv(COUNT, **parameters, oracle=oracle)
    observations, infos = env.reset(seed=seed)
    alone = [Alone(env, i, seed + i, 0) for i in range(COUNT)]
    codes = env.level_codes()
    for i, each in enumerate(alone):
        assert codes[i] == each.env.batch.level_codes()[0]
        assert_same(each, env, i, observations[i], infos)
    random, episodes = np.random.default_rng(seed), [0] * COUNT
    for _ in range(25):
        actions = random.integers(0, 4, COUNT)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        for i in range(COUNT):
            reward, arrived, out_of_time = alone[i].step(int(actions[i]))
            assert (np.float32(reward), arrived, out_of_time) == (rewards[i], terminated[i], truncated[i])
            if arrived or out_of_time:
                episodes[i] += 1
                alone[i] = Alone(env, i, seed + i, episodes[i])
            assert_same(alone[i], env, i, observations[i], infos)


@settings(max_examples=15, **RELAXED)
@given(parameters=framed_parameters(), seed=st.integers(0, 2**40))
def test_an_agent_never_leaves_the_inside_of_its_maze(parameters: dict[str, Any], seed: int) -> None:
    env = MazeVectorEnv(40, **parameters)
    env.reset(seed=seed)
    assert env.single_observation_space.shape == (env.config.height, env.config.width)
    for actions in np.random.default_rng(seed).integers(0, 4, (60, 40)):
        observations, *_ = env.step(actions)
        assert observations.shape == (40, env.config.height, env.config.width)
        inside = np.stack([env.batch.is_inside(i) for i in range(40)])
        every = np.arange(40)
        assert inside[every, env.batch.state.agent].all()
        assert inside[every, env.batch.state.goal].all()


def test_one_size_that_fills_its_frame_is_the_maze_that_it_was() -> None:
    plain, sized = (MazeVectorEnv(8, oracle=True, **given) for given in ({}, {"sizes": [9]}))
    observations, others = plain.reset(seed=3), sized.reset(seed=3)
    for actions in np.random.default_rng(0).integers(0, 4, (150, 8)):
        assert (observations[0] == others[0]).all()
        assert all((observations[-1][name] == others[-1][name]).all() for name in ("distance", "optimal_actions"))
        observations, others = plain.step(actions), sized.step(actions)
        assert all((left == right).all() for left, right in zip(observations[:4], others[:4], strict=True))
    assert "size" not in plain.get_state()  # states of earlier versions are accepted
    assert plain.sides is None
    assert sized.sides is None


def test_a_level_is_the_same_in_any_place_of_any_vector() -> None:
    options: dict[str, Any] = {"sizes": [9, 11, 15], "canvas": 21, "layout": "braid", "doors": 2}
    env, other = MazeVectorEnv(30, **options), MazeVectorEnv(3, **options)
    observations, _ = env.reset(seed=100)
    found, _ = other.reset(seed=[117, 100, 129])
    assert (found == observations[[17, 0, 29]]).all()
    assert (other.sides == env.sides[[17, 0, 29]]).all()


def test_sizes_and_places_are_drawn_alike() -> None:
    count = 9000
    env = MazeVectorEnv(count, sizes=[9, 11, 13], canvas=15, max_episode_steps=5)
    env.reset(seed=0)
    sides, windows = env.sides, env.windows
    assert sides is not None
    for side in (9, 11, 13):
        own = windows[sides == side]
        assert abs(len(own) - count / 3) < 5 * np.sqrt(count * 2 / 9)
        places, found = np.unique(own[:, :2], axis=0, return_counts=True)
        free = (15 - side) // 2 + 1
        assert len(places) == free**2
        assert (places % 2 == 0).all()
        assert (abs(found - len(own) / free**2) < 5 * np.sqrt(len(own) / free**2)).all()
    # Independent of the maze: the agent's cell within it is spread alike in each place.
    row = (env.batch.state.agent // 15 - windows[:, 0]) // 2
    for side in (9, 11, 13):
        first, last = (row[(sides == side) & (windows[:, 0] == top)] for top in (0, 15 - side))
        assert abs(first.mean() - last.mean()) < 5 * np.sqrt(side**2 / 48 * (1 / len(first) + 1 / len(last)))


SCHEDULE = [[0, 1, 0], [4, 1, 0], [8, 1, 3]]


@pytest.mark.parametrize(("episode", "share"), [(0, 0), (4, 0), (6, 1.5 / 2.5), (8, 0.75), (40, 0.75)])
def test_the_schedule_weighs_sizes_by_the_episodes_of_an_environment(episode: int, share: float) -> None:
    options: dict[str, Any] = {"sizes": [9, 11], "max_episode_steps": 5, "walls": 0, "doors": 0}
    env = MazeVectorEnv(2000, **options, size_schedule=SCHEDULE)
    other = MazeVectorEnv(2000, **options, size_schedule=SCHEDULE, split="validation")
    for number in range(episode + 1):
        seed = None if number else 0
        env.reset(seed=seed)
        other.reset(seed=seed)
    assert env.sides is not None
    assert other.sides is not None
    assert abs((env.sides == 11).mean() - share) <= 5 * np.sqrt(share * (1 - share) / 2000)
    assert abs((other.sides == 11).mean() - 0.5) <= 5 * np.sqrt(0.25 / 2000)


@settings(max_examples=30, **RELAXED)
@given(parameters=framed_parameters(), seed=st.integers(0, 2**63 - 50), episode=st.integers(0, 6))
def test_sizes_and_places_without_compiled_code_are_those_of_the_kernel(
    parameters: dict[str, Any], seed: int, episode: int
) -> None:
    env = MazeVectorEnv(40, **parameters)
    for number in range(episode + 1):
        env.reset(seed=None if number else seed)
    sizes, state, config = build_sizes(env.config), env.batch.state, env.config
    assert sizes is not None
    chosen = drawn_sizes(sizes, state.level_seed, state.episode)
    assert (chosen == state.size).all()
    assert (drawn_corners(sizes, (config.height, config.width), state.level_seed, chosen) == state.corner).all()


def test_a_larger_maze_has_more_time_and_its_share_of_walls() -> None:
    base = MazeConfig(rows=6, cols=6, max_episode_steps=60, walls=10, sizes=[9, 13, 31])
    each = base.each_size()
    assert [config.max_episode_steps for config in each] == [27, 60, 375]  # 60 steps for 36 cells, rounded up
    assert [config.walls for config in each] == [4, 10, 70]
    assert base.longest_episode == 375
    assert all(config == MazeConfig(**{**asdict(config), **resized(base, config.rows)}) for config in each)
    assert MazeConfig(sizes=[129], max_episode_steps=MAX_STEPS).longest_episode == MAX_STEPS


def test_each_level_is_truncated_at_the_limit_of_its_size() -> None:
    options: dict[str, Any] = {"sizes": [9, 13], "canvas": 13, "doors": 0, "layout": "braid", "max_episode_steps": 20}
    vector = MazeVectorEnv(20, **options)
    vector.reset(seed=0)
    limits, going = vector.limits, np.ones(20, bool)
    assert set(limits.tolist()) == {20, 45}
    single = make_with_own_limit("hrm_envs:DynamicMaze-v0", **options)
    unlimited = make_with_own_limit("DynamicMaze-v0", **{**options, "max_episode_steps": -1})
    assert single.spec is not None
    assert single.spec.max_episode_steps is None
    for i in range(3):
        single.reset(seed=i)
        unlimited.reset(seed=i)
        assert single.unwrapped.level_limit == limits[i]
        assert unlimited.unwrapped.level_limit == MAX_STEPS
        steps, arrived, late = 0, False, False
        while not (arrived or late):
            _, _, arrived, late, _ = single.step(0)
            steps += 1
        assert arrived or steps == limits[i]
    for step in range(1, 46):
        _, _, terminated, truncated, _ = vector.step(np.zeros(20, np.int64))
        assert (truncated == (limits == step))[going & ~terminated].all()
        going &= ~(terminated | truncated)
    assert not going.any()
    made = gymnasium.make("DynamicMaze-v0", sizes=[9, 13])
    assert made.reset(seed=0)[0].shape == (13, 13)


def test_the_replanner_solves_mazes_of_all_sizes() -> None:
    env = MazeVectorEnv(200, sizes=[9, 21, 31], layout="braid", doors=0)
    observations, _ = env.reset(seed=0)
    arrival, policy = env.clairvoyant(), ReplanPolicy()
    arrived = np.zeros(200, np.int64)
    for step in range(1, arrival.max() + 1):
        observations, _, terminated, _, _ = env.step(policy.act(observations))
        arrived[terminated & (arrived == 0)] = step
    assert (arrival > 0).all()
    assert (arrived == arrival).all()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sizes": [8, 9]}, "8 is even; give odd sides of the grid"),
    ({"sizes": 9}, "sizes=9 is not a list of sides"),
    ({"sizes": []}, "is not a list of sides"),
    ({"sizes": [9, 9]}, "has a side twice"),
    ({"sizes": [3]}, "sizes: a side=3 is not an integer from 5 to 129"),
    ({"sizes": [9, "11"]}, "sizes: a side='11' is not an integer"),
    ({"sizes": [9], "canvas": 7}, "canvas=7 is not an integer from 9 to 129"),
    ({"canvas": 12}, "canvas=12 is even; give an odd side, such as 13"),
    ({"canvas": 131}, "canvas=131 is not an integer from 9 to 129"),
    ({"sizes": [9], "layout": "four_rooms"}, "sizes and canvas do not apply to layout='four_rooms'"),
    ({"canvas": 15, "layout": "sutton_rooms", "rows": 6, "cols": 6}, "do not apply to layout='sutton_rooms'"),
    ({"sizes": [13], "layout": "sutton_rooms"}, "do not apply to layout='sutton_rooms'"),
    ({"canvas": 8}, "give the odd side of the observed square"),
    ({"size_schedule": [[0, 1]]}, "size_schedule needs sizes"),
    ({"sizes": [9, 11], "size_schedule": 3}, r"is not a list of rows \[episodes, weight of 9, weight of 11\]"),
    ({"sizes": [9, 11], "size_schedule": [[0, 1]]}, "is not a list of rows"),
    ({"sizes": [9, 11], "size_schedule": [[1, 1, 1]]}, "begin with 0"),
    ({"sizes": [9, 11], "size_schedule": [[0, 1, 1], [0, 1, 2]]}, "let them grow"),
    ({"sizes": [9, 11], "size_schedule": [[0, 0, 0]]}, "one of them above 0"),
    ({"sizes": [9, 11], "size_schedule": [[0, -1, 2]]}, "weights from 0 to a million"),
    ({"sizes": [9, 11], "size_schedule": [[0, float("nan"), 2]]}, "weights from 0 to a million"),
    ({"sizes": [9, 11], "size_schedule": [[0.5, 1, 2]]}, "size_schedule: episodes=0.5"),
    ({"sizes": [5, 21], "doors": 4}, "walls=1 and doors=4 do not fit on the 4 edges of a 2x2 maze"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        MazeVectorEnv(2, **parameters)
    assert "\n" not in str(refusal.value)
