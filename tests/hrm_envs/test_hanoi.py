"""Towers of Hanoi: single and vector environments agree, goals follow their schedule, states are checked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from hrm_envs import HanoiConfig, HanoiEnv, HanoiVectorEnv
from hrm_envs.hanoi import Schedule, shortest_actions
from hrm_envs.hanoi_rendering import render_hanoi
from hrm_envs.hanoi_rules import PAIRS, legal_pairs, optimal_moves
from hrm_envs.rng import all_below, all_happen, below, draw, draws, happens


def pegs_of(obs: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    return obs["disks"][..., 0, 0], obs["disks"][..., 0, 1]


@settings(max_examples=12)
@given(st.integers(0, 2**40), st.sampled_from([0.0, 0.2]), st.booleans(), st.integers(1, 4))
def test_environment_i_of_a_vector_is_the_single_one_seeded_s_plus_i(
    seed: int, p_goal: float, oracle: bool, disks: int
) -> None:
    options: dict[str, Any] = {"disks": disks, "p_goal": p_goal, "oracle": oracle, "max_episode_steps": 9}
    vector, singles = HanoiVectorEnv(3, **options), [HanoiEnv(**options) for _ in range(3)]
    obs, infos = vector.reset(seed=seed)
    for i, env in enumerate(singles):
        own, info = env.reset(seed=seed + i)
        assert_row(obs, own, i)
        assert_row({name: infos[name] for name in info}, info, i)
    generator = np.random.default_rng(seed)
    for _ in range(30):
        actions = generator.integers(0, 6, 3)
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        for i, env in enumerate(singles):
            own, reward, over, cut, info = env.step(int(actions[i]))
            assert (np.float32(reward), over, cut) == (rewards[i], terminated[i], truncated[i])
            if over or cut:
                assert_row(infos["final_obs"], own, i)
                assert infos["episode"]["success"][i] == info.pop("is_success") == over
                assert_row(infos["final_info"], info, i)
                own, info = env.reset()
            info.pop("is_success", None)
            assert_row(obs, own, i)
            assert_row(infos, info, i)


def assert_row(batch: dict[str, NDArray], own: dict[str, Any], i: int) -> None:
    for name, value in own.items():
        assert np.array_equal(batch[name][i], value), name


def test_gymnasium_finds_nothing_wrong() -> None:
    check_env(gym.make("hrm_envs:Hanoi-v0", disks=3).unwrapped)
    vector = gym.make_vec("hrm_envs:Hanoi-v0", num_envs=2, vectorization_mode="vector_entry_point", disks=3)
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)


def test_a_move_is_as_its_action_says_and_an_illegal_one_costs_its_step() -> None:
    env = HanoiEnv(disks=4)
    obs, info = env.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(40):
        pegs, goals = pegs_of(obs)
        action = int(generator.integers(6))
        origin, target = PAIRS[action]
        expected = pegs.copy()
        if obs["action_mask"][action]:
            expected[np.flatnonzero(pegs == origin)[-1]] = target
        assert (obs["action_mask"] == info["action_mask"]).all()
        assert (obs["action_mask"] == legal_pairs(pegs[None])[0]).all()
        obs, reward, terminated, _, info = env.step(action)
        assert (pegs_of(obs)[0] == expected).all()
        assert terminated == (expected == goals).all()
        assert reward == (1.0 if terminated else -0.01)
        if terminated:
            obs, info = env.reset()


def test_optimal_actions_reach_the_goal_when_it_is_due() -> None:
    """The oracle's actions lower its distance by one; the bound is the distance; so are the planner's actions."""
    env = HanoiVectorEnv(50, disks=4, oracle=True)
    obs, infos = env.reset(seed=1)
    due = env.clairvoyant().copy()
    assert (due == infos["distance"]).all()
    lengths = np.zeros(50, int)
    for step in range(1, 16):
        actions = shortest_actions(obs["disks"])
        assert infos["optimal_actions"][np.arange(50), actions].all()
        before = infos["distance"]
        obs, _, terminated, truncated, infos = env.step(actions)
        assert not truncated.any()
        going = ~terminated
        assert (infos["distance"][going] == before[going] - 1).all()
        lengths[(lengths == 0) & terminated] = step
    assert (lengths == due).all()


def test_the_goal_changes_as_often_as_said_whatever_is_done() -> None:
    one, other = (HanoiVectorEnv(400, disks=5, p_goal=0.1, oracle=True) for _ in range(2))
    goals = [pegs_of(env.reset(seed=7)[0])[1] for env in (one, other)]
    generator, changes, going = np.random.default_rng(0), 0, np.ones(400, bool)
    for _ in range(50):
        after = []
        for env in (one, other):
            obs, _, terminated, truncated, infos = env.step(generator.integers(0, 6, 400))
            going &= ~(terminated | truncated)
            after.append(pegs_of(obs)[1])
        assert (after[0] == after[1])[going].all()
        changed = (after[0] != goals[0]).any(1)
        assert (infos["changed"] == changed)[going].all()
        changes += int(changed[going].sum())
        goals = after
    assert going.sum() > 300
    assert 0.08 < changes / (50 * going.sum()) < 0.12


def test_the_bound_is_the_earliest_arrival_of_a_search_over_states_and_steps() -> None:
    limit = 12
    env = HanoiVectorEnv(40, disks=2, p_goal=0.3, max_episode_steps=limit)
    obs, _ = env.reset(seed=3)
    schedule, seeds = Schedule(2, 0.3, "train"), env.level_seeds
    states = np.array([(a, b) for a in range(3) for b in range(3)])
    near = [optimal_moves(states, np.broadcast_to(s, states.shape)).distance <= 1 for s in states]
    for i, bound in enumerate(env.clairvoyant().tolist()):
        reached = (states == pegs_of(obs)[0][i]).all(1)
        goals = [schedule.goals(seeds[i : i + 1], np.array([step]))[0] for step in range(limit + 1)]
        found = -1
        for step, (goal, following) in enumerate(pairwise(goals), 1):
            reached = np.array([reached[own].any() for own in near])
            if any(reached[(states == g).all(1)][0] for g in (goal, following)):
                found = step
                break
        assert bound == found


@njit
def numbers_of_kernels(seeds: NDArray, bits: NDArray, few: NDArray, due: NDArray) -> None:
    for i in range(len(seeds)):
        bits[i] = draw(seeds[i], 4, i, 7)
        few[i], due[i] = below(bits[i], 3), happens(bits[i], 2**52)


def test_numbers_of_arrays_are_those_of_the_kernels() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**62, 50)
    bits, few, due = np.zeros(50, np.uint64), np.zeros(50, np.int64), np.zeros(50, np.bool_)
    numbers_of_kernels(seeds, bits, few, due)
    ours = draws(seeds, 4, np.arange(50), 7)
    assert ours.tolist() == bits.tolist()
    assert all_below(ours, 3).tolist() == few.tolist()
    assert all_happen(ours, 2**52).tolist() == due.tolist()


def test_starts_and_goals_are_uniform_among_different_states() -> None:
    pegs, goals = Schedule(1, 0.0, "train").starts(np.arange(6000))
    counts = np.bincount(3 * pegs[:, 0] + goals[:, 0], minlength=9).reshape(3, 3)
    assert (np.diag(counts) == 0).all()
    assert counts[~np.eye(3, dtype=bool)].min() > 900


@pytest.mark.parametrize("p_goal", [0.0, 0.3])
def test_a_restored_state_goes_on_alike(p_goal: float) -> None:
    one, other = (HanoiVectorEnv(8, disks=3, p_goal=p_goal, oracle=True) for _ in range(2))
    one.reset(seed=5)
    other.reset(seed=99)
    generator = np.random.default_rng(0)
    for _ in range(60):
        other.set_state(one.get_state())
        assert all((one.observe()[name] == value).all() for name, value in other.observe().items())
        actions = generator.integers(0, 6, 8)
        first, second = one.step(actions), other.step(actions)
        assert all((first[0][name] == value).all() for name, value in second[0].items())
        assert all((a == b).all() for a, b in zip(first[1:4], second[1:4], strict=True))


def test_a_single_environment_can_be_restored_at_its_end() -> None:
    for p_goal in (0.0, 0.5):
        env = HanoiEnv(disks=2, p_goal=p_goal)
        for seed in range(20):
            env.reset(seed=seed)
            generator, over = np.random.default_rng(seed), False
            while not over:
                _, _, terminated, truncated, _ = env.step(int(generator.integers(6)))
                over = terminated or truncated
            other = HanoiEnv(disks=2, p_goal=p_goal)
            other.set_state(env.get_state())
            assert all((other.observe()[name] == part).all() for name, part in env.observe().items())
            with pytest.raises(gym.error.ResetNeeded):
                other.step(0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pegs", 3, "expected a peg, 0, 1 or 2"),
        ("goals", 7, "expected a peg, 0, 1 or 2"),
        ("steps", 10**6, "expected 0 to 59"),
        ("done", 1, "expected 0 where episodes begin at once"),
        ("level_seed", 5, "the level of its seed and episode"),
    ],
)
def test_a_state_that_no_environment_is_in_is_refused(name: str, value: int, said: str) -> None:
    env = HanoiVectorEnv(2, disks=4)
    env.reset(seed=0)
    before = env.get_state()
    forged = {key: array.copy() for key, array in before.items()}
    forged[name].flat[0] = value
    with pytest.raises(ValueError, match=said):
        env.set_state(forged)
    assert all((array == before[key]).all() for key, array in env.get_state().items())


def test_another_goal_and_a_state_too_far_away_are_refused() -> None:
    env = HanoiVectorEnv(1, disks=4)
    env.reset(seed=0)
    state = env.get_state()
    with pytest.raises(ValueError, match="the goal of its level and step"):
        env.set_state({**state, "goals": (state["goals"] + 1) % 3})
    with pytest.raises(ValueError, match="as many moves as steps were taken"):
        env.set_state({**state, "pegs": (state["pegs"] + 1) % 3})


def test_levels_of_two_splits_are_apart_and_codes_tell_levels_apart() -> None:
    held: dict[str, set[bytes]] = {}
    for split in ("train", "validation", "test"):
        env = HanoiVectorEnv(3000, disks=3, split=split)
        held[split] = {disks.tobytes() for disks in env.reset(seed=0)[0]["disks"]}
    assert len(held["train"]) > 400  # of 27 * 26 pairs, three quarters
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    assert held["test"]
    assert not held["test"] & held["validation"]
    small = HanoiVectorEnv(500, disks=1)
    obs, _ = small.reset(seed=0)
    seen = {tuple(disks.ravel().tolist()) for disks in obs["disks"]}
    assert len(set(small.level_codes().tolist())) == len(seen) == 6
    changing = HanoiVectorEnv(500, disks=1, p_goal=0.5)
    changing.reset(seed=0)
    assert len(set(changing.level_codes().tolist())) > 100  # schedules differ


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"disks": 0}, "disks=0 is not an integer from 1 to 16"),
        ({"disks": 2.5}, "disks=2.5 is not an integer"),
        ({"disks": 17}, "disks=17"),
        ({"p_goal": 1.5}, "p_goal=1.5 is not a number from 0 to 1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"oracle": 1}, "oracle=1 is not a bool"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"disk": 3}, "did you mean 'disks'"),
    ],
)
def test_bad_parameters_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        HanoiVectorEnv(2, **options)
    assert "\n" not in str(refusal.value)


def test_bad_actions_change_nothing() -> None:
    env = HanoiVectorEnv(2, disks=3)
    env.reset(seed=0)
    before = env.get_state()
    for actions in ([0, 6], [-1, 0]):
        with pytest.raises(ValueError, match="is not 0 to 5"):
            env.step(np.array(actions))
    assert all((array == before[key]).all() for key, array in env.get_state().items())
    with pytest.raises(gym.error.ResetNeeded):
        HanoiEnv().step(0)


def test_the_default_time_limit_grows_with_the_disks() -> None:
    assert [HanoiConfig(disks=n).max_episode_steps for n in (1, 4, 16)] == [4, 60, 4 * (2**16 - 1)]
    env = gym.make("hrm_envs:Hanoi-v0", disks=3)
    env.reset(seed=0)
    illegal = [int(np.flatnonzero(env.unwrapped.batch.observations["action_mask"][0] == 0)[0])] * 28  # type: ignore[attr-defined]
    ends = [env.step(action)[3] for action in illegal]
    assert ends == [False] * 27 + [True]


def test_a_picture_shows_the_state_and_the_goal() -> None:
    env = HanoiEnv(disks=3, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None
    assert frame.dtype == np.uint8
    assert frame.shape[1] == 15 * 24
    shown = [render_hanoi(np.array(p), np.array(g)) for p, g in (([0, 0, 0], [2, 2, 2]), ([0, 0, 1], [2, 2, 2]))]
    other_goal = render_hanoi(np.array([0, 0, 0]), np.array([2, 2, 1]))
    assert (shown[0] != shown[1]).any()
    assert (shown[0] != other_goal).any()
    half = 60  # the goal's panel is above
    assert (shown[0][:half] == shown[1][:half]).all()
    assert (shown[0][:half] != other_goal[:half]).any()
    for pegs, goals in (([0, 3], [0, 1]), ([], []), ([0], [0, 1])):
        with pytest.raises(ValueError, match="expected"):
            render_hanoi(np.array(pegs), np.array(goals))
