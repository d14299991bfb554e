"""Foreign observations become observations that encoders take, and nothing of them is lost on the way."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from hrm_agent.environments.make import make_vector_env
from hrm_agent.environments.wrappers import (
    MISSION_WORDS,
    BinaryToVector,
    EncodeMission,
    EncodeText,
    FlattenDict,
    FlattenTuple,
    NarrowMiniGrid,
    ScaleIntegers,
    adapt,
    is_adapted,
)
from hrm_agent.environments.wrappers.text import UNKNOWN_WORD_IDS, split_words, word_id
from hrm_agent.policies.encoders import EncoderConfig, build_encoder
from hrm_agent.tensors.trees import to_tensors

MISSIONS = ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-MemoryS7-v0", "MiniGrid-Fetch-5x5-N2-v0", "BabyAI-GoToRedBall-v0"]


class Sampler(gym.Env):
    """Shows samples of a space; episodes of three steps, ended by the time limit and by the goal in turn."""

    def __init__(self, space: gym.Space) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.episodes = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episodes += 1
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        over, odd = self.steps == 3, self.episodes % 2 == 1
        return self.observation_space.sample(), 1.0, over and odd, over and not odd, {}


def one(env: gym.Env) -> Any:
    return env.reset(seed=0)[0]


leaves = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 6), min_size=1, max_size=4)),
    st.just(spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]))),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 6), st.just([2, 3]))),
    st.builds(spaces.Text, st.integers(1, 6)),
    st.sampled_from([(), (3,), (2, 2)]).map(lambda shape: spaces.Box(-2.0, 2.0, shape, np.float32)),
    st.sampled_from([(), (3,), (2, 2), (2, 2, 2, 2)]).map(lambda shape: spaces.Box(-5, 900, shape, np.int16)),
    st.just(spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64)),
    st.just(spaces.Box(-np.inf, np.inf, (2,), np.float64)),
)
names = st.text("ab.c", min_size=1, max_size=3)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(names, inner, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=5,
)


@given(space=trees)
def test_whatever_is_adapted_is_read_by_an_encoder(space: gym.Space) -> None:
    try:
        env = adapt(Sampler(space))
    except ValueError as error:
        if "two entries" in str(error):  # `a.b` beside `a: {b}`
            return
        raise
    assert is_adapted(env.observation_space)
    obs = one(env)
    assert obs in env.observation_space
    parts = list(env.observation_space.values()) if isinstance(env.observation_space, spaces.Dict) else []
    if sum(isinstance(part, spaces.Box) and len(part.shape) == 2 for part in parts) > 1:
        return  # several grids are the encoder's affair
    encoder = build_encoder(env.observation_space, 4, EncoderConfig())
    batch = {k: np.asarray(v)[None] for k, v in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
    tokens = encoder(to_tensors(batch))
    assert tokens.shape == (1, encoder.length, 4)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 5, (9, 9), np.uint8),
        spaces.Box(0, 255, (210, 160, 3), np.uint8),
        spaces.Box(-1.0, 1.0, (4,), np.float32),
        spaces.Discrete(3),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 5, (4, 4), np.uint8)),
    ],
)
def test_what_is_readable_is_left_alone(space: gym.Space) -> None:
    env = Sampler(space)
    assert adapt(env) is env
    assert is_adapted(space)


@pytest.mark.parametrize(
    "space",
    [spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Discrete(2), None), spaces.OneOf([spaces.Discrete(2)])],
)
def test_what_has_no_encoding_is_refused_on_one_line(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"^part: no encoding for \w+ observations") as error:
        adapt(Sampler(spaces.Dict(part=space)))
    assert "\n" not in str(error.value)


def test_tuples_and_dictionaries_keep_every_entry() -> None:
    space = spaces.Dict(
        a=spaces.Tuple([spaces.Discrete(5), spaces.Dict(b=spaces.Discrete(7))]), c=spaces.Box(0, 1, (2,))
    )
    raw, flat = one(Sampler(space)), one(FlattenDict(FlattenTuple(Sampler(space))))
    assert set(flat) == {"a/0", "a/1/b", "c"}
    assert (flat["a/0"], flat["a/1/b"]) == (raw["a"][0], raw["a"][1]["b"])
    assert (flat["c"] == raw["c"]).all()


@given(low=st.integers(-1000, 0), width=st.integers(0, 70_000), at=st.floats(0, 1))
def test_scaled_integers_keep_their_order_and_their_bounds(low: int, width: int, at: float) -> None:
    env = ScaleIntegers(Sampler(spaces.Box(low, low + width, (1,), np.int64)))
    x = low + int(at * width)
    values = [float(env.observation(np.array([v]))[0]) for v in (low, x, low + width)]
    assert values == sorted(values)
    assert all(np.array([v], np.float32) in env.observation_space for v in values)
    if 0 < width <= 2**16:
        assert (values[0], values[2]) == (-1, 1)


def test_bits_become_numbers() -> None:
    env = BinaryToVector(Sampler(spaces.MultiBinary(4)))
    assert env.observation(np.array([1, 0, 0, 1], np.int8)).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_characters_have_ids_in_the_order_of_the_space() -> None:
    env = EncodeText(Sampler(spaces.Text(5, charset="abc")))
    order = {c: i + 1 for i, c in enumerate(spaces.Text(5, charset="abc").character_list)}
    assert env.observation("ca?").tolist() == [order["c"], order["a"], 4, 0, 0]
    assert env.observation("ca?") in env.observation_space


def test_words_have_ids_that_never_change() -> None:
    """Agents are saved with these ids: appending words keeps them, anything else breaks every saved agent."""
    assert [word_id(w) for w in (",", "ball", "your", "agent")] == [17, 23, 70, 73]
    assert len(set(MISSION_WORDS)) == len(MISSION_WORDS)
    unknown = [word_id(w) for w in ("zorkmid", "grue", "xyzzy")]
    assert unknown == [6, 13, 8]
    assert all(1 <= i <= UNKNOWN_WORD_IDS for i in unknown)
    assert split_words("Go to the red door, then stop") == ["go", "to", "the", "red", "door", ",", "then", "stop"]


@pytest.mark.parametrize("env_id", MISSIONS)
def test_missions_are_encoded_whole_and_told_apart(env_id: str) -> None:
    pytest.importorskip("minigrid")
    raw = gym.make(env_id)
    env = EncodeMission(raw)
    found: dict[str, tuple[int, ...]] = {}
    for seed in range(12):
        mission, obs = raw.reset(seed=seed)[0]["mission"], env.reset(seed=seed)[0]
        words = split_words(mission)
        assert obs["mission"][: len(words)].tolist() == [17 + MISSION_WORDS.index(word) for word in words]
        assert not obs["mission"][len(words) :].any()
        assert obs in env.observation_space
        found[mission] = tuple(obs["mission"])
    assert len(set(found.values())) == len(found)


def test_a_mission_is_as_long_as_asked_for() -> None:
    pytest.importorskip("minigrid")
    env = EncodeMission(gym.make("MiniGrid-Fetch-5x5-N2-v0"), max_words=3)
    assert one(env)["mission"].shape == (3,)
    with pytest.raises(ValueError, match="max_words=0"):
        EncodeMission(gym.make("MiniGrid-Fetch-5x5-N2-v0"), max_words=0)


def test_minigrids_ids_stay_in_the_declared_range() -> None:
    pytest.importorskip("minigrid")
    env = NarrowMiniGrid(gym.make("MiniGrid-DoorKey-5x5-v0"))
    highest = np.zeros(3, int)
    env.action_space.seed(0)
    for seed in range(5):
        obs = env.reset(seed=seed)[0]
        for _ in range(50):
            assert obs["image"] in env.observation_space["image"]
            highest = np.maximum(highest, obs["image"].max((0, 1)))
            obs = env.step(env.action_space.sample())[0]
    assert (highest > (4, 3, 1)).all()  # keys, colours, locked doors: the range is not empty room
    with pytest.raises(ValueError, match="MiniGrid"):
        NarrowMiniGrid(env)


def test_a_vector_shows_adapted_observations_and_adapted_final_ones() -> None:
    space = spaces.Dict(words=spaces.Text(4), pair=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]))
    gym.register("AdaptedSampler-v0", entry_point=lambda: Sampler(space), disable_env_checker=True)
    try:
        envs = make_vector_env("AdaptedSampler-v0", 3)
        expected = {"words", "pair/0", "pair/1"}
        assert set(envs.single_observation_space) == expected  # type: ignore[call-overload]
        obs, _ = envs.reset(seed=0)
        for step in range(1, 7):
            obs, _, terminated, truncated, infos = envs.step(np.zeros(3, int))
            assert obs["words"].shape == (3, 4)
            assert (terminated | truncated).all() == (step % 3 == 0)
            if step % 3 == 0:
                assert all(final in envs.single_observation_space for final in infos["final_obs"])
                assert (infos["final_info"]["episode"]["r"] == 3).all()
        envs.close()
    finally:
        del gym.registry["AdaptedSampler-v0"]
